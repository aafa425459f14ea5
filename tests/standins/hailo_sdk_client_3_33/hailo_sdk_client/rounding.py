"""A graph with its weights and the output of every layer rounded to integers of some bits."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hailo_sdk_client.runner import session_of

Bits = Callable[[str], "tuple[int, int]"]  # by a tensor: of activations and of weights


def ranges(model: onnx.ModelProto, tensors: "list[str]", windows: np.ndarray) -> "dict[str, tuple[float, float]]":
    """Least and greatest value of some tensors, over windows in the graph's own layout."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = model.graph.input[0].name
    inner = [name for name in tensors if name != given and name != model.graph.output[0].name]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    runs, names = session_of(watched.SerializeToString()), [model.graph.output[0].name, *inner]
    found = {given: (float(windows.min()), float(windows.max()))}
    for window in windows:
        for name, value in zip(names, runs.run(names, {given: window[None]}), strict=True):
            low, high = found.get(name, (0.0, 0.0))
            found[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return found


def scale_of(low: float, high: float, bits: int) -> "tuple[float, int]":
    """Scale and zero point of unsigned integers for a range."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-6) / (2**bits - 1)
    return scale, round(-low / scale)


def rounded(model: onnx.ModelProto, seen: "dict[str, tuple[float, float]]", bits: Bits) -> onnx.ModelProto:
    """The graph with every tensor in `seen` rounded, and the weights of what gives it."""
    graph, result = model.graph, onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    renamed: dict[str, str] = {}
    extra, constants = [], {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    outputs = {value.name for value in graph.output}

    def constant(name: str, value: float) -> str:
        extra.append(numpy_helper.from_array(np.float32(value), name))
        return name

    def fake(tensor: str, source: str, end: str) -> "list[onnx.NodeProto]":
        wide = bits(tensor)[0]
        scale, zero = scale_of(*seen[tensor], wide)
        name = tensor.replace("/", "_") + "_q"
        factor = constant(f"{name}_scale", scale)
        if source == given or end in outputs:  # the host's part, which can be taken off
            extra.append(numpy_helper.from_array(np.dtype(f"uint{wide}").type(zero), f"{name}_zero"))
            ends = {"domain": "com.microsoft"}  # which knows 16 bits, whatever the graph's own operator set
            return [
                helper.make_node("QuantizeLinear", [source, factor, f"{name}_zero"], [f"{name}_1"], **ends),
                helper.make_node("DequantizeLinear", [f"{name}_1", factor, f"{name}_zero"], [end], **ends),
            ]
        low, high = constant(f"{name}_low", -zero), constant(f"{name}_high", 2**wide - 1 - zero)
        return [
            helper.make_node("Div", [source, factor], [f"{name}_1"]),
            helper.make_node("Round", [f"{name}_1"], [f"{name}_2"]),
            helper.make_node("Clip", [f"{name}_2", low, high], [f"{name}_3"]),
            helper.make_node("Mul", [f"{name}_3", factor], [end]),
        ]

    given = graph.input[0].name
    result.graph.node.extend(fake(given, given, f"{given}_rounded"))
    renamed[given] = f"{given}_rounded"
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        tensor = node.output[0]
        if node.op_type == "Conv":
            weight = constants[node.input[1]]
            top = 2 ** (bits(tensor)[1] - 1) - 1
            steps = np.maximum(np.abs(weight).max(axis=(1, 2, 3), keepdims=True), 1e-9) / top
            name = f"{node.name}_weight_q"
            extra.append(numpy_helper.from_array((np.round(weight / steps) * steps).astype(np.float32), name))
            copy.input[1] = name
        if tensor in seen:
            copy.output[0] = f"{tensor}_raw"
            end = tensor if tensor in outputs else f"{tensor}_rounded"
            renamed[tensor] = end
            result.graph.node.append(copy)
            result.graph.node.extend(fake(tensor, f"{tensor}_raw", end))
        else:
            result.graph.node.append(copy)
    result.graph.ClearField("value_info")
    result.graph.initializer.extend(extra)
    return result
