"""The parts of a recording in which somebody speaks, each short enough for one of Whisper's windows.

Long pauses are left out, as faster-whisper's `vad_filter` does (https://github.com/SYSTRAN/faster-whisper), and what
is longer than a window is cut where least is said, as in WhisperX (Bain et al. 2023, arXiv:2303.00747).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.voice_activity import FRAME, LOWER, SpeechGate, VoiceActivity

# A pause of this length ends a stretch: faster-whisper's default.
_PAUSE_S = 2.0
# What is kept of the pauses around it: the detector needs a frame or two to be sure.
_MARGIN = round(0.3 * SAMPLING_RATE / FRAME)
_FEWEST_FRAMES = 2  # with speech, for a stretch to be one


class Stretch(NamedTuple):
    """Samples of a recording, the first of them its number `start`."""

    start: int
    samples: FloatArray


class SpeechStretches:
    """Reads a recording and finds the stretches of speech in it, in order; holds no more than one at a time.

    Args:
        blocks: float32 samples at 16 kHz, (samples,) each.
        vad: a detector that has heard nothing yet.
        longest: samples that a stretch may have.

    Attributes:
        heard: how many samples have been read.
    """

    def __init__(self, blocks: Iterator[FloatArray], vad: VoiceActivity, longest: int) -> None:
        self.heard = 0
        self._blocks, self._vad, self._most = blocks, vad, longest // FRAME
        self._frames: list[FloatArray] = []
        self._probabilities: list[float] = []
        self._first = 0  # number of the first of these frames

    def __iter__(self) -> Iterator[Stretch]:
        gate, inside = SpeechGate(_PAUSE_S), False
        for frame in self._read():
            probability = self._vad(frame)
            speaking = gate(probability)
            self._frames.append(frame)
            self._probabilities.append(probability)
            if inside and not speaking:
                yield from self._spoken(len(self._frames))
            elif inside and len(self._frames) == self._most:
                place = self._cut()
                yield from self._spoken(place)
                self._forget(place)
            inside = speaking
            if not inside:
                self._forget(len(self._frames) - _MARGIN)
        if inside:
            yield from self._spoken(len(self._frames))

    def _read(self) -> Iterator[FloatArray]:
        rest = np.zeros(0, np.float32)
        for block in self._blocks:
            self.heard += block.size
            samples = np.concatenate([rest, block])
            whole = samples.size // FRAME * FRAME
            rest = samples[whole:].copy()
            yield from samples[:whole].reshape(-1, FRAME)
        if rest.size:
            yield np.pad(rest, (0, FRAME - rest.size))

    def _spoken(self, count: int) -> Iterator[Stretch]:
        """The stretch in the first `count` frames, if there is speech in them."""
        voiced = [i for i, probability in enumerate(self._probabilities[:count]) if probability >= LOWER]
        if len(voiced) >= _FEWEST_FRAMES:
            first, last = max(0, voiced[0] - _MARGIN), min(count, voiced[-1] + 1 + _MARGIN)
            start = (self._first + first) * FRAME
            yield Stretch(start, np.concatenate(self._frames[first:last])[: self.heard - start])

    def _cut(self) -> int:
        """The middle of the longest pause in the second half of the frames, or else the least speech there."""
        half = len(self._frames) // 2
        later = np.array(self._probabilities[half:])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], later < LOWER, [False]]).astype(np.int8)))
        if not edges.size:
            return half + max(1, int(later.argmin()))
        begins, ends = edges[::2], edges[1::2]
        longest = int((ends - begins).argmax())
        return half + max(1, int(begins[longest] + ends[longest]) // 2)

    def _forget(self, count: int) -> None:
        if count > 0:
            del self._frames[:count], self._probabilities[:count]
            self._first += count
