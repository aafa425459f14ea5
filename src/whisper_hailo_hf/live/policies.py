"""When a word is sure enough to be shown for good.

Each pass over the growing window gives a hypothesis that goes on from what is committed; a policy says how many of its
words stand from now on. At the end of a phrase all of them do, whatever the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from whisper_hailo_hf.audio import FloatArray
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.live.alignment import POSITION_S


@dataclass(frozen=True)
class GuessedWord:
    """A word of a hypothesis: its tokens, and where the attention was when each text token was predicted."""

    text: str
    tokens: tuple[int, ...]
    frames: tuple[int, ...]


class Policy(Protocol):
    """Decides, pass after pass of one phrase, how many words to commit."""

    name: str

    def stopper(self, positions: int) -> Stopper | None:
        """What watches the decoder of the next pass, over so many positions of audio; None lets it go to its end."""

    def commit(self, words: Sequence[GuessedWord], positions: int) -> int:
        """How many of the hypothesis' new words stand; called once for each pass but the last of a phrase."""

    def moved(self, positions: int) -> None:
        """The window begins so many positions later than before."""

    def reset(self) -> None:
        """A new phrase begins."""


class Stopper(Protocol):
    """Says after each token whether the pass may end."""

    def __call__(self, row: FloatArray) -> bool:
        """`row`: the attention, (positions,), that the token was predicted with."""


class LocalAgreement:
    """LocalAgreement-2: what two passes running have in common from the start on stands.

    Liu et al. 2020, "Low-Latency Sequence-to-Sequence Speech Recognition and Translation by Partial Hypothesis
    Selection" (arXiv:2005.11185); for Whisper, Macháček et al. 2023, "Turning Whisper into Real-Time Transcription
    System" (arXiv:2307.14743, github.com/ufal/whisper_streaming). Words agree if their tokens do.
    """

    name = "local-agreement"

    def __init__(self) -> None:
        self._before: list[tuple[int, ...]] = []

    def stopper(self, positions: int) -> Stopper | None:
        return None

    def commit(self, words: Sequence[GuessedWord], positions: int) -> int:
        now = [word.tokens for word in words]
        agreed = 0
        while agreed < min(len(now), len(self._before)) and now[agreed] == self._before[agreed]:
            agreed += 1
        self._before = now[agreed:]
        return agreed

    def moved(self, positions: int) -> None:
        pass

    def reset(self) -> None:
        self._before = []


class AlignAtt:
    """AlignAtt: the words before the first token whose attention is at the newest frames stand.

    Papi et al. 2023, "AlignAtt: Using Attention-based Audio-Translation Alignments as a Guide for Simultaneous Speech
    Translation" (arXiv:2305.11408); for Whisper with its alignment heads, Macháček & Polák 2025, "Simultaneous
    Translation with Offline Speech and LLM Models" (SimulStreaming, github.com/ufal/SimulStreaming), from which the
    rule against jumping back comes: attention that leaps back by more than 4 s is lost, and nothing behind it stands.

    Args:
        newest: how much of the audio's end counts as newest, seconds.
    """

    name = "align-att"
    _back = round(4.0 / POSITION_S)
    # Tokens behind the first one that is too new are shown as tentative, but not many: they are guesses.
    _ahead = 8

    def __init__(self, newest: float = 0.4) -> None:
        self._newest = round(newest / POSITION_S)
        self._reached = 0

    def stopper(self, positions: int) -> Stopper | None:
        frontier, behind = positions - self._newest, 0

        def stop(row: FloatArray) -> bool:
            nonlocal behind
            behind += bool(behind) or int(np.argmax(row[:positions])) >= frontier
            return behind > self._ahead

        return stop

    def commit(self, words: Sequence[GuessedWord], positions: int) -> int:
        sure, reached = 0, self._reached
        for word in words:
            if not word.frames or max(word.frames) >= positions - self._newest:
                break
            if min(word.frames) < reached - self._back:
                break
            reached = max(reached, *word.frames)
            sure += 1
        self._reached = reached
        return sure

    def moved(self, positions: int) -> None:
        self._reached = max(0, self._reached - positions)

    def reset(self) -> None:
        self._reached = 0


_POLICIES = {policy.name: policy for policy in (LocalAgreement, AlignAtt)}
POLICIES = tuple(_POLICIES)


def make_policy(name: str) -> Policy:
    """The policy of that name; a `RequestError` lists those that exist."""
    if name not in _POLICIES:
        raise RequestError(f"unknown policy {name!r}: choose {', '.join(POLICIES)}")
    return _POLICIES[name]()
