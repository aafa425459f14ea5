"""Writes HARs in the form that Hailo's Dataflow Compiler 3.33 gives a parsed network.

A translation of our exported graphs, written apart from the reader and the comparison that it is there to test: each
operation becomes one layer, numbered by type in topological order, with what follows it fused in, in NHWC, with the
weights in TensorFlow's order.
"""

from __future__ import annotations

import copy
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

LAYER_OF = {
    "Concat": "concat",
    "LayerNormalization": "layer_normalization",
    "MatMul": "matmul",
    "Reshape": "format_conversion",
    "Softmax": "softmax",
    "Transpose": "format_conversion",
}
ACTIVATION_OF = {"Relu": "relu", "Sigmoid": "sigmoid", "Clip": "relu6"}
Change = Callable[[dict[str, Any], dict[str, np.ndarray]], None]


class Parsed:
    """A graph as the compiler's parser would give it."""

    def __init__(self, path: Path, name: str, fuse_adds: bool) -> None:
        model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
        self.graph, self.name, self.fuse_adds = model.graph, name, fuse_adds
        self.constants = {one.name: numpy_helper.to_array(one) for one in self.graph.initializer}
        for node in self.graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.shapes = {
            value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
            for value in (*self.graph.input, *self.graph.value_info, *self.graph.output)
        }
        self.layers: dict[str, dict[str, Any]] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.home: dict[str, str] = {}  # tensor -> layer
        self.done: set[str] = set()
        self.counts: dict[str, int] = {}
        given = self.graph.input[0].name
        self.home[given] = self.add("input_layer", [], [given], self.nhwc(given))
        for node in self.graph.node:
            if node.op_type != "Constant" and node.name not in self.done:
                self.translate(node)
        for output in self.graph.output:
            end = self.add("output_layer", [self.home[output.name]], [output.name], self.nhwc(output.name))
            self.layers[end]["original_names"] = [output.name]
        for layer, entry in self.layers.items():
            entry["output"] = [other for other, reader in self.layers.items() if layer in reader["input"]]

    def add(self, kind: str, inputs: list[str], names: list[str], shape: list[int], **params: Any) -> str:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        layer = f"{self.name}/{kind}{self.counts[kind]}"
        self.layers[layer] = {
            "type": kind,
            "input": list(inputs),
            "output": [],
            "input_shapes": [list(self.layers[name]["output_shapes"][0]) for name in inputs] or [list(shape)],
            "output_shapes": [list(shape)],
            "original_names": list(names),
            "compilation_params": {},
            "quantization_params": {},
            "params": params,
        }
        return layer

    def nhwc(self, tensor: str) -> list[int]:
        shape = self.shapes[tensor]
        return [-1, shape[2], shape[3], shape[1]] if len(shape) == 4 else [-1, *shape[1:]]

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if tensor in node.input]

    def data(self, node: onnx.NodeProto) -> list[str]:
        return [name for name in node.input if name and name not in self.constants]

    def activation(self, tensor: str) -> tuple[str, list[onnx.NodeProto]]:
        """The activation behind a tensor, and its nodes."""
        readers = self.readers(tensor)
        kinds = sorted(node.op_type for node in readers)
        if kinds == ["Mul", "Sigmoid"] and len(self.readers(readers[0].output[0])) >= 1:
            gate, product = sorted(readers, key=lambda node: node.op_type, reverse=True)
            if set(product.input) == {tensor, gate.output[0]}:
                return "silu", [gate, product]
        if kinds == ["Div", "Mul"]:
            chain = [next(node for node in readers if node.op_type == "Div")]
            for _ in range(4):
                chain += self.readers(chain[-1].output[0])
            assert [node.op_type for node in chain] == ["Div", "Erf", "Add", "Mul", "Mul"]
            return "gelu", chain
        if len(readers) == 1 and readers[0].op_type in ACTIVATION_OF:
            return ACTIVATION_OF[readers[0].op_type], readers
        return "linear", []

    def finish(self, layer: str, nodes: list[onnx.NodeProto], activates: bool = True) -> None:
        """Names the nodes, takes in the activation, and says which tensor the layer gives."""
        tensor = nodes[-1].output[0]
        if activates:
            name, taken = self.activation(tensor)
            self.layers[layer]["params"]["activation"] = name
            nodes = [*nodes, *taken]
            tensor = nodes[-1].output[0]
        self.layers[layer]["original_names"] = [node.name for node in nodes]
        self.layers[layer]["output_shapes"] = [self.nhwc(tensor)]
        self.done.update(node.name for node in nodes)
        self.home[tensor] = layer

    def translate(self, node: onnx.NodeProto) -> None:
        sources = [self.home[name] for name in self.data(node)]
        shape = self.nhwc(node.output[0])
        if node.op_type == "Conv":
            self.convolution(node, sources[0])
        elif node.op_type in ("Add", "Mul") and len(sources) == 1:
            table = next(self.constants[name] for name in node.input if name in self.constants)
            if table.size == 1:
                self.finish(self.add("normalization", sources, [], shape), [node], activates=False)
                return
            held = table.reshape((1,) * (4 - table.ndim) + table.shape).transpose(0, 2, 3, 1)
            carrier = self.add("const_input", [], [node.name], [-1, *held.shape[1:]])
            self.weights[f"{carrier}/const_data:0"] = held
            kind = {"Add": "ew_add", "Mul": "ew_mult"}[node.op_type]
            self.finish(self.add(kind, [*sources, carrier], [], shape), [node])
        elif node.op_type in ("Add", "Mul"):
            self.finish(self.add({"Add": "ew_add", "Mul": "ew_mult"}[node.op_type], sources, [], shape), [node])
        elif node.op_type == "GlobalAveragePool":
            before = self.nhwc(node.input[0])
            pool = self.add(
                "avgpool", sources, [], shape, kernel_shape=[1, *before[1:3], 1], strides=[1, *before[1:3], 1]
            )
            self.finish(pool, [node], activates=False)
        elif node.op_type == "Resize":
            self.finish(self.add("resize", sources, [], shape, method="nearest_neighbor"), [node], activates=False)
        elif node.op_type == "Transpose" and self.readers(node.output[0])[0].op_type == "LayerNormalization":
            norm = self.readers(node.output[0])[0]
            (back,) = self.readers(norm.output[0])
            layer = self.add("layer_normalization", sources, [], shape, reduce_axes=[3], rms_norm=False, groups=1)
            self.finish(layer, [node, norm, back], activates=False)
        elif node.op_type == "InstanceNormalization":
            layer = self.add("layer_normalization", sources, [], shape, reduce_axes=[1, 2], rms_norm=False, groups=1)
            self.finish(layer, [node], activates=False)
        else:
            self.finish(self.add(LAYER_OF[node.op_type], sources, [], shape), [node], activates=False)

    def convolution(self, node: onnx.NodeProto, source: str) -> None:
        found = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        weight = self.constants[node.input[1]]
        outs, ins, *taps = weight.shape
        groups, strides, dilations, pads = (found[key] for key in ("group", "strides", "dilations", "pads"))
        depthwise = groups == outs and ins == 1 and groups > 1
        size = self.shapes[node.input[0]][2:4]
        padding = padding_name(size, taps, strides, dilations, pads)
        if padding is None:
            height, width, channels = self.nhwc(node.input[0])[1:]
            grown = [-1, height + pads[0] + pads[2], width + pads[1] + pads[3], channels]
            around = [[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]]
            source = self.add("external_pad", [source], [node.name], grown, paddings=around)
            padding = "VALID"
        layer = self.add(
            "dw" if depthwise else "conv",
            [source],
            [],
            self.nhwc(node.output[0]),
            kernel_shape=[*taps, outs, 1] if depthwise else [*taps, ins, outs],
            strides=[1, *strides, 1],
            dilations=[1, *dilations, 1],
            padding=padding,
            groups=groups,
            batch_norm=False,
            elementwise_add=False,
        )
        self.weights[f"{layer}/kernel:0"] = weight.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
        bias = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(outs, np.float32)
        self.weights[f"{layer}/bias:0"] = bias
        self.weights[f"{layer}/padding_const_value:0"] = np.zeros(1, np.float32)
        nodes = [node]
        readers = self.readers(node.output[0])
        if self.fuse_adds and len(readers) == 1 and readers[0].op_type == "Add" and len(self.data(readers[0])) == 2:
            (other,) = [name for name in readers[0].input if name != node.output[0]]
            if other in self.home:
                nodes.append(readers[0])
                self.layers[layer]["input"].append(self.home[other])
                self.layers[layer]["input_shapes"].append(self.nhwc(other))
                self.layers[layer]["params"]["elementwise_add"] = True
        self.finish(layer, nodes)


def padding_name(size: Any, taps: Any, strides: Any, dilations: Any, pads: Any) -> str | None:
    """The parser's word for a padding, if it has one."""
    if not any(pads):
        return "VALID"
    axes = list(zip(size, taps, strides, dilations, pads[:2], pads[2:], strict=True))
    if all(step == 1 and before == behind == d * (k - 1) // 2 and k % 2 for _, k, step, d, before, behind in axes):
        return "SAME_TENSORFLOW"
    if all(d == 1 and before == behind == (k - 1) // 2 and k % 2 for _, k, _, d, before, behind in axes):
        return "SAME"
    return None


def parsed(path: Path, name: str = "encoder", fuse_adds: bool = False) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The HN graph and the weights of an ONNX file."""
    network = Parsed(path, name, fuse_adds)
    ends = [entry["input"][0] for entry in network.layers.values() if entry["type"] == "output_layer"]
    hn = {
        "name": name,
        "net_params": {
            "version": "1.0",
            "stage": "HN",
            "clusters_placement": [[]],
            "clusters_to_skip": [],
            "output_layers_order": ends,
            "is_transformer": False,
            "transposed_net": False,
            "net_scopes": [name],
        },
        "layers": network.layers,
    }
    return hn, network.weights


def npz(arrays: dict[str, np.ndarray]) -> bytes:
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """An uncompressed tar of these files."""
    with tarfile.open(path, "w:") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def files_of(hn: dict[str, Any], weights: dict[str, np.ndarray], state: str = "hailo_model") -> dict[str, bytes]:
    """The files of a HAR."""
    name = hn["name"]
    metadata = {
        "state": state,
        "force_weightless_model": False,
        "model_name": name,
        "sdk_version": "3.33.0",
        "hw_arch": "hailo8l",
        "hn": f"{name}.hn",
        "params": f"{name}.npz",
        "original_model_meta": f"{name}.original_model_meta.json",
    }
    return {
        f"{name}.hn": json.dumps(hn).encode(),
        f"{name}.npz": npz(weights),
        f"{name}.metadata.json": json.dumps(metadata).encode(),
        f"{name}.original_model_meta.json": json.dumps({"framework": "ONNX", "ir_version": 8}).encode(),
    }


def write_har(onnx_path: Path, path: Path, change: Change | None = None, fuse_adds: bool = False) -> Path:
    """A HAR of an ONNX file, with a change made to its graph and weights before it is written."""
    hn, weights = parsed(onnx_path, fuse_adds=fuse_adds)
    return write_changed(hn, weights, path, change)


def write_changed(
    hn: dict[str, Any], weights: dict[str, np.ndarray], path: Path, change: Change | None = None
) -> Path:
    """The same from a graph that is parsed already, which stays as it is."""
    hn, weights = copy.deepcopy(hn), {name: array.copy() for name, array in weights.items()}
    if change is not None:
        change(hn, weights)
    return pack(path, files_of(hn, weights))
