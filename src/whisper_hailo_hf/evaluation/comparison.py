"""One stage against another: fidelity as a number, over time and over channels."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.fidelity import cosines, decibels

Float64 = npt.NDArray[np.float64]

BINS = 60  # of the curve over time
MIN_FOR_POSITIONS = 4  # windows from which a mean by position can be taken


@dataclass(frozen=True)
class Comparison:
    """What `compare_states` found.

    Attributes:
        reference, stage: which is compared with which.
        metrics: over all frames: `snr_db`; `content_snr_db`, the reference's mean by position taken from both, from
            4 windows on; `cosine_mean`, `_min`, `_p5` over frames; `whitened_cosine_mean`, `_min`, `_p5`, each channel
            brought to the reference's mean 0 and deviation 1; `channel_mean_drift_max` and `_rms`, shifts of the
            channels' means in deviations of the reference; `channel_scale_min` and `_max`, deviation of a channel over
            that of the reference; `worst_channel`, the one with the lowest SNR; `snr_db_start`, `_middle`, `_end`,
            over frames 0-100, 700-800 and 1400-1500 of 1500, and `drift_db`, the largest difference between them.
            Where there is padding, SNR and cosines again over the other frames, with `_heard` at the end. A value that
            the data cannot give is left out; `bad_frames` counts frames with values that are not finite, which no
            other value sees.
        snr_by_time: (60,), dB, along the window.
        snr_by_channel: (d_model,), dB.
        mean_drift, scale: (d_model,), as in `metrics`.
    """

    reference: str
    stage: str
    metrics: dict[str, float]
    snr_by_time: Float64
    snr_by_channel: Float64
    mean_drift: Float64
    scale: Float64

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN is null."""
        curves = {
            name: [None if math.isnan(value) else round(float(value), 4) for value in getattr(self, name)]
            for name in ("snr_by_time", "snr_by_channel", "mean_drift", "scale")
        }
        return {"reference": self.reference, "stage": self.stage, "metrics": self.metrics, **curves}


def compare_states(
    reference: np.ndarray, found: np.ndarray, heard: np.ndarray, names: tuple[str, str] = ("reference", "stage")
) -> Comparison:
    """Compares states, frame by frame, in float64.

    Args:
        reference, found: (windows, positions, d_model).
        heard: (windows, positions), bool; False on padding.
        names: of the two.

    Raises:
        ValueError: the shapes differ.
    """
    if reference.shape != found.shape or heard.shape != reference.shape[:2]:
        raise ValueError(f"states of shapes {reference.shape} and {found.shape}, frames {heard.shape}: not one")
    good = np.isfinite(found).all(-1) & np.isfinite(reference).all(-1)
    sums = _Sums(reference, found, good)
    metrics: dict[str, float] = {"bad_frames": float((~good).sum()), "windows": float(len(reference))}
    metrics |= sums.over(good)
    if not heard.all():
        metrics |= {f"{name}_heard": value for name, value in sums.over(good & heard).items()}
    time = np.array([decibels(*sums.energies(good, part)) for part in _parts(reference.shape[1])])
    metrics |= _drift(sums, good)
    channels = np.array([decibels(s, e) for s, e in zip(sums.channel_signal, sums.channel_error, strict=True)])
    if np.isfinite(channels).any():
        metrics["worst_channel"] = float(np.nanargmin(channels))
    mean_drift, scale = sums.channel_drift()
    if good.any():
        metrics |= {
            "channel_mean_drift_max": float(np.abs(mean_drift).max()),
            "channel_mean_drift_rms": float(np.sqrt(np.square(mean_drift).mean())),
            "channel_scale_min": float(scale.min()),
            "channel_scale_max": float(scale.max()),
        }
    metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}
    return Comparison(*names, metrics, time, channels, mean_drift, scale)


def _parts(positions: int) -> list[slice]:
    edges = np.linspace(0, positions, min(BINS, positions) + 1).round().astype(int)
    return [slice(*pair) for pair in pairwise(edges)]


def _drift(sums: "_Sums", good: np.ndarray) -> dict[str, float]:
    positions, found = good.shape[1], {}
    for name, first in (("start", 0), ("middle", 7), ("end", 14)):
        part = slice(first * positions // 15, (first + 1) * positions // 15)
        found[f"snr_db_{name}"] = decibels(*sums.energies(good, part))
    return found | {"drift_db": float(np.ptp(list(found.values())))}


class _Sums:
    """Energies and cosines of all frames, window by window so that little is in memory at a time."""

    def __init__(self, reference: np.ndarray, found: np.ndarray, good: np.ndarray) -> None:
        windows, positions, width = reference.shape
        frames = max(int(good.sum()), 1)
        usable = np.where(good[..., None], reference, 0)
        self.mean = usable.sum((0, 1), dtype=np.float64) / frames
        square = np.square(usable, dtype=np.float64).sum((0, 1)) / frames
        self.deviation = np.sqrt(np.maximum(square - self.mean**2, 0))
        # no channel counts as narrower than a hundredth of the median one
        self.deviation = np.maximum(self.deviation, max(1e-2 * float(np.median(self.deviation)), 1e-12))
        at_position = None
        if windows >= MIN_FOR_POSITIONS:
            at_position = usable.sum(0, dtype=np.float64) / np.maximum(good.sum(0), 1)[:, None]
        shape = (windows, positions)
        self.signal, self.error, self.content = np.zeros(shape), np.zeros(shape), np.full(shape, np.nan)
        self.cosine, self.whitened = np.zeros(shape), np.zeros(shape)
        self.channel_signal, self.channel_error = np.zeros(width), np.zeros(width)
        self._sum, self._square, self._frames = np.zeros(width), np.zeros(width), frames
        for index in range(windows):
            keep = good[index]
            ours, theirs = found[index][keep].astype(np.float64), reference[index][keep].astype(np.float64)
            difference = ours - theirs
            self.signal[index, keep] = np.square(theirs).sum(-1)
            self.error[index, keep] = np.square(difference).sum(-1)
            if at_position is not None:
                self.content[index, keep] = np.square(theirs - at_position[keep]).sum(-1)
            self.cosine[index, keep] = cosines(theirs, ours)
            white = ((states - self.mean) / self.deviation for states in (theirs, ours))
            self.whitened[index, keep] = cosines(*white)
            self.channel_signal += np.square(theirs).sum(0)
            self.channel_error += np.square(difference).sum(0)
            self._sum += ours.sum(0)
            self._square += np.square(ours - self.mean).sum(0)

    def energies(self, mask: np.ndarray, part: slice) -> tuple[float, float]:
        """Signal and error over part of the positions."""
        return float(self.signal[:, part][mask[:, part]].sum()), float(self.error[:, part][mask[:, part]].sum())

    def over(self, mask: np.ndarray) -> dict[str, float]:
        """SNR and cosines over some frames."""
        if not mask.any():
            return {}
        error, cosine, whitened = float(self.error[mask].sum()), self.cosine[mask], self.whitened[mask]
        return {
            "snr_db": decibels(float(self.signal[mask].sum()), error),
            "content_snr_db": decibels(float(self.content[mask].sum()), error),
            "cosine_mean": float(cosine.mean()),
            "cosine_min": float(cosine.min()),
            "cosine_p5": float(np.percentile(cosine, 5)),
            "whitened_cosine_mean": float(whitened.mean()),
            "whitened_cosine_min": float(whitened.min()),
            "whitened_cosine_p5": float(np.percentile(whitened, 5)),
        }

    def channel_drift(self) -> tuple[Float64, Float64]:
        """Shift of each channel's mean and ratio of its deviation, against the reference's."""
        shift = self._sum / self._frames - self.mean
        deviation = np.sqrt(np.maximum(self._square / self._frames - shift**2, 0))
        return shift / self.deviation, deviation / self.deviation
