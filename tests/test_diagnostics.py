"""What `diagnose` finds on this machine and in model folders, sound and broken."""

import json
import shutil
import sys

import numpy
import pytest
import soundfile
import torch

from whisper_hailo_hf import WhisperHailoForConditionalGeneration, __version__
from whisper_hailo_hf.diagnostics import check_model, diagnose
from whisper_hailo_hf.errors import RequestError


@pytest.fixture(scope="module")
def ours(stock_whisper, tmp_path_factory):
    """A model with an ONNX artefact, and the stock model's processor."""
    from transformers import AutoProcessor

    folder = tmp_path_factory.mktemp("ours") / "model"
    model = WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention")
    model.set_encoder_backend("onnx")
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(stock_whisper).save_pretrained(folder)
    return folder


def failed(folder) -> dict[str, str]:
    return {check.name: check.finding for check in check_model(folder) if not check.passed}


def test_versions_and_machine():
    diagnosis = diagnose()
    assert diagnosis.versions["whisper_hailo_hf"] == __version__
    assert diagnosis.versions["torch"] == torch.__version__
    assert diagnosis.versions["numpy"] == numpy.__version__
    assert diagnosis.versions["libsndfile"] == soundfile.__libsndfile_version__
    assert all(diagnosis.machine.values())
    assert diagnosis.model == ()


def test_backends_say_why(monkeypatch):
    assert diagnose().backends["torch"].available
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status = diagnose().backends["onnx"]
    assert not status.available
    assert "onnxruntime is not installed" in status.reason


def test_the_diagnosis_is_json(ours):
    data = json.loads(json.dumps(diagnose(ours).to_dict()))
    assert data["backends"]["torch"]["available"] is True
    assert data["versions"]["python"]
    assert {check["name"] for check in data["model"]} >= {"config", "weights", "onnx/encoder.onnx"}


def test_a_sound_model_of_ours(ours):
    findings = {check.name: check.finding for check in check_model(ours)}
    assert not failed(ours)
    assert "family attention" in findings["config"]
    assert "as recorded" in findings["onnx/encoder.onnx"]


def test_a_sound_stock_model(stock_whisper):
    assert not failed(stock_whisper)
    assert "stock Whisper" in check_model(stock_whisper)[0].finding


@pytest.mark.parametrize(
    ("file", "content", "check"),
    [
        ("config.json", None, "config"),
        ("config.json", "{", "config"),
        ("config.json", '{"model_type": "bert"}', "config"),
        ("model.safetensors", None, "weights"),
        ("model.safetensors", "nothing", "weights"),
        ("tokenizer.json", None, "tokenizer"),
        ("processor_config.json", None, "feature extractor"),
        ("generation_config.json", None, "generation config"),
        ("onnx/encoder.onnx", None, "onnx/encoder.onnx"),
        ("onnx/encoder.onnx", "other", "onnx/encoder.onnx"),
    ],
)
def test_what_is_wrong_is_found(ours, tmp_path, file, content, check):
    folder = tmp_path / "model"
    shutil.copytree(ours, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    found = failed(folder)
    assert list(found) == [check]
    assert "\n" not in found[check]


def test_weights_that_were_cut_off_are_found(ours, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(ours, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert list(failed(folder)) == ["weights"]


def test_not_a_folder(tmp_path):
    with pytest.raises(RequestError, match="no model folder"):
        diagnose(tmp_path / "none")
