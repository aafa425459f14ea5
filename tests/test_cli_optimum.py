"""Our commands in the command line of optimum, and that nothing misses it where it is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_dfc import PYTHON, features, use_standin
from helpers_models import features_for, small_model

from whisper_hailo_hf import HailoWhisperEncoder, WhisperHailoForConditionalGeneration

REGISTER = "optimum.commands.register.register_hailo"


def optimum_is_here() -> bool:
    try:
        return bool(version("optimum"))
    except PackageNotFoundError:
        return False


needs_optimum = pytest.mark.skipif(not optimum_is_here(), reason="optimum is not installed: it comes with [dev]")


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """optimum-cli in this process."""
    from optimum.commands.optimum_cli import main

    monkeypatch.setattr(sys, "argv", ["optimum-cli", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


# The commands


@needs_optimum
def test_optimum_finds_the_commands():
    """By the installed program, as a user calls it."""
    program = Path(sys.executable).with_name("optimum-cli")
    for words, expected in ((["--help"], "hailo "), (["export", "--help"], "hailo "), (["hailo", "--help"], "VERB")):
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout


@needs_optimum
def test_the_start_of_optimum_loads_nothing_heavy():
    code = f"import sys, {REGISTER}; print(len({REGISTER}.REGISTER_COMMANDS), 'torch' in sys.modules)"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]


@needs_optimum
def test_verbs_through_optimum(monkeypatch, capsys, tmp_path):
    small_model(cls=HailoWhisperEncoder).save_pretrained(tmp_path / "model")
    np.save(tmp_path / "windows.npy", features(2))
    given = ("hailo", "verify", tmp_path / "model", tmp_path / "windows.npy")
    status, out, err = run(monkeypatch, capsys, *given, "--json")
    assert status == 0
    assert json.loads(out)["verdict"] == "ok: torch → onnx agree over 2 windows"
    status, out, err = run(monkeypatch, capsys, *given, "--min-snr", "199")
    assert status == 1
    assert "broken at onnx" in err
    status, out, err = run(monkeypatch, capsys, "hailo", "verify", tmp_path / "nothing", "x.wav")
    assert (status, out) == (2, "")
    assert "no model folder" in err
    assert run(monkeypatch, capsys, "hailo", "paint")[0] == 2


@needs_optimum
def test_export_of_the_graph(monkeypatch, capsys, tmp_path):
    pytest.importorskip("onnxruntime")
    model = small_model()
    model.save_pretrained(tmp_path / "model")
    status, out, err = run(monkeypatch, capsys, "export", "hailo", "-m", tmp_path / "model", tmp_path / "made")
    assert status == 0, err
    assert "onnx/encoder.onnx" in out
    made = WhisperHailoForConditionalGeneration.from_pretrained(tmp_path / "made", encoder_backend="onnx")
    inputs = features_for(model.config)
    assert torch.allclose(made.get_encoder()(inputs)[0], model.get_encoder()(inputs)[0], atol=1e-4)
    graph = made.get_encoder().backend.info()["graph"]
    assert graph == str(tmp_path / "made" / "onnx" / "encoder.onnx")  # not one that the backend made anew


@needs_optimum
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the compiler runs on Linux only")
def test_export_as_far_as_the_hef(monkeypatch, capsys, tmp_path):
    from whisper_hailo_hf.compile import windows

    use_standin(monkeypatch)
    small_model(cls=HailoWhisperEncoder).save_pretrained(tmp_path / "model")
    ready = windows.FeatureWindows(features(80), 8, 60)
    for module in ("compile_source", "quantize"):  # features in place of hours of speech
        monkeypatch.setattr(f"whisper_hailo_hf.compile.{module}.calibration_windows", lambda *given: ready)
    given = ("export", "hailo", "--model", tmp_path / "model", "--audio", tmp_path, "--dfc-python", PYTHON, "--json")
    status, out, err = run(monkeypatch, capsys, *given, tmp_path / "made")
    assert status == 0, err
    report = json.loads(out)
    assert list(report) == ["export", "check", "quantize", "compile"]
    assert report["export"]["path"] == str(tmp_path / "made" / "onnx" / "encoder.onnx")
    assert report["compile"]["hef"] == str(tmp_path / "made" / "hailo8l" / "encoder.hef")
    records = json.loads((tmp_path / "made" / "config.json").read_text())["artefacts"]
    assert {"onnx/encoder.onnx", "onnx/encoder_int8.onnx", "hailo8l/encoder.hef"} <= set(records)
    # once more: what the compiler has finished is kept
    status, out, err = run(monkeypatch, capsys, *given, tmp_path / "made")
    assert status == 0, err
    assert {stage["status"] for stage in json.loads(out)["compile"]["stages"].values()} == {"kept"}


@needs_optimum
def test_requests_that_cannot_be_met(monkeypatch, capsys, tmp_path):
    small_model(cls=HailoWhisperEncoder).save_pretrained(tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    for wrong, message in (
        (("-m", tmp_path / "nothing", tmp_path / "made"), "no model folder"),
        (("-m", tmp_path / "model", tmp_path / "full"), "is no model's folder: name a new one"),
        (("-m", tmp_path / "model", "--dfc-python", PYTHON, tmp_path / "made"), "name some with --audio"),
    ):
        status, out, err = run(monkeypatch, capsys, "export", "hailo", *wrong)
        assert (status, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "made").exists()


# Without it


def hide_optimum(tmp_path: Path) -> dict[str, str]:
    """An environment in which no file of optimum's own is found."""
    blocker = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        ours = ('optimum', 'optimum.commands', 'optimum.commands.register')\n"
        f"        if name.startswith('optimum.') and name not in ours and name != {REGISTER!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    (tmp_path / "sitecustomize.py").write_text(blocker)
    return {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_nothing_needs_it(tmp_path):
    environment = hide_optimum(tmp_path)
    code = f"import whisper_hailo_hf.cli.main\nimport {REGISTER} as register\nprint(register.REGISTER_COMMANDS)\n"
    done = subprocess.run([PYTHON, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert done.stderr.count("goes without its hailo commands: No module named 'optimum.commands.export'") == 1
