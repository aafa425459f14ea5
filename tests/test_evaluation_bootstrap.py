"""Intervals and differences: they cover the truth as often as they say, and agree with scipy's."""

import numpy as np
import pytest
from scipy import stats

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.evaluation.bootstrap import holm, paired_difference, rate_interval


def draw(random: np.random.Generator, utterances: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words of each utterance, and the errors of two systems: speakers differ, hard utterances are hard for both."""
    words = random.integers(1, 40, utterances)
    hardness = random.beta(0.8, 8, utterances)
    errors = [random.binomial(words, np.clip(hardness * share, 0, 1)) for share in (1.0, 0.9)]
    return words, errors[0] + random.poisson(0.02 * words), errors[1] + random.poisson(0.02 * words)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """500 evaluations of 150 utterances; benchmarks/interval_coverage.py does more."""
    random = np.random.default_rng(1)
    words, first, second = draw(random, 3_000_000)
    truth, gap = first.sum() / words.sum(), (first - second).sum() / words.sum()
    covered, gaps = 0, 0
    for seed in range(500):
        words, first, second = draw(random, 150)
        found = rate_interval(first, words, resamples=800, seed=seed)
        covered += found.low <= truth <= found.high
        difference = paired_difference(first, second, words, resamples=800, seed=seed)
        gaps += difference.interval.low <= gap <= difference.interval.high
    assert 0.93 <= covered / 500 <= 0.97
    assert 0.93 <= gaps / 500 <= 0.97


def test_few_utterances_get_wider_intervals():
    """1,000 evaluations of 30 utterances of equal length, each word wrong by itself; without the widening 92 %."""
    random = np.random.default_rng(7)
    covered = 0
    for seed in range(1000):
        found = rate_interval(random.binomial(12, 0.11, 30), np.full(30, 12), resamples=500, seed=seed)
        covered += found.low <= 0.11 <= found.high
    assert 0.93 <= covered / 1000 <= 0.97


def test_without_a_difference_few_p_values_are_small():
    random = np.random.default_rng(2)
    small = 0
    for seed in range(500):
        words = random.integers(1, 40, 150)
        hardness = random.beta(0.8, 8, 150)
        first, second = (random.binomial(words, hardness) for _ in range(2))
        small += paired_difference(first, second, words, resamples=800, seed=seed).p_value < 0.05
    assert 0.03 <= small / 500 <= 0.07


def test_intervals_are_those_of_scipy():
    words, first, _ = draw(np.random.default_rng(3), 200)
    # ours asks for more than 95 %: by Student's t at as many degrees of freedom as the kurtosis leaves
    apart = first - first.sum() / words.sum() * words
    freedom = 2 * 200 / (stats.kurtosis(apart, fisher=False) - 1)
    assert freedom < 199
    wider = 2 * stats.norm.cdf(stats.t.ppf(0.975, freedom) * np.sqrt(200 / 199)) - 1

    def rate(errors, lengths, axis=-1):
        return errors.sum(axis) / lengths.sum(axis)

    theirs = stats.bootstrap(
        (first, words),
        rate,
        paired=True,
        n_resamples=20_000,
        method="BCa",
        confidence_level=wider,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    ours = rate_interval(first, words, resamples=20_000)
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.03 * width
    assert abs(ours.high - theirs.high) < 0.03 * width
    assert rate_interval(first, words) == rate_interval(first, words)  # nothing left to chance


def test_paired_is_narrower_than_apart_and_finds_what_is_there():
    words, first, _ = draw(np.random.default_rng(4), 300)
    second = first + (np.arange(300) % 5 == 0)
    found = paired_difference(first, second, words)
    assert found.value == pytest.approx(-60 / words.sum())
    assert found.interval.low < found.value < found.interval.high < 0
    assert found.p_value < 0.001
    alone = rate_interval(first, words)
    assert found.interval.high - found.interval.low < 0.3 * (alone.high - alone.low)
    # three utterances on which one is better, none on which the other is: a coin falls like that in one of four cases
    few = paired_difference(first, first + (np.arange(300) < 3), words)
    assert 0.22 < few.p_value < 0.28
    other = paired_difference(second, first, words)
    assert other.value == -found.value
    assert other.p_value == pytest.approx(found.p_value, abs=1e-3)


def test_edges():
    words = np.full(100, 10)
    none = rate_interval(np.zeros(100), words)
    assert none.low == 0
    assert none.high == pytest.approx(1 - 0.05 ** (1 / 1000))  # about 3 / words
    same = paired_difference(words, words, words)
    assert (same.value, same.p_value, same.interval.low, same.interval.high) == (0, 1, -none.high, none.high)
    one = rate_interval([3], [10], resamples=200)
    assert (one.low, one.high) == (0.3, 0.3)
    two = rate_interval([0, 10], [10, 10], resamples=200)  # all that can be drawn, and no more
    assert (two.low, two.high) == (0, 1)
    # silence among the rest: inserted words count, though there are no words to count them by
    some = rate_interval([2, 0, 1, 1], [0, 10, 10, 10], resamples=500)
    assert some.low < 4 / 30 < some.high
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    for call, says in (
        (lambda: rate_interval([1], [0]), "have no words"),
        (lambda: rate_interval([1, 2], [1]), "of one shape"),
        (lambda: rate_interval([1], [2], confidence=1.5), "between 0 and 1"),
        (lambda: rate_interval([1], [2], resamples=5), "100 resamples or more"),
    ):
        with pytest.raises(RequestError, match=says):
            call()
