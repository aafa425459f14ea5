"""How close numbers are to others: what training, quantisation and verification mean by their figures."""

import math

import numpy as np
import numpy.typing as npt

FLOOR = 1e-20  # of an error's energy relative to the signal's: 200 dB
GATE_COSINE, GATE_SNR_DB = 0.98, 15.0  # what neighbouring stages must reach: mean cosine over frames, SNR

Array = npt.NDArray[np.floating]


def decibels(signal: float, error: float) -> float:
    """Signal-to-noise ratio of two energies, 10 log10(signal / error), in dB: at most 200, NaN without a signal."""
    return 10 * math.log10(signal / max(error, FLOOR * signal)) if signal > 0 else math.nan


def cosines(reference: Array, found: Array) -> npt.NDArray[np.float64]:
    """Cosine of the angle between vectors along the last axis; 0 where one of them is zero."""
    reference, found = np.asarray(reference, np.float64), np.asarray(found, np.float64)
    lengths = np.linalg.norm(reference, axis=-1) * np.linalg.norm(found, axis=-1)
    return (reference * found).sum(-1) / np.maximum(lengths, np.finfo(np.float64).tiny)
