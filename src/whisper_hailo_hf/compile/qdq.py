"""The integer graph: QuantizeLinear and DequantizeLinear around every layer, in the form that ONNX Runtime fuses.

Weights are int8 (int16) initializers, biases int32 at the accumulator's scale, stored values uint8 (uint16). A ReLU
behind a layer is gone: the range of the layer's output begins at zero, and what lies below saturates there. The input
and output of the graph stay float32; the first QuantizeLinear and the last DequantizeLinear are what a device's host
does. 16 bits need opset 21; 8 bits keep the float graph's opset.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper, version_converter

from whisper_hailo_hf.arithmetic import Affine, accumulator, symmetric
from whisper_hailo_hf.compile.float_graph import FloatGraph
from whisper_hailo_hf.compile.simulation import Rounding, table_scale
from whisper_hailo_hf.encoders.placement import Layer
from whisper_hailo_hf.version import __version__

OPSET_OF_16_BITS, _IR_OF_16_BITS = 21, 10


def with_16_bits(model: ModelProto) -> ModelProto:
    """A float model in an opset whose QuantizeLinear knows 16 bits."""
    if next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx")) < OPSET_OF_16_BITS:
        model = version_converter.convert_version(model, OPSET_OF_16_BITS)
    model.ir_version = max(model.ir_version, _IR_OF_16_BITS)
    return model


def build_qdq(graph: FloatGraph, rounding: Rounding) -> ModelProto:
    """The integer graph of a float graph, with all that `rounding` says of it; checked, with inner shapes."""
    return _Builder(graph, rounding).build()


class _Builder:
    def __init__(self, graph: FloatGraph, rounding: Rounding) -> None:
        self.graph, self.rounding, self.placement = graph, rounding, rounding.placement
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.readable: dict[str, str] = {}  # a stored value, dequantised
        self.narrowed: dict[str, str] = {}  # one of 16 bits, rounded to 8 and dequantised

    def build(self) -> ModelProto:
        model = ModelProto()
        model.CopyFrom(self.graph.model)
        for part in ("node", "initializer", "value_info"):
            model.graph.ClearField(part)
        self._store(self.graph.input, self.graph.input)
        for node in self.graph.nodes:
            if node.name not in self.placement.activations:
                self._add(node)
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self.constants.items())
        model.producer_name, model.producer_version = "whisper_hailo_hf", __version__
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)

    def _add(self, node: NodeProto) -> None:
        layer, original = self.rounding.layers.get(node.name), node
        node = NodeProto()
        node.CopyFrom(original)
        for index, name in enumerate(original.input):
            if name in self.graph.constants:
                node.input[index] = self._constant(original, index, layer)
            elif name and self.placement.stored(name):
                node.input[index] = self._read(name, None if layer is None else layer.input_bits)
        output = node.output[0] if layer is None else layer.output
        made = f"{output}/float" if output == self.graph.output and self.placement.stored(output) else output
        node.output[0] = made
        self.nodes.append(node)
        self._store(output, made)

    def _store(self, value: str, made: str) -> None:
        """QuantizeLinear and DequantizeLinear behind a value, which lies under the name `made`."""
        if self.placement.stored(value):
            root = self.placement.root(value)
            scale = self.rounding.scales(root, self.placement.bits[root])
            name = value if value == self.graph.output else f"{value}/dequantized"
            self.readable[value] = self._round_trip(value, made, name, scale)

    def _read(self, value: str, bits: int | None) -> str:
        root = self.placement.root(value)
        if bits is None or bits == self.placement.bits[root]:
            return self.readable[value]
        if value not in self.narrowed:
            source, name = self.readable[value], f"{value}/as_{bits}_bits"
            self.narrowed[value] = self._round_trip(
                name, source, f"{name}/dequantized", self.rounding.scales(root, bits)
            )
        return self.narrowed[value]

    def _round_trip(self, value: str, source: str, output: str, scale: Affine) -> str:
        parameters = self._parameters(value, scale)
        self.nodes += [
            helper.make_node(
                "QuantizeLinear", [source, *parameters], [f"{value}/quantized"], f"{value}/QuantizeLinear"
            ),
            helper.make_node(
                "DequantizeLinear", [f"{value}/quantized", *parameters], [output], f"{value}/DequantizeLinear"
            ),
        ]
        return output

    def _parameters(self, value: str, scale: Affine) -> list[str]:
        names = [f"{value}/scale", f"{value}/zero_point"]
        self.constants[names[0]] = np.asarray(scale.scale)
        self.constants[names[1]] = np.full(scale.scale.shape, scale.zero_point, scale.integer.dtype)
        return names

    def _constant(self, node: NodeProto, index: int, layer: Layer | None) -> str:
        """Name under which a node reads a constant: dequantised if it is a layer's weight, bias or table."""
        name = node.input[index]
        value = self.graph.constants[name]
        if layer is None:
            self.constants[name] = value
            return name
        weight = self.graph.weight_of(node)
        if weight is None:
            table = layer.op.kind == "add" and layer.op.table
            scale = table_scale(value, layer.input_bits) if table else None
        elif index == 1:
            scale = self._weight_scale(node, layer)
        elif index == 2 and layer.input_bits == self.rounding.weight_bits(layer) == 16:
            scale = None  # its accumulator is wider than 32 bits
        else:
            inputs = self.rounding.scales(self.placement.root(layer.op.inputs[0]), layer.input_bits)
            scale = accumulator(inputs, self._weight_scale(node, layer))
        if scale is None:
            self.constants[name] = value
            return name
        parameters = self._parameters(name, scale)
        self.constants[name] = scale.quantize(value)
        axis: dict[str, Any] = {} if scale.axis is None else {"axis": scale.axis}
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", [name, *parameters], [f"{name}/dequantized"], f"{name}/DequantizeLinear", **axis
            )
        )
        return f"{name}/dequantized"

    def _weight_scale(self, node: NodeProto, layer: Layer) -> Affine:
        weight, bias = self.graph.weight_of(node), self.graph.bias_of(node)
        assert weight is not None
        inputs = self.rounding.scales(self.placement.root(layer.op.inputs[0]), layer.input_bits)
        return symmetric(
            self.graph.constants[weight[0]],
            self.rounding.weight_bits(layer),
            weight[1],
            None if bias is None else self.graph.constants[bias],
            float(inputs.scale),
        )
