"""Rules against what Whisper says where nobody speaks, and against loops.

- Token budget: at most 12 tokens, and 8 more for each second of audio in the window (as openvoicestream has it).
- No speech: where p(no speech) > 0.6 and the mean log probability is below -1.0, the pass says nothing
  (openai-whisper, `transcribe.py`).
- Compression ratio: a text of 60 bytes or more that zlib makes more than 2.4 times as short says nothing new (the
  figure is openai-whisper's).
- Loops: the same 1 to 8 tokens four times running, the repetitions shorter than 0.12 s each by the attention, are cut
  off after the first time. It is the speed that tells a loop from somebody who repeats himself.
- Said twice: a word whose attention leaps back by more than 0.3 s, or stays where it was, to where the same word has
  been heard already, is cut off with all that follows.
- Confidence: a phrase whose tokens have a mean probability below 0.3 commits nothing.

What the detector takes for silence is never decoded, which is the strongest guard of all, and not one of these.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from whisper_hailo_hf.live.alignment import POSITION_S

NO_SPEECH = 0.6
LOGPROB = -1.0
COMPRESSION_RATIO = 2.4
CONFIDENCE = 0.3
_SHORT_TEXT = 60
_LONGEST_NGRAM = 8
_REPETITIONS = 4
_FASTEST_S = 0.12
_LEAP, _NEAR, _SAME = (round(seconds / POSITION_S) for seconds in (0.3, 0.5, 0.06))


def token_budget(seconds: float) -> int:
    """How many tokens so much audio can hold."""
    return 12 + round(8 * seconds)


def says_nothing(no_speech: float, logprobs: Sequence[float]) -> bool:
    """Whether a pass is more likely about silence than about what it says."""
    return bool(logprobs) and no_speech > NO_SPEECH and sum(logprobs) / len(logprobs) < LOGPROB


def too_repetitive(text: str) -> bool:
    """Whether a text is compressed too well to have been said."""
    data = text.strip().encode()
    return len(data) >= _SHORT_TEXT and len(data) / len(zlib.compress(data)) > COMPRESSION_RATIO


def cut_twice(words: Sequence[tuple[str, int]], known: Sequence[tuple[str, int]]) -> int:
    """How many words stand before one that has been said already.

    Args:
        words: new ones, and where the attention was when they were predicted, positions of 20 ms.
        known: those before them, likewise.
    """
    before = list(known)
    reached = max((place for _, place in before), default=-1)
    for index, (text, place) in enumerate(words):
        near = _NEAR if place < reached - _LEAP else _SAME
        if any(text == other and abs(place - where) <= near for other, where in before):
            return index
        before.append((text, place))
        reached = max(reached, place)
    return len(words)


def cut_loop(tokens: Sequence[int], frames: Sequence[int]) -> int:
    """How many tokens stand before a loop: all of them, or those up to the end of the first round.

    Args:
        tokens: of a text.
        frames: where the attention was when each was predicted, positions of 20 ms.
    """
    for size in range(1, _LONGEST_NGRAM + 1):
        need = size * _REPETITIONS
        for start in range(len(tokens) - need + 1):
            unit = tokens[start : start + size]
            if all(tokens[start + k] == unit[k % size] for k in range(need)):
                seconds = (frames[start + need - 1] - frames[start + size - 1]) * POSITION_S
                if seconds < _FASTEST_S * (_REPETITIONS - 1):
                    return start + size
    return len(tokens)
