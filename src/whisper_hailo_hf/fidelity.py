"""How close numbers are to others: what training, quantisation and verification mean by their figures, and the stages
of an encoder that are held to one another.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.errors import RequestError

FLOOR = 1e-20  # of an error's energy relative to the signal's: 200 dB
GATE_COSINE, GATE_SNR_DB = 0.98, 15.0  # what neighbouring stages must reach: mean cosine over frames, SNR

Array = npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """One form of the encoder on its way from training to the chip, open.

    Attributes:
        name: its name in the ladder.
        run: float32 (batch, mel bins, 2 * positions) log-mel features to float32 (batch, positions, d_model) states,
            what is done on the host included.
        info: tells what it is, once it has run; under `layer_snr`, where it knows them, the SNR of its layers in dB
            by name, in the order of the graph.
        close: lets go of what it holds.
        batch_size: windows at a time that it wants, where a call costs much; None takes what the caller likes.
    """

    name: str
    run: Callable[[FloatArray], FloatArray]
    info: Callable[[], Mapping[str, Any]] = dict
    close: Callable[[], None] = lambda: None
    batch_size: int | None = None


class StageAbsent(Exception):
    """A stage that cannot be had here; the message says why. Nobody's fault: the ladder goes on without it."""


@dataclass(frozen=True)
class Gates:
    """What a stage must agree in with the one before it.

    Attributes:
        cosine: least mean cosine.
        snr_db: least SNR, dB.
    """

    cosine: float = GATE_COSINE
    snr_db: float = GATE_SNR_DB

    def __post_init__(self) -> None:
        if not -1 <= self.cosine <= 1:
            raise RequestError(f"the gate for the cosine lies between -1 and 1, it cannot be {self.cosine}")

    def failures(self, metrics: Mapping[str, float]) -> list[str]:
        """What is not met, in words; empty if all is well.

        Args:
            metrics: `bad_frames`, those with values that are not finite, and `cosine_mean` and `snr_db` over all
                frames; where there are such, with `_heard` behind the name, over those that are no padding.
        """
        found = []
        if metrics.get("bad_frames"):
            found.append(f"{metrics['bad_frames']:.0f} frames with values that are not finite numbers")
        for suffix, where in (("", ""), ("_heard", " on frames of the recordings")):
            for name, words, least in (("cosine_mean", "cosine", self.cosine), ("snr_db", "SNR", self.snr_db)):
                value = metrics.get(name + suffix)
                if value is not None and not value >= least:
                    unit = " dB" if name == "snr_db" else ""
                    found.append(f"{words} {value:.4g}{unit} is below {least:g}{unit}{where}")
        return found


def decibels(signal: float, error: float) -> float:
    """Signal-to-noise ratio of two energies, 10 log10(signal / error), in dB: at most 200, NaN without a signal."""
    return 10 * math.log10(signal / max(error, FLOOR * signal)) if signal > 0 else math.nan


def cosines(reference: Array, found: Array) -> npt.NDArray[np.float64]:
    """Cosine of the angle between vectors along the last axis; 0 where one of them is zero."""
    reference, found = np.asarray(reference, np.float64), np.asarray(found, np.float64)
    lengths = np.linalg.norm(reference, axis=-1) * np.linalg.norm(found, axis=-1)
    return (reference * found).sum(-1) / np.maximum(lengths, np.finfo(np.float64).tiny)
