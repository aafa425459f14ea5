"""An integer graph run in NumPy, written apart from the package: sums of products of integers, rounded once each.

Reads a QDQ file node by node. Nothing in it computes in float but the factor by which a sum becomes the next layer's
integer, in float64, as a chip's requantisation would have it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass
class Stored:
    """Integers, and the scale and zero point that say what they stand for."""

    integers: np.ndarray
    scale: np.ndarray
    zero: int

    @property
    def centred(self) -> np.ndarray:
        return self.integers.astype(np.int64) - self.zero


class IntegerReference:
    """Runs an all-8-bit file of the quantizer's; `values` has the integers of every stored value of the last run."""

    def __init__(self, path) -> None:
        self.graph = onnx.load(path).graph
        self.constants = {one.name: numpy_helper.to_array(one) for one in self.graph.initializer}
        self.after = {node.input[0]: node for node in self.graph.node if node.op_type == "QuantizeLinear"}
        self.values: dict[str, np.ndarray] = {}

    def run(self, features: np.ndarray) -> np.ndarray:
        """Float features to the output's integers."""
        known: dict[str, Stored] = {}  # by the name of what DequantizeLinear gives
        quantized: dict[str, Stored] = {}
        for node in self.graph.node:
            if node.op_type == "QuantizeLinear":
                if node.input[0] == self.graph.input[0].name:
                    scale, zero = (self.constants[name] for name in node.input[1:])
                    steps = np.rint(features.astype(np.float64) / np.float64(scale)) + int(zero)
                    quantized[node.output[0]] = Stored(np.clip(steps, 0, 255).astype(np.int64), scale, int(zero))
            elif node.op_type == "DequantizeLinear":
                known[node.output[0]] = quantized.get(node.input[0]) or self._constant(node)
            else:
                result = self._layer(node, [known[name] for name in node.input if name in known])
                quantized[self.after[node.output[0]].output[0]] = result
        self.values = {name: stored.integers for name, stored in quantized.items()}
        last = next(node for node in self.graph.node if node.output[0] == self.graph.output[0].name)
        return self.values[last.input[0]]

    def _constant(self, node) -> Stored:
        integers, scale, zero = (self.constants[name] for name in node.input)
        assert not np.any(zero) or zero.ndim == 0
        return Stored(integers, scale.astype(np.float64), int(zero) if zero.ndim == 0 else 0)

    def _layer(self, node, inputs: list[Stored]) -> Stored:
        scale, zero = (self.constants[name] for name in self.after[node.output[0]].input[1:])
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Resize":
            factors = next(self.constants[name] for name in node.input[1:] if name in self.constants)
            integers = inputs[0].integers
            for axis in (2, 3):
                integers = integers.repeat(int(factors[axis]), axis)
            assert (inputs[0].scale, inputs[0].zero) == (scale, int(zero))  # it moves numbers and changes none
            return Stored(integers, scale, int(zero))
        real = getattr(self, "_" + node.op_type.lower())(attributes, *inputs)
        steps = np.rint(real / np.float64(scale)) + int(zero)
        return Stored(np.clip(steps, 0, 255).astype(np.int64), scale, int(zero))

    @staticmethod
    def _conv(attributes, inputs: Stored, weights: Stored, bias: Stored) -> np.ndarray:
        x, w = inputs.centred, weights.integers.astype(np.int64)
        pads, strides, dilations = (attributes[name] for name in ("pads", "strides", "dilations"))
        x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
        rows = (x.shape[2] - dilations[0] * (w.shape[2] - 1) - 1) // strides[0] + 1
        columns = (x.shape[3] - dilations[1] * (w.shape[3] - 1) - 1) // strides[1] + 1
        total = np.zeros((1, w.shape[0], rows, columns), np.int64)
        for i in range(w.shape[2]):
            for j in range(w.shape[3]):
                first = dilations[0] * i, dilations[1] * j
                part = x[
                    :,
                    :,
                    first[0] : first[0] + strides[0] * (rows - 1) + 1 : strides[0],
                    first[1] : first[1] + strides[1] * (columns - 1) + 1 : strides[1],
                ]
                if attributes.get("group", 1) == 1:
                    total += np.einsum("oc,bcij->boij", w[:, :, i, j], part)
                else:
                    assert w.shape[1] == 1
                    total += w[None, :, 0, i, j, None, None] * part
        total += bias.integers.reshape(1, -1, 1, 1)
        assert np.abs(total).max() < 2**31  # it would fit the accumulator
        assert np.allclose(bias.scale, inputs.scale.astype(np.float64) * weights.scale)
        return total * (inputs.scale.astype(np.float64) * weights.scale).reshape(1, -1, 1, 1)

    @staticmethod
    def _add(attributes, one: Stored, other: Stored) -> np.ndarray:
        return one.centred * np.float64(one.scale) + other.centred * np.float64(other.scale)

    @staticmethod
    def _mul(attributes, one: Stored, other: Stored) -> np.ndarray:
        return (one.centred * other.centred) * (np.float64(one.scale) * np.float64(other.scale))

    @staticmethod
    def _sigmoid(attributes, one: Stored) -> np.ndarray:
        return 1 / (1 + np.exp(-one.centred * np.float64(one.scale)))

    @staticmethod
    def _globalaveragepool(attributes, one: Stored) -> np.ndarray:
        return one.centred.mean(axis=(2, 3), keepdims=True) * np.float64(one.scale)
