"""The compiler driver, against a stand-in for Hailo's compiler that computes: every stage, every interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers_dfc import PYTHON, STANDIN, alive, events, fault, features, stages, use_standin
from helpers_models import small_model

from whisper_hailo_hf import RequestError, WhisperHailoError, artefacts, compile_encoder, quantize_encoder
from whisper_hailo_hf.cli.main import main
from whisper_hailo_hf.compile import compile_stages, driver
from whisper_hailo_hf.compile.compile_stages import STAGES
from whisper_hailo_hf.compile.export import export_encoder
from whisper_hailo_hf.compile.quantize_report import ErrorMeter
from whisper_hailo_hf.fidelity import Gates
from whisper_hailo_hf.hailo.har import read_har
from whisper_hailo_hf.hailo.hef import read_hef
from whisper_hailo_hf.modeling_whisper_hailo import WhisperHailoForConditionalGeneration

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the compiler runs on Linux only")

DATA = features()
IN_THE_COMPILER = {
    "parse": "translate_onnx_model",
    "compare-native": "infer",
    "optimize": "optimize",
    "noise-check": "analyze_noise",
    "compare-quantized": "infer",
    "compile": "compile",
}


@pytest.fixture(autouse=True)
def standin(monkeypatch):
    use_standin(monkeypatch)


def build(model, **kwargs):
    return compile_encoder(model, DATA, **{"dfc_python": PYTHON, "compare_windows": 4} | kwargs)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A model's folder after a compilation, beside its work folder; the report, and what was observed."""
    folder, seen = tmp_path_factory.mktemp("built"), []
    small_model().save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        use_standin(patch)
        report = build(folder / "model", observe=seen.append)
    return folder, report, seen


@pytest.fixture
def copied(built, tmp_path):
    """The same, for changes."""
    for name in ("model", "model-hailo8l"):
        shutil.copytree(built[0] / name, tmp_path / name)
    return tmp_path


def script_without(*words: str, report) -> str:
    return "".join(f"{line}\n" for line in report.script.splitlines() if not any(word in line for word in words))


# What a compilation gives


def test_a_model_s_folder_gets_its_hef(built):
    folder, report, _ = built
    placed = folder / "model" / "hailo8l"
    assert report.hef == str(placed / "encoder.hef")
    hef = read_hef(report.hef)
    assert (hef.architecture, hef.compiler, hef.networks[0].inputs[0].shape) == ("hailo8l", "3.33.0", (1, 60, 8))
    assert (placed / "encoder.alls").read_text() == report.script
    records = json.loads((folder / "model" / "config.json").read_text())["artefacts"]
    record = records["hailo8l/encoder.hef"]
    assert record["sha256"] == report.sha256 == artefacts.sha256_of(report.hef)
    assert (record["hw_arch"], record["time_axis"], record["noise_check"]) == ("hailo8l", "width", "done")
    assert record["output"]["dtype"] == "uint16"
    assert record["producer"].endswith("DFC 3.33.0")
    assert (record["compiler"], record["runtime_since"]) == ("DFC 3.33.0", "4.18")
    assert set(record["fidelity"]) == {"native", "quantized"}
    assert record["versions"]["dfc"] == "3.33.0"
    assert record["source"] == {}
    assert set(records) == {f"hailo8l/encoder.{end}" for end in ("hef", "alls", "journal.jsonl")}


def test_the_hef_travels_with_the_weights(built, tmp_path):
    model = WhisperHailoForConditionalGeneration.from_pretrained(built[0] / "model", encoder_backend="torch")
    model.save_pretrained(tmp_path / "again")
    for name in ("encoder.hef", "encoder.alls", "encoder.journal.jsonl"):
        assert (tmp_path / "again" / "hailo8l" / name).read_bytes() == (
            built[0] / "model" / "hailo8l" / name
        ).read_bytes()


def test_the_hef_backend_computes_what_the_compiler_emulated(built, tmp_path):
    """From here on with a stand-in for the chip, in a process of its own: the HEF holds the integers to run."""
    inputs = np.load(built[0] / "model-hailo8l" / "comparison.npy")
    np.save(tmp_path / "features.npy", inputs[:, 0].transpose(0, 2, 1))
    code = f"""
import numpy
from whisper_hailo_hf import WhisperHailoForConditionalGeneration
model = WhisperHailoForConditionalGeneration.from_pretrained({str(built[0] / "model")!r}, encoder_backend="hef")
backend = model.get_encoder().backend
numpy.save({str(tmp_path / "states.npy")!r}, backend.encode(numpy.load({str(tmp_path / "features.npy")!r})))
backend.close()
"""
    paths = [str(STANDIN.parent / "hailo_platform_4_23"), str(STANDIN.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([PYTHON, "-c", code], env=environment, check=True)
    model = WhisperHailoForConditionalGeneration.from_pretrained(built[0] / "model", encoder_backend="torch")
    with torch.no_grad():
        features = torch.from_numpy(np.load(tmp_path / "features.npy"))
        wanted = model.get_encoder()(features).last_hidden_state.numpy()
    meter = ErrorMeter()
    meter.add(wanted, np.load(tmp_path / "states.npy"))
    emulated = built[1].stages["compare-quantized"]["figures"]
    assert meter.result().snr_db == pytest.approx(emulated["snr_db"], abs=1e-3)
    assert meter.result().cosine_min == pytest.approx(emulated["cosine_min"], abs=1e-6)


def test_every_stage_is_saved(built):
    work = built[0] / "model-hailo8l"
    states = ("encoder.har", "hailo_model"), ("encoder_optimized.har", "quantized_model")
    for name, state in (*states, ("encoder_compiled_model.har", "compiled_model")):
        assert read_har(work / name).state == state
    calibration = np.load(work / "calibration.npy", mmap_mode="r")
    assert calibration.shape == (156, 1, 60, 8)
    assert calibration.dtype == np.float32
    compared = np.load(work / "comparison.npy")
    both = {window.tobytes() for window in (*calibration, *compared)}
    assert len(both) == 160  # none is in both
    assert both == {np.ascontiguousarray(window.T).tobytes() for window in DATA}
    assert not [path for path in work.iterdir() if path.name.startswith(".")]


def test_what_the_stages_found(built):
    _, report, _ = built
    assert list(report.stages) == list(STAGES)
    assert {event["status"] for event in report.stages.values()} == {"done"}
    native, quantized = (report.stages[f"compare-{name}"] for name in ("native", "quantized"))
    assert native["figures"]["snr_db"] > 100
    assert native["hn_diff"]["errors"] == []
    assert 25 < quantized["figures"]["snr_db"] < 50
    assert quantized["figures"]["windows"] == 4
    assert report.stages["optimize"]["compiler_entries"] == {"calibration": 156}
    assert report.stages["optimize"]["compiler_snr"]["encoder/output_layer1"] > 20
    assert report.stages["noise-check"]["analysis"] is None  # as the real one may answer
    assert report.noise_check is True
    assert report.stages["compare-hef"]["problems"] == []
    text = " ".join(report.warnings)
    assert "156 windows to calibrate with, below the 1024" in text
    assert "no GPU" in text
    json.dumps(report.to_dict())
    assert [row[0] for row in report.rows()][1:] == list(STAGES)


def test_the_journal_is_complete(built):
    folder, _, seen = built
    work = folder / "model-hailo8l"
    (run,) = events(work, "run")
    assert run["versions"]["dfc"] == "3.33.0"
    assert run["settings"]["noise_check"] is True
    assert run["producer"].startswith("whisper_hailo_hf ")
    assert stages(work, "started") == stages(work, "finished") == list(STAGES)
    for event in events(work, "finished"):
        assert event["seconds"] >= 0
        assert len(event["key"]) == 64
        for name, output in event["outputs"].items():
            assert output["sha256"] == artefacts.sha256_of(work / name)
        if event["stage"] in IN_THE_COMPILER:
            assert event["peak_memory"] > 2**20
            assert event["peak_memory"] < 2**29  # its own, not that of the process that started it
            assert (work / "logs" / event["log"]).is_file()
    assert events(work)[-1]["event"] == "done"
    assert [event for event in seen if event["event"] not in ("tick", "progress")] == events(work)
    public = (folder / "model" / "hailo8l" / "encoder.journal.jsonl").read_text()
    assert str(folder) not in public
    assert len(public.splitlines()) == len(events(work))


# What need not be done again


def test_a_second_run_does_nothing_again(copied):
    before = {path.name: path.stat().st_mtime_ns for path in (copied / "model-hailo8l").glob("encoder*")}
    report = build(copied / "model")
    assert {event["status"] for event in report.stages.values()} == {"kept"}
    assert stages(copied / "model-hailo8l", "kept") == list(STAGES)
    assert before == {path.name: path.stat().st_mtime_ns for path in (copied / "model-hailo8l").glob("encoder*")}
    logs = [path.name for path in (copied / "model-hailo8l" / "logs").glob("*.log")]
    assert sum("probe" not in name for name in logs) == len(IN_THE_COMPILER)


def test_what_a_change_touches_is_done_again(copied, built):
    (copied / "mine.alls").write_text(script_without("quantization_param", report=built[1]))
    report = build(copied / "model", model_script=copied / "mine.alls", stop_after="compare-quantized")
    redone = [name for name, event in report.stages.items() if event["status"] == "done"]
    assert redone == ["model-script", "optimize", "noise-check", "compare-quantized"]
    assert report.hef is None
    # what was 16 bits wide has 8 now
    figures = [one.stages["compare-quantized"]["figures"]["snr_db"] for one in (report, built[1])]
    assert figures[0] < figures[1] - 0.5
    assert report.stages["model-script"]["own"] is True


def test_a_file_that_was_touched_is_made_again(copied):
    with open(copied / "model-hailo8l" / "encoder.har", "ab") as file:
        file.write(b"\0")
    report = build(copied / "model", stop_after="parse")
    assert [event["status"] for event in report.stages.values()] == ["kept", "done"]


def test_fresh_forgets(copied):
    report = build(copied / "model", fresh=True, stop_after="parse")
    assert [event["status"] for event in report.stages.values()] == ["done", "done"]


def killed(stage: str, in_the_compiler: bool, folder: Path) -> None:
    """Runs the driver in a child that is killed with -9 in that stage."""
    if in_the_compiler:
        os.environ["STANDIN_FAULTS"] = json.dumps({IN_THE_COMPILER[stage]: {"kill_parent": True}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads: the child touches none of them
        child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            written = compile_stages.outputs_of

            def outputs_of(room, names):
                if room.name == f".{stage}" and not in_the_compiler:
                    os.kill(os.getpid(), signal.SIGKILL)
                return written(room, names)

            compile_stages.outputs_of = outputs_of
            build(folder / "model")
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    os.environ.pop("STANDIN_FAULTS", None)
    assert os.WIFSIGNALED(status), f"{stage} was not killed"
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_killed_in_each_stage_it_goes_on_where_it_was(tmp_path):
    small_model().save_pretrained(tmp_path / "model")
    work = tmp_path / "model-hailo8l"
    for number, stage in enumerate(STAGES):
        killed(stage, stage in IN_THE_COMPILER, tmp_path)
        assert stages(work, "finished") == list(STAGES[:number])
        assert stages(work, "started")[-1] == stage
        assert not (tmp_path / "model" / "hailo8l").exists()
        told = list((work / "logs").glob(f"*-{stage}.events.jsonl"))
        for path in told:  # the compiler went with its driver
            pid = json.loads(path.read_text().splitlines()[0])["pid"]
            deadline = time.monotonic() + 5
            while alive(pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not alive(pid)
    report = build(tmp_path / "model")
    assert sorted(stages(work, "finished")) == sorted(STAGES)  # each was finished once
    assert [event["status"] for event in report.stages.values()] == ["kept"] * (len(STAGES) - 1) + ["done"]
    assert read_hef(report.hef).architecture == "hailo8l"


def test_a_line_that_a_crash_cut_off_is_left_out(copied):
    journal = copied / "model-hailo8l" / "journal.jsonl"
    text = journal.read_text()
    journal.write_text(text[: text.rindex('"event": "finished", "stage": "compare-hef"') + 9])
    report = build(copied / "model")
    assert [name for name, event in report.stages.items() if event["status"] == "done"] == ["compare-hef"]
    for line in journal.read_text().splitlines()[-5:]:
        json.loads(line)


def test_the_memory_ceiling_keeps_what_was_finished(copied, built, monkeypatch):
    (copied / "mine.alls").write_text(built[1].script + "set_seed(seed=1)\n")
    fault(monkeypatch, "optimize", eat=4000)
    with pytest.raises(WhisperHailoError, match=r"optimize: the compiler held .* and was stopped"):
        build(copied / "model", model_script=copied / "mine.alls", memory_ceiling="500M")
    stopped = events(copied / "model-hailo8l")[-1]
    assert (stopped["event"], stopped["stage"]) == ("stopped", "optimize")
    assert stopped["seconds"] > 0
    monkeypatch.delenv("STANDIN_FAULTS")
    report = build(copied / "model", model_script=copied / "mine.alls", stop_after="optimize")
    assert [name for name, event in report.stages.items() if event["status"] == "done"] == ["optimize"]


def test_other_windows_are_other_windows(copied):
    report = build(copied / "model", windows=100, stop_after="windows")
    assert report.stages["windows"]["entries"] == 100
    assert [event["status"] for event in report.stages.values()] == ["kept", "kept", "done"]
    assert build(copied / "model", windows=100, seed=1, stop_after="windows").stages["windows"]["status"] == "done"


# Stages that break the encoder


def test_a_network_that_is_another_after_parsing(tmp_path, monkeypatch):
    small_model().save_pretrained(tmp_path / "model")
    fault(monkeypatch, "translate_onnx_model", lose=True)
    with pytest.raises(WhisperHailoError, match="parse broke the encoder: the compiler made another network") as error:
        build(tmp_path / "model")
    assert not isinstance(error.value, RequestError)
    (broken,) = events(tmp_path / "model-hailo8l", "broken")
    assert (broken["stage"], broken["found_by"]) == ("parse", "compare-native")


def test_weights_that_are_others_after_parsing(tmp_path, monkeypatch):
    small_model().save_pretrained(tmp_path / "model")
    fault(monkeypatch, "translate_onnx_model", spoil=0.5)
    with pytest.raises(WhisperHailoError, match="parse broke the encoder"):
        build(tmp_path / "model")
    figures = events(tmp_path / "model-hailo8l", "finished")[-1]["figures"]
    assert figures["snr_db"] < 15


def test_a_quantized_network_that_is_too_far_off(copied):
    with pytest.raises(WhisperHailoError, match=r"optimize broke the encoder.*SNR 3\d.*is below 60 dB.*16 bits"):
        build(copied / "model", gates=Gates(0.98, 60))
    # the figures stay, and the gate is another matter
    assert stages(copied / "model-hailo8l", "kept")[-1] == "compare-quantized"
    assert build(copied / "model").hef


def test_values_that_are_not_finite(copied, built, monkeypatch):
    fault(monkeypatch, "infer", nan=True)
    (copied / "mine.alls").write_text(built[1].script + "set_seed(seed=1)\n")
    with pytest.raises(WhisperHailoError, match=r"optimize broke the encoder.*120 frames with values that are not"):
        build(copied / "model", model_script=copied / "mine.alls")


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ({"eight_bit_output": True}, "asked for in 16 bits and has 8.*its scale does not belong to its 8 bits"),
        ({"arch": "hailo8"}, "the HEF is for hailo8, not for hailo8l"),
        ({"short_output": True}, r"output has the shape \[1, 15, 16\], the network's \[1, 30, 16\]"),
    ],
)
def test_a_hef_that_is_not_the_network(copied, monkeypatch, what, line):
    fault(monkeypatch, "compile", **what)
    (copied / "model-hailo8l" / "encoder.hef").unlink()
    with pytest.raises(WhisperHailoError, match=f"compile broke the encoder: .*{line}"):
        build(copied / "model")


def test_a_hef_that_is_none(copied, monkeypatch):
    fault(monkeypatch, "compile", garbage=True)
    (copied / "model-hailo8l" / "encoder.hef").unlink()
    with pytest.raises(WhisperHailoError, match=r"compare-hef: .*encoder.hef is no HEF") as error:
        build(copied / "model")
    assert error.value.exit_status == 1  # nothing was wrong with the request


# The noise check


def test_the_noise_check_is_left_out_only_aloud(copied, built):
    off = built[1].script.replace("checker_cfg, policy=enabled", "checker_cfg, policy=disabled")
    (copied / "mine.alls").write_text(off)
    with pytest.raises(RequestError, match=r"turns the noise check off: add .* --skip-noise-check"):
        build(copied / "model", model_script=copied / "mine.alls")
    report = build(copied / "model", model_script=copied / "mine.alls", noise_check=False)
    assert report.noise_check is False
    assert report.stages["noise-check"]["skipped"] is True
    record = json.loads((copied / "model" / "config.json").read_text())["artefacts"]["hailo8l/encoder.hef"]
    assert record["noise_check"] == "skipped"
    assert "the noise check was left out, as asked" in report.warnings


# Other things to compile


def test_the_quantizer_s_places_go_into_the_script(copied):
    model = small_model()
    names = ["/blocks.1/mix/conv/Conv", "output"]
    settings = {"method": "minmax", "layer_windows": 0, "choices": False, "output": copied / "int8.onnx"}
    quantized = quantize_encoder(
        model, DATA, sixteen_bit=names, weight_bits={"/blocks.0/expand/*": 4}, windows=32, **settings
    )
    (copied / "report.json").write_text(json.dumps(quantized.to_dict()))
    report = build(copied / "model", quantization_report=copied / "report.json", stop_after="compare-quantized")
    lines = [line for line in report.script.splitlines() if line.startswith("quantization_param")]
    layers = {
        name: layer.short_name
        for layer in read_har(copied / "model-hailo8l" / "encoder.har").layers.values()
        for name in layer.original_names
    }
    assert sorted(lines) == sorted(
        [
            f"quantization_param({layers[names[0]]}, precision_mode=a16_w16)",
            f"quantization_param({layers['/blocks.0/expand/conv/Conv']}, precision_mode=a8_w4)",
            "quantization_param(output_layer1, precision_mode=a16_w16)",
        ]
    )
    other = small_model(seed=1)
    other.save_pretrained(copied / "other")
    with pytest.raises(RequestError, match="about other weights"):
        build(copied / "other", quantization_report=copied / "report.json")


def test_time_on_the_height_and_an_emulator_beside_the_weights(tmp_path):
    model = small_model(time_axis="height")
    quantize_encoder(
        model, DATA, output=tmp_path / "int8.onnx", method="minmax", windows=32, layer_windows=0, choices=False
    )
    work, target = tmp_path / "work", tmp_path / "hef"
    report = build(model, work=work, output=target)
    assert read_hef(target / "encoder.hef").networks[0].inputs[0].shape == (60, 1, 8)
    found = report.stages["compare-quantized"]
    assert found["emulator"]["snr_db"] == pytest.approx(found["figures"]["snr_db"], abs=8)
    encoder = model.get_encoder()
    assert encoder.artefacts["hailo8l/encoder.hef"] == target / "encoder.hef"
    assert encoder.config.artefacts["hailo8l/encoder.hef"]["time_axis"] == "height"
    turned = build(model, work=work, output=target, time_axis="width", stop_after="compare-native")
    assert turned.stages["export"]["status"] == "done"
    assert turned.stages["compare-native"]["figures"]["snr_db"] > 100


def test_a_window_that_is_cut_into_tiles(tmp_path):
    model = small_model("attention", encoder_options={"window_seconds": 0.2, "tiles": "all"})
    tiles = model.get_encoder().host.positions // model.get_encoder().host.window_positions
    assert tiles > 1
    report = build(model, work=tmp_path, stop_after="compare-native", windows=100)
    assert report.stages["windows"]["entries"] == tiles * -(-100 // tiles)
    assert report.stages["compare-native"]["figures"]["windows"] == 4
    assert report.stages["compare-native"]["figures"]["snr_db"] > 100
    assert any("the graph check finds" in line for line in report.warnings)  # LayerNorm and Softmax in the encoder


def test_a_bare_onnx_file(tmp_path):
    export_encoder(small_model(), tmp_path / "bare.onnx", windows=0)
    report = build(tmp_path / "bare.onnx", output=tmp_path / "out", stop_after="compare-native")
    assert report.work == str(tmp_path / "bare-hailo8l")
    assert report.stages["compare-native"]["figures"]["snr_db"] > 100
    with pytest.raises(RequestError, match="time on its width"):
        build(tmp_path / "bare.onnx", time_axis="height", output=tmp_path / "out")


# Requests that are wrong


@pytest.mark.parametrize(
    ("kwargs", "line"),
    [
        ({"dfc_python": "/nowhere/python"}, "no such interpreter; name the Python of the environment"),
        ({"dfc_python": __file__}, "cannot be run"),
        ({"hw_arch": "hailo10h"}, "no target 'hailo10h' for DFC 3: choose hailo8l, hailo8, hailo8r"),
        ({"stop_after": "dinner"}, "no stage 'dinner' to stop after"),
        ({"windows": 32}, "too little audio to calibrate with: it gives 32 windows, at least 64 are needed"),
        ({"windows": 0}, "windows, compare_windows and timeout are positive"),
        ({"model_script": "/nowhere/mine.alls"}, "no such model script"),
        ({"quantization_report": __file__}, "is no report of whisper-hailo quantize"),
        ({"memory_ceiling": "much"}, "'much' is no amount of memory: write it as 80% or 24G"),
        ({"memory_ceiling": "300%"}, "makes no sense here"),
        ({"time_axis": "depth"}, "time_axis is 'width' or 'height'"),
    ],
)
def test_wrong_requests(copied, kwargs, line):
    with pytest.raises(RequestError, match=line):
        build(copied / "model", **kwargs)


def test_an_interpreter_without_the_compiler(copied, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(RequestError, match=r"--dfc-python .*lacks a module \(No module named 'hailo_sdk_client'\)"):
        build(copied / "model")


def test_another_system(copied, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RequestError, match=r"runs on Linux \(x86-64\) only"):
        build(copied / "model")


def test_a_disk_that_is_too_small(copied, monkeypatch):
    small = shutil.disk_usage(copied)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
    with pytest.raises(RequestError, match=r"has 1\.0 MiB free, where about .* GiB more are needed"):
        build(copied / "model")


def test_the_estimate_of_the_disk():
    # 1024 windows of 30 s with 80 bins are 983 MB; a network of 12 M parameters is a file of 48 MB
    needed = driver.disk_needed(48_000_000, 1024, 4 * 80 * 3000)
    assert 4e9 < needed < 4.5e9


def test_nowhere_to_put_it(tmp_path):
    model = small_model()
    with pytest.raises(RequestError, match="name a folder for the HEF"):
        build(model)
    with pytest.raises(RequestError, match="name a folder for the work"):
        build(model, output=tmp_path)


def test_two_at_once(copied, monkeypatch):
    monkeypatch.setattr(driver, "_PATIENCE", 1)
    with driver._locked(copied / "model-hailo8l"), pytest.raises(RequestError, match="another compilation is at work"):
        build(copied / "model")


# The verb


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["compile", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


def test_the_verb(copied, capsys, make_speech):
    soundfile.write(copied / "speech.wav", make_speech(60), 16_000)
    shown = (copied / "model", "-a", copied / "speech.wav", "--dfc-python", PYTHON, "--compare-windows", 4)
    code, out, err = run(capsys, *shown, "--stop-after", "model-script")
    assert code == 0, err
    assert "model-script: done" in err or "model-script: kept" in err
    assert "model_optimization_config(checker_cfg, policy=enabled" in out
    code, out, err = run(capsys, *shown, "--json", "--fresh")
    assert code == 0, err
    report = json.loads(out)
    assert list(report["stages"]) == list(STAGES)
    assert "warning: 96 windows" in err
    assert "    quantization_param({ew_add*}, precision_mode=a16_w16)" in err
    code, out, err = run(capsys, *shown, "--min-snr", 60)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: optimize broke the encoder")
    code, out, err = run(capsys, *shown[:4], "/nowhere")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


def test_the_stand_in_is_nowhere_near_this_process():
    assert str(STANDIN) not in sys.path
    with pytest.raises(ModuleNotFoundError):
        __import__("hailo_sdk_client")
