"""Streams of spoken digits and of nothing, and what is measured on the events that come of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "digits"))

from digit_clips import SAMPLE_RATE, digit_files, load_digits
from digit_sequences import Word, random_sequence

from whisper_hailo_hf.live import Committed, EndOfPhrase, Event, LiveTranscriber, LiveWord, Partial

# Words whose gap is longer begin a new phrase, in the truth: what the first word's delay is counted from.
PHRASE_GAP_S = 1.0
TOLERANCE_S = 0.3


@dataclass(frozen=True)
class Stream:
    """Audio, float32 at 16 kHz, and the words in it with their times."""

    samples: np.ndarray
    words: list[Word]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def digit_pieces(
    speech: Path, speakers: list[str], seed: int, pauses: tuple[float, float] = (1.0, 4.0)
) -> Iterator[tuple[np.ndarray, list[Word]]]:
    """Sequences of 1 to 20 digits of one speaker after the other and pauses of so many seconds, without end.

    Each with its words, their times from its own start.
    """
    rng = np.random.default_rng(seed)
    clips = {s: load_digits(f for f in digit_files(speech) if f[2] == s) for s in speakers}
    turn = 0
    while True:
        sequence = random_sequence(rng, clips[speakers[turn % len(speakers)]])
        turn += 1
        pause = np.zeros(round(rng.uniform(*pauses) * SAMPLE_RATE), np.float32)
        yield np.concatenate([sequence.samples, pause]), list(sequence.words)


def digit_stream(
    speech: Path, speakers: list[str], seconds: float, seed: int = 0, pauses: tuple[float, float] = (1.0, 4.0)
) -> Stream:
    """So many seconds, or a sequence more, of what `digit_pieces` gives."""
    parts, words, length = [], [], 0
    for samples, said in digit_pieces(speech, speakers, seed, pauses):
        offset = length / SAMPLE_RATE
        words += [Word(word.text, word.start + offset, word.end + offset) for word in said]
        parts.append(samples)
        length += len(samples)
        if length >= seconds * SAMPLE_RATE:
            return Stream(np.concatenate(parts), words)
    raise AssertionError("there is no end")


def quiet_streams(seconds: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Audio without a word: silence, noise, a hum, and chords with a beat, at a level somewhere near a voice's."""
    from augmentation import coloured_noise, mains_hum

    rng, n = np.random.default_rng(seed), round(seconds * SAMPLE_RATE)
    clock = np.arange(n) / SAMPLE_RATE
    music = np.zeros(n)
    for start in range(0, n, SAMPLE_RATE // 2):  # a chord every half second, plucked
        stop = min(start + SAMPLE_RATE // 2, n)
        decay = np.exp(-3.0 * clock[: stop - start])
        for note in rng.choice([220.0, 246.9, 261.6, 293.7, 329.6, 349.2, 392.0, 440.0], 3, replace=False):
            for harmonic in range(1, 6):
                music[start:stop] += decay * np.sin(2 * np.pi * note * harmonic * clock[: stop - start]) / harmonic
        beat = min(start + 800, n)
        music[start:beat] += rng.standard_normal(beat - start) * np.linspace(2, 0, beat - start)
    music = music / np.sqrt(np.mean(music**2))
    return {
        "silence": np.zeros(n, np.float32),
        "white noise -30 dB": np.float32(10**-1.5) * coloured_noise(rng, n, 0.0),
        "pink noise -20 dB": np.float32(0.1) * coloured_noise(rng, n, 1.0),
        "hum -20 dB": np.float32(0.1) * mains_hum(rng, n),
        "chords and beats -20 dB": (0.1 * music).astype(np.float32),
    }


@dataclass
class Played:
    """A stream played to a transcriber, block after block, each as soon as the one before is done.

    `done[i]` is when event i would have come out in real time, seconds of the stream's clock: a block arrives when its
    last sample has been said, and is worked on when all before it have been.
    """

    events: list[Event] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    seconds: float = 0.0
    wall: float = 0.0
    cpu: float = 0.0

    @property
    def words(self) -> list[LiveWord]:
        return [word for event in self.events if isinstance(event, Committed) for word in event.words]

    @property
    def text(self) -> str:
        return " ".join(word.text.strip() for word in self.words)


def play(transcriber: LiveTranscriber, samples: np.ndarray, block: float = 0.1, rate: int = SAMPLE_RATE) -> Played:
    """Feed samples in blocks of so many seconds, then finish."""
    played = Played(seconds=len(samples) / rate)
    size, free = max(1, round(block * rate)), 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(samples) + size, size):
        piece = samples[first : first + size]
        began = time.perf_counter()
        found = transcriber.feed(piece, rate) if len(piece) else transcriber.finish()
        arrived = min(first + size, len(samples)) / rate
        free = max(free, arrived) + time.perf_counter() - began
        played.events += found
        played.done += [free] * len(found)
        if not len(piece):
            break
    else:
        played.events += transcriber.finish()
        played.done += [free] * (len(played.events) - len(played.done))
    played.wall, played.cpu = time.perf_counter() - wall, time.process_time() - cpu
    return played


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile, largest, and how many there are."""
    if not len(values):
        return {"n": 0}
    p50, p95 = np.percentile(values, [50, 95])
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "max": round(max(values), 3), "n": len(values)}


def word_error_rate(truth: str, text: str) -> dict[str, Any]:
    """Substitutions, deletions and insertions over words."""
    result = jiwer.process_words(truth, text)
    return {
        "wer": round(result.wer, 5),
        "substitutions": result.substitutions,
        "deletions": result.deletions,
        "insertions": result.insertions,
        "words": result.hits + result.substitutions + result.deletions,
    }


def matched(truth: Sequence[Any], found: Sequence[Any]) -> list[tuple[int, int]]:
    """Pairs of indices of the words that were recognised.

    Of equal words beside each other, one of which is too many, jiwer takes any: here it is the one nearest in time.
    """
    result = jiwer.process_words(" ".join(w.text for w in truth), " ".join(w.text.strip() for w in found))
    pairs = {}
    for part in result.alignments[0]:
        if part.type == "equal":
            length = part.ref_end_idx - part.ref_start_idx
            pairs |= {part.ref_start_idx + k: part.hyp_start_idx + k for k in range(length)}
    free = set(range(len(found))) - set(pairs.values())
    for ref, hyp in pairs.items():
        beside = [one for one in (hyp - 1, hyp + 1) if one in free and found[one].text.strip() == truth[ref].text]
        best = min([hyp, *beside], key=lambda one: abs(found[one].start - truth[ref].start))
        free = free - {best} | ({hyp} if best != hyp else set())
        pairs[ref] = best
    return list(pairs.items())


def delays(stream: Stream, played: Played) -> dict[str, Any]:
    """How long after the truth words were committed, and the first word of a phrase was first shown at all.

    In audio time: as if computing took no time. In real time: with it.
    """
    clocks: list[float] = []
    times: list[float] = []
    shown: list[tuple[float, float]] = []  # when any text was shown: audio time, real time
    for event, done in zip(played.events, played.done, strict=True):
        if isinstance(event, Committed):
            clocks += [event.clock] * len(event.words)
            times += [done] * len(event.words)
        if isinstance(event, Committed) or (isinstance(event, Partial) and event.text):
            shown.append((event.clock, done))
    pairs = matched(stream.words, played.words)
    audio = [clocks[hyp] - stream.words[ref].end for ref, hyp in pairs]
    real = [times[hyp] - stream.words[ref].end for ref, hyp in pairs]
    first_audio, first_real = [], []
    for index, word in enumerate(stream.words):
        gap = word.start - stream.words[index - 1].end if index else np.inf
        until = word.end + 5.0
        later = [entry for entry in shown if word.start < entry[0] < until]
        if gap >= PHRASE_GAP_S and later:
            first_audio.append(later[0][0] - word.start)
            first_real.append(later[0][1] - word.start)
    return {
        "commit_after_word_end_audio_s": quantiles(audio),
        "commit_after_word_end_real_s": quantiles(real),
        "first_text_after_phrase_start_audio_s": quantiles(first_audio),
        "first_text_after_phrase_start_real_s": quantiles(first_real),
    }


def word_times(stream: Stream, words: Sequence[Any]) -> dict[str, Any]:
    """How far the times of recognised words are off."""
    pairs = matched(stream.words, words)
    starts = [abs(words[hyp].start - stream.words[ref].start) for ref, hyp in pairs]
    ends = [abs(words[hyp].end - stream.words[ref].end) for ref, hyp in pairs]
    within = [max(pair) <= TOLERANCE_S + 1e-9 for pair in zip(starts, ends, strict=True)]
    return {
        "start_error_s": quantiles(starts),
        "end_error_s": quantiles(ends),
        "within_0.3_s": round(float(np.mean(within)), 5) if within else None,
        "outside": len(within) - sum(within),
    }


def flicker(events: Sequence[Event]) -> dict[str, Any]:
    """Words that were shown as tentative and then became others or none."""
    taken_back = shown = 0
    before: list[str] = []
    for event in events:
        if isinstance(event, Committed):
            now = [word.text.strip() for word in event.words]
            same = _common(before, now)
            # what was shown and is committed has kept its word; the rest is judged by the partial that follows
            taken_back += min(len(before), len(now)) - same
            before = before[len(now) :]
        elif isinstance(event, Partial):
            now = event.text.split()
            same = _common(before, now)
            taken_back += len(before) - same
            shown += len(now) - same
            before = now
        elif isinstance(event, EndOfPhrase):
            taken_back += len(before)
            before = []
    return {"tentative_words_shown": shown, "taken_back": taken_back}


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count
