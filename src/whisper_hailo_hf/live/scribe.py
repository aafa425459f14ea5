"""What becomes of a decoded pass: words that stand, text that may change, and where the next windows begin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from whisper_hailo_hf.audio import SAMPLING_RATE
from whisper_hailo_hf.live import guards
from whisper_hailo_hf.live.events import Committed, EndOfPhrase, Event, Partial
from whisper_hailo_hf.live.passes import STEP, Hypothesis, Pass, PassReader
from whisper_hailo_hf.live.policies import Policy

# A window that grows longer than this is cut behind a committed word, or, at the second figure, wherever it must be.
_LONG_S, _TOO_LONG_S = 14.0, 18.0
# A model that has ended its text says nothing of so many seconds behind it.
_ENDED_S = 2.0
# A phrase of so many seconds settles the language of all that follows.
_SETTLED_S = 2.0


class Move(NamedTuple):
    """From the pass of this number on, windows begin at `base`, a sample of the stream, with the word `first`."""

    number: int
    base: int
    first: int


class Scribe:
    """Completes passes in their order.

    Args:
        reader: decodes them.
        policy: says how many words stand.
        context: how many tokens of what was said before its window a pass is prompted with.
        language: code; None until a phrase has settled it.
    """

    def __init__(self, reader: PassReader, policy: Policy, context: int, language: str | None) -> None:
        self.reader, self.policy, self.language = reader, policy, language
        self.move: Move | None = None
        self._limit = context
        self._context: list[int] = []

    def write(self, item: Pass, states: torch.Tensor, events: list[Event]) -> Hypothesis:
        """Decode a pass and append what it leads to; `move` is then where it wants later windows to begin, or None."""
        phrase = item.phrase
        trimmed = [token for said in phrase.said[: item.first - phrase.first] for token in said.tokens]
        found = self.reader.read(item, states, self.policy, self._prompt(trimmed), self.language)
        count = self._decide(item, found)
        words = self.reader.take(item, found, count)
        if words:
            events.append(Committed(item.clock, tuple(words), found.decoded.language))
        if found.silent or found.looped:
            self._context = []  # what led to this shall not do so again
        text = "".join(word.text for word in found.words[count:])
        if item.final:
            self._end_phrase(item, events)
        elif text != phrase.partial:
            events.append(Partial(item.clock, text))
        phrase.partial = text
        self.move = None if item.final else self._move_window(item, found)
        if self.language is None and phrase.words and item.seconds >= _SETTLED_S:
            self.language = found.decoded.language
        return found

    def _prompt(self, trimmed: list[int]) -> list[int]:
        text = [token for token in (*self._context, *trimmed) if token < self.reader.decoder.end]
        return text[-self._limit :] if self._limit else []

    def _remember(self, tokens: list[int]) -> None:
        self._context = self._prompt(tokens)

    def _decide(self, item: Pass, found: Hypothesis) -> int:
        if item.final:
            # A phrase of nothing but doubt is a noise that the detector took for a voice.
            mean = np.exp(found.decoded.logprobs).mean() if found.decoded.logprobs else 1.0
            doubtful = self.reader.guarded and not item.phrase.words and mean < guards.CONFIDENCE
            return 0 if doubtful else len(found.words)
        count = self.policy.commit(found.words, item.positions)
        if item.seconds >= _TOO_LONG_S:
            # The window is full and must be cut: the last word may be half of one, the others are as sure as can be.
            count = max(count, len(found.words) - 1)
        return count

    def _end_phrase(self, item: Pass, events: list[Event]) -> None:
        phrase = item.phrase
        self._remember([token for said in phrase.said for token in said.tokens])
        self.policy.reset()
        if phrase.started_at is not None:
            events.append(EndOfPhrase(item.clock, phrase.started_at, phrase.ended_at, phrase.text.strip()))
        elif phrase.partial:
            events.append(Partial(item.clock, ""))

    def _move_window(self, item: Pass, found: Hypothesis) -> Move | None:
        """Cut a long window where the longest pause between committed words is, from the second next pass on.

        A window that the model has ended, while somebody still speaks, is cut there: as in the long-form algorithm of
        the Whisper paper (arXiv:2212.04356, section 3.8), what follows is another window's.
        """
        phrase = item.phrase
        if phrase.first < item.first:  # what stood before this window is context
            gone = phrase.said[: item.first - phrase.first]
            self._remember([token for said in gone for token in said.tokens])
            phrase.said, phrase.first = phrase.said[len(gone) :], item.first
        if phrase.moving_at >= item.number:
            return None
        end, said = item.base + len(item.samples), phrase.said
        if found.decoded.ended and not found.words and said:
            place = round((said[-1].word.end + 0.1) * SAMPLING_RATE)
            if end - place > _ENDED_S * SAMPLING_RATE:
                return self._move(item, place, len(said))
        if item.seconds < _LONG_S:
            return None
        cuts = []
        for index, here in enumerate(said):
            after = said[index + 1].word.start if index + 1 < len(said) else here.word.end + 0.1
            place = round((here.word.end + after) / 2 * SAMPLING_RATE)
            if item.base + STEP <= place and end - place <= _LONG_S / 2 * SAMPLING_RATE:
                cuts.append((after - here.word.end, place, index + 1))
        if cuts:
            _, place, words = max(cuts)
        elif said:
            place, words = round(said[-1].word.end * SAMPLING_RATE), len(said)
        elif item.seconds >= _TOO_LONG_S:
            place, words = end - 2 * SAMPLING_RATE, 0
        else:
            return None
        return self._move(item, place, words)

    def _move(self, item: Pass, place: int, words: int) -> Move:
        base = item.base + max(0, place - item.base) // STEP * STEP
        self.policy.moved((base - item.base) // STEP)
        item.phrase.moving_at = item.number + 2
        return Move(item.phrase.moving_at, base, item.phrase.first + words)
