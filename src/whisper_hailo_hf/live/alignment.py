"""When each word was said: dynamic time warping over the decoder's cross-attention, and the pauses that were heard.

The method is that of openai-whisper's `timing.py`: where the alignment heads look while token after token is predicted
is a path through the audio; the path that costs least gives each token its beginning, and the end of a word is where
the next one begins. Between words there may be silence, which attention says nothing of; the voice activity detector
does, and moves the edges of words to the pauses that it heard between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whisper_hailo_hf.audio import FloatArray

POSITION_S = 0.02
_MEDIAN_WIDTH = 7
# The detectors rise with the voice and fall so long after it (Silero's 0.09 s in the median, WebRTC's 0.10 to 0.14, on
# digits of six speakers).
_LATE_S = 0.08
# A pause further than this from where the path parts two words is another one.
_REACH_S = 0.4
# Sound as short as this between a pause and a longer one is how the word before ends: the released t of "eight".
_BURST_S = 0.2
# Hardly a word has a pause of this length within it, an "eight" with a late t perhaps: where the path has one, what
# lies behind it was another word, not recognised.
_PAUSE_S = 0.2


def token_starts(attention: FloatArray, positions: int) -> list[float]:
    """When each token begins, in seconds from the start of the window.

    Args:
        attention: (tokens, all positions), the weights that each token was predicted with, the end's last.
        positions: how many of them hold audio.
    """
    weights = attention[:, : max(1, positions)].astype(np.float64)
    deviation = weights.std(axis=0)
    weights = (weights - weights.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    weights = _median_filter(weights)
    tokens, frames = warp(-weights)
    first = np.diff(tokens, prepend=-1) > 0
    return [float(frame) * POSITION_S for frame in frames[first]]


def warp(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest monotonic path through a matrix from its first element to its last, as (rows, columns).

    Steps are one down, one right, or both. Computed along the anti-diagonals, whose elements do not depend on each
    other.
    """
    rows, columns = cost.shape
    # Skewed: element (i, j) stands in row i + j, so that a row holds one anti-diagonal.
    total = np.full((rows + columns + 1, rows + 1), np.inf)
    trace = np.zeros((rows + columns + 1, rows + 1), np.int8)
    total[0, 0] = 0.0
    for diagonal in range(2, rows + columns + 1):
        low, high = max(1, diagonal - columns), min(rows, diagonal - 1)
        i = np.arange(low, high + 1)
        both, down, right = total[diagonal - 2, i - 1], total[diagonal - 1, i - 1], total[diagonal - 1, i]
        choice = np.where((both < down) & (both < right), 0, np.where((down < both) & (down < right), 1, 2))
        trace[diagonal, i] = choice
        total[diagonal, i] = cost[i - 1, diagonal - i - 1] + np.choose(choice, (both, down, right))
    i, j = rows, columns
    path = []
    while i > 0 and j > 0:
        path.append((i - 1, j - 1))
        step = trace[i + j, i]
        i, j = i - (step != 2), j - (step != 1)
    path.extend((i - 1, 0) for i in range(i, 0, -1))
    path.extend((0, j - 1) for j in range(j, 0, -1))
    found = np.array(path[::-1])
    return found[:, 0], found[:, 1]


def _median_filter(weights: np.ndarray) -> np.ndarray:
    half = _MEDIAN_WIDTH // 2
    if weights.shape[1] <= half:
        return weights
    padded = np.pad(weights, ((0, 0), (half, half)), mode="reflect")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN_WIDTH, axis=1), axis=-1)


def edges_at_pauses(
    start: float,
    end: float,
    peaks: tuple[float, float, float, float],
    probabilities: Sequence[float] | FloatArray,
    frame: float,
    threshold: float,
) -> tuple[float, float]:
    """A word's edges at the pauses nearest to where the path has them, on this side of the neighbours' peaks.

    What lies behind a long pause from the word's own peak is no part of it, wherever the path has its edges.

    Args:
        start, end: of the word by the path, seconds.
        peaks: where the attention was when the last token before the word, its first, its last, and the first token
            after it were predicted, seconds; the ends of the audio where there is no such token.
        probabilities: of speech in frame after frame, from second 0.
        frame: length of one, seconds.
        threshold: what counts as speech.

    Returns:
        The edges, seconds; one without a pause stays where it is.
    """
    before, first_peak, last_peak, after = peaks
    pauses: list[tuple[int, int]] = []
    for index in range(max(0, int(np.ceil(before / frame))), min(len(probabilities), int(after / frame))):
        if probabilities[index] >= threshold:
            continue
        if pauses and pauses[-1][1] == index:
            pauses[-1] = (pauses[-1][0], index + 1)
        else:
            pauses.append((index, index + 1))

    def nearest(time: float, those: list[tuple[int, int]]) -> tuple[int, int] | None:
        reached = [(max(first * frame - time, time - stop * frame, 0.0), (first, stop)) for first, stop in those]
        distance, pause = min(reached, default=(np.inf, None))
        return pause if distance <= _REACH_S else None

    if left := nearest(start, [pause for pause in pauses if pause[1] * frame <= first_peak]):
        start = left[1] * frame
    behind = [pause for pause in pauses if pause[0] * frame > last_peak]
    if right := nearest(end, behind):
        for pause in behind[behind.index(right) + 1 :]:
            if (pause[0] - right[1]) * frame > _BURST_S or pause[1] - pause[0] <= right[1] - right[0]:
                break
            right = pause
        end = max(last_peak, right[0] * frame - _LATE_S)
    for first, stop in pauses:
        if (stop - first) * frame < _PAUSE_S:
            continue
        if stop * frame <= first_peak:
            start = max(start, stop * frame)
        elif first * frame > last_peak:
            end = min(end, max(last_peak, first * frame - _LATE_S))
    return start, max(start, end)
