"""The steps of quantisation, one after the other, and the errors that are reported of them."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from whisper_hailo_hf.backends.emulator import IntegerGraph
from whisper_hailo_hf.compile.calibration import Calibration, Observed, Windows, check_count, observe
from whisper_hailo_hf.compile.correction import correct_biases, finetune
from whisper_hailo_hf.compile.equalize import equalize
from whisper_hailo_hf.compile.float_graph import FloatGraph
from whisper_hailo_hf.compile.qdq import build_qdq, with_16_bits
from whisper_hailo_hf.compile.quantize_report import Choice, ErrorMeter, LayerError, StateError, outlier_channels
from whisper_hailo_hf.compile.quantize_settings import Network, Progress, Settings
from whisper_hailo_hf.compile.simulation import Rounding, Simulation, Values
from whisper_hailo_hf.encoders.placement import OUTPUT, RESIDUAL_ADDS, Placement, place
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.fidelity import decibels

if TYPE_CHECKING:
    from onnx import ModelProto

logger = logging.getLogger(__name__)

_EQUALIZE_WINDOWS, _BIAS_WINDOWS = 64, 8  # peaks and means of channels need fewer than the ends of ranges
_FEW_STEPS = 5  # of fine-tuning, whose mean loss tells where it began and where it ended
_WORST = 3  # layers that a choice of 16 bits is tried for by name


class Quantizer:
    """Quantises a network, step by step.

    Args:
        network: what is quantised.
        windows: features to calibrate with; some of them, evenly spread, are kept for the report if there are enough.
        settings: what was asked for.
        progress: is told how far the work is.
    """

    def __init__(self, network: Network, windows: Windows, settings: Settings, progress: Progress) -> None:
        self.network, self.settings, self.progress = network, settings, progress
        count = len(windows)
        kept = min(settings.report_windows, count // 8)
        held = {round((i + 0.5) * count / kept) for i in range(kept)}
        self.calibration = [_Lazy(windows, i) for i in range(count) if i not in held]
        check_count(len(self.calibration))
        self.held_out = kept > 0
        self.report = [_Lazy(windows, i) for i in sorted(held)] or self.calibration[: settings.report_windows]
        self.steps: dict[str, float] = {}
        self.equalized = 0
        self.bias_correction: float | None = None
        self.finetune_loss: tuple[float, float] | None = None
        self.original, self.placement = self._read()
        self.weight_bits = self._weight_bits()
        self.observed: dict[str, Observed] = {}

    def run(self) -> "ModelProto":
        """All steps; the integer graph."""
        settings, graph = self.settings, self.original.copy()
        self.reference = simulation = Simulation(graph)
        if settings.equalize:
            first = _spread(self.calibration, _EQUALIZE_WINDOWS)
            self._calibrate("measuring channels", simulation, first)
            self.steps["ranges"] = self._error(simulation)
            self.equalized = equalize(graph, self.observed)
            self.reference = simulation = Simulation(graph)
        self._calibrate("calibrating", simulation, self.calibration)
        self.steps["equalisation" if settings.equalize else "ranges"] = self._error(simulation)
        simulation = Simulation(graph)
        if settings.bias_correction:
            tiles = [tile for one in _spread(self.calibration, _BIAS_WINDOWS) for tile in self.network.inputs(one)]
            self.progress("correcting biases", 0, 1)
            moved = correct_biases(simulation, self.rounding, tiles)
            self.progress("correcting biases", 1, 1)
            self.bias_correction = float(np.mean(list(moved.values()))) if moved else None
            self.steps["bias correction"] = self._error(simulation)
        if settings.finetune_steps:
            losses = finetune(
                simulation,
                self.reference,
                self.rounding,
                self.calibration,
                self.network.forward,
                steps=settings.finetune_steps,
                learning_rate=settings.finetune_learning_rate,
                seed=settings.seed,
            )
            before = dict(simulation.constants)
            curve = list(self._counted("fine-tuning", losses, settings.finetune_steps))
            self.finetune_loss = float(np.mean(curve[:_FEW_STEPS])), float(np.mean(curve[-_FEW_STEPS:]))
            if self.finetune_loss[1] > self.finetune_loss[0]:
                logger.warning("fine-tuning made it worse and is left out: use a lower learning rate")
                simulation.constants = before
            self.steps["fine-tuning"] = self._error(simulation)
        simulation.write_back(graph.constants)
        self.simulation = simulation
        return build_qdq(graph, self.rounding)

    @cached_property
    def wanted(self) -> list[Tensor]:
        """The float network's states for the report's windows."""
        simulation = Simulation(self.original)
        with torch.no_grad():
            return [self.network.forward(simulation, None, window) for window in self.report]

    @torch.no_grad()
    def states_error(self, graph: IntegerGraph) -> StateError:
        """Of the finished integer graph, against the float network."""
        meter = ErrorMeter()
        pairs = list(zip(self.report, self.wanted, strict=True))
        for window, wanted in self._counted("running the integer graph", pairs, len(pairs)):
            tiles = [tile.reshape(self.original.input_shape).numpy() for tile in self.network.inputs(window)]
            found = self.network.states([torch.from_numpy(graph.run(tile)) for tile in tiles])
            meter.add(wanted.numpy(), found.numpy())
        return meter.result()

    def layer_errors(self) -> list[LayerError]:
        """Each layer's own error, and the error that has come together behind it."""
        cumulated = self._cumulated()
        graph, rounding, placement = self.original, self.rounding, self.placement
        alone = self._alone() if self.settings.layer_windows else {}
        errors = []
        for name, output in ((graph.input, graph.input), *((one.name, one.output) for one in placement.layers)):
            if not placement.stored(output):
                continue
            layer, root = rounding.layers.get(name), placement.root(output)
            bits, seen = placement.bits[root], self.observed[root]
            scale = rounding.scales(root, bits)
            weighted = layer is not None and graph.weight_of(self._node(name)) is not None
            errors.append(
                LayerError(
                    name=name,
                    kind="input" if layer is None else layer.op.kind,
                    input_bits=None if layer is None else layer.input_bits,
                    weight_bits=rounding.weight_bits(layer) if layer is not None and weighted else None,
                    output_bits=bits,
                    range=(scale.low, scale.high),
                    seen=(seen.low, seen.high),
                    alone_db=alone.get(name),
                    cumulated_db=cumulated[output],
                    outliers=outlier_channels(seen.peaks()),
                )
            )
        return errors

    def choices(self, layers: Sequence[LayerError]) -> list[Choice]:
        """What more 16-bit places would give, the worst layers among them."""
        tried: list[list[str]] = [[OUTPUT], [RESIDUAL_ADDS], [OUTPUT, RESIDUAL_ADDS]]
        ranked = sorted((one for one in layers if one.alone_db is not None), key=lambda one: one.alone_db or 0.0)
        if worst := [one.name for one in ranked if one.kind != "input" and one.output_bits == 8][:_WORST]:
            tried.append(worst)
        now = self._error(self.simulation)
        found = []
        for names in self._counted("trying 16 bits", tried, len(tried)):
            asked = (*self.settings.sixteen_bit, *names)
            placement = place(self.original.ops, [self.original.output], asked)
            if placement == self.placement:
                continue  # so it was quantised already, or there is no such place
            weight_bits = {name: bits for name, bits in self.weight_bits.items() if name not in names}
            snr = self._error(self.simulation, Rounding(placement, self.rounding.scales, weight_bits))
            found.append(Choice(names, snr, snr - now))
        return found

    def left_in_float(self) -> dict[str, int]:
        """Operators that are not run in integers."""
        known = set(self.rounding.layers) | self.placement.activations
        pairs = zip(self.original.nodes, self.original.ops, strict=True)
        floats = [
            node.op_type
            for node, op in pairs
            if op.name not in known and not (op.kind == "move" and self.placement.stored(op.output))
        ]
        return dict(sorted(Counter(floats).items()))

    def _read(self) -> tuple[FloatGraph, Placement]:
        graph = FloatGraph.read(self.network.model)
        placement = place(graph.ops, [graph.output], self.settings.sixteen_bit)
        if not placement.layers:
            raise RequestError("the graph has no layer that could run in integers")
        if 16 in placement.bits.values() or 16 in self.settings.weight_bits.values():
            graph = FloatGraph.read(with_16_bits(self.network.model))
            placement = place(graph.ops, [graph.output], self.settings.sixteen_bit)
        return graph, placement

    def _weight_bits(self) -> dict[str, int]:
        found: dict[str, int] = {}
        names = [one.name for one in self.placement.layers if self.original.weight_of(self._node(one.name))]
        for pattern, bits in self.settings.weight_bits.items():
            matching = [name for name in names if fnmatchcase(name, pattern)]
            if not matching:
                raise RequestError(f"no layer with weights is named {pattern!r}: such are {', '.join(names[:4])}")
            found |= dict.fromkeys(matching, bits)
        return found

    def _node(self, name: str) -> Any:
        return next(node for node in self.original.model.graph.node if node.name == name)

    def _calibrate(self, what: str, simulation: Simulation, windows: Sequence[Any]) -> None:
        tiles = (tile for one in self._counted(what, windows, len(windows)) for tile in self.network.inputs(one))
        self.observed = observe(simulation, tiles, self.placement.bits)
        scales = Calibration(self.observed, self.settings.method, self.settings.percentile).scale
        self.rounding = Rounding(self.placement, scales, self.weight_bits)

    @torch.no_grad()
    def _error(self, simulation: Simulation, rounding: Rounding | None = None) -> float:
        """SNR of the states in dB, over the report's windows."""
        signal = noise = 0.0
        for window, wanted in zip(self.report, self.wanted, strict=True):
            found = self.network.forward(simulation, rounding or self.rounding, window)
            signal += float(wanted.double().square().sum())
            noise += float((wanted - found).double().square().sum())
        return decibels(signal, noise)

    @torch.no_grad()
    def _cumulated(self) -> dict[str, float]:
        outputs = {self.original.input, *(layer.output for layer in self.placement.layers)}
        energies = {name: [0.0, 0.0] for name in outputs}
        for window in self.report:
            for tile in self.network.inputs(window):
                floats: Values = {}

                def keep(name: str, value: Tensor, floats: Values = floats) -> None:
                    if name in outputs:
                        floats[name] = value

                def compare(name: str, value: Tensor, floats: Values = floats) -> None:
                    if name in outputs:
                        wanted = floats.pop(name)
                        energies[name][0] += float(wanted.double().square().sum())
                        energies[name][1] += float((wanted - value).double().square().sum())

                self.reference.run(tile, observe=keep)
                self.simulation.run(tile, self.rounding, observe=compare)
        return {name: decibels(*pair) for name, pair in energies.items()}

    @torch.no_grad()
    def _alone(self) -> dict[str, float]:
        """SNR of the states with one layer rounded, by its name: what lies before it is computed once."""
        names = [self.original.input, *(layer.name for layer in self.placement.layers)]
        energies = {name: [0.0, 0.0] for name in names}
        windows = self.report[: self.settings.layer_windows]
        todo = self._counted("each layer alone", [(w, n) for w in windows for n in names], len(windows) * len(names))
        current: Any = None
        kept: list[tuple[Tensor, Values]] = []
        for window, name in todo:
            if window is not current:
                current, kept = window, []
                for tile in self.network.inputs(window):
                    values: Values = {}
                    self.reference.run(tile, observe=values.__setitem__)
                    kept.append((tile, values))
                wanted = self.network.states([values[self.original.output] for _, values in kept])
            rounding = Rounding(self.placement, self.rounding.scales, self.weight_bits, only={name})
            found = self.network.states([self.reference.rerun(tile, values, rounding) for tile, values in kept])
            energies[name][0] += float(wanted.double().square().sum())
            energies[name][1] += float((wanted - found).double().square().sum())
        return {name: decibels(*pair) for name, pair in energies.items()}

    def _counted(self, what: str, items: Iterable[Any], total: int) -> Iterator[Any]:
        self.progress(what, 0, total)
        for done, item in enumerate(items, start=1):
            yield item
            self.progress(what, done, total)


class _Lazy:
    """One of the windows, read when it is used."""

    def __init__(self, windows: Windows, index: int) -> None:
        self._windows, self._index = windows, index

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._windows[self._index], dtype)


def _spread(items: Sequence[Any], count: int) -> Sequence[Any]:
    """At most so many of them, evenly spread."""
    if len(items) <= count:
        return items
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, count)]
