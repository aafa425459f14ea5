"""Cross-layer equalisation: channels of very different ranges are evened out, and the float function stays.

One scale serves all channels of a stored value, so that a quiet channel beside a loud one is left with few steps. A
channel may be divided by a factor where it is made and multiplied by it where it is read, since ReLU, sums, nearest
resize and gates let a positive factor through. Values that such operations tie together, a residual stream for
instance, share their factors.
Sources: Meller et al. 2019, arXiv:1902.01917; Nagel et al. 2019, arXiv:1906.04721, section 4.1.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from whisper_hailo_hf.compile.calibration import Observed
from whisper_hailo_hf.compile.float_graph import FloatGraph, attributes

_LIMIT = 64.0  # no factor beyond this: channels that are all but silent stay so
Factors = npt.NDArray[np.float64]


class _Ties:
    """Sets of values that share their factors, and those that must keep the factor 1."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self.fixed: set[str] = set()

    def root(self, value: str) -> str:
        while (parent := self._parent.setdefault(value, value)) != value:
            value = parent
        return value

    def tie(self, *values: str) -> None:
        first = self.root(values[0])
        for value in values[1:]:
            self._parent[self.root(value)] = first

    def fix(self, *values: str) -> None:
        self.fixed.update(values)

    def sets(self) -> dict[str, set[str]]:
        """The sets without a fixed member, by their root."""
        found: dict[str, set[str]] = {}
        for value in list(self._parent):
            found.setdefault(self.root(value), set()).add(value)
        return {root: values for root, values in found.items() if not values & self.fixed}


def equalize(graph: FloatGraph, observed: Mapping[str, Observed], strength: float = 0.5) -> int:
    """Evens out the channels of every value that allows it, in the graph's own weights, biases and tables.

    A channel's factor is (its peak) ** strength / (its largest weight where it is read) ** (1 - strength), so that
    neither the stored value nor the weights behind it are left with all the unevenness.

    Args:
        graph: a float graph; its function stays the same but for rounding.
        observed: what was seen of its values; those of rank 4 tell the channels' peaks.
        strength: from 0, only the weights count, to 1, only the activations.

    Returns:
        How many sets of values were evened out.
    """
    ties = _ties(graph)
    factors: dict[str, Factors] = {}
    for root, values in ties.sets().items():
        chosen = _factors(graph, values, observed, strength)
        if chosen is not None:
            factors[root] = chosen
    for node in graph.nodes:
        _rescale(graph, node, ties, factors)
    return len(factors)


def _ties(graph: FloatGraph) -> _Ties:
    ties = _Ties()
    ties.fix(graph.input, graph.output)
    for node, op in zip(graph.nodes, graph.ops, strict=True):
        ties.root(op.output)
        if op.kind == "conv" and _absorbs(graph, node):
            continue
        gate = _gate(graph, node) if op.kind == "mul" else None
        if gate is not None:
            ties.tie(op.output, gate[0])
            ties.fix(gate[1])
        elif op.kind in ("add", "pool") or node.op_type in ("Relu", "Resize", "MaxPool", "Identity"):
            ties.tie(op.output, *op.inputs)
        else:
            ties.fix(op.output, *op.inputs)
    return ties


def _gate(graph: FloatGraph, node: NodeProto) -> tuple[str, str] | None:
    """What is scaled and what scales it, for a product of a value and a sigmoid that does not depend on its factor.

    A sigmoid of the very value that it scales (SiLU) has that value among its own inputs, which fixes the factor.
    """
    made_by = {op.output: op for op in graph.ops}
    for value, other in ((0, 1), (1, 0)):
        gate = made_by.get(node.input[other])
        if gate is not None and gate.kind == "sigmoid":
            return node.input[value], node.input[other]
    return None


def _groups(node: NodeProto) -> int:
    return attributes(node).get("group", 1)


def _depthwise(graph: FloatGraph, node: NodeProto) -> bool:
    return _groups(node) == graph.constants[node.input[1]].shape[0] != 1


def _absorbs(graph: FloatGraph, node: NodeProto) -> bool:
    """Whether a convolution can take up factors: of two dimensions, dense or depthwise."""
    fits = node.op_type == "Conv" and graph.constants[node.input[1]].ndim == 4
    return fits and (_groups(node) == 1 or _depthwise(graph, node))


def _factors(graph: FloatGraph, values: set[str], observed: Mapping[str, Observed], strength: float) -> Factors | None:
    peaks = [seen for value in values if value in observed and (seen := observed[value].peaks()) is not None]
    made = [n for n in graph.nodes if n.op_type == "Conv" and n.output[0] in values]
    read = [n for n in graph.nodes if n.op_type == "Conv" and n.input[0] in values]
    if not peaks or not made or not read or len({len(peak) for peak in peaks}) != 1:
        return None
    # each value by its own loudest channel, since each has a scale of its own
    relative = np.max([peak / max(peak.max(), 1e-30) for peak in peaks], axis=0)
    weights = []
    for node in read:
        weight = np.abs(graph.constants[node.input[1]])
        weights.append(weight.max(axis=(1, 2, 3)) if _depthwise(graph, node) else weight.max(axis=(0, 2, 3)))
    reading = np.max([weight / max(weight.max(), 1e-30) for weight in weights], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = relative**strength / reading ** (1 - strength)
    alive = np.isfinite(factor) & (factor > 0)
    if not alive.any():
        return None
    factor = np.where(alive, factor, 1.0)
    factor[alive] /= np.exp(np.log(factor[alive]).mean())
    # powers of two would keep the float function to the bit, but their steps are too coarse to even out much
    return np.clip(factor, 1 / _LIMIT, _LIMIT)


def _rescale(graph: FloatGraph, node: NodeProto, ties: _Ties, factors: Mapping[str, Factors]) -> None:
    constants = graph.constants
    if node.op_type == "Conv" and graph.weight_of(node) is not None:
        made, read = factors.get(ties.root(node.output[0])), factors.get(ties.root(node.input[0]))
        weight = constants[node.input[1]].astype(np.float64)
        if read is not None:
            weight *= read.reshape(-1, 1, 1, 1) if _depthwise(graph, node) else read.reshape(1, -1, 1, 1)
        if made is not None:
            weight /= made.reshape(-1, 1, 1, 1)
            constants[node.input[2]] = (constants[node.input[2]] / made).astype(np.float32)
        constants[node.input[1]] = weight.astype(np.float32)
    elif node.op_type == "Add" and (made := factors.get(ties.root(node.output[0]))) is not None:
        for name in node.input:
            if name in constants:
                constants[name] = (constants[name] / made.reshape(1, -1, 1, 1)).astype(np.float32)
