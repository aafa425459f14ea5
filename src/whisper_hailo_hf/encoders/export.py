"""A core as a static ONNX graph: batch 1, rank 4, normalisation folded into the convolutions.

The host stage stays outside. TorchScript's exporter is used on purpose: it keeps module paths as node names and leaves
nothing but the operators of the network. What it leaves besides (constants as nodes, copies of equal weights, numbered
names) is tidied here, so that the names are the same whenever and for whatever opset a core is exported.
"""

import copy
import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from whisper_hailo_hf.encoders.layers import AxisConv2d, ConvUnit, EncoderCore
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.version import __version__

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

INPUT_NAME, OUTPUT_NAME = "input_features", "states"
OPSETS = range(13, 19)  # those in which Hailo's parser has been seen to read networks (13-17, and 18 with DFC 3.33)
_LIMIT = 2**31 - 2**24  # bytes: one protobuf message holds 2 GiB, and some is needed for the graph itself


def folded(core: EncoderCore) -> EncoderCore:
    """A float32 copy for inference: plain `Conv2d` in the core's own layout, every BatchNorm folded away."""
    core = copy.deepcopy(core).float().cpu().eval()
    for parameter in core.parameters():
        parameter.requires_grad_(False)
    for name, module in list(core.named_modules()):
        if isinstance(module, ConvUnit):
            plain, norm = module.conv.plain().eval(), module.norm.eval()
            module.conv = fuse_conv_bn_eval(plain, norm) if isinstance(norm, nn.BatchNorm2d) else plain  # type: ignore[assignment]
            module.norm = nn.Identity()
        elif isinstance(module, AxisConv2d) and core.get_submodule(name) is module:  # not one that was just folded
            core.set_submodule(name, module.plain())
    return core


def input_shape(core: EncoderCore, mel_bins: int, time_axis: str) -> tuple[int, int, int, int]:
    """Shape of the graph's input: (1, mel bins, 1, frames), or (1, mel bins, frames, 1) with time on the height."""
    return (1, mel_bins, 1, core.frames) if time_axis == "width" else (1, mel_bins, core.frames, 1)


def export_core(
    core: EncoderCore,
    mel_bins: int,
    time_axis: str,
    path: str | os.PathLike,
    opset: int = 17,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes the core to `path` as one self-contained ONNX file, atomically.

    Shapes: input `input_features` (1, mel bins, 1, frames), output `states` (1, d_model, 1, frames // 2); with time on
    the height, the last two swapped. Nodes carry the path of their module, as `/blocks.3/mix/conv/Conv`, weights the
    name of their parameter, other constants the name of the node and input that they are for, as
    `resize.Resize.scales`.

    Args:
        core: the network; it stays as it is.
        mel_bins: rows of the log-mel features.
        time_axis: layout of the core: `"width"` or `"height"`.
        path: the file; its folder is made.
        opset: operator set, one of `OPSETS`.
        metadata: goes into the file's `metadata_props`.

    Raises:
        RequestError: another opset, or the `onnx` package is not installed.
        WhisperHailoError: too large for one ONNX file.
    """
    try:
        import onnx
    except ImportError as error:
        raise RequestError("an ONNX export needs onnx: pip install 'whisper-hailo-hf[onnx]'") from error
    if opset not in OPSETS:
        raise RequestError(f"opset {opset} is none of those that Hailo reads: choose {OPSETS[0]} to {OPSETS[-1]}")
    size = 4 * sum(tensor.numel() for tensor in core.state_dict().values())
    if size > _LIMIT:
        raise WhisperHailoError(
            f"this encoder has {size / 2**30:.1f} GiB of float32 weights, and one ONNX file holds 2: use a smaller one"
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # the exporter is deprecated in favour of one that renames nodes and drops older opsets
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx")
            torch.onnx.export(
                folded(core),
                (torch.zeros(input_shape(core, mel_bins, time_axis)),),
                str(partial),
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                opset_version=opset,
                do_constant_folding=True,
                dynamo=False,
            )
        model = tidied(onnx.load(partial))
        onnx.helper.set_model_props(model, dict(metadata or {}))
        onnx.save(model, partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


def tidied(model: "ModelProto") -> "ModelProto":
    """Tidies what the exporter gave: nothing that is known beforehand, stable names, inner shapes stated."""
    import onnx

    graph = model.graph
    for value in graph.output:
        for size in value.type.tensor_type.shape.dim:
            size.ClearField("dim_param")  # what the exporter could not tell has a name: a number shall take its place
    while _fold(_inferred(model), model):
        pass  # what is folded may tell further shapes
    _name_constants(graph)
    for node in graph.node:
        node.ClearField("doc_string")
    graph.name, model.producer_name, model.producer_version = "encoder", "whisper_hailo_hf", __version__
    inferred = _inferred(model, strict=True)
    graph.ClearField("value_info")
    graph.ClearField("output")
    graph.MergeFrom(onnx.GraphProto(value_info=inferred.value_info, output=inferred.output))
    return model


def _inferred(model: "ModelProto", strict: bool = False) -> "GraphProto":
    """The graph with the shapes of its inner tensors; its large weights are left out, which saves copying them."""
    import onnx

    graph = model.graph
    large = [tensor for tensor in graph.initializer if len(tensor.raw_data) > 1000]
    weights = [onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in large]
    names = {tensor.name for tensor in large}
    light = onnx.GraphProto(
        name="shapes",
        node=graph.node,
        input=[*graph.input, *weights],
        output=graph.output,
        initializer=[tensor for tensor in graph.initializer if tensor.name not in names],
    )
    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=light)
    return onnx.shape_inference.infer_shapes(alone, check_type=strict, strict_mode=strict, data_prop=True).graph


def _fold(inferred: "GraphProto", model: "ModelProto") -> bool:
    """What can be known beforehand becomes an initializer: constants, shapes, copies of equal weights. Any other
    Identity gives way to what it repeats. False if there was nothing to do."""
    import onnx

    graph = model.graph
    outputs = {value.name for value in graph.output}
    types = {value.name: value.type.tensor_type for value in (*inferred.input, *inferred.value_info)}
    shapes = {name: type.shape.dim for name, type in types.items() if type.HasField("shape")}
    known = {tensor.name: tensor for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        inputs, name = [name for name in node.input if name], node.output[0]
        sizes = shapes.get(inputs[0]) if node.op_type == "Shape" else None
        if sizes is not None and all(size.HasField("dim_value") for size in sizes):
            value = np.array([size.dim_value for size in sizes], dtype=np.int64)
            known[name] = onnx.numpy_helper.from_array(value, name)
        elif set(inputs) <= known.keys() and not outputs & set(node.output):
            value = _value(node, [onnx.numpy_helper.to_array(known[key]) for key in inputs], model)
            known[name] = onnx.numpy_helper.from_array(value, name)
        elif node.op_type == "Identity" and name not in outputs:
            renamed[name] = node.input[0]
        else:
            kept.append(node)
    if len(kept) == len(graph.node):
        return False
    used = dict.fromkeys(name for node in kept for name in node.input if name in known)
    rest = onnx.GraphProto(node=kept, initializer=[known[name] for name in used])  # copies, in order of use
    graph.ClearField("node")
    graph.ClearField("initializer")
    graph.MergeFrom(rest)
    return True


def _value(node: "NodeProto", inputs: list[np.ndarray], model: "ModelProto") -> np.ndarray:
    import onnx

    if node.op_type == "Identity":
        return inputs[0]
    if node.op_type == "Constant" and node.attribute[0].name == "value":
        return onnx.numpy_helper.to_array(node.attribute[0].t)
    from onnx.reference import ReferenceEvaluator

    alone = onnx.helper.make_graph([node], "constant", [], [onnx.ValueInfoProto(name=node.output[0])])
    run = ReferenceEvaluator(onnx.helper.make_model(alone, opset_imports=model.opset_import))
    names = [name for name in node.input if name]
    (value,) = run.run(None, dict(zip(names, inputs, strict=True)))
    return np.asarray(value)


def _name_constants(graph: "GraphProto") -> None:
    """Constants that are no parameter of a module are named after the first node that reads them, and its input."""
    import onnx

    unnamed = {tensor.name: tensor for tensor in graph.initializer if _is_numbered(tensor.name)}
    names: dict[str, str] = {}
    for node in graph.node:
        formal = onnx.defs.get_schema(node.op_type).inputs
        for index, name in enumerate(node.input):
            if name in unnamed and name not in names:
                role = formal[min(index, len(formal) - 1)].name
                stable = f"{node.name.strip('/').replace('/', '.')}.{role}"
                names[name] = f"{stable}.{index}" if stable in names.values() else stable
            node.input[index] = names.get(name, name)
    for name, tensor in unnamed.items():
        tensor.name = names[name]


def _is_numbered(name: str) -> bool:
    return name.startswith(("onnx::", "/"))
