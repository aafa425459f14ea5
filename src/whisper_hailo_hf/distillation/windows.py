"""Packing utterances into Whisper's windows of 30 s, as in real use and beyond it.

A window is a *recording*, from its start to some point, and exact zeros from there on, as `WhisperFeatureExtractor`
pads. Its speech mask says where the teacher's states are those of speech: True on every position (20 ms) that an
utterance covers, False on gaps, noise and padding. Within an utterance, silence before its first sound and after its
last is left out by `speech_extent`.

A window is a function of (seed, epoch, index) and the utterances, whoever computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.distillation.augmentation import Augmenter, coloured_noise
from whisper_hailo_hf.errors import RequestError

SAMPLES_PER_POSITION = 320  # two log-mel frames of 10 ms become one encoder position
POSITIONS = 1500


@dataclass(frozen=True)
class WindowMix:
    """How often each kind of window occurs; the weights need not add up to 1.

    Attributes:
        single: one utterance at the start, zeros after it: a short recording as users transcribe it.
        sequence: utterances one after another, up to windows full of speech: a stretch of a long recording.
        shifted: one utterance that starts later in the window.
        overlapped: as `sequence`, with others speaking at the same time.
        noise: noise alone.
        silent: zeros, or all but.
    """

    single: float = 0.45
    sequence: float = 0.33
    shifted: float = 0.10
    overlapped: float = 0.07
    noise: float = 0.03
    silent: float = 0.02

    def __post_init__(self) -> None:
        weights = self.weights()
        if not all(math.isfinite(w) and w >= 0 for w in weights.values()) or not sum(weights.values()) > 0:
            raise RequestError(f"window mix: weights are at least 0 and not all of them are 0, not {weights}")

    def weights(self) -> dict[str, float]:
        return {kind.name: float(getattr(self, kind.name)) for kind in fields(self)}

    def draw(self, rng: np.random.Generator) -> str:
        weights = self.weights()
        total = sum(weights.values())
        return str(rng.choice(list(weights), p=[weight / total for weight in weights.values()]))

    @classmethod
    def only(cls, kind: str) -> WindowMix:
        """One kind alone."""
        return cls(**{f.name: float(f.name == kind) for f in fields(cls)})


@dataclass
class Window:
    """One window.

    Attributes:
        audio: float32, (320 * positions,), 16 kHz.
        speech_mask: bool, (positions,), True on speech.
        kind: a field of `WindowMix`.
        utterances: those heard, by index, in their order; nobody of the background babble.
        intact: each of them is heard whole and alone, so that their texts in this order are the window's text.
    """

    audio: FloatArray
    speech_mask: npt.NDArray[np.bool_]
    kind: str
    utterances: list[int] = field(default_factory=list)
    intact: bool = True


@dataclass
class _Canvas:
    """A recording in the making."""

    samples: int
    audio: FloatArray = field(init=False)
    mask: npt.NDArray[np.bool_] = field(init=False)
    end: int = 0  # where the recording ends and the padding begins
    utterances: list[int] = field(default_factory=list)
    intact: bool = True

    def __post_init__(self) -> None:
        self.audio = np.zeros(self.samples, np.float32)
        self.mask = np.zeros(self.samples // SAMPLES_PER_POSITION, bool)

    def lay(self, index: int, audio: FloatArray, start: int, cut_before: int = 0, gain: float = 1.0) -> int:
        """Add an utterance without its first `cut_before` samples at `start`; returns where it ends."""
        first, last = speech_extent(audio)
        stop = min(start + audio.size - cut_before, self.samples)
        self.audio[start:stop] += np.float32(gain) * audio[cut_before : cut_before + stop - start]
        first, last = (min(max(edge - cut_before, 0) + start, self.samples) for edge in (first, last))
        if last > first:
            self.mask[first // SAMPLES_PER_POSITION : math.ceil(last / SAMPLES_PER_POSITION)] = True
        self.end = max(self.end, stop)
        self.utterances.append(index)
        self.intact &= cut_before == 0 and start + audio.size <= self.samples
        return stop


class WindowPacker:
    """Makes windows of utterances.

    Args:
        positions: encoder positions of a window, 1500 for 30 s.
        mix: how often which kind.
        augmenter: None leaves all audio as it is.
        seed: with epoch and index, all that chance depends on.
    """

    def __init__(
        self,
        positions: int = POSITIONS,
        mix: WindowMix | None = None,
        augmenter: Augmenter | None = None,
        seed: int = 0,
    ) -> None:
        self.positions, self.samples = positions, positions * SAMPLES_PER_POSITION
        self.mix, self.augmenter, self.seed = mix or WindowMix(), augmenter, seed

    def generator(self, epoch: int, index: int) -> np.random.Generator:
        """The chance of one window, independent of that of every other."""
        return np.random.default_rng([self.seed, epoch, index, 1])

    def order(self, epoch: int, count: int) -> npt.NDArray[np.int64]:
        """The order in which an epoch takes `count` utterances as its windows' first ones: each occurs once."""
        return np.random.default_rng([self.seed, epoch, 0]).permutation(count)

    def pack(self, rng: np.random.Generator, first: int, count: int, audio_of: Callable[[int], FloatArray]) -> Window:
        """Make one window.

        Args:
            rng: from `generator`.
            first: the utterance that this window shall hold, if its kind holds any.
            count: how many utterances there are; further ones are drawn from all of them.
            audio_of: audio of an utterance by its index, float32, (samples,), 16 kHz.
        """
        kind = self.mix.draw(rng)
        canvas = _Canvas(self.samples)

        def drawn() -> tuple[int, FloatArray]:
            index = int(rng.integers(count))
            return index, self._utterance(rng, audio_of(index))

        if kind in ("single", "shifted", "sequence", "overlapped"):
            opening = self._utterance(rng, audio_of(first))
            if kind == "single":
                self._single(canvas, rng, first, opening)
            elif kind == "shifted":
                self._shifted(canvas, rng, first, opening)
            else:
                self._sequence(canvas, rng, (first, opening), drawn)
                if kind == "overlapped":
                    self._overlap(canvas, rng, drawn)
            self._record(canvas, rng, lambda: drawn()[1])
        elif kind == "noise":
            self._noise(canvas, rng)
        elif rng.random() < 0.5:  # silent; the other half is exact zeros
            canvas.audio = coloured_noise(self.samples, rng, 1.0) * np.float32(10 ** (rng.uniform(-90, -65) / 20))
        return Window(canvas.audio, canvas.mask, kind, canvas.utterances, canvas.intact)

    def evaluation(self, index: int, audio: FloatArray) -> Window:
        """One utterance at the start of its own window, nothing done to it."""
        canvas = _Canvas(self.samples)
        canvas.lay(index, audio, 0)
        return Window(canvas.audio, canvas.mask, "single", canvas.utterances, canvas.intact)

    def _utterance(self, rng: np.random.Generator, audio: FloatArray) -> FloatArray:
        if audio.size > 2 * self.samples:  # a recording of unknown length that was not split
            start = int(rng.integers(audio.size - 2 * self.samples))
            audio = audio[start : start + 2 * self.samples]
        return audio if self.augmenter is None else self.augmenter.utterance(audio, rng)

    def _single(self, canvas: _Canvas, rng: np.random.Generator, index: int, audio: FloatArray) -> None:
        # A recording that outlasts the window is cut into windows somewhere: any part of it may be the one here.
        longer = audio.size - self.samples
        canvas.lay(index, audio, 0, cut_before=int(rng.integers(longer + 1)) if longer > 0 else 0)
        if rng.random() < 0.5:  # the recording goes on for a moment after the speech
            canvas.end = min(canvas.end + int(rng.uniform(0, 1.5) * SAMPLING_RATE), self.samples)

    def _shifted(self, canvas: _Canvas, rng: np.random.Generator, index: int, audio: FloatArray) -> None:
        room = max(self.samples - audio.size, self.samples // 3)
        canvas.lay(index, audio, int(rng.integers(room)))
        if rng.random() < 0.5:
            canvas.end = int(rng.integers(canvas.end, self.samples, endpoint=True))

    def _sequence(
        self,
        canvas: _Canvas,
        rng: np.random.Generator,
        opening: tuple[int, FloatArray],
        drawn: Callable[[], tuple[int, FloatArray]],
    ) -> None:
        """Half of them full to the end, where the last utterance is cut; the others stop after one that fits."""
        full = rng.random() < 0.5
        target = self.samples if full else int(rng.uniform(0.2, 1.0) * self.samples)
        index, audio = opening
        # A window from the middle of a recording begins in the middle of an utterance.
        cut = int(rng.uniform(0, 0.8) * audio.size) if rng.random() < 0.3 else 0
        position = 0
        while position < target:
            if position and not full and position + audio.size > self.samples:
                break
            gain = 10 ** (rng.uniform(-6, 6) / 20)
            end = canvas.lay(index, audio, position, cut, gain)
            position = end + max(int(rng.exponential(0.4) * SAMPLING_RATE), SAMPLES_PER_POSITION // 4)
            index, audio = drawn()
            cut = 0

    def _overlap(self, canvas: _Canvas, rng: np.random.Generator, drawn: Callable[[], tuple[int, FloatArray]]) -> None:
        for _ in range(int(rng.integers(1, 4))):
            index, audio = drawn()
            canvas.lay(index, audio, int(rng.integers(max(canvas.end, 1))), gain=10 ** (rng.uniform(-15, 0) / 20))
        canvas.intact = False

    def _record(self, canvas: _Canvas, rng: np.random.Generator, voice: Callable[[], FloatArray]) -> None:
        if self.augmenter is not None:
            heard = canvas.audio[: canvas.mask.size * SAMPLES_PER_POSITION].reshape(-1, SAMPLES_PER_POSITION)[
                canvas.mask
            ]
            rms = float(np.sqrt(np.mean(np.square(heard)))) if heard.size else 0.0
            canvas.audio[: canvas.end] = self.augmenter.recording(canvas.audio[: canvas.end], rng, rms, voice)
        else:
            peak = float(np.abs(canvas.audio).max())
            if peak > 1:
                canvas.audio /= np.float32(peak)

    def _noise(self, canvas: _Canvas, rng: np.random.Generator) -> None:
        end = self.samples if rng.random() < 0.5 else int(rng.integers(1, self.samples))
        if self.augmenter is None:
            noise = coloured_noise(end, rng, exponent=rng.uniform(-0.5, 2.0))
        else:
            noise = self.augmenter.noise(end, rng)
        noise = noise * np.float32(10 ** (rng.uniform(-60, -12) / 20))
        canvas.audio[:end] = np.clip(noise, -1, 1)


def speech_extent(audio: FloatArray, below: float = 35.0, margin: int = 5) -> tuple[int, int]:
    """First and last sample of an utterance that count as speech.

    The rule: the mean power of the loudest twentieth of its frames of 20 ms is the level of the speech; speech goes
    from the first to the last frame that is less than `below` dB under it, and `margin` frames (100 ms) to either
    side, since consonants are faint. Pauses in between are part of it. An utterance without power has no speech.
    """
    frames = audio.size // SAMPLES_PER_POSITION
    if not frames:
        return (0, audio.size) if audio.any() else (0, 0)
    blocks = audio[: frames * SAMPLES_PER_POSITION].reshape(frames, SAMPLES_PER_POSITION)
    power = np.einsum("ij,ij->i", blocks, blocks)
    loudest = max(frames // 20, 1)
    loud = float(np.partition(power, frames - loudest)[-loudest:].mean())
    if loud <= 0:
        return 0, 0
    active = np.flatnonzero(power > loud * 10 ** (-below / 10))
    first, last = int(active[0]) - margin, int(active[-1]) + 1 + margin
    return max(first, 0) * SAMPLES_PER_POSITION, min(last * SAMPLES_PER_POSITION, audio.size)
