"""What quantisation cost, where, and what 16 bits would buy back."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.fidelity import cosines, decibels


@dataclass(frozen=True)
class StateError:
    """How far rounded encoder states are from the float ones, over all frames of all windows.

    Attributes:
        snr_db: energy of the float states over that of the difference, in dB.
        cosine_mean, cosine_p5, cosine_min: of a frame's states with the float frame's: mean, 5th percentile, lowest.
        mse: mean squared error of a state's value.
    """

    snr_db: float
    cosine_mean: float
    cosine_p5: float
    cosine_min: float
    mse: float


class ErrorMeter:
    """Adds up the error of states, window after window."""

    def __init__(self) -> None:
        self._signal = self._noise = self._count = 0.0
        self._cosines: list[npt.NDArray[np.float64]] = []

    def add(self, reference: npt.NDArray[Any], found: npt.NDArray[Any]) -> None:
        """One window: arrays of one shape, the channels last."""
        self._signal += float(np.square(reference, dtype=np.float64).sum())
        self._noise += float(np.square(reference.astype(np.float64) - found).sum())
        self._count += reference.size
        self._cosines.append(cosines(reference, found).ravel())

    def result(self) -> StateError:
        """Over all windows so far."""
        angles = np.concatenate(self._cosines)
        return StateError(
            decibels(self._signal, self._noise),
            float(angles.mean()),
            float(np.percentile(angles, 5)),
            float(angles.min()),
            self._noise / self._count,
        )


@dataclass(frozen=True)
class LayerError:
    """One layer.

    Attributes:
        name: of its operation; the graph's input comes first, under its own name.
        kind: `conv`, `add`, ... or `input`.
        input_bits, weight_bits, output_bits: None where it has none.
        range: of what it gives, as the integers cover it.
        seen: of what it gives, as calibration saw it.
        alone_db: SNR of the states when this layer alone is rounded; None if not asked for.
        cumulated_db: SNR of what it gives when everything is rounded.
        outliers: channels of what it gives whose peak is several times the median channel's, as (channel, ratio).
    """

    name: str
    kind: str
    input_bits: int | None
    weight_bits: int | None
    output_bits: int
    range: tuple[float, float]
    seen: tuple[float, float]
    alone_db: float | None
    cumulated_db: float
    outliers: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """What more 16-bit places would give: SNR of the states, and how much more that is than as it was quantised."""

    sixteen_bit: list[str]
    snr_db: float
    gain_db: float


@dataclass(frozen=True)
class QuantizationReport:
    """What was written, and how far it is from the float encoder.

    Attributes:
        path, sha256, size: the integer graph; bytes.
        weights: fingerprint of the weights that it stands for; None for a graph that is none of ours.
        opset: version of ONNX's operator set.
        settings: what was asked for.
        calibration_windows: how many windows the ranges are from.
        report_windows: how many windows the errors are from.
        held_out: whether those took no part in calibration.
        states: error of the states after the host epilogue, from ONNX Runtime's integers; of the graph's output for a
            graph that is none of ours.
        input, output: scale, zero point and type of the host's integers.
        steps: SNR of the states after each step of the work, in dB, by torch's simulation of the integers.
        equalized: how many sets of tied values were evened out.
        bias_correction: mean over layers and channels of the mean error that was taken away.
        finetune_loss: error over variance of the states, mean of the first and of the last steps of fine-tuning.
        layers: by order of running.
        choices: what other 16-bit places would give.
        left_in_float: operators that are not run in integers, with how many there are.
        seconds: how long it took.
    """

    path: str
    sha256: str
    size: int
    weights: str | None
    opset: int
    settings: dict[str, Any]
    calibration_windows: int
    report_windows: int
    held_out: bool
    states: StateError
    input: dict[str, Any]
    output: dict[str, Any]
    steps: dict[str, float]
    equalized: int
    bias_correction: float | None
    finetune_loss: tuple[float, float] | None
    layers: list[LayerError]
    choices: list[Choice]
    left_in_float: dict[str, int]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)

    def summary(self) -> list[tuple[str, str]]:
        """The main lines, as (name, value)."""
        states, on = self.states, "held-out windows" if self.held_out else "the calibration windows"
        rows = [
            ("states, SNR", f"{db(states.snr_db)} over {self.report_windows} of {on}"),
            (
                "states, cosine",
                f"mean {states.cosine_mean:.4f}, 5 % {states.cosine_p5:.4f}, min {states.cosine_min:.4f}",
            ),
            ("calibrated", f"{self.calibration_windows} windows, {self.settings['method']}"),
            *((f"simulated, after {step}", db(value)) for step, value in self.steps.items()),
            *(
                (f"and 16 bits for {', '.join(one.sixteen_bit)}", f"{db(one.snr_db)} ({one.gain_db:+.1f})")
                for one in self.choices
            ),
        ]
        if self.left_in_float:
            rows.append(("left in float", ", ".join(f"{n} {name}" for name, n in self.left_in_float.items())))
        return rows

    def layer_rows(self, worst: int | None = None) -> list[tuple[str, ...]]:
        """A table of the layers, a header first; of the worst by their error alone if so many are asked for."""
        layers: Iterable[LayerError] = self.layers
        if worst is not None:
            ranked = sorted(self.layers, key=_badness)[:worst]
            layers = [layer for layer in self.layers if layer in ranked]
        header = ("layer", "kind", "bits", "range", "alone", "cumulated", "outlier channels")
        return [
            header,
            *(
                (
                    layer.name,
                    layer.kind,
                    "/".join(str(b) for b in (layer.input_bits, layer.weight_bits, layer.output_bits) if b),
                    f"{layer.range[0]:.3g} … {layer.range[1]:.3g}",
                    db(layer.alone_db),
                    db(layer.cumulated_db),
                    ", ".join(f"{channel} (×{ratio:.0f})" for channel, ratio in layer.outliers[:3]),
                )
                for layer in layers
            ),
        ]


def db(value: float | None) -> str:
    """A level for people."""
    return "–" if value is None else f"{value:.1f} dB"


def _badness(layer: LayerError) -> tuple[float, float]:
    return layer.cumulated_db if layer.alone_db is None else layer.alone_db, layer.cumulated_db


def outlier_channels(peaks: npt.NDArray[np.float64] | None, ratio: float = 4.0) -> list[tuple[int, float]]:
    """Channels whose peak is more than `ratio` times the median channel's, the loudest first."""
    if peaks is None or len(peaks) < 2 or (middle := float(np.median(peaks))) <= 0:
        return []
    found = [(int(channel), float(peaks[channel]) / middle) for channel in np.argsort(-peaks)]
    return [(channel, times) for channel, times in found if times > ratio]
