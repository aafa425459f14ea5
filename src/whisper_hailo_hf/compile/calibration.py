"""Ranges of activations from real windows: streamed histograms, and four ways to choose a range from one.

Memory does not grow with the number of windows. A histogram's bins double in width when a value falls outside, so one
pass is enough and no value is lost.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from whisper_hailo_hf.arithmetic import ACTIVATIONS, Affine, affine
from whisper_hailo_hf.compile.quantize_settings import check_method
from whisper_hailo_hf.compile.simulation import Simulation
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

logger = logging.getLogger(__name__)

FEW_WINDOWS = 64
_HALF = 8192  # bins on either side of zero; after a doubling, at least half of them are in use
_KL_BINS = 2048  # in which the shape of a distribution is told, eight for each level
_SHRINK = np.concatenate([np.linspace(1.0, 0.5, 51), np.linspace(0.48, 0.1, 20)])  # of the full range, to be tried
Histogram = npt.NDArray[np.float64]


class Windows(Protocol):
    """Log-mel features of windows: a length, and float32 (mel bins, frames) for each index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass
class Observed:
    """What was seen of one value.

    Attributes:
        name: the value.
        low, high: its exact range.
        width: the histogram covers -width to width.
        counts: of the bins, (2 * 8192,).
        channel_peak: mean over the windows of each channel's largest absolute value; None unless of rank 4.
        windows: how many were seen.
    """

    name: str
    low: float = float("inf")
    high: float = float("-inf")
    width: float = 0.0
    counts: Histogram | None = None
    channel_peak: Histogram | None = None
    windows: int = 0
    _zeros: int = 0  # seen before anything else, when no width was known

    def add(self, value: Tensor) -> None:
        """Counts one window's values."""
        low, high = (float(one) for one in torch.aminmax(value))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise WhisperHailoError(
                f"{self.name} has values that are not finite numbers in window {self.windows + 1}: "
                "check the weights and the calibration audio"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(max(-low, high))
        if self.width:
            bins = torch.histc(value, 2 * _HALF, -self.width, self.width).double().numpy()
            self.counts = bins if self.counts is None else self.counts + bins
        else:
            self._zeros += value.numel()
        if value.dim() == 4:
            peaks = value.abs().amax(dim=(0, 2, 3)).double().numpy()
            self.channel_peak = peaks if self.channel_peak is None else self.channel_peak + peaks
        self.windows += 1

    def peaks(self) -> Histogram | None:
        """Mean over the windows of each channel's largest absolute value, (channels,)."""
        return None if self.channel_peak is None else self.channel_peak / self.windows

    def edges(self) -> Histogram:
        """The bins' borders, (2 * 8192 + 1,)."""
        return np.linspace(-self.width, self.width, 2 * _HALF + 1)

    def _cover(self, peak: float) -> None:
        if peak <= self.width:
            return
        if self.counts is None:
            self.width, self.counts = peak, np.zeros(2 * _HALF)
            self.counts[_HALF] = self._zeros
            return
        while self.width < peak:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([np.zeros(_HALF // 2), pairs, np.zeros(_HALF // 2)])
            self.width *= 2


class Calibration:
    """Ranges of all values that are stored as integers.

    Args:
        observed: by name of the value.
        method: `"minmax"`, `"percentile"` (leaves out the share `100 - percentile` at either end), `"mse"` (least
            squared error of rounding and clipping; Nagel et al. 2021, arXiv:2106.08295, section 3.1) or `"kl"` (least
            divergence of the distributions; Migacz 2017, 8-bit inference with TensorRT). 16 bits always take the
            whole range, for which they have steps enough.
        percentile: of the method of that name.
    """

    def __init__(self, observed: dict[str, Observed], method: str = "mse", percentile: float = 99.999) -> None:
        check_method(method, percentile)
        self.observed, self.method, self.percentile = observed, method, percentile
        for one in observed.values():
            if one.low == one.high:
                raise WhisperHailoError(
                    f"{one.name} is {one.low:g} everywhere in all {one.windows} windows: nothing to calibrate; "
                    "check that the encoder is trained and that the audio holds speech"
                )
        self.scale = cache(self._scale)

    def range(self, name: str) -> tuple[float, float]:
        """The range chosen for 8 bits."""
        return choose_range(self.observed[name], self.method, self.percentile)

    def _scale(self, name: str, bits: int) -> Affine:
        one = self.observed[name]
        low, high = (one.low, one.high) if bits == 16 else self.range(name)
        return affine(low, high, bits)


def check_count(windows: int) -> None:
    """Refuses no windows at all, and warns of few."""
    if windows == 0:
        raise RequestError("no audio to calibrate with: give at least one window, and better 64 to 1024")
    if windows < FEW_WINDOWS:
        logger.warning(
            "calibrating with %d windows: ranges may be too narrow for other audio; 64 to 1024 are advised", windows
        )


def observe(simulation: Simulation, windows: Iterable[Tensor], names: Iterable[str]) -> dict[str, Observed]:
    """Runs the float graph over windows, as it takes them, and counts the values of these names."""
    observed = {name: Observed(name) for name in names}

    def see(name: str, value: Tensor) -> None:
        if name in observed:
            observed[name].add(value)

    with torch.no_grad():
        for features in windows:
            simulation.run(features, observe=see)
    return observed


def choose_range(observed: Observed, method: str, percentile: float = 99.999) -> tuple[float, float]:
    """The range that 8 bits shall cover, by one of the methods; within what was seen, and zero is in it."""
    low, high = min(observed.low, 0.0), max(observed.high, 0.0)
    if method == "minmax":
        return low, high
    if method == "percentile":
        return _by_percentile(observed, percentile, low, high)
    if method == "mse":
        return _by_search(*_filled(observed, 1), low, high, _squared_error)
    group = round((high - low) / _KL_BINS / (observed.width / _HALF))
    return _by_search(*_filled(observed, max(1, group)), low, high, _divergence)


def _by_percentile(observed: Observed, percentile: float, low: float, high: float) -> tuple[float, float]:
    assert observed.counts is not None
    shares = np.cumsum(observed.counts) / observed.counts.sum()
    edges = observed.edges()
    # the outer border of the bin in which the percentile falls
    first = int(np.searchsorted(shares, 1 - percentile / 100, side="right"))
    last = int(np.searchsorted(shares, percentile / 100 * (1 - 1e-12), side="left"))
    return max(low, min(edges[first], 0.0)), min(high, max(edges[last + 1], 0.0))


def _filled(observed: Observed, group: int) -> tuple[Histogram, Histogram]:
    """Counts and centres of the bins that are not empty, each of so many of the histogram's own.

    What lies at zero itself, half of all behind a ReLU, is levelled to the bin beside it: zero is exact in any range.
    """
    assert observed.counts is not None
    counts = observed.counts.copy()
    counts[_HALF] = min(counts[_HALF], counts[_HALF + 1])
    first = _HALF % group  # zero is a border of two wide bins
    bins = (len(counts) - first) // group
    wide = counts[first : first + bins * group].reshape(bins, group).sum(1)
    centres = observed.edges()[first : first + bins * group : group] + group * observed.width / _HALF / 2
    used = np.flatnonzero(wide)
    return wide[used], centres[used]


def _by_search(
    counts: Histogram, centres: Histogram, low: float, high: float, error: Callable[..., float]
) -> tuple[float, float]:
    """The best of shrunk ranges: both ends together, then each alone."""
    best = min(((low * s, high * s) for s in _SHRINK), key=lambda ends: error(counts, centres, *ends))
    if low < 0 < high:
        best = min(((low * s, best[1]) for s in _SHRINK), key=lambda ends: error(counts, centres, *ends))
        best = min(((best[0], high * s) for s in _SHRINK), key=lambda ends: error(counts, centres, *ends))
    return best


def _squared_error(counts: Histogram, centres: Histogram, low: float, high: float) -> float:
    scale = affine(low, high)
    return float(counts @ (centres - scale.dequantize(scale.quantize(centres.astype(np.float32)))) ** 2)


def _divergence(counts: Histogram, centres: Histogram, low: float, high: float) -> float:
    """Kullback-Leibler divergence of the clipped distribution from the same at 256 levels."""
    scale, levels = affine(low, high), ACTIVATIONS[8].high + 1
    level = scale.quantize(centres.astype(np.float32)).astype(np.int64)
    inside = (centres >= scale.low) & (centres <= scale.high)
    clipped = np.where(inside, counts, 0.0)
    if not clipped.any():
        return float("inf")
    # what was cut off is counted at the ends, as the integers will have it
    inner = np.flatnonzero(inside)
    clipped[inner[0]] += counts[: inner[0]].sum()
    clipped[inner[-1]] += counts[inner[-1] + 1 :].sum()
    # each level's count, spread over the bins that it stands for; the cut-off part is not the levels' own
    mass = np.bincount(level[inside], counts[inside], levels)
    members = np.bincount(level[inside], minlength=levels)
    coarse = np.where(inside, mass[level] / np.maximum(members[level], 1), 0.0)
    p, q = clipped / clipped.sum(), coarse / coarse.sum()
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())
