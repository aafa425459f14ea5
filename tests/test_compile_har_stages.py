"""The ladder's stages inside Hailo's compiler, on a stand-in for it that computes."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_dfc import PYTHON, fault, features, use_standin
from helpers_models import small_model

from whisper_hailo_hf import (
    HailoWhisperEncoder,
    RequestError,
    WhisperHailoError,
    compare_stages,
    compile_encoder,
    quantize_encoder,
)
from whisper_hailo_hf.cli.main import main
from whisper_hailo_hf.compile import compiler_stages
from whisper_hailo_hf.compile.har_stages import FORMS

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the compiler runs on Linux only")

DATA = features(80)


@pytest.fixture(autouse=True)
def standin(monkeypatch, tmp_path):
    use_standin(monkeypatch)
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(rooms))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A model's folder after a compilation that ended with the integers, beside its work folder; the report."""
    folder = tmp_path_factory.mktemp("built")
    small_model(cls=HailoWhisperEncoder).save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        use_standin(patch)
        report = compile_encoder(
            folder / "model", DATA, dfc_python=PYTHON, compare_windows=4, stop_after="compare-quantized"
        )
    return folder, report


@pytest.fixture
def copied(built, tmp_path):
    """The same, for changes."""
    for name in ("model", "model-hailo8l"):
        shutil.copytree(built[0] / name, tmp_path / name)
    return tmp_path


def compared(built) -> np.ndarray:
    """The windows that the compilation compared on, as features."""
    return np.load(built[0] / "model-hailo8l" / "comparison.npy")[:, 0].transpose(0, 2, 1)


def stage(report, name):
    return next(stage for stage in report.stages if stage.name == name)


def rooms(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "rooms").iterdir())


# What they give


def test_the_whole_ladder_but_for_the_chip(built, tmp_path):
    shutil.copytree(built[0] / "model", tmp_path / "model")
    shutil.copytree(built[0] / "model-hailo8l", tmp_path / "model-hailo8l")
    quantize_encoder(tmp_path / "model", DATA, choices=False)
    told = []
    openers = compiler_stages(tmp_path / "model", PYTHON)
    report = compare_stages(
        tmp_path / "model", compared(built), openers=openers, observe=lambda *what: told.append(what)
    )
    assert report.ok, report.verdict()
    assert [pair.stage for pair in report.neighbours] == ["onnx", "emulator", "har-native", "har-quantized"]
    against_torch = {pair.stage: pair.metrics["snr_db"] for pair in report.against_first}
    assert against_torch["har-native"] > 100
    assert 20 < against_torch["har-quantized"] < 60
    assert ("har-native", 0, 4) in told
    assert ("har-quantized", 4, 4) in told
    native = stage(report, "har-native").info
    assert native["har"] == str(tmp_path / "model-hailo8l" / "encoder.har")
    assert (native["context"], native["dfc"], native["hw_arch"]) == ("SDK_NATIVE", "3.33.0", "hailo8l")
    assert native["peak_memory"] > 2**20
    assert stage(report, "har-quantized").layer_snr["encoder/output_layer1"] > 20  # what the compiler itself told
    assert rooms(tmp_path) == []


def test_the_figures_are_those_of_the_compilation(built):
    """Two ways from the same windows through the same HARs."""
    openers = compiler_stages(built[0] / "model", PYTHON)
    report = compare_stages(
        built[0] / "model", compared(built), ["onnx", "har-native", "har-quantized"], openers=openers
    )
    for pair, name in zip((report.neighbours[0], report.against_first[0]), ("native", "quantized"), strict=True):
        figures = built[1].stages[f"compare-{name}"]["figures"]
        assert pair.metrics["cosine_min"] == pytest.approx(figures["cosine_min"], abs=1e-6)
        # far below the last float, the noise of two summations is not the same
        assert pair.metrics["snr_db"] == pytest.approx(figures["snr_db"], abs=1e-3 if name == "quantized" else 3)


def test_without_a_compilation_the_network_is_parsed(tmp_path):
    small_model(cls=HailoWhisperEncoder).save_pretrained(tmp_path / "model")
    report = compare_stages(tmp_path / "model", DATA[:3], openers=compiler_stages(tmp_path / "model", PYTHON))
    assert report.ok
    assert stage(report, "har-native").info["har"] == "parsed for this comparison"
    assert [pair.stage for pair in report.neighbours] == ["onnx", "har-native"]
    assert report.neighbours[1].metrics["snr_db"] > 100
    absent = stage(report, "har-quantized")
    assert absent.status == "absent"
    assert absent.why.startswith("needs encoder_optimized.har of whisper-hailo compile: ")
    assert not (tmp_path / "model-hailo8l").exists()
    assert rooms(tmp_path) == []


def test_a_model_in_memory(tmp_path):
    encoder = small_model(cls=HailoWhisperEncoder)
    report = compare_stages(encoder, torch.from_numpy(DATA[:2]), openers=compiler_stages(encoder, PYTHON))
    assert [pair.stage for pair in report.neighbours] == ["onnx", "har-native"]
    assert "name its work folder with --work" in stage(report, "har-quantized").why


def test_tiles_and_time_on_the_other_axis(tmp_path):
    """Windows of 10 positions of 30, compiled with time on the height, in a work folder of another name."""
    model = small_model("attention", cls=HailoWhisperEncoder, encoder_options={"window_seconds": 0.2})
    model.save_pretrained(tmp_path / "model")
    given = {"dfc_python": PYTHON, "work": tmp_path / "elsewhere", "stop_after": "parse", "time_axis": "height"}
    compile_encoder(tmp_path / "model", DATA, **given)
    openers = compiler_stages(tmp_path / "model", PYTHON, work=tmp_path / "elsewhere")
    report = compare_stages(tmp_path / "model", DATA[:3], ["torch", "har-native"], openers=openers)
    assert report.neighbours[0].metrics["snr_db"] > 100
    assert stage(report, "har-native").info["har"] == str(tmp_path / "elsewhere" / "encoder.har")


# What is wrong with them


def test_a_parser_that_makes_another_network(tmp_path, monkeypatch):
    fault(monkeypatch, "translate_onnx_model", spoil=0.5)
    encoder = small_model(cls=HailoWhisperEncoder)
    report = compare_stages(encoder, torch.from_numpy(DATA[:2]), openers=compiler_stages(encoder, PYTHON))
    assert report.first_broken == "har-native"
    assert "against onnx, " in report.broken["har-native"]


def test_hars_of_other_weights_are_refused(copied):
    small_model(seed=1, cls=HailoWhisperEncoder).save_pretrained(copied / "model")
    report = compare_stages(copied / "model", DATA[:2], openers=compiler_stages(copied / "model", PYTHON))
    assert list(report.broken) == list(FORMS)
    for why in report.broken.values():
        assert "was made from other weights than those loaded: run whisper-hailo compile again" in why
    assert [pair.stage for pair in report.neighbours] == ["onnx"]


@pytest.mark.parametrize("change", ["content", "journal", "old journal"])
def test_hars_that_the_journal_does_not_know_are_refused(copied, change):
    work = copied / "model-hailo8l"
    if change == "content":
        with open(work / "encoder_optimized.har", "ab") as file:
            file.write(b"\0")
    elif change == "journal":
        (work / "journal.jsonl").unlink()
    else:
        lines = [json.loads(line) for line in (work / "journal.jsonl").read_text().splitlines()]
        kept = [{name: value for name, value in line.items() if name != "made_from"} for line in lines]
        (work / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    openers = compiler_stages(copied / "model", PYTHON)
    encoder = HailoWhisperEncoder.from_pretrained(copied / "model", encoder_backend="torch")
    with pytest.raises(WhisperHailoError, match=r"encoder_optimized\.har in .* is no file that its journal knows"):
        openers["har-quantized"](encoder)


def test_a_compiler_that_fails_is_a_broken_stage_and_leaves_its_log(built, tmp_path, monkeypatch):
    openers = compiler_stages(built[0] / "model", PYTHON)
    fault(monkeypatch, "infer", exit=139)
    report = compare_stages(built[0] / "model", DATA[:2], ["torch", "har-native", "onnx"], openers=openers)
    assert report.first_broken == "har-native"
    why = report.broken["har-native"]
    assert "the compiler ended with status 139: Segmentation fault of sorts (log: 001-har-native.log), in " in why
    assert (Path(why.rpartition(", in ")[2]) / "001-har-native.log").read_text().endswith("of sorts\n")
    assert [pair.stage for pair in report.neighbours] == ["onnx"]


def test_values_that_are_no_numbers(built, monkeypatch):
    openers = compiler_stages(built[0] / "model", PYTHON)
    fault(monkeypatch, "infer", nan=True)
    report = compare_stages(built[0] / "model", DATA[:2], ["torch", "har-quantized"], openers=openers)
    assert "60 frames with values that are not finite" in report.broken["har-quantized"]


def test_memory_and_time_have_ends(built, monkeypatch):
    for limits, ends in (({"memory_ceiling": "150M"}, "held"), ({"timeout": 1.0}, "took more than")):
        openers = compiler_stages(built[0] / "model", PYTHON, **limits)
        fault(monkeypatch, "infer", eat=400, sleep=20)
        report = compare_stages(built[0] / "model", DATA[:2], ["torch", "har-native"], openers=openers)
        assert ends in report.broken["har-native"]
        monkeypatch.delenv("STANDIN_FAULTS")


# Requests


def test_requests_that_cannot_be_met(tmp_path, monkeypatch):
    encoder = small_model(cls=HailoWhisperEncoder)
    with pytest.raises(RequestError, match="no such interpreter"):
        compiler_stages(encoder, tmp_path / "python")
    with pytest.raises(RequestError, match=r"--work .*nowhere: no such folder"):
        compiler_stages(encoder, PYTHON, work=tmp_path / "nowhere")
    openers = compiler_stages(encoder, PYTHON)
    with pytest.raises(RequestError, match=r"'har-quantized' cannot be had here: needs encoder_optimized\.har"):
        compare_stages(encoder, torch.from_numpy(DATA[:2]), ["torch", "har-quantized"], openers=openers)
    with pytest.raises(RequestError, match="an opener for an unknown stage 'har'"):
        compare_stages(encoder, torch.from_numpy(DATA[:2]), openers={"har": openers["har-native"]})
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(RequestError, match=r"--dfc-python .*No module named 'hailo_sdk_client'"):
        compiler_stages(encoder, PYTHON)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RequestError, match=r"runs on Linux \(x86-64\) only"):
        compiler_stages(encoder, PYTHON)
    assert rooms(tmp_path) == []


# The verb


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["verify", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_the_verb(built, tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "windows.npy", compared(built))
    given = (built[0] / "model", tmp_path / "windows.npy")
    status, out, err = run(capsys, *given, "--dfc-python", PYTHON, "--json")
    assert status == 0, err
    report = json.loads(out)
    assert report["verdict"] == "ok: torch → onnx → har-native → har-quantized agree over 4 windows"
    fault(monkeypatch, "infer", nan=True)
    status, out, err = run(capsys, *given, "--dfc-python", PYTHON, "--stage", "torch", "--stage", "har-native")
    assert status == 1
    assert err.splitlines()[-1].startswith("error: broken at har-native: against torch, ")
    for wrong, message in (
        (("--work", built[0] / "model-hailo8l"), "--work is of no use without --dfc-python"),
        (("--dfc-python", tmp_path / "python"), "no such interpreter"),
    ):
        status, out, err = run(capsys, *given, *wrong)
        assert (status, out) == (2, "")
        assert message in err
