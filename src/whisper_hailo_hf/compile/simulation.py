"""A float graph run in torch, with any part of it rounded as the integers would be.

For what needs a value, a gradient or a choice at each place: calibration, equalisation, bias correction, fine-tuning,
and the error of a layer alone. ONNX Runtime runs the finished integer graph.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto, helper
from torch import Tensor

from whisper_hailo_hf.arithmetic import (
    Affine,
    affine,
    fake_quantize,
    fake_quantize_bias,
    fake_quantize_weight,
    weight_scale,
)
from whisper_hailo_hf.compile.float_graph import FloatGraph, attributes
from whisper_hailo_hf.encoders.placement import Layer, Placement
from whisper_hailo_hf.errors import WhisperHailoError

Values = dict[str, Tensor]


class Rounding:
    """What is rounded, and how.

    Args:
        placement: which values are stored in how many bits.
        scales: the integers of a value, from (value, bits).
        weight_bits: of the weights of a layer, by its name; 8, or the placement's, where it is not named.
        only: names of the layers (and perhaps of the graph's input) that are rounded; None is all of them.
    """

    def __init__(
        self,
        placement: Placement,
        scales: Callable[[str, int], Affine],
        weight_bits: dict[str, int] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        self.placement, self.scales, self.only = placement, scales, only
        self.layers = {layer.name: layer for layer in placement.layers}
        self._weight_bits = weight_bits or {}
        # who a value's rounding is counted with: the layer that gives it, or else the first one that reads it
        self.owner = {layer.output: layer.name for layer in placement.layers}
        for layer in placement.layers:
            for value in layer.op.inputs:
                self.owner.setdefault(placement.root(value), layer.name)

    def on(self, name: str) -> bool:
        """Whether a layer is rounded."""
        return self.only is None or name in self.only

    def weight_bits(self, layer: Layer) -> int:
        """Bits of a layer's weights."""
        return self._weight_bits.get(layer.name, layer.weight_bits)

    def write(self, name: str, value: Tensor, owner: str | None = None) -> Tensor:
        """A value as it is stored."""
        bits = self.placement.bits.get(name)
        if bits is None or not self.on(owner or self.owner.get(name, name)):
            return value
        return _round(value, self.scales(name, bits))

    def read(self, layer: Layer, name: str, value: Tensor) -> Tensor:
        """A stored value as a layer reads it: 16 bits are rounded to 8 for a layer of 8."""
        root = self.placement.root(name)
        if self.placement.bits.get(root) == layer.input_bits or not self.on(layer.name):
            return value
        return _round(value, self.scales(root, layer.input_bits))


def table_scale(table: np.ndarray, bits: int) -> Affine:
    """The integers of a constant that is added, from its own range."""
    return affine(float(table.min()), float(table.max()), bits)


def _round(value: Tensor, scale: Affine) -> Tensor:
    return fake_quantize(
        value, torch.from_numpy(scale.scale).to(value.device), torch.tensor(float(scale.zero_point)), scale.integer
    )


class Simulation:
    """Runs a graph, one window at a time.

    Args:
        graph: the graph; its weights are copied.

    `constants` are float32 or integer tensors by name: weights and biases among them may be changed or trained.
    """

    def __init__(self, graph: FloatGraph) -> None:
        self.graph = graph
        self.constants = {name: torch.from_numpy(np.array(value)) for name, value in graph.constants.items()}
        self._last_reader: dict[str, str] = {name: node.name for node in graph.nodes for name in node.input}
        self._foreign: dict[str, Any] = {}

    def start(self, features: Tensor, rounding: Rounding | None = None) -> Values:
        """The values before the first node: the graph's input, of the graph's own shape, stored."""
        name = self.graph.input
        features = features.reshape(self.graph.input_shape)
        return {name: features if rounding is None else rounding.write(name, features, owner=name)}

    def compute(
        self, node: NodeProto, values: Values, rounding: Rounding | None = None, exact_weights: bool = False
    ) -> Tensor:
        """A node's result, before it is stored; with `exact_weights`, of inputs as they are read but float weights."""
        layer = rounding.layers.get(node.name) if rounding is not None else None
        arguments: list[Any] = []
        for name in node.input:
            if not name:
                arguments.append(None)
            elif name in self.constants:
                arguments.append(self.constants[name])
            else:
                arguments.append(values[name] if layer is None else rounding.read(layer, name, values[name]))  # type: ignore[union-attr]
        if layer is not None and rounding is not None and rounding.on(layer.name) and not exact_weights:
            self._round_constants(node, layer, rounding, arguments)
        return self._apply(node, arguments)

    def store(self, node: NodeProto, result: Tensor, values: Values, rounding: Rounding | None = None) -> None:
        """Puts a result among the values, rounded where it is to be, and drops those that nobody reads any more."""
        name = node.output[0]
        values[name] = result if rounding is None else rounding.write(name, result)
        for read in node.input:
            if self._last_reader[read] == node.name:
                values.pop(read, None)

    def run(
        self,
        features: Tensor,
        rounding: Rounding | None = None,
        observe: Callable[[str, Tensor], None] | None = None,
    ) -> Tensor:
        """The graph's output for one window; `observe` is shown every value as it is stored, with its name."""
        values = self.start(features, rounding)
        if observe is not None:
            observe(self.graph.input, values[self.graph.input])
        for node in self.graph.nodes:
            self.store(node, self.compute(node, values, rounding), values, rounding)
            if observe is not None:
                observe(node.output[0], values[node.output[0]])
        return values[self.graph.output]

    def rerun(self, features: Tensor, floats: Values, rounding: Rounding) -> Tensor:
        """As `run`, with all float values of the same window at hand: begins at the first layer that is rounded."""
        nodes, only = self.graph.nodes, rounding.only
        values, first = floats | self.start(features, rounding), 0
        if only is not None and self.graph.input not in only:
            first = next(
                index
                for index, node in enumerate(nodes)
                if node.name in only or rounding.owner.get(node.output[0]) in only
            )
        for node in nodes[first:]:
            self.store(node, self.compute(node, values, rounding), values, rounding)
        return values[self.graph.output]

    def write_back(self, names: Iterable[str]) -> None:
        """Takes constants over into the graph."""
        for name in names:
            self.graph.constants[name] = self.constants[name].detach().numpy().copy()

    def foreign_operators(self) -> list[str]:
        """Operators that are run outside torch, without a gradient."""
        return sorted({node.op_type for node in self.graph.nodes if node.op_type not in _OPERATORS})

    def _round_constants(self, node: NodeProto, layer: Layer, rounding: Rounding, arguments: list[Any]) -> None:
        weight = self.graph.weight_of(node)
        if weight is not None:
            bits = rounding.weight_bits(layer)
            if self.graph.bias_of(node) is not None and not bits == layer.input_bits == 16:
                inputs = rounding.scales(rounding.placement.root(layer.op.inputs[0]), layer.input_bits)
                scale = weight_scale(arguments[1], bits, weight[1])
                arguments[2] = fake_quantize_bias(arguments[2], torch.from_numpy(inputs.scale), scale)
            arguments[1] = fake_quantize_weight(arguments[1], bits, weight[1])
        elif layer.op.kind == "add" and layer.op.table:
            index = next(i for i, name in enumerate(node.input) if name in self.constants)
            table = self.graph.constants[node.input[index]]
            arguments[index] = _round(arguments[index], table_scale(table, layer.input_bits))

    def _apply(self, node: NodeProto, arguments: list[Any]) -> Tensor:
        operator = _OPERATORS.get(node.op_type)
        if operator is not None:
            return operator(arguments, attributes(node))
        return self._run_foreign(node, arguments)

    def _run_foreign(self, node: NodeProto, arguments: list[Any]) -> Tensor:
        import onnxruntime

        feeds = {name: value.detach().numpy() for name, value in zip(node.input, arguments, strict=True) if name}
        if node.name not in self._foreign:
            inputs = [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value in feeds.items()
            ]
            outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
            graph = helper.make_graph([node], "one", inputs, outputs)
            model: ModelProto = helper.make_model(graph, opset_imports=self.graph.model.opset_import, ir_version=10)
            self._foreign[node.name] = onnxruntime.InferenceSession(model.SerializeToString())
        results = self._foreign[node.name].run(None, feeds)
        if len(results) > 1:
            raise WhisperHailoError(f"{node.name}: the quantizer knows no operator {node.op_type} of several outputs")
        return torch.from_numpy(results[0])


def _ints(value: Tensor) -> list[int]:
    return [int(number) for number in value.tolist()]


def _conv(arguments: list[Any], values: dict[str, Any]) -> Tensor:
    hidden, weight = arguments[:2]
    rank = weight.dim() - 2
    pads = values.get("pads", [0] * 2 * rank)
    if pads[:rank] != pads[rank:]:  # F.pad begins with the last axis
        hidden = F.pad(hidden, [p for axis in reversed(range(rank)) for p in (pads[axis], pads[axis + rank])])
        pads = [0] * 2 * rank
    convolve: Callable[..., Tensor] = F.conv1d if rank == 1 else F.conv2d
    return convolve(
        hidden,
        weight,
        arguments[2] if len(arguments) > 2 else None,
        tuple(values.get("strides", [1] * rank)),
        tuple(pads[:rank]),
        tuple(values.get("dilations", [1] * rank)),
        values.get("group", 1),
    )


def _resize(arguments: list[Any], values: dict[str, Any]) -> Tensor:
    hidden, _, scales, sizes = (*arguments, None, None)[:4]
    if sizes is None:
        sizes = torch.tensor([round(n * float(scale)) for n, scale in zip(hidden.shape, scales, strict=True)])
    rule = (values.get("mode", "nearest"), values.get("coordinate_transformation_mode", "half_pixel"))
    if rule != ("nearest", "asymmetric") or values.get("nearest_mode") != "floor":
        raise WhisperHailoError(
            f"the quantizer knows Resize as nearest, asymmetric, floor only, not {rule}: export nn.Upsample of torch"
        )
    return F.interpolate(hidden, size=_ints(sizes)[2:], mode="nearest")


def _reshape(arguments: list[Any], values: dict[str, Any]) -> Tensor:
    hidden, shape = arguments[0], _ints(arguments[1])
    return hidden.reshape([hidden.shape[i] if n == 0 else n for i, n in enumerate(shape)])


def _layer_norm(arguments: list[Any], values: dict[str, Any]) -> Tensor:
    axis = values.get("axis", -1) % arguments[0].dim()
    bias = arguments[2] if len(arguments) > 2 else None
    return F.layer_norm(arguments[0], arguments[0].shape[axis:], arguments[1], bias, values.get("epsilon", 1e-5))


def _clip(arguments: list[Any], values: dict[str, Any]) -> Tensor:
    bounds = [None if one is None else float(one) for one in (*arguments[1:], None, None)]
    return arguments[0].clamp(bounds[0], bounds[1])


# What torch runs itself, with a gradient; any other operator goes through ONNX Runtime.
_OPERATORS: dict[str, Callable[[list[Any], dict[str, Any]], Tensor]] = {
    "Add": lambda a, v: a[0] + a[1],
    "Clip": _clip,
    "Concat": lambda a, v: torch.cat(a, v["axis"]),
    "Conv": _conv,
    "Div": lambda a, v: a[0] / a[1],
    "Erf": lambda a, v: torch.erf(a[0]),
    "GlobalAveragePool": lambda a, v: a[0].mean(dim=tuple(range(2, a[0].dim())), keepdim=True),
    "Identity": lambda a, v: a[0],
    "LayerNormalization": _layer_norm,
    "MatMul": lambda a, v: a[0] @ a[1],
    "Mul": lambda a, v: a[0] * a[1],
    "Relu": lambda a, v: F.relu(a[0]),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda a, v: torch.sigmoid(a[0]),
    "Softmax": lambda a, v: a[0].softmax(v.get("axis", -1)),
    "Sub": lambda a, v: a[0] - a[1],
    "Tanh": lambda a, v: torch.tanh(a[0]),
    "Transpose": lambda a, v: a[0].permute(v["perm"]),
}
