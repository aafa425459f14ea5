"""Sequences of spoken digits with true times: single recordings laid one after another, with gaps and pauses.

The segment rule: digits whose gap is at most `MAX_GAP` belong to one segment, a pause of at least `MIN_PAUSE` begins
the next, and nothing between the two is drawn, so that the rule has no unclear cases.

    python digit_sequences.py --speech FOLDER --speaker theo --seconds 10 --output digits_theo.flac
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from digit_clips import DIGIT_WORDS, SAMPLE_RATE, Clip, digit_files, load_digits

MAX_GAP = 0.36
MIN_PAUSE = 0.56


@dataclass(frozen=True)
class Word:
    """One spoken digit and its times in seconds from the start of the audio."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class DigitSequence:
    """Mono float32 samples at 16 kHz and the digits spoken in them, in order."""

    samples: np.ndarray
    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def split_segments(words: Sequence[Word]) -> list[list[Word]]:
    """The words by segment: a new one begins where the gap to the word before is longer than the rule's `MAX_GAP`."""
    segments: list[list[Word]] = []
    for word in words:
        if segments and word.start - segments[-1][-1].end <= (MAX_GAP + MIN_PAUSE) / 2:
            segments[-1].append(word)
        else:
            segments.append([word])
    return segments


@dataclass(frozen=True)
class Rhythm:
    """How a speaker sets digits apart: the share of pauses, the range of the gaps and of the pauses, in seconds."""

    pause_share: float
    gaps: tuple[float, float]
    pauses: tuple[float, float]

    def draw(self, rng: np.random.Generator) -> float:
        """The silence before the next digit."""
        return float(rng.uniform(*(self.pauses if rng.random() < self.pause_share else self.gaps)))


def random_rhythm(rng: np.random.Generator) -> Rhythm:
    """One of many rhythms: hasty to slow, without a pause up to a pause before most digits."""
    low = float(rng.uniform(0.0, 0.25))
    return Rhythm(
        pause_share=float(rng.choice([0.0, 0.1, 0.25, 0.5, 0.8], p=[0.15, 0.25, 0.3, 0.2, 0.1])),
        gaps=(low, float(rng.uniform(low, MAX_GAP))),
        pauses=(MIN_PAUSE, float(rng.choice([0.8, 1.3, 2.5, 4.0], p=[0.35, 0.35, 0.2, 0.1]))),
    )


def join_clips(clips: Sequence[Clip], silences: Sequence[float], tail: float) -> DigitSequence:
    """Lays the clips one after another, `silences[i]` seconds between the speech before and that of clip i.

    Args:
        clips: The recordings, in order.
        silences: As many as clips, in seconds; the first is the silence before the first digit. Where the recordings'
            own margins are longer than the silence, they overlap and are added; the speech itself never overlaps.
        tail: Silence after the last digit, in seconds.
    """
    words, places, now = [], [], 0.0
    for clip, silence in zip(clips, silences, strict=True):
        start = round((now + silence) * SAMPLE_RATE)
        places.append(start - round(clip.start * SAMPLE_RATE))
        begin = start / SAMPLE_RATE
        words.append(Word(clip.word, begin, begin + clip.end - clip.start))
        now = words[-1].end
    samples = np.zeros(round((now + tail) * SAMPLE_RATE), dtype=np.float32)
    for clip, place in zip(clips, places, strict=True):
        first, last = max(0, -place), min(len(clip.samples), len(samples) - place)
        samples[place + first : place + last] += clip.samples[first:last]
    return DigitSequence(samples, tuple(words))


def random_sequence(
    rng: np.random.Generator, clips: Sequence[Clip], digits: tuple[int, int] = (1, 20), max_seconds: float = 30.0
) -> DigitSequence:
    """A sequence drawn at random from the clips of one speaker, recordings untouched, silence between them.

    Digits are left off at the end where the sequence would pass `max_seconds`.
    """
    rhythm = random_rhythm(rng)
    chosen = [clips[int(i)] for i in rng.integers(len(clips), size=int(rng.integers(digits[0], digits[1] + 1)))]
    silences = [float(rng.uniform(0.1, 1.5))] + [rhythm.draw(rng) for _ in chosen[1:]]
    tail = float(rng.uniform(0.1, 1.0))
    while len(chosen) > 1 and sum(silences) + sum(clip.end - clip.start for clip in chosen) + tail > max_seconds:
        chosen.pop()
        silences.pop()
    return join_clips(chosen, silences, tail)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write one sequence of digits as a FLAC file, its text beside it.")
    parser.add_argument("--speech", required=True, type=Path, help="folder of {digit}_{speaker}_{n}.flac")
    parser.add_argument("--speaker", required=True)
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long")
    parser.add_argument("--output", required=True, type=Path, help="a .flac file; the text goes beside it as .txt")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rng = np.random.default_rng(arguments.seed)
    clips = load_digits(f for f in digit_files(arguments.speech) if f[2] == arguments.speaker)
    if not clips:
        raise SystemExit(f"{arguments.speech}: no recordings of a speaker named {arguments.speaker}")
    # recordings of one speaker differ in level by session; a clip to listen to should not
    clips = [Clip(c.samples * (0.08 / np.sqrt(np.mean(c.samples**2))), c.start, c.end, c.word, c.speaker, c.name)
             for c in clips]  # fmt: skip
    rhythm = Rhythm(0.25, (0.08, 0.3), (0.6, 1.2))
    chosen: list[Clip] = []
    silences: list[float] = []
    words: list[str] = []
    while sum(silences) + sum(clip.end - clip.start for clip in chosen) < arguments.seconds - 1.0:
        words = words or [str(word) for word in rng.permutation(DIGIT_WORDS)]  # each word once before any comes again
        word = words.pop()
        spoken = [clip for clip in clips if clip.word == word]
        chosen.append(spoken[int(rng.integers(len(spoken)))])
        silences.append(rhythm.draw(rng) if silences else 0.5)
    sequence = join_clips(chosen, silences, tail=0.5)
    samples = sequence.samples * min(1.0, 0.9 / float(np.abs(sequence.samples).max()))
    soundfile.write(arguments.output, samples, SAMPLE_RATE, subtype="PCM_16")
    arguments.output.with_suffix(".txt").write_text(sequence.text + "\n", encoding="utf-8")
    print(f"{arguments.output}: {sequence.seconds:.1f} s, {len(sequence.words)} digits: {sequence.text}")


if __name__ == "__main__":
    main()
