"""What a layer of the compiler's graph should be, from the ONNX nodes that it says it came from.

Hailo's parser turns an operation and what follows it into one layer: a convolution takes in its normalisation, a
residual add and the activation. Which of these fusions keep the network as it is, is written down here; whatever else
shares a layer was rewritten. Activation patterns: Hailo Model Zoo and SeSac01's operator test (DFC 3.32); layer types:
the parsed HAR of 1croyable/whisper-hailo8L (DFC 3.33.0).
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from whisper_hailo_hf.compile.graph import GraphView, Node

# The layer types that an operator becomes when it stays what it is.
OWN_TYPES: dict[str, frozenset[str]] = {
    operator: frozenset(types)
    for operators, types in (
        (("Conv",), ("conv", "dw")),
        (("ConvTranspose",), ("deconv",)),
        (("Gemm",), ("dense", "conv")),
        (("MatMul",), ("matmul", "dense", "conv")),
        (("Add",), ("ew_add", "normalization")),
        (("Sub",), ("ew_sub", "normalization")),
        (("Mul",), ("ew_mult", "normalization")),
        (("Div",), ("ew_div", "normalization")),
        (("BatchNormalization",), ("normalization", "batch_norm")),
        (("GlobalAveragePool", "AveragePool"), ("avgpool", "global_avg_pool")),
        (("MaxPool", "GlobalMaxPool"), ("maxpool",)),
        (("Resize", "Upsample"), ("resize",)),
        (("Concat",), ("concat",)),
        (("Slice",), ("slice",)),
        (("Split",), ("feature_splitter", "slice")),
        (("Softmax",), ("softmax",)),
        (("LayerNormalization",), ("layer_normalization",)),
        (("ReduceSum",), ("reduce_sum",)),
        (("ReduceMean",), ("reduce_mean", "avgpool")),
        (("ReduceMax",), ("reduce_max",)),
        (("LpNormalization",), ("l2norm",)),
        (("Pad",), ("external_pad",)),
        (("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"), ("format_conversion", "reshape", "transpose")),
    )
    for operator in operators
}
SIMPLE_ACTIVATIONS = {
    "Elu": "elu",
    "Exp": "exp",
    "Gelu": "gelu",
    "HardSigmoid": "hardsigmoid",
    "HardSwish": "hardswish",
    "LeakyRelu": "leaky",
    "Log": "log",
    "Mish": "mish",
    "PRelu": "prelu",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Sqrt": "sqrt",
    "Tanh": "tanh",
}
OWN_TYPES |= {operator: frozenset({"activation"}) for operator in (*SIMPLE_ACTIVATIONS, "Clip")}
# what changes nothing, and may vanish
NEUTRAL = frozenset({"Identity", "Dropout"})


@dataclass
class Expected:
    """What a layer should be.

    Attributes:
        anchor: the operation that gives the layer its type.
        nodes: all that belong to it by a known fusion, the anchor among them.
        output: the tensor that the layer gives.
        activation: "linear" for none.
        residual: the tensor that is added in, if any.
        pad: a `Pad` in front that became the layer's padding.
        turned: a `Transpose` in front that has yet to be undone behind, or was.
        kernel, bias: of a convolution or a product with weights, (out, in, height, width) and (out,), with the
            normalisation behind it folded in.
        plain_kernel: the kernel without that normalisation.
    """

    anchor: Node
    nodes: list[Node]
    output: str
    activation: str = "linear"
    residual: str | None = None
    pad: Node | None = None
    turned: Node | None = None
    kernel: np.ndarray | None = None
    bias: np.ndarray | None = None
    plain_kernel: np.ndarray | None = None

    def sources(self, view: GraphView) -> list[str]:
        """The tensors that come from outside."""
        inner = {output for node in self.nodes for output in node.outputs}
        found = [name for node in self.nodes for name in view.data_inputs(node) if name not in inner]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Step:
    """Something that a layer can take in behind its anchor: an activation, a residual add, a factor and a shift for
    each channel, or the end of a turn."""

    nodes: tuple[Node, ...]
    output: str
    activation: str = ""
    residual: str = ""
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None

    @property
    def names(self) -> set[str]:
        return {node.name for node in self.nodes}


def expect(view: GraphView, layer_type: str, nodes: list[Node]) -> Expected | None:
    """What a layer of this type should be that names these nodes; None where none of them becomes such a layer."""
    anchor = next((node for node in nodes if layer_type in own_types(view, node)), None)
    if anchor is None:
        return None
    expected = Expected(anchor, [anchor], anchor.outputs[0])
    expected.kernel, expected.bias = _weights(view, anchor)
    expected.plain_kernel = expected.kernel
    _take_in_front(view, expected, nodes)
    allowed = {node.name for node in nodes}
    while step := next((step for step in steps(view, expected) if step.names <= allowed), None):
        take(expected, step)
    return expected


def own_types(view: GraphView, node: Node) -> frozenset[str]:
    """The layer types that a node becomes when it stays what it is; none for an operator that has no such layer."""
    types = OWN_TYPES.get(node.op, frozenset())
    if len(view.data_inputs(node)) > 1:  # of two activations
        return types - {"normalization", "dense", "conv"} if node.op not in ("Conv", "Gemm") else types
    return types - {"matmul"}


def _take_in_front(view: GraphView, expected: Expected, nodes: list[Node]) -> None:
    before = view.producers.get(expected.anchor.inputs[0])
    if before is None or before.name not in {node.name for node in nodes}:
        return
    if before.op == "Pad" and expected.anchor.op == "Conv":
        expected.pad = before
    elif before.op == "Transpose" and expected.anchor.op == "LayerNormalization":
        expected.turned = before
    else:
        return
    expected.nodes.insert(0, before)


def steps(view: GraphView, expected: Expected) -> Iterator[Step]:
    """What could follow, the longest first."""
    tensor = expected.output
    if expected.turned is not None and expected.output == expected.anchor.outputs[0]:
        back = list(np.argsort(expected.turned.attributes.get("perm", [])))
        for node in view.consumers(tensor):
            if node.op == "Transpose" and list(node.attributes.get("perm", [])) == back:
                yield Step((node,), node.outputs[0])
    if expected.activation != "linear":
        return
    yield from activations(view, tensor)
    if expected.kernel is None or expected.residual is not None:
        return
    for node in view.consumers(tensor):
        if (folded := _fold(view, node, expected)) is not None:
            yield Step((node,), node.outputs[0], scale=folded[0], shift=folded[1])
        elif node.op == "Add" and len(view.data_inputs(node)) == 2:
            yield Step((node,), node.outputs[0], residual=_other(node, tensor))


def take(expected: Expected, step: Step) -> None:
    """Makes a step part of the layer."""
    expected.nodes.extend(step.nodes)
    expected.output = step.output
    expected.activation = step.activation or expected.activation
    expected.residual = step.residual or expected.residual
    if step.scale is not None and expected.kernel is not None and expected.bias is not None:
        expected.kernel = expected.kernel * step.scale[:, None, None, None]
        expected.bias = expected.bias * step.scale + step.shift


def activations(view: GraphView, tensor: str) -> list[Step]:
    """The activations that begin at a tensor, the longest pattern first."""
    found = []
    readers = view.consumers(tensor)
    for node in readers:
        if node.op in SIMPLE_ACTIVATIONS:
            found.append(Step((node,), node.outputs[0], activation=SIMPLE_ACTIVATIONS[node.op]))
        elif node.op == "Clip":
            found.append(Step((node,), node.outputs[0], activation=_clip(view, node)))
        if node.op in _GATED:  # x * f(x)
            chain = _chain(view, node, _GATED[node.op][0])
            product = chain and next((last for last in view.consumers(chain[-1].outputs[0]) if last.op == "Mul"), None)
            if chain and product and set(product.inputs) == {tensor, chain[-1].outputs[0]}:
                found.append(Step((*chain, product), product.outputs[0], activation=_GATED[node.op][1]))
    found.extend(_gelu(view, tensor))
    return sorted(found, key=lambda step: -len(step.nodes))


# first operator: those that follow it before the product with the input, and the activation that this is
_GATED: dict[str, tuple[tuple[str, ...], str]] = {
    "Sigmoid": ((), "silu"),
    "HardSigmoid": ((), "hardswish"),
    "Softplus": (("Tanh",), "mish"),
}


def _chain(view: GraphView, first: Node, operators: Collection[str]) -> list[Node] | None:
    chain = [first]
    for operator in operators:
        following = next((node for node in view.consumers(chain[-1].outputs[0]) if node.op == operator), None)
        if following is None:
            return None
        chain.append(following)
    return chain


def _gelu(view: GraphView, tensor: str) -> Iterator[Step]:
    """x / sqrt(2) -> Erf -> + 1 -> * x -> * 0.5, the form in which PyTorch exports it."""
    for first in view.consumers(tensor):
        chain = _chain(view, first, ("Erf", "Add", "Mul")) if first.op in ("Div", "Mul") else None
        if chain is None or tensor not in chain[-1].inputs:
            continue
        divisor, one = (_scalar(view, node) for node in (first, chain[2]))
        if first.op == "Mul" and divisor:
            divisor = 1 / divisor
        half = next((node for node in view.consumers(chain[-1].outputs[0]) if _halves(view, node)), None)
        if half is not None and one == 1.0 and math.isclose(divisor or 0.0, math.sqrt(2), rel_tol=1e-4):
            yield Step((*chain, half), half.outputs[0], activation="gelu")


def _halves(view: GraphView, node: Node) -> bool:
    return (node.op, _scalar(view, node)) in (("Mul", 0.5), ("Div", 2.0))


def _scalar(view: GraphView, node: Node) -> float | None:
    constants = view.constant_inputs(node)
    return float(constants[0].reshape(-1)[0]) if len(constants) == 1 and constants[0].size == 1 else None


def _clip(view: GraphView, node: Node) -> str:
    low, high = (_bound(view, node, index, name) for index, name in ((1, "min"), (2, "max")))
    if low == 0 and high == 6:
        return "relu6"
    return "relu" if low == 0 and high is None else "clip"


def _bound(view: GraphView, node: Node, index: int, name: str) -> float | None:
    if len(node.inputs) > index and node.inputs[index] in view.constants:
        return float(view.constants[node.inputs[index]].reshape(-1)[0])
    value = node.attributes.get(name)  # before opset 11
    return float(value) if value is not None else None


def _other(node: Node, tensor: str) -> str:
    return node.inputs[1] if node.inputs[0] == tensor else node.inputs[0]


def _weights(view: GraphView, node: Node) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Kernel as (out, in, height, width) and bias, where the node has them as constants."""
    if node.op not in ("Conv", "Gemm", "MatMul") or node.inputs[1] not in view.constants:
        return None, None
    kernel = view.constants[node.inputs[1]].astype(np.float64)
    if node.op != "Conv":
        if kernel.ndim != 2:
            return None, None
        kernel = (kernel if node.attributes.get("transB") else kernel.T)[:, :, None, None]
    bias = np.zeros(len(kernel))
    if len(node.inputs) > 2 and node.inputs[2] in view.constants:
        bias = bias + view.constants[node.inputs[2]].reshape(-1)
    return kernel, bias


def _fold(view: GraphView, node: Node, expected: Expected) -> tuple[np.ndarray, np.ndarray] | None:
    """The factor and the shift of each channel that a node stands for, (channels,) each, if it is of that kind."""
    assert expected.kernel is not None
    tensor, channels = expected.output, len(expected.kernel)
    if node.op == "BatchNormalization" and node.inputs[0] == tensor:
        if len(constants := view.constant_inputs(node)) != 4:
            return None
        gamma, beta, mean, variance = (array.astype(np.float64) for array in constants)
        scale = gamma / np.sqrt(variance + float(node.attributes.get("epsilon", 1e-5)))
        return scale, beta - mean * scale
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(constants := view.constant_inputs(node)) != 1:
        return None
    axis = -3 if expected.anchor.op == "Conv" else -1  # where the channels lie, counted from the end
    shape = constants[0].shape
    by_channel = len(shape) >= -axis and shape[axis] == channels == constants[0].size
    if not (by_channel or constants[0].size == 1) or (node.op in ("Sub", "Div") and node.inputs[0] != tensor):
        return None
    values = np.broadcast_to(constants[0].astype(np.float64).reshape(-1), (channels,))
    if node.op in ("Add", "Sub"):
        return np.ones(channels), values if node.op == "Add" else -values
    return values if node.op == "Mul" else 1 / values, np.zeros(channels)
