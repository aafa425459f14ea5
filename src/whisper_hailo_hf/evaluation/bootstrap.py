"""How sure an error rate is: bootstrap intervals over utterances, and paired differences between systems.

The bootstrap of Bisani & Ney (ICASSP 2004, doi:10.1109/ICASSP.2004.1326009): utterances are drawn with replacement,
each draw gives a rate, errors over words in sum. The intervals of a rate are bias-corrected and accelerated (BCa:
Efron, JASA 1987, doi:10.1080/01621459.1987.10478410), since its distribution is skewed: with few utterances plain
percentiles lie too low. Of a difference, which is skewed to neither side, plain percentiles cover the truth better.
Both are widened as Student's t is wider than the normal distribution (Hesterberg, The American Statistician 2015,
doi:10.1080/00031305.2015.1089789, on narrowness): draws know the spread of the utterances at hand only.

Whether two systems differ at all is told by a paired permutation test (Noreen, Computer-Intensive Methods for Testing
Hypotheses, 1989, chapter 2): if they do not, each utterance's two counts might as well be swapped. It holds for the
few utterances on which good systems differ, where the bootstrap finds differences too easily.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.errors import RequestError

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CELLS = 8_000_000  # drawn at a time: 64 MB of indices
_NORMAL = NormalDist()

Counts = npt.ArrayLike


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`: covers the true value with a probability of `confidence`."""

    low: float
    high: float
    confidence: float


@dataclass(frozen=True)
class Difference:
    """One system's error rate less another's on the same utterances.

    Attributes:
        value: the difference; below zero, the first is better.
        interval: of it.
        p_value: of the hypothesis that there is none, two-sided: the share of random swaps that make a difference as
            large, at least 1 / (swaps + 1); 1 where the two never differ.
    """

    value: float
    interval: Interval
    p_value: float


def rate_interval(
    errors: Counts, lengths: Counts, *, confidence: float = CONFIDENCE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The interval of sum(errors) / sum(lengths).

    Without any error every draw gives zero: the upper end is then the exact one of a proportion (Clopper & Pearson,
    Biometrika 1934) of that many words, as if each went wrong or not for itself.

    Args:
        errors: of each utterance, (utterances,).
        lengths: words or characters of each reference, (utterances,).
        confidence: probability that the interval covers the true rate.
        resamples: how often as many utterances are drawn.
        seed: of the draws; the same counts give the same interval.

    Raises:
        RequestError: no words at all, arrays that do not fit, a setting out of range, or scipy is not installed.
    """
    errors, lengths = _checked(errors, lengths, confidence, resamples)
    if not errors.any():
        return Interval(0.0, _largest_unseen(lengths, confidence), confidence)
    drawn, value = _drawn_rates(errors, lengths, resamples, seed), _rate(errors, lengths)
    wider = _widened(confidence, errors - value * lengths)
    low, high = np.quantile(drawn, _bca_tails(drawn, value, _leave_one_out(errors, lengths), wider))
    return Interval(float(low), float(high), confidence)


def paired_difference(
    errors: Counts,
    others: Counts,
    lengths: Counts,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """One system's rate less another's: a bootstrap of which each draw takes the same utterances of both, for the
    interval, and a permutation test.

    Without any difference every draw gives zero: the interval then reaches as far to both sides as that of a rate
    without any error.

    Args:
        errors, others: of each utterance, of the one system and of the other, (utterances,).
        lengths: words or characters of each reference, (utterances,).
        confidence, resamples, seed: as for `rate_interval`; `resamples` is the number of swaps too.
    """
    both = np.subtract(errors, others)
    both, lengths = _checked(both, lengths, confidence, resamples)
    value = _rate(both, lengths)
    if not both.any():
        largest = _largest_unseen(lengths, confidence)
        return Difference(0.0, Interval(-largest, largest, confidence), 1.0)
    wider = _widened(confidence, both - value * lengths)
    drawn = _drawn_rates(both, lengths, resamples, seed)
    low, high = np.quantile(drawn, ((1 - wider) / 2, (1 + wider) / 2))
    interval = Interval(float(low), float(high), confidence)
    return Difference(value, interval, _permutation_p(both[both != 0], resamples, seed))


def holm(p_values: list[float]) -> list[float]:
    """The p-values of several comparisons, adjusted for their number (Holm, Scandinavian J. of Statistics 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _checked(
    errors: Counts, lengths: Counts, confidence: float, resamples: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    errors, lengths = np.asarray(errors, np.float64), np.asarray(lengths, np.float64)
    if errors.shape != lengths.shape or errors.ndim != 1:
        raise RequestError(
            f"errors and lengths are of one shape, (utterances,), not {errors.shape} and {lengths.shape}"
        )
    if not lengths.sum() > 0:
        raise RequestError("the references have no words: there is no error rate of them")
    if not 0 < confidence < 1:
        raise RequestError(f"the confidence lies between 0 and 1, it cannot be {confidence:g}")
    if resamples < 100:
        raise RequestError(f"an interval needs 100 resamples or more, not {resamples}")
    return errors, lengths


def _permutation_p(differences: npt.NDArray[np.float64], swaps: int, seed: int) -> float:
    """Share of random signs of the differences, none of them zero, whose sum is as far from zero as theirs."""
    random = np.random.default_rng(seed)
    rows = max(1, min(swaps, _CELLS // len(differences)))
    found, as_large = abs(differences.sum()), 0
    for first in range(0, swaps, rows):
        size = (min(rows, swaps - first), len(differences))
        sums = (2 * random.integers(0, 2, size, dtype=np.int8) - 1) @ differences
        as_large += int((np.abs(sums) >= found - 1e-9).sum())
    return (as_large + 1) / (swaps + 1)


def _largest_unseen(lengths: npt.NDArray[np.float64], confidence: float) -> float:
    return float(1 - (1 - confidence) ** (1 / lengths.sum()))


def _widened(confidence: float, apart: npt.NDArray[np.float64]) -> float:
    """What to ask of a bootstrap that knows neither that n utterances spread by a factor of sqrt(1 - 1/n) less than
    what they are drawn from, nor how uncertain that spread is.

    How uncertain is told by the kurtosis of what the utterances are apart from the rate: the variance of n of them has
    itself a variance of (kurtosis - 1) / n, that of a chi-square of 2 n / (kurtosis - 1) degrees of freedom; of even
    utterances n - 1, of few bad ones among many good ones as few as 2.
    """
    try:
        from scipy.special import ndtr, stdtrit
    except ImportError as error:
        raise RequestError("intervals need scipy: pip install 'whisper-hailo-hf[eval]'") from error
    n, spread = len(apart), (apart**2).sum()
    if n < 2 or spread == 0:
        return confidence
    kurtosis = n * (apart**4).sum() / spread**2
    freedom = min(n - 1, 2 * n / max(kurtosis - 1, 1e-9))
    z = stdtrit(freedom, (1 + confidence) / 2) * np.sqrt(n / (n - 1))
    return min(float(2 * ndtr(z) - 1), 1 - 1e-9)


def _rate(errors: npt.NDArray[np.float64], lengths: npt.NDArray[np.float64]) -> float:
    return float(errors.sum() / lengths.sum())


def _drawn_rates(
    errors: npt.NDArray[np.float64], lengths: npt.NDArray[np.float64], resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """(resamples,); a draw without a word, which may happen where most references are empty, is drawn again."""
    found: list[npt.NDArray[np.float64]] = []
    missing = resamples
    draws = _draws(len(errors), np.random.default_rng(seed))
    while missing > 0:
        chosen = next(draws)
        words = lengths[chosen].sum(axis=1)
        rates = errors[chosen].sum(axis=1)[words > 0] / words[words > 0]
        found.append(rates[:missing])
        missing -= len(found[-1])
    return np.concatenate(found)


def _draws(utterances: int, random: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    rows = max(1, min(1000, _CELLS // utterances))
    while True:
        yield random.integers(utterances, size=(rows, utterances))


def _leave_one_out(errors: npt.NDArray[np.float64], lengths: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The rate without each utterance in turn (jackknife); without one that has all the words there is none."""
    words = lengths.sum() - lengths
    return (errors.sum() - errors)[words > 0] / words[words > 0]


def _bca_tails(
    drawn: npt.NDArray[np.float64], value: float, left_out: npt.NDArray[np.float64], confidence: float
) -> tuple[float, float]:
    """Efron 1987, equations 2.3 and 6.6: percentiles moved by the bias of the draws and the skew of the statistic."""
    below = ((drawn < value).sum() + (drawn == value).sum() / 2) / len(drawn)
    apart = left_out.mean() - left_out if len(left_out) else left_out
    spread = (apart**2).sum()
    if not 0 < below < 1 or spread == 0:
        return (1 - confidence) / 2, (1 + confidence) / 2
    bias = _NORMAL.inv_cdf(float(below))
    acceleration = float((apart**3).sum() / (6 * spread**1.5))

    def moved(tail: float) -> float:
        z = bias + _NORMAL.inv_cdf(tail)
        if acceleration * z >= 1:  # beyond all that can be drawn
            return float(z > 0)
        return _NORMAL.cdf(bias + z / (1 - acceleration * z))

    return moved((1 - confidence) / 2), moved((1 + confidence) / 2)
