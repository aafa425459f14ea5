"""A float ONNX graph as the quantizer sees it: operations in order, constants by name, weights that may be changed."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from whisper_hailo_hf.encoders.placement import Op
from whisper_hailo_hf.errors import RequestError

_MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "MaxPool"}
_KINDS = {
    "Add": "add",
    "Concat": "concat",
    "Div": "div",
    "GlobalAveragePool": "pool",
    "GroupNormalization": "norm",
    "InstanceNormalization": "norm",
    "LayerNormalization": "norm",
    "MatMul": "matmul",
    "Mul": "mul",
    "ReduceMean": "reduce",
    "ReduceSum": "reduce",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
}


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name, strings as str."""
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


@dataclass
class FloatGraph:
    """A graph with one input and one output, both float32 and of fixed shape.

    Attributes:
        model: the ONNX model; its initializers are not kept up to date.
        constants: every constant by name: float32 weights, biases and tables, and whole numbers.
        ops: the operations, one for each node.
    """

    model: ModelProto
    constants: dict[str, npt.NDArray[Any]]
    ops: list[Op] = field(default_factory=list)

    @classmethod
    def read(cls, model: ModelProto) -> Self:
        """Reads a checked model; a `RequestError` for one that cannot be quantised."""
        model = copy.deepcopy(model)
        graph = model.graph
        constants = {one.name: numpy_helper.to_array(one).copy() for one in graph.initializer}
        for node in [node for node in graph.node if node.op_type == "Constant"]:
            constants[node.output[0]] = numpy_helper.to_array(attributes(node)["value"]).copy()
            graph.node.remove(node)
        inputs = [one for one in graph.input if one.name not in constants]
        for what, values in (("input", inputs), ("output", graph.output)):
            if len(values) != 1:
                raise RequestError(f"the graph has {len(values)} {what}s: the quantizer takes graphs with one")
            if values[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
                raise RequestError(f"the graph's {what} {values[0].name} is not float32: quantise a float graph")
        if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
            raise RequestError("the graph is quantised already: give the float one")
        self = cls(model, constants)
        self._name_nodes()
        self._own_constants()
        self.ops = [self._op(node) for node in graph.node]
        return self

    @property
    def nodes(self) -> list[NodeProto]:
        """The nodes, in the order in which they run."""
        return list(self.model.graph.node)

    @property
    def input(self) -> str:
        """Name of the input."""
        return next(one.name for one in self.model.graph.input if one.name not in self.constants)

    @property
    def output(self) -> str:
        """Name of the output."""
        return self.model.graph.output[0].name

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        value = next(one for one in self.model.graph.input if one.name == self.input)
        return tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)

    def weight_of(self, node: NodeProto) -> tuple[str, int] | None:
        """Name of the weight of a convolution or matrix product and the axis of its output channels, if it has one."""
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in self.constants:
            return node.input[1], 0 if node.op_type == "Conv" else 1
        if node.op_type == "MatMul" and node.input[1] in self.constants:
            return node.input[1], self.constants[node.input[1]].ndim - 1
        return None

    def bias_of(self, node: NodeProto) -> str | None:
        """Name of a convolution's bias."""
        return node.input[2] if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 2 else None

    def copy(self) -> "FloatGraph":
        """Another graph with constants of its own."""
        return FloatGraph(self.model, {name: value.copy() for name, value in self.constants.items()}, self.ops)

    def _name_nodes(self) -> None:
        taken: set[str] = set()
        for index, node in enumerate(self.model.graph.node):
            if not node.name or node.name in taken:
                node.name = f"{node.op_type}_{index}"
            taken.add(node.name)

    def _own_constants(self) -> None:
        """Gives each convolution a weight and a bias of its own, which the quantizer may change."""
        seen: set[str] = set()
        for node in self.model.graph.node:
            if self.weight_of(node) is None:
                continue
            for index in range(1, len(node.input)):
                if node.input[index] in seen:
                    name = f"{node.name}/input_{index}"
                    self.constants[name] = self.constants[node.input[index]].copy()
                    node.input[index] = name
                seen.add(node.input[index])
            if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 2:
                channels = self.constants[node.input[1]].shape[0 if node.op_type == "Conv" else 1]
                self.constants[f"{node.name}/bias"] = np.zeros(channels, np.float32)
                node.input.append(f"{node.name}/bias")

    def _op(self, node: NodeProto) -> Op:
        inputs = tuple(name for name in node.input if name and name not in self.constants)
        table = any(self.constants[name].size > 1 for name in node.input if name in self.constants)
        return Op(node.name, self._kind(node, inputs), inputs, node.output[0], table)

    def _kind(self, node: NodeProto, inputs: tuple[str, ...]) -> str:
        kind, values = node.op_type, attributes(node)
        if not inputs or len(node.output) > 1:
            return "other"
        if kind == "Conv" and self.weight_of(node) is not None:
            return "conv"
        if kind == "ConvTranspose" and self.weight_of(node) is not None and values.get("group", 1) == 1:
            return "conv"
        if kind == "Clip" and self._number(node, 1) == 0.0:
            return "relu"
        if kind == "Resize" and values.get("mode", "nearest") == "nearest":
            return "move"
        return "move" if kind in _MOVES and len(inputs) == 1 else _KINDS.get(kind, "other")

    def _number(self, node: NodeProto, index: int) -> float | None:
        if len(node.input) <= index or node.input[index] not in self.constants:
            return None
        value = self.constants[node.input[index]]
        return float(value) if value.size == 1 else None

    def used_constants(self) -> Iterator[str]:
        """Names of the constants that a node reads, each once."""
        seen: set[str] = set()
        for node in self.model.graph.node:
            for name in node.input:
                if name in self.constants and name not in seen:
                    seen.add(name)
                    yield name
