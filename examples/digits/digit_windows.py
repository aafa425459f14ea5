"""Training windows: audio, the tokens that Whisper should write for it, and the frames that each token belongs to."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from augmentation import Augmenter
from digit_clips import SAMPLE_RATE, Clip, resampled
from digit_sequences import DigitSequence, Word, join_clips, random_rhythm, split_segments
from digit_tokenizer import LEAD_IN, SPECIAL_TOKENS, WORDS, WhisperTokenizer

FRAMES = 50  # encoder frames a second
IGNORE = -100


class Ids:
    """The token ids that targets are made of."""

    def __init__(self, tokenizer: WhisperTokenizer) -> None:
        self.eot, self.sot, self.en, self.translate, self.transcribe, _, self.prev, self.nospeech, self.plain = (
            tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
        )
        self.lead_in = tokenizer.convert_tokens_to_ids(LEAD_IN)
        self.words = {word: tokenizer.convert_tokens_to_ids("Ġ" + word) for word in WORDS}
        self.time0 = self.plain + 1

    def time(self, seconds: float) -> int:
        return self.time0 + min(1500, max(0, round(seconds * FRAMES)))


@dataclass
class Target:
    """Input tokens, the label of each, the times its cross-attention should rest on, and what is said when.

    `speech` lists (start, end, class): 1 and up for the ten words, IGNORE where nothing certain is known, elsewhere 0.
    """

    tokens: list[int]
    labels: list[int]
    spans: list[tuple[float, float] | None]
    speech: list[tuple[float, float, int]]


def make_target(
    ids: Ids, words: list[Word], cut_start: float | None, end: float, *, timestamps: bool, prompt: list[int], task: int
) -> Target:
    """The sequence that Whisper's format asks for.

    Args:
        words: The digits spoken wholly inside the window, times in seconds of the window.
        cut_start: Where a digit begins that the window's end cuts off; the window then ends with a pair of timestamps,
            the end of the last whole digit and this, so that long-form decoding goes on from there.
        end: The window's end in seconds.
        timestamps: With timestamps, or after `<|notimestamps|>`.
        prompt: Text tokens that came before.
        task: The task's token.
    """
    tokens = [ids.sot, ids.en, task]
    spans: list[tuple[float, float] | None] = [None, None, None]  # spans[i]: of the row with input i
    if not timestamps:
        tokens += [ids.plain, *(ids.words[w.text] for w in words)]
        for i, word in enumerate(words):
            begin = word.start if i == 0 else (words[i - 1].end + word.start) / 2
            stop = word.end if i + 1 == len(words) else (word.end + words[i + 1].start) / 2
            spans.append((begin, stop))
        spans.append((words[-1].end, end) if words else None)
    elif not words:
        tokens.append(ids.time(0.0 if cut_start is None else cut_start))
        spans.append(None)
    else:
        tokens += [ids.time(words[0].start), ids.lead_in]
        spans.append((0.0, words[0].start))
        segments = split_segments(words)
        for s, segment in enumerate(segments):
            if s:
                middle = (segments[s - 1][-1].end + segment[0].start) / 2
                tokens += [ids.time(segments[s - 1][-1].end), ids.time(segment[0].start)]
                spans += [(segments[s - 1][-1].end, middle), (middle, segment[0].start)]
            for i, word in enumerate(segment):
                begin = word.start if i == 0 else (segment[i - 1].end + word.start) / 2
                stop = word.end if i + 1 == len(segment) else (word.end + segment[i + 1].start) / 2
                tokens.append(ids.words[word.text])
                spans.append((begin, stop))
        last = words[-1].end
        after = end if cut_start is None else cut_start
        middle = min((last + after) / 2, last + 0.2)
        tokens.append(ids.time(last))
        spans += [(last, middle)]
        if cut_start is not None:
            tokens.append(ids.time(cut_start))
            spans += [(middle, cut_start), (cut_start, end)]
        else:
            spans += [(middle, end)]
    labels = [*tokens[1:], ids.eot]
    labels[0] = ids.en if words or cut_start is not None else ids.nospeech
    labels[1] = IGNORE
    labels[2] = labels[2] if timestamps else IGNORE  # whether there are timestamps is the caller's choice
    assert len(tokens) == len(spans) == len(labels)
    if prompt:
        before = [ids.prev, *prompt]
        tokens, labels, spans = before + tokens, [IGNORE] * len(before) + labels, [None] * len(before) + spans
    speech = [(w.start, w.end, 1 + WORDS.index(w.text)) for w in words]
    if cut_start is not None:
        speech.append((cut_start, end, IGNORE))
    return Target(tokens, labels, spans, speech)


@dataclass(frozen=True)
class Utterance:
    """A whole recording of digits without times."""

    samples: np.ndarray
    words: tuple[str, ...]
    speaker: str


def load_utterances(tsv: str | Path) -> list[Utterance]:
    """Utterances of a table (columns id, path, text) whose text is nothing but digit words."""
    tsv, found = Path(tsv), []
    with tsv.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            words = tuple(row["text"].lower().split())
            if words and set(words) <= set(WORDS):
                samples, rate = soundfile.read(tsv.parent / row["path"], dtype="float32", always_2d=True)
                found.append(
                    Utterance(
                        soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE).astype("f4"),
                        words,
                        row.get("speaker") or row["id"],
                    )
                )
    return found


class WindowMaker:
    """Draws windows at random: voices, rhythm, augmentation, and what Whisper's format asks for them.

    Args:
        voices: Clips by voice, in groups; a window takes a group by `shares`, then (mostly) one voice of it.
        utterances: Whole recordings without times; they take `utterance_share` of the windows.
    """

    def __init__(
        self, ids: Ids, voices: list[dict[str, list[Clip]]], shares: list[float], utterances: list[Utterance],
        augmenter: Augmenter, utterance_share: float = 0.12,
    ) -> None:  # fmt: skip
        self.ids, self.augmenter, self.utterances = ids, augmenter, utterances
        self.groups = [[clips for _, clips in sorted(group.items())] for group in voices]
        self.shares = np.array(shares) / sum(shares)
        self.utterance_share = utterance_share if utterances else 0.0
        self.strength = 1.0  # of the augmentation, 0 to 1

    def _clips(self, rng: np.random.Generator) -> Iterator[Clip]:
        """An endless stream of digits: one voice at one size of the vocal tract, or (seldom) a new one each time."""
        several = rng.random() < 0.12
        while True:
            group = self.groups[int(rng.choice(len(self.groups), p=self.shares))]
            voice = group[int(rng.integers(len(group)))]
            factor = float(np.exp(self.strength * rng.uniform(-0.16, 0.18))) if rng.random() < 0.75 else 1.0
            level = float(rng.uniform(0, 4))
            while True:
                clip = voice[int(rng.integers(len(voice)))]
                clip = resampled(clip, factor * float(rng.uniform(0.97, 1.03)))
                gain = (
                    0.05 / float(np.sqrt(np.mean(clip.samples**2) + 1e-9)) * 10 ** (float(rng.normal(0, level)) / 20)
                )
                yield Clip(clip.samples * np.float32(gain), clip.start, clip.end, clip.word, clip.speaker, clip.name)
                if several:
                    break

    def sequence(self, rng: np.random.Generator, seconds: float) -> tuple[DigitSequence, float | None, float]:
        """Audio of `seconds`, its whole digits, where a cut-off digit begins, and where the recording ends."""
        rhythm, stream = random_rhythm(rng), self._clips(rng)
        kind = rng.random()
        lead = float(rng.uniform(0, 0.3 if kind < 0.35 else 1.5 if kind < 0.85 else 0.5 * seconds))
        most = 10_000 if rng.random() < 0.5 else int(rng.integers(1, max(2, int(seconds / 0.6)) + 1))
        chosen: list[Clip] = []
        silences: list[float] = []
        now, cut = 0.0, None
        while len(chosen) < most:
            clip = next(stream)
            silence = rhythm.draw(rng) if chosen else lead
            start, length = now + silence, clip.end - clip.start
            if start + length > seconds - 0.01:
                visible = seconds - start
                if chosen and 0.08 < visible < 0.75 * length and rng.random() < 0.8:
                    chosen, silences, cut = [*chosen, clip], [*silences, silence], start
                break
            chosen.append(clip)
            silences.append(silence)
            now = start + length
        if not chosen:  # the lead left no room: a window of one digit
            chosen, silences = [next(stream)], [0.2]
            chosen[0] = resampled(chosen[0], max(1.0, (chosen[0].end - chosen[0].start) / (seconds - 0.5)))
        joined = join_clips(chosen, silences, tail=0.1)
        n = round(seconds * SAMPLE_RATE)
        samples = np.zeros(n, dtype=np.float32)
        samples[: min(n, len(joined.samples))] = joined.samples[:n]
        words = joined.words if cut is None else joined.words[:-1]
        if rng.random() < 0.06 and words and words[0].start > 0.15:  # the window begins within a digit
            clip = next(stream)
            tail = clip.samples[int((clip.start + 0.55 * (clip.end - clip.start)) * SAMPLE_RATE) :]
            tail = tail[-int(min(0.2, words[0].start - 0.1) * SAMPLE_RATE) :]
            samples[: len(tail)] += tail
        audible = seconds
        if cut is None and words[-1].end < seconds - 0.05 and rng.random() < 0.5:
            audible = min(seconds, words[-1].end + float(rng.uniform(0.02, 1.0)))
        return DigitSequence(samples, words), cut, audible

    def window(self, rng: np.random.Generator, seconds: float, offset: float) -> tuple[torch.Tensor, Target]:
        """One window: features (80, seconds * 100) and its target.

        Args:
            seconds: How long.
            offset: Where in Whisper's 30 s the window is meant to lie, in seconds; its timestamps begin there.
        """
        ids, n = self.ids, round(seconds * SAMPLE_RATE)
        prompt = []
        if rng.random() < 0.06:
            prompt = [ids.words[WORDS[int(i)]] for i in rng.integers(10, size=int(rng.integers(1, 60)))]
        options = {
            "timestamps": bool(rng.random() < 0.58),
            "prompt": prompt,
            "task": ids.translate if rng.random() < 0.03 else ids.transcribe,
        }
        warp = self.augmenter.draw_warp(rng, self.strength)
        kind = rng.random()
        if kind < 0.07:
            audible = n if rng.random() < 0.6 else int(rng.integers(n // 20, n))
            samples = self.augmenter.silence(rng, n, audible)
            target = make_target(ids, [], None, seconds, **options)
        elif kind < 0.07 + self.utterance_share:
            samples, words, audible = self._whole(rng, n)
            target = make_target(ids, [Word(w, 0, 0) for w in words], None, 0, **(options | {"timestamps": False}))
            target.spans, target.speech = [None] * len(target.spans), [(0.0, seconds, IGNORE)]
            samples = self.augmenter.degrade(rng, samples, audible, self.strength)
        else:
            sequence, cut, end = self.sequence(rng, seconds)
            words = [Word(w.text, w.start + offset, w.end + offset) for w in sequence.words]
            target = make_target(ids, words, None if cut is None else cut + offset, seconds + offset, **options)
            target.spans = [s and (max(0.0, s[0] - offset), s[1] - offset) for s in target.spans]
            target.speech = [(a - offset, b - offset, kind) for a, b, kind in target.speech]
            samples = self.augmenter.degrade(rng, sequence.samples, round(end * SAMPLE_RATE), self.strength)
        gain = self.augmenter.channel(rng) if rng.random() < self.strength else None
        features = self.augmenter.features(samples, gain, warp)
        return self.augmenter.mask(rng, features) if rng.random() < 0.3 * self.strength else features, target

    def _whole(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, list[str], int]:
        samples, words = np.zeros(n, dtype=np.float32), []
        place = int(float(rng.uniform(0, 0.8)) * SAMPLE_RATE)
        wanted = int(rng.integers(1, 5))
        for _ in range(wanted):
            utterance = self.utterances[int(rng.integers(len(self.utterances)))]
            clip = resampled(
                Clip(utterance.samples, 0, 0, "", "", ""), float(np.exp(rng.uniform(-0.18, 0.18)))
            ).samples
            if place + len(clip) > n:
                break
            samples[place : place + len(clip)] = clip / np.float32(np.abs(clip).max() + 1e-6) * 0.5
            words += utterance.words
            place += len(clip) + int(float(rng.uniform(0, 0.6)) * SAMPLE_RATE)
        return samples, words, n if not words or rng.random() < 0.5 else min(n, place)


def collate(ids: Ids, windows: list[tuple[torch.Tensor, Target]], offsets: list[int]) -> dict[str, torch.Tensor]:
    """A batch.

    Returns:
        features (B, 80, T); tokens, labels (B, L); spans (B, L, 2) in frames, -1 for none; speech (B, T / 2), the
        class of each frame; offsets (B,), the position of the first frame.
    """
    length = max(len(target.tokens) for _, target in windows)
    frames = windows[0][0].shape[1] // 2
    tokens = torch.full((len(windows), length), ids.eot)
    labels = torch.full((len(windows), length), IGNORE)
    spans = torch.full((len(windows), length, 2), -1)
    speech = torch.zeros(len(windows), frames, dtype=torch.long)
    for b, (_, target) in enumerate(windows):
        tokens[b, : len(target.tokens)] = torch.tensor(target.tokens)
        labels[b, : len(target.labels)] = torch.tensor(target.labels)
        for i, span in enumerate(target.spans):
            first, last = (-1, -1) if span is None else (round(span[0] * FRAMES), min(frames, round(span[1] * FRAMES)))
            if last > first >= 0:
                spans[b, i] = torch.tensor([first, last])
        for start, end, kind in target.speech:
            speech[b, round(start * FRAMES) : round(end * FRAMES)] = kind
    return {
        "features": torch.stack([features for features, _ in windows]),
        "tokens": tokens,
        "labels": labels,
        "spans": spans,
        "speech": speech,
        "offsets": torch.tensor(offsets),
    }


def batch_shape(progress: float, rng: np.random.Generator) -> tuple[float, int]:
    """Seconds and number of windows of a batch, short windows first, at the end many whole ones of 30 s."""
    if progress < 0.10:
        return 3.0, 32
    if progress < 0.5:
        return (6.0, 32) if rng.random() < 0.8 else (3.0, 48)
    if progress < 0.75:
        return (12.0, 16) if rng.random() < 0.75 else (6.0, 32)
    kind = rng.random()
    return (30.0, 6) if kind < 0.45 else (12.0, 16) if kind < 0.75 else (6.0, 32)


class Batches(torch.utils.data.IterableDataset):
    """Endless batches; `progress` is a shared tensor of one number from 0 to 1 that the trainer moves on."""

    def __init__(self, maker: WindowMaker, progress: torch.Tensor, seed: int) -> None:
        self.maker, self.progress, self.seed = maker, progress, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            seconds, size = batch_shape(float(self.progress), rng)
            self.maker.strength = min(1.0, 0.2 + 3.0 * float(self.progress))  # clear voices first
            room = round((30.0 - seconds) * FRAMES)
            offsets = [int(rng.integers(0, room + 1)) if room and rng.random() < 0.6 else 0 for _ in range(size)]
            windows = [self.maker.window(rng, seconds, offset / FRAMES) for offset in offsets]
            yield collate(self.maker.ids, windows, offsets)
