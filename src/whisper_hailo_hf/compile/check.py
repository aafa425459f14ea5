"""The graph check: every node of an ONNX graph against what is known of Hailo's compiler, before it is started."""

import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from whisper_hailo_hf.compile import patterns
from whisper_hailo_hf.compile.graph import GraphView, Node, view_graph
from whisper_hailo_hf.compile.rules import (
    ATTENTION_ELEMENTS,
    DEVICES,
    LONG_ROW,
    LONG_ROW_CHANNELS,
    PARSED_OPSETS,
    PLAIN_COLUMN,
    PLAIN_ROW,
    PROVEN_SIZES,
    PROVEN_TAPS,
    SEVERITIES,
    SMALL_DILATION,
    Rule,
    Severity,
    rule,
)
from whisper_hailo_hf.errors import RequestError

_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_SHUFFLES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
_PROBLEMS = ("Where", "Cast", "Gather", "Expand", "TopK")


@dataclass(frozen=True)
class Verdict:
    """What is known of one node, or of an input, an output or the whole graph.

    Attributes:
        name: of the node.
        operator: of the node; "input", "output" or "graph" for those.
        shape: of its first output, (batch, channels, height, width); None where it is not fixed.
        status: the worst severity of its rules.
        rules: ids of the rules that apply; the first says what the compiler does with the node.
        detail: what the rules were applied to, such as "9 taps"; may be empty.
        bits: 16 where the public recipes give it 16-bit activations.
    """

    name: str
    operator: str
    shape: tuple[int, ...] | None
    status: Severity
    rules: tuple[str, ...]
    detail: str
    bits: int


@dataclass(frozen=True)
class GraphReport:
    """The verdicts on a graph.

    Attributes:
        path: the file.
        device: the chip.
        opset: version of ONNX's operator set.
        nodes: one for each node, in order.
        findings: on inputs, outputs and the graph as a whole, where there is something to say.
    """

    path: str
    device: str
    opset: int
    nodes: tuple[Verdict, ...]
    findings: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is rewritten or rejected."""
        return not any(one.status in ("rewritten", "rejected") for one in (*self.nodes, *self.findings))

    @property
    def counts(self) -> dict[Severity, int]:
        """How many nodes of each status, from best to worst."""
        found = Counter(one.status for one in self.nodes)
        return {severity: found[severity] for severity in SEVERITIES}

    def by_rule(self) -> list[tuple[Rule, list[Verdict]]]:
        """The rules that applied, the worst first, each with its verdicts."""
        groups: dict[str, list[Verdict]] = {}
        for one in (*self.findings, *self.nodes):
            for name in one.rules:
                groups.setdefault(name, []).append(one)
        pairs = [(found, ones) for name, ones in groups.items() if (found := rule(name, self.device)) is not None]
        return sorted(pairs, key=lambda pair: -SEVERITIES.index(pair[0].severity))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types, with the text of the rules that applied."""
        return {
            "path": self.path,
            "device": self.device,
            "opset": self.opset,
            "passed": self.passed,
            "counts": dict(self.counts),
            "needs_16_bit": [one.name for one in self.nodes if one.bits == 16],
            "rules": {found.id: asdict(found) for found, _ in self.by_rule()},
            "findings": [asdict(one) for one in self.findings],
            "nodes": [asdict(one) for one in self.nodes],
        }


def check_graph(onnx_path: str | os.PathLike, device: str = "hailo8l") -> GraphReport:
    """Judges every node of an ONNX file, whoever made it, by the public knowledge of Hailo's compiler.

    Nothing is compiled, and no Hailo software is needed. See `docs/graph-rules.md` for the rules and their sources.

    Args:
        onnx_path: the file.
        device: `"hailo8l"`, `"hailo8"` or `"hailo10h"`.

    Raises:
        RequestError: no such device, or the file is no valid ONNX graph.
    """
    if device not in DEVICES:
        raise RequestError(f"no rules for the device {device!r}: choose {', '.join(DEVICES)}")
    graph = view_graph(onnx_path, static=False)
    judge = _Judge(graph, device)
    return GraphReport(
        path=os.fspath(onnx_path),
        device=device,
        opset=graph.opset,
        nodes=tuple(judge.node(node) for node in graph.nodes),
        findings=tuple(judge.whole()),
    )


class _Judge:
    """Applies the rules to the parts of one graph."""

    def __init__(self, graph: GraphView, device: str) -> None:
        self.graph, self.device, self.claimed = graph, device, patterns.claims(graph)

    def node(self, node: Node) -> Verdict:
        """The verdict on a node."""
        shape = self.graph.shapes.get(node.outputs[0])
        names, details = self._rules(node)
        if shape is None and not self.graph.open_shapes and node.outputs[0] not in self.graph.known:
            names.append("dynamic-shape")
        main = rule(names[0], self.device)
        if shape is not None and main is not None:
            if not self._rank_fits(node, shape, main):
                names.append("rank")
                details.append(f"rank {len(shape)}")
            # within a pattern nothing is laid out, or not as it stands here
            if main.severity in ("allowed", "risky") and node.outputs[0] not in self.claimed:
                names += self._size(shape, details)
        return self._verdict(node.name, node.op, shape, names, details)

    def whole(self) -> list[Verdict]:
        """Verdicts on inputs, outputs and the graph."""
        found = []
        for name in self.graph.inputs:
            shape, names, details = self.graph.shapes.get(name), [], []
            if shape is None:
                names, details = ["dynamic-shape"], [self.graph.open_shapes.get(name, "unknown")]
            elif len(shape) != 4:
                names, details = ["rank"], [f"rank {len(shape)}"]
            else:
                names = self._size(shape, details)
            if names:
                found.append(self._verdict(name, "input", shape, names, details))
        for name in self.graph.outputs:
            node = self.graph.producers.get(name)
            if node is None or node.op == "Split" or name in self.graph.known:
                what = f"of {node.op}" if node is not None else "not computed"
                found.append(self._verdict(name, "output", self.graph.shapes.get(name), ["output"], [what]))
        if self.graph.opset not in PARSED_OPSETS:
            found.append(self._verdict("opset", "graph", None, ["opset"], [str(self.graph.opset)]))
        return found

    def _verdict(
        self, name: str, operator: str, shape: tuple[int, ...] | None, names: list[str], details: list[str]
    ) -> Verdict:
        rules = [found for one in dict.fromkeys(names) if (found := rule(one, self.device)) is not None]
        return Verdict(
            name=name,
            operator=operator,
            shape=shape,
            status=max((one.severity for one in rules), key=SEVERITIES.index),
            rules=tuple(one.id for one in rules),
            detail=", ".join(details),
            bits=max(one.bits for one in rules),
        )

    def _rank_fits(self, node: Node, shape: tuple[int, ...], main: Rule) -> bool:
        apart = self.graph.known | self.claimed.keys()
        if len(shape) == 4 or node.outputs[0] in apart or main.severity in ("rewritten", "rejected"):
            return True
        return len(shape) == 2 and main.id in ("flatten", "linear", "activation", "activation-fused")

    def _size(self, shape: tuple[int, ...], details: list[str]) -> list[str]:
        """Rules on the size of an activation of rank 4."""
        if len(shape) != 4:
            return []
        _, channels, height, width = shape
        if width >= LONG_ROW and channels > LONG_ROW_CHANNELS:
            details.append(f"{channels} channels at width {width}")
            return ["long-row"]
        axis, length, plain = ("height", height, PLAIN_COLUMN) if width == 1 else ("width", width, PLAIN_ROW)
        proven = any(p.axis == axis and p.length >= length and p.channels >= channels for p in PROVEN_SIZES)
        if length * channels > plain and not proven:
            details.append(f"{channels} channels at {axis} {length}")
            return ["wide-activation"]
        return []

    def _rules(self, node: Node) -> tuple[list[str], list[str]]:
        """Ids of the rules on a node's operator, the main one first, and details."""
        graph, op = self.graph, node.op
        if "quantize" in op.lower() or "QLinear" in op or op in ("ConvInteger", "MatMulInteger"):
            return ["quantised-graph"], []
        if graph.known.issuperset(node.outputs):
            return ["constant-folded"], []
        if node.outputs[0] in self.claimed:
            return [self.claimed[node.outputs[0]]], []
        if op in ("Conv", "ConvTranspose"):
            return self._convolution(node)
        if op in patterns.ELEMENTWISE and graph.data_inputs(node):
            return [self._elementwise(node)], []
        if op in ("Gemm", "MatMul"):
            return self._product(node)
        if op in ("ReduceSum", "ReduceMean"):
            return self._reduction(node)
        if op in _SHUFFLES:
            return [self._shuffle(node)], []
        if op == "Resize":
            return [self._resize(node)], []
        if op == "Pad":
            return [self._pad(node)], []
        if op == "BatchNormalization":
            free = len(graph.data_inputs(node)) > 1
            folded = self._behind(node, ("Conv", "ConvTranspose"))
            return ["conv-free-weights" if free else "batch-norm-folded" if folded else "batch-norm"], []
        if op in _ACTIVATIONS:
            fused = self._behind(node, (*patterns.LINEAR, "BatchNormalization", "Add"))
            return ["activation-fused" if fused else "activation"], []
        simple = {"InstanceNormalization": "instance-norm", "Softmax": "softmax", "Concat": "concat", "Slice": "slice"}
        simple |= {"Split": "split", "Erf": "erf", "Identity": "no-op", "Dropout": "no-op"}
        simple |= dict.fromkeys(_POOLS, "pool") | dict.fromkeys(_PROBLEMS, "problem-operator")
        return [simple.get(op, "unknown-operator")], []

    def _behind(self, node: Node, operators: tuple[str, ...]) -> bool:
        """Whether the node is all that takes what one of these operators gives; an Add counts if it is fused."""
        before = patterns.producer(self.graph, node.inputs[0])
        if before is None or before.op not in operators or patterns.only_consumer(self.graph, before) is not node:
            return False
        return before.op not in ("Add", "BatchNormalization") or self._rules(before)[0][0] in (
            "add-fused",
            "batch-norm-folded",
        )

    def _convolution(self, node: Node) -> tuple[list[str], list[str]]:
        weight = self.graph.shapes.get(node.inputs[1])
        if node.inputs[1] not in self.graph.known:
            return ["conv-free-weights"], []
        if weight is not None and len(weight) != 4:
            return ["conv-1d" if len(weight) == 3 else "rank"], [f"kernel of rank {len(weight)}"]
        kernel = node.attributes.get("kernel_shape") or (weight[2:] if weight else (1,))
        groups, depthwise = node.attributes.get("group", 1), weight is not None and weight[1] == 1
        names = ["conv-depthwise" if groups > 1 and depthwise else "conv"]
        if node.op == "ConvTranspose":
            names = ["conv-transposed"]
        details = []
        if max(kernel) > PROVEN_TAPS:
            names.append("kernel-long")
            details.append(f"{max(kernel)} taps")
        if max(node.attributes.get("dilations", [1])) > SMALL_DILATION:
            names.append("dilation-large")
            details.append(f"dilation {max(node.attributes['dilations'])}")
        pads = node.attributes.get("pads", [])
        if pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
            names.append("conv-uneven-padding")
            details.append(f"padding {pads}")
        return names, details

    def _elementwise(self, node: Node) -> str:
        graph, inputs = self.graph, self.graph.data_inputs(node)
        shape, shapes = graph.shapes.get(node.outputs[0]), [graph.shapes.get(name) for name in inputs]
        if len(inputs) == 1:
            if patterns.is_scalar(graph, node):
                return "scalar"
            others = [graph.shapes.get(name, ()) for name in node.inputs if name in graph.known]
            full = shape is not None and all((1,) * (len(shape) - len(one)) + one == shape for one in others)
            return "constant-add" if full and shapes[0] == shape else "broadcast"
        if shapes[0] != shapes[1]:
            gated = node.op == "Mul" and any(patterns.is_gate(graph, name) for name in inputs)
            return "gate" if gated else "broadcast"
        if node.op == "Add" and patterns.joins_attention(graph, node, self.claimed):
            return "attention-residual"
        makers = [graph.producers.get(name) for name in inputs]
        fits = any(one and one.op == "Conv" and patterns.only_consumer(graph, one) is node for one in makers)
        return "add-fused" if fits and node.op == "Add" else "elementwise"

    def _product(self, node: Node) -> tuple[list[str], list[str]]:
        if len(self.graph.data_inputs(node)) == 1:
            return ["linear"], []
        if node.op == "Gemm":
            return ["conv-free-weights"], []
        shape = self.graph.shapes.get(node.outputs[0], ())
        elements = int(shape[0] > 0) if shape else 0
        for size in shape[1:]:
            elements *= size
        # scores of every frame against every frame: the last two sizes are frames
        if len(shape) >= 2 and shape[-1] == shape[-2] and elements > ATTENTION_ELEMENTS:
            return ["matmul", "attention-window"], [" x ".join(map(str, shape[1:]))]
        return ["matmul"], []

    def _reduction(self, node: Node) -> tuple[list[str], list[str]]:
        shape = self.graph.shapes.get(node.inputs[0], ())
        axes = node.attributes.get("axes")
        if axes is None and len(node.inputs) > 1 and node.inputs[1] in self.graph.constants:
            axes = self.graph.constants[node.inputs[1]].tolist()
        over = sorted(axis % len(shape) for axis in axes) if axes and shape else []
        if node.op == "ReduceSum" and over == [1] and node.attributes.get("keepdims", 1):
            return ["reduce-sum"], []
        if node.op == "ReduceMean" and over == [2, 3]:
            return ["mean-pool"], []
        rejected = node.op == "ReduceMean" or over == [2] or not node.attributes.get("keepdims", 1)
        names = ["reduce-axis" if rejected else "reduce-sum-time"]
        return names, [f"over axis {', '.join(map(str, over))} of {len(shape)}" if over else "over all axes"]

    def _shuffle(self, node: Node) -> str:
        given, result = (self.graph.shapes.get(name) for name in (node.inputs[0], node.outputs[0]))
        if given and result and len(given) == 4 and given[2:] == (1, 1) and result == given[:2]:
            return "flatten"
        return "head-shuffle" if patterns.splits_heads(self.graph, node) else "shuffle"

    def _resize(self, node: Node) -> str:
        given, result = (self.graph.shapes.get(name) for name in (node.inputs[0], node.outputs[0]))
        nearest = node.attributes.get("mode", "nearest") == "nearest"
        whole = given and result and all(new % old == 0 for new, old in zip(result, given, strict=True))
        return "resize-nearest" if nearest and whole else "resize-other"

    def _pad(self, node: Node) -> str:
        zero = node.attributes.get("mode", "constant") == "constant"
        if len(node.inputs) > 2 and node.inputs[2]:
            value = self.graph.constants.get(node.inputs[2])
            zero = zero and value is not None and not value.any()
        return "pad" if zero else "pad-other"
