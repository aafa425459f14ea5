# /// script
# dependencies = ["whisper-hailo-hf[eval]"]
# ///
"""How often the intervals of `whisper-hailo eval` cover the truth, and how often a difference is found where none is.

    python benchmarks/interval_coverage.py --evaluations 2000

Draws many evaluations from populations of utterances whose true error rate is known: `mixed`, utterances of 1 to 40
words of very different hardness; `even`, all alike; `good`, of which most have no error; `loops`, of which one in a
hundred has a loop of 50 inserted words. Two systems hear the same utterances; their difference is known too. The
standard error of a coverage of 95 % is 0.5 points in 2000 evaluations.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from whisper_hailo_hf.evaluation.bootstrap import paired_difference, rate_interval

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]  # words, errors of the one system, errors of the other


def two_systems(random: np.random.Generator, words: np.ndarray, hardness: np.ndarray, extra: float) -> Drawn:
    errors = [random.binomial(words, np.clip(hardness * share, 0, 1)) for share in (1.0, 0.9)]
    first, second = (found + random.poisson(extra * words) for found in errors)
    return words, first, second


def mixed(random: np.random.Generator, n: int) -> Drawn:
    return two_systems(random, random.integers(1, 40, n), random.beta(0.8, 8, n), 0.02)


def even(random: np.random.Generator, n: int) -> Drawn:
    return two_systems(random, np.full(n, 12), np.full(n, 0.1), 0.01)


def good(random: np.random.Generator, n: int) -> Drawn:
    return two_systems(random, random.integers(3, 20, n), random.beta(0.3, 12, n), 0.001)


def loops(random: np.random.Generator, n: int) -> Drawn:
    words, first, second = mixed(random, n)
    return words, first + 50 * (random.random(n) < 0.01), second


POPULATIONS: dict[str, Callable[[np.random.Generator, int], Drawn]] = {
    "mixed": mixed,
    "even": even,
    "good": good,
    "loops": loops,
}


def measure(draw: Callable[[np.random.Generator, int], Drawn], n: int, evaluations: int, resamples: int) -> dict:
    random = np.random.default_rng(n)
    words, first, second = (part.sum() for part in draw(random, 4_000_000))
    truth, gap = first / words, (first - second) / words
    covered = gaps = false_alarms = 0
    for seed in range(evaluations):
        words, first, second = draw(random, n)
        settings = {"resamples": resamples, "seed": seed}
        found = rate_interval(first, words, **settings)
        covered += found.low <= truth <= found.high
        difference = paired_difference(first, second, words, **settings).interval
        gaps += difference.low <= gap <= difference.high
        # which system is which decided by a coin for each utterance: no difference is left
        swap = random.random(n) < 0.5
        same = paired_difference(np.where(swap, first, second), np.where(swap, second, first), words, **settings)
        false_alarms += same.p_value < 0.05
    return {
        "true_rate": float(truth),
        "covered": covered / evaluations,
        "differences_covered": gaps / evaluations,
        "false_alarms_at_0.05": false_alarms / evaluations,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--utterances", type=int, nargs="+", default=[30, 100, 300, 1000])
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    result: dict = {"evaluations": options.evaluations, "resamples": options.resamples, "found": {}}
    for name, draw in POPULATIONS.items():
        for n in options.utterances:
            began = time.perf_counter()
            found = measure(draw, n, options.evaluations, options.resamples)
            result["found"][f"{name}, {n} utterances"] = found
            if not options.json:
                print(
                    f"{name:6} {n:5} utterances: rate {found['true_rate']:.2%}, covered {found['covered']:.1%}, "
                    f"differences {found['differences_covered']:.1%}, false alarms at 5 % "
                    f"{found['false_alarms_at_0.05']:.1%}  ({time.perf_counter() - began:.0f} s)",
                    flush=True,
                )
    if options.json:
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
