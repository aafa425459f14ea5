"""What an ONNX graph would cost on a Hailo chip: counted work, and a modelled interval of milliseconds.

What is counted (multiply-accumulates, parameters, bytes) follows from the graph. Every time is modelled: from the
published speeds of other networks (`cost_model`) and the rate of the PCIe link. Nothing here was measured on a chip.
"""

import math
import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from whisper_hailo_hf.compile.cost_model import CostFeatures, Prediction, device_model
from whisper_hailo_hf.compile.graph import GraphView, Node, view_graph
from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from onnx import ModelProto

# Usable bytes a second of the Raspberry Pi 5's one lane. The line rates are 500 and 985 MB/s (5 GT/s with 8b/10b and
# 8 GT/s with 128b/130b coding, PCI Express Base Specification 3.0); headers of 20 to 28 bytes on packets of 128 bytes
# and the flow control leave about 80 %. The Pi runs at Gen2 unless `dtparam=pciex1_gen=3` or a HAT asks for Gen3
# (Raspberry Pi documentation, "PCIe Gen 3.0").
PCIE_BYTES_PER_SECOND = {"gen2": 400e6, "gen3": 800e6}
# These chips have no memory of their own beside the chip: whatever does not fit comes over PCIe, in every frame. A
# Hailo-10H module has.
RELOADS_OVER_PCIE = {"hailo8l", "hailo8"}
CERTAIN = 0.8
_NORMALISATIONS = {"LayerNormalization", "GroupNormalization", "InstanceNormalization", "Sqrt", "LpNormalization"}
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu", "BatchNormalization"} | _NORMALISATIONS


@dataclass(frozen=True)
class Interval:
    """Milliseconds, modelled: four networks in five lie between `low` and `high`."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.low)} to {_short(self.high)}, middle {_short(self.middle)}"


@dataclass(frozen=True)
class CostReport:
    """What a graph costs for one run.

    Attributes:
        device, pcie: what it is for.
        macs: multiply-accumulates.
        parameters: weights and biases.
        table_elements: elements of other constants, such as a table of positions.
        weight_bytes: all of these at 8 bits.
        macs_by_kind: share of the multiply-accumulates in dense, grouped and depthwise convolutions, in products with
            weights, and in products of two activations.
        layers_by_kind: how many there are of each.
        activation_bytes: all tensors between the graph's nodes at 8 bits, added up; the compiler fuses some away.
        largest_activation: name of the largest tensor.
        largest_shape, largest_bytes: its shape, and its bytes at 8 bits.
        input_bytes, output_bytes: what crosses PCIe in each run.
        single_context: modelled probability that the whole network fits the chip at once.
        chip_ms: modelled time of one run in a stream at batch 1, on the host of the published tables.
        transfer_ms: input and output over this PCIe link.
        reload_ms: all weights over this PCIe link once, which a network of several contexts needs in every run; 0
            where the weights stay beside the chip.
        total_ms: modelled time on a Raspberry Pi 5, from "transfers hide behind the work" to "nothing overlaps".
        notes: what to keep in mind.
    """

    device: str
    pcie: str
    macs: int
    parameters: int
    table_elements: int
    weight_bytes: int
    macs_by_kind: dict[str, float]
    layers_by_kind: dict[str, int]
    activation_bytes: int
    largest_activation: str
    largest_shape: tuple[int, ...]
    largest_bytes: int
    input_bytes: int
    output_bytes: int
    single_context: float
    chip_ms: Interval
    transfer_ms: float
    reload_ms: float
    total_ms: tuple[float, float]
    notes: tuple[str, ...] = ()
    modelled: bool = True

    @property
    def contexts(self) -> str:
        """ "single", "several", or "uncertain"."""
        if self.single_context >= CERTAIN:
            return "single"
        return "several" if self.single_context <= 1 - CERTAIN else "uncertain"

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        lists = {"largest_shape": list(self.largest_shape), "total_ms": list(self.total_ms), "notes": list(self.notes)}
        return asdict(self) | lists | {"contexts": self.contexts}

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line of a table."""
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in self.macs_by_kind.items() if share >= 0.005)
        largest = "×".join(map(str, self.largest_shape))
        reload = f"{_short(self.reload_ms)} ms if in several contexts" if self.reload_ms else "none over PCIe"
        rows = [
            ("device", f"{self.device}, PCIe {self.pcie} ×1"),
            ("multiply-accumulates", f"{_count(self.macs)} ({shares})"),
            ("parameters", _count(self.parameters)),
            ("constants beside them", _count(self.table_elements)),
            ("activations", f"{self.activation_bytes / 2**20:.1f} MiB at 8 bits"),
            ("largest activation", f"{largest}, {self.largest_bytes / 2**20:.2f} MiB, {self.largest_activation}"),
            ("input, output", f"{self.input_bytes / 2**20:.2f} MiB, {self.output_bytes / 2**20:.2f} MiB"),
            ("contexts (modelled)", f"{self.contexts}: single with probability {self.single_context:.0%}"),
            ("chip (modelled)", f"{self.chip_ms} ms"),
            ("input and output (modelled)", f"{_short(self.transfer_ms)} ms"),
            ("weights, each run (modelled)", reload),
            ("on a Raspberry Pi 5 (modelled)", f"{_short(self.total_ms[0])} to {_short(self.total_ms[1])} ms"),
        ]
        return rows + [("note", note) for note in self.notes]


def estimate_cost(
    graph: "str | os.PathLike | ModelProto | GraphView",
    device: str = "hailo8l",
    pcie: str = "gen3",
    *,
    input_bits: int = 8,
    output_bits: int = 8,
) -> CostReport:
    """What one run of a graph costs on a device, with its input and output over a Raspberry Pi 5's PCIe lane.

    Args:
        graph: a file, a model in memory, or what `view_graph` gave of one; of fixed shapes.
        device: "hailo8l", "hailo8" or "hailo10h".
        pcie: "gen2" or "gen3".
        input_bits, output_bits: 8 or 16, as the compiled network takes and gives them.

    Raises:
        RequestError: an unknown device or link, or a graph that cannot be read or has open shapes.
    """
    model = device_model(device)
    if pcie not in PCIE_BYTES_PER_SECOND:
        raise RequestError(f"pcie is {' or '.join(PCIE_BYTES_PER_SECOND)}, not {pcie!r}")
    if input_bits not in (8, 16) or output_bits not in (8, 16):
        raise RequestError(f"input_bits and output_bits are 8 or 16, not {input_bits} and {output_bits}")
    view = graph if isinstance(graph, GraphView) else view_graph(graph)
    work, layers = _work(view)
    macs = sum(work.values())
    if not macs:
        raise RequestError("the graph has no convolution and no product: there is nothing to estimate")
    parameters, tables = _constants(view)
    features = _features(macs, parameters, layers, view)
    said = model.predict(features)

    input_bytes = sum(math.prod(view.shape(name)) for name in view.inputs) * input_bits // 8
    output_bytes = sum(math.prod(view.shape(name)) for name in view.outputs) * output_bits // 8
    rate = PCIE_BYTES_PER_SECOND[pcie]
    transfer = 1000 * (input_bytes + output_bytes) / rate
    weight_bytes = parameters + tables
    reload = 1000 * weight_bytes / rate if device in RELOADS_OVER_PCIE else 0.0
    hidden = max(said.low, transfer)
    exposed = said.high + transfer + (reload if said.single_context < CERTAIN else 0.0)

    tensors = {name: view.shape(name) for node in view.nodes for name in node.outputs if name}
    largest = max(tensors, key=lambda name: math.prod(tensors[name]))
    return CostReport(
        device=device,
        pcie=pcie,
        macs=macs,
        parameters=parameters,
        table_elements=tables,
        weight_bytes=weight_bytes,
        macs_by_kind={kind: count / macs for kind, count in sorted(work.items())},
        layers_by_kind=dict(sorted(layers.items())),
        activation_bytes=sum(map(math.prod, tensors.values())),
        largest_activation=view.producers[largest].name,
        largest_shape=tensors[largest],
        largest_bytes=math.prod(tensors[largest]),
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        single_context=said.single_context,
        chip_ms=Interval(said.low, said.middle, said.high),
        transfer_ms=transfer,
        reload_ms=reload,
        total_ms=(hidden, exposed),
        notes=_notes(said),
    )


def _notes(said: Prediction) -> tuple[str, ...]:
    about = "modelled on the published speeds of other networks, nearly all of them for images"
    stream = "for one run in a stream: a single answer can take longer"
    return (f"{about}; {stream}", *(f"outside what the model was fitted on: {size}" for size in said.outside))


def _work(view: GraphView) -> tuple[Counter[str], Counter[str]]:
    """Multiply-accumulates, and layers, of each kind."""
    work: Counter[str] = Counter()
    layers: Counter[str] = Counter()
    for node in view.nodes:
        kind = _kind(view, node)
        if kind is not None:
            work[kind] += _macs(view, node)
            layers[kind] += 1
    return work, layers


def _kind(view: GraphView, node: Node) -> str | None:
    if node.op in ("Conv", "ConvTranspose"):
        groups, channels = int(node.attributes.get("group", 1)), view.shape(node.inputs[0])[1]
        if groups == 1:
            return "dense"
        return "depthwise" if groups == channels else "grouped"
    if node.op in ("Gemm", "MatMul"):
        return "product" if len(view.data_inputs(node)) < 2 else "attention"
    return None


def _macs(view: GraphView, node: Node) -> int:
    if node.op == "Conv":
        return math.prod(view.shape(node.outputs[0])) * math.prod(view.shape(node.inputs[1])[1:])
    if node.op == "ConvTranspose":
        return math.prod(view.shape(node.inputs[0])) * math.prod(view.shape(node.inputs[1])[1:])
    inner = view.shape(node.inputs[0])
    return math.prod(view.shape(node.outputs[0])) * inner[0 if node.attributes.get("transA") else -1]


def _constants(view: GraphView) -> tuple[int, int]:
    """Elements of the weights and biases, and of the other floating-point constants. Each tensor counts once."""
    weights: dict[str, int] = {}
    tables: dict[str, int] = {}
    for node in view.nodes:
        for name in node.inputs:
            array = view.constants.get(name)
            # a scalar, or a resize's factors, is part of its operation
            if array is not None and array.dtype.kind == "f" and array.size > 1 and node.op != "Resize":
                (weights if node.op in _WEIGHTED else tables)[name] = array.size
    return sum(weights.values()), sum(size for name, size in tables.items() if name not in weights)


def _features(macs: int, parameters: int, layers: Counter[str], view: GraphView) -> CostFeatures:
    convolutions = layers["dense"] + layers["grouped"] + layers["depthwise"] + layers["product"]
    return CostFeatures(
        gop=2 * macs / 1e9,
        mparams=parameters / 1e6,
        grouped=layers["grouped"] / max(1, convolutions),
        depthwise=layers["depthwise"] / max(1, convolutions),
        attention=float(layers["attention"] > 0),
        layer_norm=float(any(node.op in _NORMALISATIONS for node in view.nodes)),
    )


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:,.0f}"


def _count(number: int) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return str(number)
