"""One pass over a phrase: encoder states in, the words that go on from the committed ones out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.live import guards
from whisper_hailo_hf.live.alignment import POSITION_S, edges_at_pauses, token_starts
from whisper_hailo_hf.live.decoding import Decoded, GreedyDecoder
from whisper_hailo_hf.live.events import LiveWord
from whisper_hailo_hf.live.policies import GuessedWord, Policy
from whisper_hailo_hf.voice_activity import FRAME, LOWER

STEP = round(POSITION_S * SAMPLING_RATE)  # samples of one position


@dataclass(frozen=True)
class Said:
    """A committed word, its tokens with the timestamps before it, and where the window began that they count from."""

    word: LiveWord
    tokens: tuple[int, ...]
    base: int
    place: int  # where the attention was, in positions from there


@dataclass
class Phrase:
    """What somebody says without a pause, while it is being said. Places are samples of the stream.

    Attributes:
        start: where it began, with the moment before the voice.
        base: where the next window begins; moves on when the phrase grows long.
        said: the committed words, from that of index `first` on.
        draft: tokens that the last pass would have gone on with, for a window that begins at `draft_base`.
        text, words, started_at, ended_at: of all its committed words, those no longer in `said` too; seconds.
        partial: the tentative text that was shown last.
        moving_at: number of the pass from which on its window was last moved.
    """

    start: int
    base: int
    said: list[Said] = field(default_factory=list)
    first: int = 0
    draft: tuple[int, ...] = ()
    draft_base: int = -1
    text: str = ""
    words: int = 0
    started_at: float | None = None
    ended_at: float = 0.0
    partial: str = ""
    moving_at: int = 0


@dataclass
class Pass:
    """A window to decode: `samples` from `base` on, its text from the committed word of index `first` on."""

    number: int
    phrase: Phrase
    base: int
    first: int
    samples: FloatArray
    probabilities: FloatArray
    clock: float
    final: bool
    encoded: Any = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLING_RATE

    @property
    def positions(self) -> int:
        """How many encoder positions hold audio."""
        return max(1, len(self.samples) // STEP)


@dataclass
class Hypothesis:
    """What a pass adds to the committed words.

    Attributes:
        words: the new ones, in order.
        spans: of each, the index of its first token in `decoded.tokens`, and the one behind its last.
        decoded: what the decoder gave.
        forced: how many tokens were forced in front of it.
        silent: a guard has taken it for no speech.
        looped: a guard has found a loop.
    """

    words: list[GuessedWord]
    spans: list[tuple[int, int]]
    decoded: Decoded
    forced: int
    silent: bool = False
    looped: bool = False


class PassReader:
    """Decodes passes of one stream.

    Args:
        speech: model and tokenizer.
        decoder: of that model.
        guarded: whether the rules of `guards` are applied.
    """

    def __init__(self, speech: Any, decoder: GreedyDecoder, guarded: bool) -> None:
        self.tokenizer, self.decoder, self.guarded = speech.tokenizer, decoder, guarded
        self._latest = 0.0  # end of the last committed word of the stream

    def read(
        self, item: Pass, states: torch.Tensor, policy: Policy, prompt: Sequence[int], language: str | None
    ) -> Hypothesis:
        """Decode a pass whose phrase is as it was left by the pass before it."""
        phrase = item.phrase
        forced = self._forced(phrase.said[item.first - phrase.first :], item.base)
        positions = min(item.positions, states.shape[1])
        decoded = self.decoder.decode(
            states,
            prompt=prompt,
            forced=forced,
            draft=phrase.draft if phrase.draft_base == item.base else (),
            budget=guards.token_budget(item.seconds) if self.guarded else self.decoder.limit,
            language=language,
            stop=None if item.final else policy.stopper(positions),
        )
        tokens = decoded.tokens
        frames = decoded.attention[len(forced) :, :positions].argmax(axis=1).tolist()
        text = [index for index, token in enumerate(tokens) if token < self.decoder.end]
        silent = looped = False
        if self.guarded:
            silent = guards.says_nothing(decoded.no_speech, decoded.logprobs)
            kept = guards.cut_loop([tokens[i] for i in text], [frames[i] for i in text])
            spelt = self.tokenizer.decode([tokens[i] for i in text[:kept]])
            repetitive = guards.too_repetitive(spelt)
            looped = repetitive or kept < len(text)
            text = [] if silent or repetitive else text[:kept]
        words, spans = [], []
        for spelling, group in self._group([tokens[i] for i in text], decoded.language):
            places = [text[i] for i in group]
            words.append(GuessedWord(spelling, tuple(tokens[i] for i in places), tuple(frames[i] for i in places)))
            spans.append((places[0], places[-1] + 1))
        if words and not item.final and "\ufffd" in words[-1].text:  # its last character is not whole yet
            del words[-1], spans[-1]
        if self.guarded:
            known = [(s.word.text.strip(), s.place - (item.base - s.base) // STEP) for s in phrase.said]
            stands = guards.cut_twice([(word.text.strip(), max(word.frames)) for word in words], known)
            looped |= stands < len(words)
            del words[stands:], spans[stands:]
        phrase.draft = () if silent or looped else tuple(tokens)
        phrase.draft_base = item.base
        return Hypothesis(words, spans, decoded, len(forced), silent, looped)

    def take(self, item: Pass, found: Hypothesis, count: int) -> list[LiveWord]:
        """Commit the first `count` words: they join the phrase, and the draft becomes what follows them."""
        if not count:
            return []
        phrase, tokens = item.phrase, found.decoded.tokens
        starts = token_starts(found.decoded.attention, min(item.positions, found.decoded.attention.shape[1]))
        committed = []
        done = 0
        for index, (first, stop) in enumerate(found.spans[:count]):
            guess = found.words[index]
            path = starts[found.forced + first], starts[found.forced + stop]
            start, end = self._edges(item, path, guess, found.words[index + 1 : index + 2])
            probability = float(np.exp(np.mean(found.decoded.logprobs[first:stop])))
            word = LiveWord(guess.text, round(start, 3), round(end, 3), round(probability, 4))
            place = max(guess.frames, default=0)
            phrase.said.append(Said(word, tuple(tokens[done:stop]), item.base, place))
            done = stop
            if not word.text.strip():
                continue
            committed.append(word)
            self._latest = word.end
            phrase.text += word.text
            phrase.words += 1
            phrase.ended_at = word.end
            if phrase.started_at is None:
                phrase.started_at = word.start
        phrase.draft = phrase.draft[done:]
        return committed

    def _edges(
        self, item: Pass, path: tuple[float, float], guess: GuessedWord, following: Sequence[GuessedWord]
    ) -> tuple[float, float]:
        """A word's start and end on the stream's clock; `path`: its edges by the attention's path, in the window."""
        start, end = path
        frames = guess.frames or (0,)
        first, last = min(frames) * POSITION_S, max(frames) * POSITION_S
        if end < last < end + 1.0:  # the path has left the word before its attention did
            end = min(last + 0.1, item.seconds)
        # attention that was somewhere else, at another word that sounds alike say, tells nothing
        first, last = (peak if start <= peak <= end else (start + end) / 2 for peak in (first, last))
        before, after = 0.0, item.seconds
        if item.phrase.said:
            said = item.phrase.said[-1]
            before = said.place * POSITION_S - (item.base - said.base) / SAMPLING_RATE
        for word in following:
            if word.frames and last < min(word.frames) * POSITION_S < after:
                after = min(word.frames) * POSITION_S
        peaks = before, min(first, last), max(first, last), after
        start, end = edges_at_pauses(start, end, peaks, item.probabilities, FRAME / SAMPLING_RATE, LOWER)
        offset = item.base / SAMPLING_RATE
        start = max(self._latest, offset + start)
        return start, max(start, min(offset + item.seconds, max(start + POSITION_S, offset + end)))

    def _forced(self, said: Sequence[Said], base: int) -> list[int]:
        """The tokens of committed words, for a window that may begin later than the one they were found in."""
        begin, tokens = self.decoder.timestamp_begin, []
        for index, item in enumerate(said):
            moved = (base - item.base) // STEP
            shifted = [token if token < begin else max(begin, token - moved) for token in item.tokens]
            if index == 0 and self.decoder.timestamps:
                # The window begins within the text: one timestamp, that of the first word.
                text = [token for token in shifted if token < begin]
                times = [token for token in shifted if token >= begin]
                start = begin + max(0, round((item.word.start - base / SAMPLING_RATE) / POSITION_S))
                shifted = [times[-1] if times else start, *text]
            tokens.extend(shifted)
        return tokens

    def _group(self, tokens: list[int], language: str | None) -> list[tuple[str, list[int]]]:
        from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

        if not tokens:
            return []
        texts, _, groups = _combine_tokens_into_words(
            self.tokenizer, tokens, LANGUAGES.get(language or "en", "english")
        )
        return [(text, list(group)) for text, group in zip(texts, groups, strict=True) if group]
