"""The emulator: integers as a device computes them, the host's part around them, and the rules of an artefact."""

from __future__ import annotations

import copy
import json
import pickle
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers_integers import IntegerReference
from helpers_models import features_for, small_model

from whisper_hailo_hf import RequestError, WhisperHailoError, WhisperHailoForConditionalGeneration, artefacts
from whisper_hailo_hf.backends import available_backends, registry
from whisper_hailo_hf.backends.emulator import EmulatorBackend, IntegerGraph
from whisper_hailo_hf.compile.quantize import quantize_encoder

INT8 = artefacts.ONNX_INT8_PATH
PLAIN = {"layer_windows": 0, "choices": False, "method": "minmax"}
FORMS = {
    "flat": {"width": 24, "inner": 12},
    "pyramid": {
        "width": 24,
        "inner": 12,
        "stem": 12,
        "levels": (1, 2),
        "positions": True,
        "refine_taps": 5,
        "refine_depthwise": True,
    },
    "silu": {"width": 16, "inner": 8, "activation": "silu", "depthwise": True},
}


def calibration(count: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 8, 60)).astype(np.float32)


def quantized(tmp_path, seed: int = 0, form: str = "flat", **kwargs):
    """A model with its integer graph, in memory."""
    axis = kwargs.pop("time_axis", "width")
    model = small_model(seed=seed, time_axis=axis, encoder_options=FORMS[form])
    quantize_encoder(model, calibration(), output=tmp_path / "int8.onnx", **PLAIN | kwargs)
    return model


@pytest.fixture
def saved(tmp_path):
    """A folder with the integer graph beside the weights."""
    quantized(tmp_path).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder, **kwargs):
    return WhisperHailoForConditionalGeneration.from_pretrained(folder, **kwargs)


@torch.no_grad()
def states(model, features):
    return model.get_encoder()(features)[0]


# Integers


@pytest.mark.parametrize("axis", ["width", "height"])
@pytest.mark.parametrize("form", FORMS)
def test_integers_are_those_of_an_independent_reference(tmp_path, form, axis):
    model = quantized(tmp_path, form=form, time_axis=axis)
    reference, graph = IntegerReference(tmp_path / "int8.onnx"), IntegerGraph(tmp_path / "int8.onnx", threads=1)
    steps = []
    for seed in range(40):
        window = model.get_encoder().host.windows(features_for(model.config, 1, seed)).numpy()
        expected = reference.run(window)
        found = graph.run_integers(graph.input.quantize(window))
        assert found.dtype == np.uint8
        assert expected.std() > 10  # no flat output would show anything
        steps.append(np.abs(expected - found.astype(int)))
    assert np.mean(np.array(steps) <= 1) >= 0.999


def test_every_layer_has_the_reference_s_integers(tmp_path):
    """Not the output alone: a fault that a later layer hides would be seen."""
    model = quantized(tmp_path, form="pyramid")
    reference, loaded = IntegerReference(tmp_path / "int8.onnx"), onnx.load(tmp_path / "int8.onnx")
    window = model.get_encoder().host.windows(features_for(model.config, 1)).numpy()
    reference.run(window)
    names = [name for name in reference.values if name != "states/quantized"]
    loaded.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(loaded.SerializeToString(), options)
    found = session.run(names, {"input_features": window})
    assert len(names) > 25
    for name, integers in zip(names, found, strict=True):
        assert np.mean(np.abs(integers.astype(int) - reference.values[name]) <= 1) >= 0.999, name


@pytest.mark.parametrize("axis", ["width", "height"])
@pytest.mark.parametrize("form", FORMS)
def test_onnx_runtime_runs_nothing_in_float(tmp_path, form, axis):
    """The form of the graph decides whether it is fast: every layer must have become an integer kernel."""
    quantized(tmp_path, form=form, time_axis=axis)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), options)
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(tmp_path / "int8.onnx").graph.node)
    assert kinds["QLinearConv"] == convolutions > 10
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (1, 1)  # the host's
    allowed = {
        "QLinearConv", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearGlobalAveragePool", "Resize", "Transpose",
        "QuantizeLinear", "DequantizeLinear",
    }  # fmt: skip
    assert set(kinds) <= allowed
    assert kinds["Transpose"] == 2  # to channels-last and back, once
    types = {one.name: one.type.tensor_type.elem_type for one in graph.value_info}
    resized = [node.output[0] for node in graph.node if node.op_type == "Resize"]
    assert resized
    assert all(types.get(name, onnx.TensorProto.UINT8) == onnx.TensorProto.UINT8 for name in resized)


# The host's part


def test_the_host_saturates_what_was_never_calibrated(tmp_path):
    quantized(tmp_path)
    graph = IntegerGraph(tmp_path / "int8.onnx")
    loud = np.full((1, 8, 1, 60), 50.0, np.float32)
    assert (graph.input.quantize(loud) == 255).all()
    assert (graph.input.quantize(-loud) == 0).all()
    highest = np.full_like(loud, graph.input.high)
    assert np.array_equal(graph.run(loud), graph.run(highest))
    lowest, above = graph.output.low - 1e-4, graph.output.high + 1e-4
    assert ((graph.run(loud) >= lowest) & (graph.run(loud) <= above)).all()


def test_with_and_without_the_host_s_part_the_file_says_the_same(tmp_path):
    model = quantized(tmp_path)
    whole = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"))
    graph = IntegerGraph(tmp_path / "int8.onnx")
    window = model.get_encoder().host.windows(features_for(model.config, 1)).numpy()
    (expected,) = whole.run(None, {"input_features": window})
    assert np.array_equal(graph.run(window), expected)


@pytest.mark.parametrize("bits", ["output", "/conv1/conv/Conv"])
def test_16_bits_at_either_end(tmp_path, bits):
    model = quantized(tmp_path, sixteen_bit=bits)
    graph = IntegerGraph(tmp_path / "int8.onnx")
    kinds = graph.input.integer.dtype, graph.output.integer.dtype
    assert kinds == (("uint8", "uint16") if bits == "output" else ("uint16", "uint8"))
    model.set_encoder_backend("emulator")
    features = features_for(model.config)
    wanted = states(small_model(encoder_options=FORMS["flat"]), features)
    assert (states(model, features) - wanted).square().mean() < 0.02 * wanted.var()


@pytest.mark.parametrize("axis", ["width", "height"])
def test_states_come_near_those_of_torch(tmp_path, axis):
    model = quantized(tmp_path, time_axis=axis)
    features = features_for(model.config, batch=3)
    wanted = states(model, features)
    model.set_encoder_backend("emulator", threads=1)
    found = states(model, features)
    assert found.shape == wanted.shape
    noise = float((found - wanted).square().mean() / wanted.square().mean())
    assert 1e-6 < noise < 10**-2.5  # rounded, and rounded to 8 bits
    one = states(model, features[1:2])
    assert torch.equal(one[0], found[1])
    info = model.get_encoder().backend.info()
    assert info["input"]["dtype"] == info["output"]["dtype"] == "uint8"
    assert info["threads"] == 1


def test_a_window_in_tiles(tmp_path):
    """The attention family with a short window: each tile goes through the integers, the epilogue joins them."""
    model = small_model("attention", encoder_options={"window_seconds": 0.2})
    quantize_encoder(model, calibration(), output=tmp_path / "int8.onnx", **PLAIN)
    features = features_for(model.config)
    wanted = states(model, features)
    model.set_encoder_backend("emulator")
    found = states(model, features)
    assert (found - wanted).square().mean() < 0.02 * wanted.square().mean()


# The rules of an artefact


def test_auto_never_takes_it(saved, caplog):
    registry._say.cache_clear()
    model = load(saved)
    assert INT8 in model.get_encoder().artefacts
    assert model.encoder_backend == "torch"
    assert EmulatorBackend.why_not_auto(model.get_encoder().backend.parts)


def test_it_travels_with_the_model(saved, tmp_path):
    features = features_for(load(saved).config)
    expected = states(load(saved, encoder_backend="emulator"), features)
    load(saved, encoder_backend="emulator").save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / INT8).read_bytes() == (saved / INT8).read_bytes()
    again = load(tmp_path / "again", encoder_backend="emulator")
    assert torch.equal(states(again, features), expected)
    record = again.config.artefacts[INT8]
    assert set(record["input"]) == {"scale", "zero_point", "dtype"}
    assert record["output"]["dtype"] == "uint8"
    assert record["time_axis"] == "width"
    assert record["calibration"] == {"method": "minmax", "windows": 14}
    load(saved, encoder_backend="torch").save_pretrained(tmp_path / "third")
    assert (tmp_path / "third" / INT8).is_file()


def spoil(saved, how: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    if how == "damaged":
        data = bytearray((saved / INT8).read_bytes())
        data[len(data) // 2] ^= 1
        (saved / INT8).write_bytes(data)
    elif how == "missing":
        (saved / INT8).unlink()
    elif how == "without a record":
        config["artefacts"] = {}
    elif how == "other axis":
        config["time_axis"] = "height"
    (saved / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("damaged", "encoder_int8.onnx is damaged: .* make it anew with whisper-hailo quantize"),
        ("missing", "no onnx/encoder_int8.onnx beside the weights: make it with whisper-hailo quantize"),
        ("without a record", "no onnx/encoder_int8.onnx beside the weights"),
        ("other axis", "was made for time_axis 'width', not 'height'"),
    ],
)
def test_an_unfit_graph_is_refused_in_one_line(saved, how, line):
    spoil(saved, how)
    with pytest.raises(RequestError, match=line) as raised:
        load(saved, encoder_backend="emulator")
    assert "\n" not in str(raised.value)


def test_changed_weights_are_noticed(saved, tmp_path):
    model = load(saved, encoder_backend="emulator")
    features = features_for(model.config)
    states(model, features)
    with torch.no_grad():
        model.get_encoder().core.head.weight.mul_(2.0)
    with pytest.raises(RequestError, match=r"made from other weights than those loaded: .* whisper-hailo quantize"):
        states(model, features)
    model.set_encoder_backend("torch")
    model.save_pretrained(tmp_path / "changed")
    assert not (tmp_path / "changed" / INT8).exists()


def test_a_file_of_another_make(tmp_path):
    model = small_model()
    from whisper_hailo_hf.compile.export import export_encoder

    export_encoder(model, tmp_path / "float.onnx", windows=0)
    with pytest.raises(WhisperHailoError, match=r"float.onnx is no integer graph of this package's making"):
        IntegerGraph(tmp_path / "float.onnx")


def test_it_cannot_train(saved):
    model = load(saved, encoder_backend="emulator").train()
    with pytest.raises(RequestError, match="'emulator' cannot train"):
        model(input_features=features_for(model.config), labels=torch.tensor([[5, 6]] * 2))


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_open_their_own_session(saved, how):
    model = load(saved, encoder_backend="emulator", encoder_backend_options={"threads": 1})
    features = features_for(model.config)
    expected = states(model, features)
    twin = pickle.loads(pickle.dumps(model)) if how == "pickle" else copy.deepcopy(model)
    assert twin.get_encoder().backend._handle is None
    assert torch.equal(states(twin, features), expected)


def test_status_and_options(saved, monkeypatch):
    assert "onnxruntime" in available_backends()["emulator"].reason
    with pytest.raises(RequestError, match="threads is a positive number, not 0"):
        load(saved, encoder_backend="emulator", encoder_backend_options={"threads": 0})
    monkeypatch.setattr("whisper_hailo_hf.backends.emulator.find_spec", lambda name: None)
    assert not available_backends()["emulator"].available
    with pytest.raises(RequestError, match=r"onnx is not installed: pip install 'whisper-hailo-hf\[onnx\]'"):
        load(saved, encoder_backend="emulator")
