"""Records of the files beside the weights: what fits, what does not, and why."""

import hashlib

import pytest
import torch
from helpers_models import features_for, small_model

from whisper_hailo_hf import HailoWhisperEncoder, WhisperHailoForConditionalGeneration, artefacts
from whisper_hailo_hf.artefacts import ONNX_PATH, fingerprint, record, sha256_of, why_unfit


@pytest.fixture
def core():
    return small_model(cls=HailoWhisperEncoder).core


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"graph" * 100)
    return path


def test_hash(file):
    assert sha256_of(file) == hashlib.sha256(b"graph" * 100).hexdigest()


def test_fingerprint_is_that_of_the_values(core):
    known = fingerprint(core)
    assert known == fingerprint(core) == fingerprint(small_model(cls=HailoWhisperEncoder).core)
    assert known == fingerprint(core.double())
    assert known != fingerprint(small_model(cls=HailoWhisperEncoder, seed=1).core)


def test_fingerprint_of_half_precision(core):
    half = fingerprint(core.half())
    assert half == fingerprint(core.float())  # as when a checkpoint in half precision is loaded in full


@pytest.mark.parametrize("name", ["conv1.conv.weight", "conv1.norm.bias", "conv1.norm.running_var", "head.bias"])
def test_fingerprint_sees_each_tensor(core, name):
    known = fingerprint(core)
    with torch.no_grad():
        core.state_dict()[name].flatten()[0].add_(1e-3)
    assert fingerprint(core) != known


def test_record_of_a_fitting_file(file):
    entry = record(file, "weights", time_axis="width", producer="torch")
    assert entry == {
        "sha256": sha256_of(file),
        "size": 500,
        "weights": "weights",
        "time_axis": "width",
        "producer": "torch",
    }
    assert why_unfit(file, entry, "weights") is None
    assert why_unfit(file, entry, "weights", time_axis="width") is None


def test_reasons(file):
    entry = record(file, "weights", time_axis="width")
    assert "has no record" in why_unfit(file, None, "weights")
    assert "made from other weights" in why_unfit(file, entry, "others")
    assert "made for time_axis 'width', not 'height'" in why_unfit(file, entry, "weights", time_axis="height")
    file.write_bytes(b"grafh" * 100)
    assert "is damaged" in why_unfit(file, entry, "weights")
    file.write_bytes(b"graph")
    assert "is damaged" in why_unfit(file, entry, "weights")


# With a model


@pytest.fixture
def folder(tmp_path):
    """A model's folder with a graph beside the weights."""
    pytest.importorskip("onnxruntime")
    model = small_model()
    model.set_encoder_backend("onnx", threads=1)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder, **kwargs):
    return WhisperHailoForConditionalGeneration.from_pretrained(folder, **kwargs)


def test_graph_travels_with_the_model(folder, tmp_path):
    model = load(folder)
    entry = model.config.artefacts[ONNX_PATH]
    assert entry["sha256"] == sha256_of(folder / ONNX_PATH)
    assert entry["size"] == (folder / ONNX_PATH).stat().st_size
    assert entry["weights"] == fingerprint(model.get_encoder().core)
    model.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / ONNX_PATH).read_bytes() == (folder / ONNX_PATH).read_bytes()
    assert load(tmp_path / "copy").encoder_backend == "onnx"


def test_graph_travels_whatever_the_backend(folder, tmp_path):
    load(folder, encoder_backend="torch").save_pretrained(tmp_path / "copy")
    assert load(tmp_path / "copy").config.artefacts == load(folder).config.artefacts


def test_graph_of_other_weights_stays_behind(folder, tmp_path):
    model = load(folder, encoder_backend="torch")
    with torch.no_grad():
        model.get_encoder().core.head.bias += 1
    model.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / "onnx").exists()
    assert load(tmp_path / "copy").config.artefacts == {}


def test_damaged_graph_is_not_used(folder, tmp_path):
    expected = load(folder).get_encoder()(features_for(load(folder).config))[0]
    content = bytearray((folder / ONNX_PATH).read_bytes())
    content[-20] ^= 255
    (folder / ONNX_PATH).write_bytes(content)
    assert load(folder).encoder_backend == "torch"
    model = load(folder, encoder_backend="onnx")
    with torch.no_grad():
        states = model.get_encoder()(features_for(model.config))[0]
    assert torch.allclose(states, expected, atol=1e-4)
    assert "exported" in model.get_encoder().backend.info()["graph"]
    load(folder, encoder_backend="torch").save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / "onnx").exists()


def test_record_without_its_file(folder):
    (folder / ONNX_PATH).unlink()
    model = load(folder)
    assert model.encoder_backend == "torch"
    assert model.get_encoder().artefacts == {}


def test_saving_over_itself_keeps_the_graph(folder):
    before = (folder / ONNX_PATH).read_bytes()
    load(folder).save_pretrained(folder)
    assert (folder / ONNX_PATH).read_bytes() == before
    assert load(folder).encoder_backend == "onnx"


def test_path_of_the_graph():
    assert artefacts.ONNX_PATH == "onnx/encoder.onnx"
