"""What became of an ONNX graph in Hailo's compiler: every node paired with the layer that it ended up in.

Each layer of a HAR says by `original_names` which nodes it came from. Fusions that keep the network as it is
(`hn_fusion`) are told apart from rewrites; shapes, strides, dilations, padding, groups, activations, weights and the
wiring of each layer are compared (`hn_compare`). Needs none of Hailo's software.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from whisper_hailo_hf.compile.graph import GraphView, Node, view_graph
from whisper_hailo_hf.compile.hn_compare import Difference, Layout, activation_of, axes_text, compare, difference
from whisper_hailo_hf.compile.hn_fusion import NEUTRAL, Expected, expect, own_types, steps, take
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.hailo.har import Har, HnLayer, read_har

# Layers that stand for no operation: the graph's ends, constants, and copies.
_ENDS = {"input_layer", "output_layer"}
_CARRIERS = {"const_input", "shortcut"}
# Layers that the parser may put in front of another of the same node. Stretching a broadcast input is worth a warning.
_HELPERS = {"external_pad", "resize", "format_conversion"}


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was in the ONNX graph.

    Attributes:
        kind: "lost" (a node in no layer), "rewritten" (a node in a layer of another kind), "added" (a layer of no
            node), "split", "wiring", "transposed", "shape", "kernel", "stride", "dilation", "padding", "groups",
            "activation", "residual", "axes", "resize", "weights", "bias", "inserted", "unnamed", "unchecked".
        severity: "error", or "warning" for what does no harm by itself or could not be checked.
        nodes, layers: whom it concerns.
        message: one line.
    """

    kind: str
    severity: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    message: str


@dataclass(frozen=True)
class NodeMatch:
    """An ONNX node and what it became.

    Attributes:
        node, op: its name and operator.
        layers, types: the layers that name it, and their types.
        status: "same", "fused" (into the layer of another node, as it should), "changed", "rewritten" or "lost".
    """

    node: str
    op: str
    layers: tuple[str, ...]
    types: tuple[str, ...]
    status: str


@dataclass(frozen=True)
class HnDiff:
    """The comparison of an ONNX graph with a HAR.

    Attributes:
        onnx, har: the files.
        network, stage, state, sdk_version, hw_arch: what the HAR says of itself; stage as in `Har.stage`.
        matches: every node, in the graph's order.
        findings: errors first.
    """

    onnx: str
    har: str
    network: str
    stage: str
    state: str
    sdk_version: str
    hw_arch: str
    matches: tuple[NodeMatch, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not any(finding.severity == "error" for finding in self.findings)

    def counts(self) -> dict[str, int]:
        """How many nodes there are of each status."""
        found = Counter(match.status for match in self.matches)
        return {status: found[status] for status in ("same", "fused", "changed", "rewritten", "lost")}

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {"ok": self.ok, "counts": self.counts(), **asdict(self)}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Node, operator, status and layers of each line of a table."""
        return [
            (match.node, match.op, match.status, ", ".join(name.rpartition("/")[2] for name in match.layers))
            for match in self.matches
        ]

    def finding_rows(self) -> list[tuple[str, str, str]]:
        """Severity, kind and message of each line of a table."""
        return [(finding.severity, finding.kind, finding.message) for finding in self.findings]

    def summary(self) -> str:
        """One line."""
        errors = sum(finding.severity == "error" for finding in self.findings)
        counts = ", ".join(f"{count} {status}" for status, count in self.counts().items() if count)
        return f"{len(self.matches)} nodes: {counts}; {errors} errors, {len(self.findings) - errors} warnings"


def diff_har(onnx_path: str | os.PathLike, har_path: str | os.PathLike, stage: str | None = None) -> HnDiff:
    """Compares an ONNX graph with what the compiler made of it.

    Args:
        onnx_path: the graph that was compiled.
        har_path: the compiler's archive.
        stage: as in `read_har`: None compares with the earliest form of the graph that the HAR keeps.

    Raises:
        RequestError: one of the files cannot be used, or the HAR was made from another graph.
    """
    comparison = _Comparison(view_graph(onnx_path), read_har(har_path, stage))
    comparison.run(os.fspath(onnx_path))
    har = comparison.har
    return HnDiff(
        onnx=os.fspath(onnx_path),
        har=os.fspath(har_path),
        network=har.name,
        stage=har.stage,
        state=har.state,
        sdk_version=str(har.metadata.get("sdk_version", "")),
        hw_arch=str(har.metadata.get("hw_arch", "")),
        matches=tuple(comparison.match(node) for node in comparison.view.nodes),
        findings=tuple(sorted(comparison.findings, key=lambda finding: finding.severity != "error")),
    )


class _Comparison:
    """The work of one comparison."""

    def __init__(self, view: GraphView, har: Har) -> None:
        self.view, self.har = view, har
        self.layout = Layout()
        self.findings: list[Finding] = []
        self.status: dict[str, str] = {}
        self.nodes = {node.name: node for node in view.nodes}
        aliases = {output: node.name for node in view.nodes for output in node.outputs if output}
        self.named: dict[str, list[Node]] = {}  # by layer, in the graph's order
        self.layers: dict[str, list[HnLayer]] = {name: [] for name in self.nodes}
        order = {node.name: index for index, node in enumerate(view.nodes)}
        for layer in har.layers.values():
            names = {name if name in self.nodes else aliases.get(name, "") for name in layer.original_names} - {""}
            self.named[layer.name] = [self.nodes[name] for name in sorted(names, key=order.__getitem__)]
            if layer.type not in _ENDS:
                for name in names:
                    self.layers[name].append(layer)
        self.made: dict[str, Expected] = {}
        self.givers: dict[str, str] = {}  # by tensor, the layer that gives it

    def run(self, onnx_path: str) -> None:
        if not any(self.named.values()):
            raise RequestError(f"{self.har.path} names no node of {onnx_path}: it was made from another graph")
        if not self.har.weights:
            self.say("unchecked", (), (), "the archive has no weights for this form of the graph", warning=True)
        self._orientation()
        helpers = [layer for layer in self.har.layers.values() if self._is_helper(layer)]
        for layer in self.har.layers.values():
            if layer.type not in _ENDS | _CARRIERS and layer not in helpers:
                self._expect(layer)
        self._join_unnamed()
        for layer in helpers:
            self._helper(layer)
        for name, expected in self.made.items():
            self._compare(expected, self.har.layers[name])
        self._strangers()
        self._splits()
        self._lost()
        self._outputs()

    def say(self, kind: str, nodes: Iterable[str], layers: Iterable[str], message: str, warning: bool = False) -> None:
        severity = "warning" if warning else "error"
        self.findings.append(Finding(kind, severity, tuple(nodes), tuple(layers), message))

    def match(self, node: Node) -> NodeMatch:
        """What a node became."""
        layers = self.layers[node.name]
        status = self.status.get(node.name, "fused" if layers else "lost")
        if status == "lost" and self._may_vanish(node):
            status = "fused"
        names, types = tuple(layer.name for layer in layers), tuple(layer.type for layer in layers)
        return NodeMatch(node.name, node.op, names, types, status)

    def _may_vanish(self, node: Node) -> bool:
        return node.op in NEUTRAL or not self.view.data_inputs(node)

    def _orientation(self) -> None:
        """Whether the compiler laid the whole network down on its other side."""
        for layer in self.har.layers.values():
            if layer.type == "input_layer" and layer.output_shapes:
                given = layer.output_shapes[0]
                for name in self.view.inputs:
                    sizes = self.view.shape(name)
                    if len(sizes) == 4 and Layout(True).shape(sizes)[1:] == given[1:] != Layout().shape(sizes)[1:]:
                        self.layout = Layout(swapped=True)
                        self.say("transposed", (), (layer.name,), f"height and width of {name} changed places")
                        return

    def _is_helper(self, layer: HnLayer) -> bool:
        """A layer in front of another one of the same nodes."""
        named = self.named[layer.name]
        return (
            layer.type in _HELPERS
            and bool(named)
            and not any(layer.type in own_types(self.view, node) for node in named)
            and all(len(self.layers[node.name]) > 1 for node in named)
        )

    def _expect(self, layer: HnLayer) -> None:
        named = self.named[layer.name]
        if not named:
            names = f" (it names {', '.join(layer.original_names)})" if layer.original_names else ""
            self.say(
                "added", (), (layer.name,), f"{layer.short_name}, a {layer.type}, is of no node of the graph{names}"
            )
            return
        expected = expect(self.view, layer.type, named)
        if expected is None:
            self._rewritten(layer, named)
            return
        self.made[layer.name] = expected
        self.givers[expected.output] = layer.name
        belonging = {node.name for node in expected.nodes}
        for node in expected.nodes:
            self.status.setdefault(node.name, "same" if node is expected.anchor else "fused")
        if others := [node for node in named if node.name not in belonging]:
            self._rewritten(layer, others, f"beside {expected.anchor.name}")

    def _rewritten(self, layer: HnLayer, nodes: list[Node], beside: str = "") -> None:
        for node in nodes:
            self.status[node.name] = "rewritten"
        names = [node.name for node in nodes]
        what = ", ".join(f"{node.name} ({node.op})" for node in nodes)
        axes = layer.params.get("reduce_axes")
        over = f" over {axes_text(axes)}" if isinstance(axes, list) else ""
        how = "went into" if beside else "became"
        text = " ".join(part for part in (f"{what} {how} {layer.short_name}, a {layer.type}{over}", beside) if part)
        self.say("rewritten", names, (layer.name,), text)
        outputs = [name for node in nodes for name in node.outputs if self._leaves(name, names)]
        for name in outputs if not beside else ():
            self.givers.setdefault(name, layer.name)

    def _leaves(self, tensor: str, names: list[str]) -> bool:
        readers = self.view.consumers(tensor)
        return tensor in self.view.outputs or any(node.name not in names for node in readers)

    def _join_unnamed(self) -> None:
        """Nodes that no layer names, but whose effect a layer shows."""
        for name, expected in self.made.items():
            layer = self.har.layers[name]
            for step in steps(self.view, expected):
                unnamed = all(not self.layers[node.name] for node in step.nodes)
                shown = step.activation and step.activation == activation_of(layer)
                shown = shown or (step.residual and len(layer.inputs) > 1)
                if unnamed and shown:
                    take(expected, step)
                    self.givers[expected.output] = name
                    text = f"{', '.join(step.names)} is named by no layer, but {layer.short_name} does it"
                    self.say("unnamed", step.names, (name,), text, warning=True)
                    self.status.update(dict.fromkeys(step.names, "fused"))
                    break

    def _helper(self, layer: HnLayer) -> None:
        if layer.type == "external_pad":
            return  # compared with the padding of the convolution behind it
        names = [node.name for node in self.named[layer.name]]
        text = f"{layer.short_name}, a {layer.type}, was put in front of {', '.join(names)}"
        self.say("inserted", names, (layer.name,), text, warning=True)

    def _compare(self, expected: Expected, layer: HnLayer) -> None:
        ahead = [self.har.layers[name] for name in layer.inputs]
        pad = next((one for one in ahead if one.type == "external_pad" and self._is_helper(one)), None)
        if expected.pad is not None and pad is None:  # a Pad of the graph that is a layer of its own
            pad = next((one for one in ahead if one.type == "external_pad"), None)
        weights = self.har.weights.get(layer.name, {}) if self.har.weights else None
        found = [
            *compare(self.view, expected, layer, pad, weights, self.layout),
            *self._tables(expected, layer),
            *self._wiring(expected, layer),
        ]
        names = [node.name for node in expected.nodes]
        for one in found:
            self.say(
                one.kind,
                names,
                (layer.name,),
                f"{expected.anchor.name}: {layer.short_name} {one.message}",
                one.warning,
            )
            if not one.warning:
                self.status.update({name: "changed" for name in names if self.status.get(name) != "rewritten"})

    def _tables(self, expected: Expected, layer: HnLayer) -> Iterable[Difference]:
        """Constants that come in through layers of their own."""
        tables = [
            array for array in self.view.constant_inputs(expected.anchor) if array.size > 1 and array.dtype.kind == "f"
        ]
        if not layer.type.startswith("ew_") or not tables or not self.har.weights:
            return
        table = tables[0]
        wanted = table
        if table.ndim == 4:
            wanted = table.transpose(0, 3, 2, 1) if self.layout.swapped else table.transpose(0, 2, 3, 1)
        carriers = [name for name in layer.inputs if self.har.layers[name].type == "const_input"]
        arrays = [array for name in (*carriers, layer.name) for array in self.har.weights.get(name, {}).values()]
        same_size = [array for array in arrays if array.size == table.size]
        if not same_size:
            yield Difference("unchecked", "adds or multiplies a constant whose values were not found", warning=True)
        elif text := difference(wanted.reshape(-1).astype(np.float64), same_size[0].reshape(-1), "its constant"):
            yield Difference("weights", text)

    def _wiring(self, expected: Expected, layer: HnLayer) -> Iterable[Difference]:
        """Whether each input comes from where it came from in the graph."""
        wanted = sorted({self._giver(name) for name in expected.sources(self.view)} - {""})
        given = sorted({self._origin(name) for name in layer.inputs} - {""})
        if wanted != given:
            text = [", ".join(name.rpartition("/")[2] for name in names) or "nothing" for names in (given, wanted)]
            yield Difference("wiring", f"takes {text[0]} instead of {text[1]}")

    def _giver(self, tensor: str) -> str:
        """The layer that gives a tensor; empty if that cannot be said, which is told elsewhere."""
        if tensor in self.view.inputs:
            ends = [layer for layer in self.har.layers.values() if layer.type == "input_layer"]
            own = [layer.name for layer in ends if tensor in layer.original_names]
            return own[0] if own else (ends[0].name if len(ends) == 1 else "")
        if tensor in self.givers:
            return self.givers[tensor]
        node = self.view.producers.get(tensor)
        if (node is not None and self._may_vanish(node)) or (node is not None and not self.layers[node.name]):
            data = self.view.data_inputs(node)
            return self._giver(data[0]) if data else ""
        layers = self.layers[node.name] if node is not None else []
        return layers[-1].name if layers else ""

    def _origin(self, name: str) -> str:
        """The layer behind an input, past what only carries it; empty for a constant."""
        for _ in self.har.layers:
            layer = self.har.layers[name]
            if layer.type == "const_input":
                return ""
            carries = (
                layer.type == "shortcut"
                or self._is_helper(layer)
                or (layer.type != "input_layer" and not self.named[name])
            )
            if not carries or len(layer.inputs) != 1:
                return name
            name = layer.inputs[0]
        return name

    def _strangers(self) -> None:
        """Names that the graph does not have, in layers that name others which it has."""
        tensors = {output for node in self.view.nodes for output in node.outputs}
        for layer in self.har.layers.values():
            strange = [name for name in layer.original_names if name not in self.nodes and name not in tensors]
            if strange and self.named[layer.name] and layer.type not in _ENDS | _CARRIERS:
                text = f"{layer.short_name} also names {', '.join(strange)}, which the graph does not have"
                self.say("rewritten", (), (layer.name,), text, warning=True)

    def _splits(self) -> None:
        for name, layers in self.layers.items():
            own = [layer for layer in layers if layer.name in self.made and self.made[layer.name].anchor.name == name]
            if len(own) > 1:
                text = f"{name} became {len(own)} layers: {', '.join(layer.short_name for layer in own)}"
                self.say("split", (name,), [layer.name for layer in own], text)
                self.status[name] = "rewritten"

    def _lost(self) -> None:
        for node in self.view.nodes:
            if not self.layers[node.name] and node.name not in self.status and not self._may_vanish(node):
                self.say("lost", (node.name,), (), f"{node.name} ({node.op}) is in no layer")

    def _outputs(self) -> None:
        """Whether the network ends where the graph ends."""
        ends = [layer for layer in self.har.layers.values() if layer.type == "output_layer"]
        given = sorted(self._origin(name) for layer in ends for name in layer.inputs)
        wanted = sorted({self._giver(name) for name in self.view.outputs} - {""})
        if given != wanted:
            text = [", ".join(name.rpartition("/")[2] for name in names) or "nothing" for names in (given, wanted)]
            self.say("wiring", (), given, f"the network gives out {text[0]} instead of {text[1]}")
