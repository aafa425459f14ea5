"""When each word was said: dynamic time warping over the decoder's cross-attention, and the pauses that were heard.

The method is that of openai-whisper's `timing.py`: where the alignment heads look while token after token is predicted
is a path through the audio; the path that costs least gives each token its beginning, and the end of a word is where
the next one begins. Between words there may be silence, which attention says nothing of; the voice activity detector
does, and trims each word to the speech within it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whisper_hailo_hf.audio import FloatArray

POSITION_S = 0.02
_MEDIAN_WIDTH = 7
# How far the detector may lag behind the voice at either end.
_MARGIN_S = 0.06
# No word has a pause of this length within it.
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


def trim_to_speech(
    start: float, end: float, peak: float, probabilities: Sequence[float] | FloatArray, frame: float, threshold: float
) -> tuple[float, float]:
    """Cut a word to the stretch of speech, without a pause, that it is in.

    Args:
        start, end: of the word by the path, seconds.
        peak: where the attention was when it was predicted, seconds.
        probabilities: of speech in frame after frame, from second 0.
        frame: length of one, seconds.
        threshold: what counts as speech.
    """
    first, last = int(start / frame), int(np.ceil(end / frame))
    spoken = [i for i in range(max(0, first), min(last, len(probabilities))) if probabilities[i] >= threshold]
    stretches: list[list[int]] = []
    for index in spoken:
        if stretches and (index - stretches[-1][1]) * frame < _PAUSE_S:
            stretches[-1][1] = index
        else:
            stretches.append([index, index])
    if not stretches:
        return start, end
    here = peak / frame
    low, high = min(stretches, key=lambda stretch: max(stretch[0] - here, here - stretch[1], 0.0))
    return max(start, low * frame - _MARGIN_S), min(end, (high + 1) * frame + _MARGIN_S)
