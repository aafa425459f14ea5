"""The exported graph: static, rank 4, nothing but the network's own operators, and the same numbers."""

import copy

import numpy as np
import onnx
import pytest
import torch
from helpers_models import FAMILIES, features_for, small_model

from whisper_hailo_hf import HailoWhisperEncoder
from whisper_hailo_hf.encoders import export
from whisper_hailo_hf.encoders.export import INPUT_NAME, OUTPUT_NAME, export_core, folded
from whisper_hailo_hf.encoders.layers import ConvUnit

onnxruntime = pytest.importorskip("onnxruntime")

CONV_OPERATORS = {"Conv", "Relu", "Add", "Mul", "Sigmoid", "GlobalAveragePool", "Resize"}


def encoder_for(family="conv", **changes):
    return small_model(family, cls=HailoWhisperEncoder, **changes)


def export_of(encoder, path, **kwargs):
    config = encoder.config
    return onnx.load(export_core(encoder.core, config.num_mel_bins, config.time_axis, path / "encoder.onnx", **kwargs))


def shape_of(value):
    return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def session_of(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # the exporter's own, of operators older than it likes
@pytest.mark.parametrize("opset", range(13, 19))
@pytest.mark.parametrize("time_axis", ["width", "height"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_numbers_as_torch(family, time_axis, opset, tmp_path):
    options = {"width": 24, "inner": 12, "activation": "silu"} if family == "conv" else {"window_seconds": 0.2}
    encoder = encoder_for(family, time_axis=time_axis, encoder_options=options)
    graph = export_of(encoder, tmp_path, opset=opset)
    onnx.checker.check_model(graph, full_check=True)
    assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [opset]
    windows = encoder.host.windows(features_for(encoder.config))
    with torch.no_grad():
        expected = encoder.core(windows).numpy()
    session = session_of(tmp_path / "encoder.onnx")
    for window, state in zip(windows.contiguous(), expected, strict=True):
        (output,) = session.run([OUTPUT_NAME], {INPUT_NAME: window[None].numpy()})
        assert np.abs(output[0] - state).max() <= 1e-4
    assert expected.std() > 0.1


@pytest.mark.parametrize("options", [{}, {"depthwise": True}, {"activation": "silu"}, {"gate_every": 1, "taps": 5}])
@pytest.mark.parametrize("time_axis", ["width", "height"])
def test_graph_of_the_conv_family(options, time_axis, tmp_path):
    encoder = encoder_for(time_axis=time_axis, encoder_layers=3, encoder_options={"width": 24, "inner": 12, **options})
    graph = export_of(encoder, tmp_path).graph
    # a constant stands for nothing but the factors of a resize
    factors = {name for node in graph.node if node.op_type == "Resize" for name in node.input}
    constants = [node for node in graph.node if node.op_type == "Constant"]
    assert {name for node in constants for name in node.output} <= factors
    assert {node.op_type for node in graph.node if node not in constants} <= CONV_OPERATORS
    (given,), (result,) = graph.input, graph.output
    axis = -1 if time_axis == "width" else -2
    expected = {INPUT_NAME: [1, 8, 1, 1], OUTPUT_NAME: [1, 16, 1, 1]}
    expected[INPUT_NAME][axis], expected[OUTPUT_NAME][axis] = 60, 30
    assert {value.name: shape_of(value) for value in (given, result)} == expected
    inferred = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "encoder.onnx"), strict_mode=True).graph
    assert len(inferred.value_info) >= len(graph.node) - 1
    for value in inferred.value_info:
        if value.name in {name for node in constants for name in node.output}:
            continue
        assert len(shape_of(value)) == 4, value.name
        assert all(size > 0 for size in shape_of(value)), value.name
        assert shape_of(value)[0] == 1, value.name


def test_normalisation_is_folded_into_as_many_convolutions(tmp_path):
    encoder = encoder_for()
    graph = export_of(encoder, tmp_path).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == sum(isinstance(module, torch.nn.Conv2d) for module in encoder.core.modules())
    assert all(len(node.input) == 3 for node in convolutions)  # each has a bias by now


def test_nodes_keep_the_path_of_their_module(tmp_path):
    graph = export_of(encoder_for(), tmp_path).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert {
        "/conv1/conv/Conv",
        "/blocks.0/reduce/conv/Conv",
        "/blocks.1/mix/conv/Conv",
        "/blocks.1/gate/pool/GlobalAveragePool",
        "/resize/Resize",
        "/head/Conv",
    } <= set(names)
    attention = {node.name for node in export_of(encoder_for("attention"), _sub(tmp_path)).graph.node}
    assert {"/conv1/Conv", "/layers.0/self_attn/q_proj/Conv", "/layers.1/fc2/Conv"} <= attention


def _sub(path):
    (path / "sub").mkdir()
    return path / "sub"


def test_attention_graph_is_static(tmp_path):
    graph = export_of(encoder_for("attention"), tmp_path).graph
    operators = {node.op_type for node in graph.node}
    arithmetic = {"Conv", "Add", "Mul", "Div", "Erf", "MatMul", "Softmax", "LayerNormalization"}
    assert operators <= arithmetic | {"Constant", "Reshape", "Transpose"}  # it computes no shapes


@pytest.mark.parametrize("training", [False, True])
def test_the_model_stays_as_it_is(training, tmp_path):
    model = small_model("conv").train(training)
    core = model.get_encoder().core
    core.conv1.conv.weight.requires_grad_(False)
    before = copy.deepcopy(core.state_dict())
    flags = {name: parameter.requires_grad for name, parameter in core.named_parameters()}
    kinds = {name: type(module) for name, module in core.named_modules()}
    export_core(core, 8, "width", tmp_path / "encoder.onnx")
    assert {name: parameter.requires_grad for name, parameter in core.named_parameters()} == flags
    assert {name: type(module) for name, module in core.named_modules()} == kinds
    assert {module.training for module in core.modules()} == {training}
    assert all(torch.equal(tensor, before[name]) for name, tensor in core.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_dtype_exports_as_float32(dtype, tmp_path):
    encoder = encoder_for().to(dtype)
    graph = export_of(encoder, tmp_path).graph
    assert {tensor.data_type for tensor in graph.initializer} == {onnx.TensorProto.FLOAT}
    assert encoder.dtype == dtype
    assert encoder.core.conv1.norm.running_mean.dtype == dtype


def test_folded_copy_gives_the_same(tmp_path):
    encoder = encoder_for()
    copied = folded(encoder.core)
    windows = encoder.host.windows(features_for(encoder.config))
    with torch.no_grad():
        assert torch.allclose(copied(windows), encoder.core(windows), atol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in copied.modules())
    assert all(type(unit.conv) is torch.nn.Conv2d for unit in copied.modules() if isinstance(unit, ConvUnit))


def test_file_is_self_contained_and_in_a_new_folder(tmp_path):
    encoder = encoder_for()
    path = export_core(encoder.core, 8, "width", tmp_path / "a" / "b" / "encoder.onnx")
    assert path == tmp_path / "a" / "b" / "encoder.onnx"
    assert [found.name for found in path.parent.iterdir()] == ["encoder.onnx"]


def test_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"the old graph")

    def fail(model, inputs, target, **kwargs):
        with open(target, "wb") as file:
            file.write(b"half a graph")
        raise RuntimeError("no space left")

    monkeypatch.setattr(export.torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match="no space left"):
        export_core(encoder_for().core, 8, "width", path)
    assert path.read_bytes() == b"the old graph"
    assert list(tmp_path.iterdir()) == [path]


def test_exported_file_can_be_read_by_others(tmp_path):
    path = export_core(encoder_for().core, 8, "width", tmp_path / "encoder.onnx")
    other = tmp_path / "plain"
    other.write_bytes(b"")
    assert path.stat().st_mode & 0o777 == other.stat().st_mode & 0o777
