"""Augmentation of the audio, before teacher and student alike: both hear the same, so every change gives true targets.

Per utterance, before it is laid into a window: speed, pitch and tempo. Per recording, that is a window up to where the
zero padding begins: rooms, noise, babble, equalizer and band limits, level, clipping, codecs; these keep length and
time. Stretching, pitch and filters are those of `audiomentations`; codecs run in memory through libsndfile.

Every transform takes a `numpy.random.Generator` and nothing else at random, so that a window is a function of its
seed. What is done, how often and how far, is an `AugmentationConfig`. `benchmarks/distillation_data.py` measures what
each transform costs; libsndfile's Opus encoder was left out for that, with 230 ms for 30 s at its quickest.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.sources.utterances import Utterance, read_audio_folder

Range = tuple[float, float]

# (container, subtype, Hz, compression levels, weight): telephone and ADPCM lines, GSM 06.10, MP3 and Vorbis at about
# 12-40 kbit/s, weighted towards the cheap ones.
_CODECS: tuple[tuple[str, str, int, Range | None, float], ...] = (
    ("WAV", "ULAW", 8_000, None, 0.25),
    ("WAV", "MS_ADPCM", 8_000, None, 0.15),
    ("WAV", "IMA_ADPCM", 8_000, None, 0.15),
    ("WAV", "GSM610", 8_000, None, 0.15),
    ("MP3", "MPEG_LAYER_III", 16_000, (0.3, 0.99), 0.15),
    ("OGG", "VORBIS", 16_000, (0.5, 1.0), 0.15),
)


@dataclass(frozen=True)
class AugmentationConfig:
    """How often, and how far.

    The first fields are probabilities: `speed`, `pitch` and `tempo` per utterance, the others per recording. Ranges
    are drawn from evenly.

    Attributes:
        speed: playing faster or slower, which moves pitch and formants too (Ko et al. 2015, "Audio augmentation for
            speech recognition").
        pitch: higher or lower at the same pace. 72 ms for 30 s of speech.
        tempo: faster or slower at the same pitch. 72 ms for 30 s of speech.
        room: reverberation, by a file of `room_folder` or a synthetic impulse response.
        noise: noise, by a file of `noise_folder` or coloured.
        babble: other speakers of the same data in the background.
        equalizer: a loudspeaker's or microphone's colour.
        band_limit: a low, high or band pass.
        level: quieter or louder.
        clipping: an overdriven input.
        codec: telephone lines and lossy files.
        speed_range: factor.
        pitch_range: semitones.
        tempo_range: factor.
        noise_snr: dB, of the speech's own power over the noise's.
        babble_snr: dB.
        babble_speakers: how many, smallest and largest.
        level_range: dB.
        room_rt60: s, time in which a synthetic room's sound decays by 60 dB.
        noise_folder: noise to use beside coloured noise, half and half; None uses coloured noise alone.
        room_folder: impulse responses to use beside synthetic ones, half and half.
    """

    speed: float = 0.4
    pitch: float = 0.1
    tempo: float = 0.1
    room: float = 0.25
    noise: float = 0.4
    babble: float = 0.1
    equalizer: float = 0.1
    band_limit: float = 0.1
    level: float = 0.7
    clipping: float = 0.05
    codec: float = 0.1
    speed_range: Range = (0.85, 1.15)
    pitch_range: Range = (-2.5, 2.5)
    tempo_range: Range = (0.85, 1.2)
    noise_snr: Range = (0.0, 40.0)
    babble_snr: Range = (3.0, 25.0)
    babble_speakers: tuple[int, int] = (2, 5)
    level_range: Range = (-30.0, 6.0)
    room_rt60: Range = (0.1, 0.8)
    noise_folder: str | None = None
    room_folder: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" and not 0 <= value <= 1:
                raise RequestError(f"augmentation: {field.name} is {value}, a probability is between 0 and 1")
            if isinstance(value, Sequence) and not isinstance(value, str):
                if len(value) != 2 or value[0] > value[1]:
                    raise RequestError(f"augmentation: {field.name} is {value}, a range is (smallest, largest)")
                object.__setattr__(self, field.name, tuple(value))
            if isinstance(value, os.PathLike):
                object.__setattr__(self, field.name, os.fspath(value))

    @classmethod
    def none(cls) -> AugmentationConfig:
        """Everything off."""
        off: dict[str, Any] = dict.fromkeys(PROBABILITIES, 0.0)
        return cls(**off)


PROBABILITIES = tuple(field.name for field in fields(AugmentationConfig) if field.type == "float")


class Augmenter:
    """Carries out an `AugmentationConfig` on mono float32 audio at 16 kHz.

    Args:
        config: what, how often and how far.

    Raises:
        RequestError: audiomentations is not installed, or a folder holds no audio.
    """

    def __init__(self, config: AugmentationConfig | None = None) -> None:
        try:
            import audiomentations  # noqa: F401
        except ImportError as error:
            raise RequestError("augmentation needs `pip install whisper-hailo-hf[train]`, or switch it off") from error
        self.config = config or AugmentationConfig()
        self.noises = _folder(self.config.noise_folder)
        self.rooms = _folder(self.config.room_folder)

    def settings(self) -> dict[str, Any]:
        """What a window depends on, for JSON: the config and the names of the files in its folders."""
        files = [utterance.identity() for utterance in (*self.noises, *self.rooms)]
        return asdict(self.config) | {
            "files": files,
            "noise_folder": bool(self.noises),
            "room_folder": bool(self.rooms),
        }

    def utterance(self, audio: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Speed, pitch and tempo of one utterance. The length may change."""
        config = self.config
        if not audio.size:
            return audio
        if rng.random() < config.speed:
            audio = change_speed(audio, rng.uniform(*config.speed_range))
        if rng.random() < config.pitch:
            audio = self._library(rng, "pitch", audio)
        if rng.random() < config.tempo:
            audio = self._library(rng, "tempo", audio)
        return audio

    def recording(
        self,
        audio: FloatArray,
        rng: np.random.Generator,
        speech_rms: float,
        babble: Callable[[], FloatArray] | None = None,
    ) -> FloatArray:
        """Everything else, of a whole recording. Length and time stay.

        Args:
            audio: float32, (samples,).
            rng: the only source of chance.
            speech_rms: root mean square of the speech alone, without pauses; 0 where there is none, and then there is
                nothing to set noise against, so none is added.
            babble: gives audio of another speaker, of any length.

        Returns:
            float32, (samples,), no sample beyond ±1.
        """
        config, samples = self.config, audio.size
        if not samples:
            return audio
        if rng.random() < config.room:
            audio = reverberate(audio, self._room(rng))
        if rng.random() < config.noise and speech_rms > 0:
            audio = audio + self.noise(samples, rng) * np.float32(speech_rms / _ratio(rng.uniform(*config.noise_snr)))
        if rng.random() < config.babble and speech_rms > 0 and babble is not None:
            voices = _babble(samples, rng, babble, int(rng.integers(*config.babble_speakers, endpoint=True)))
            audio = audio + voices * np.float32(speech_rms / _ratio(rng.uniform(*config.babble_snr)))
        if rng.random() < config.equalizer:
            audio = self._library(rng, "equalizer", audio)
        if rng.random() < config.band_limit:
            audio = self._library(rng, "band_limit", audio)
        if rng.random() < config.level:
            audio = audio * np.float32(_ratio(rng.uniform(*config.level_range)))
        peak = float(np.abs(audio).max())
        if rng.random() < config.clipping and peak > 0:
            # Clipped at a tenth to six tenths of the peak, and brought back to it.
            share = np.float32(rng.uniform(0.1, 0.6))
            audio = np.clip(audio, -share * peak, share * peak) / share
        if peak > 1:
            audio = audio / np.float32(peak)
        if rng.random() < config.codec:
            audio = through_codec(audio, rng)
        return np.ascontiguousarray(np.clip(audio[:samples], -1, 1), np.float32)

    def noise(self, samples: int, rng: np.random.Generator) -> FloatArray:
        """Noise of unit root mean square, float32, (samples,): coloured, or a file of the noise folder."""
        if self.noises and rng.random() < 0.5:
            found = self.noises[int(rng.integers(len(self.noises)))].load()
            start = int(rng.integers(found.size))
            noise = np.resize(np.roll(found, -start) if found.size <= samples else found[start:], samples)
            rms = float(np.sqrt(np.mean(np.square(noise))))
            if rms > 1e-6:  # not a silent part of the file
                return np.asarray(noise / np.float32(rms), np.float32)
        return coloured_noise(samples, rng, exponent=rng.uniform(-0.5, 2.0))

    def _room(self, rng: np.random.Generator) -> FloatArray:
        if self.rooms and rng.random() < 0.5:
            return self.rooms[int(rng.integers(len(self.rooms)))].load()
        return synthetic_room(rng, rng.uniform(*self.config.room_rt60), direct_to_reverberant=rng.uniform(-3.0, 15.0))

    def _library(self, rng: np.random.Generator, name: str, audio: FloatArray) -> FloatArray:
        with _seeded(rng):
            return np.asarray(self._transforms[name](np.ascontiguousarray(audio), SAMPLING_RATE), np.float32)

    @cached_property
    def _transforms(self) -> dict[str, Callable[[FloatArray, int], FloatArray]]:
        import audiomentations as library

        (low_pitch, high_pitch), (slow, fast) = self.config.pitch_range, self.config.tempo_range
        return {
            "pitch": library.PitchShift(low_pitch, high_pitch, p=1.0),
            "tempo": library.TimeStretch(slow, fast, leave_length_unchanged=False, p=1.0),
            "equalizer": library.SevenBandParametricEQ(-9.0, 9.0, p=1.0),
            "band_limit": library.OneOf(
                [
                    library.LowPassFilter(1500.0, 7000.0, p=1.0),
                    library.HighPassFilter(40.0, 500.0, p=1.0),
                    library.BandPassFilter(800.0, 2500.0, 0.6, 1.6, p=1.0),
                ],
                p=1.0,
            ),
        }


def change_speed(audio: FloatArray, factor: float) -> FloatArray:
    """Play `factor` times as fast, by resampling: length / factor."""
    import soxr

    # soxr takes whole numbers of Hz: the nearest one is right to 1/16000.
    return np.asarray(soxr.resample(audio, round(SAMPLING_RATE * factor), SAMPLING_RATE, quality="MQ"), np.float32)


def coloured_noise(samples: int, rng: np.random.Generator, exponent: float) -> FloatArray:
    """Gaussian noise whose power falls with frequency as 1 / f**exponent, of unit root mean square, float32.

    0 is white, 1 pink, 2 brown. White noise is shaped in the frequency domain (Timmer and Koenig 1995), flat below
    20 Hz, where speech has nothing and brown noise would have everything.
    """
    from scipy import fft

    if not samples:
        return np.zeros(0, np.float32)
    length = fft.next_fast_len(samples, real=True)
    spectrum = fft.rfft(rng.standard_normal(length, dtype=np.float32))
    frequency = fft.rfftfreq(length, 1 / SAMPLING_RATE).astype(np.float32)
    spectrum *= np.maximum(frequency, 20.0) ** np.float32(-exponent / 2)
    noise = fft.irfft(spectrum, length)[:samples]
    return np.asarray(noise / np.sqrt(np.mean(np.square(noise))), np.float32)


def synthetic_room(rng: np.random.Generator, rt60: float, direct_to_reverberant: float) -> FloatArray:
    """Impulse response of a room that does not exist, float32, beginning with the direct sound.

    Polack's model (1988): after 2 to 20 ms, Gaussian noise that decays by 60 dB in `rt60` s; walls swallow the high
    frequencies first, so the noise is slightly low-passed.

    Args:
        rng: the only source of chance.
        rt60: s.
        direct_to_reverberant: dB, energy of the direct sound over that of all the rest.
    """
    length = max(2, round(rt60 * SAMPLING_RATE))
    tail = rng.standard_normal(length, dtype=np.float32)
    tail[1:] += np.float32(rng.uniform(0.0, 0.9)) * tail[:-1]
    tail *= np.exp(np.float32(-3 * np.log(10) / length) * np.arange(length, dtype=np.float32))
    tail[: min(length - 1, int(rng.uniform(0.002, 0.02) * SAMPLING_RATE))] = 0
    tail *= np.float32(1 / (_ratio(direct_to_reverberant) * np.sqrt(np.sum(np.square(tail)))))
    tail[0] = 1
    return tail


def reverberate(audio: FloatArray, room: FloatArray) -> FloatArray:
    """Convolve with an impulse response, whose direct sound stays in time; level and length stay too."""
    from scipy.signal import oaconvolve

    room = room[int(np.argmax(np.abs(room))) :][: 2 * SAMPLING_RATE]
    wet = oaconvolve(audio, room)[: audio.size].astype(np.float32)
    before, after = float(np.sum(np.square(audio))), float(np.sum(np.square(wet)))
    return wet * np.float32(np.sqrt(before / after)) if after > 0 else audio


def through_codec(audio: FloatArray, rng: np.random.Generator, codec: int | None = None) -> FloatArray:
    """Encode and decode with one of the codecs; length and time stay, to a few samples."""
    import soundfile
    import soxr

    chosen = int(rng.choice(len(_CODECS), p=list(codec_shares().values()))) if codec is None else codec
    container, subtype, rate, levels, _ = _CODECS[chosen]
    settings = {} if levels is None else {"compression_level": float(rng.uniform(*levels))}
    file = io.BytesIO()
    narrow = audio if rate == SAMPLING_RATE else soxr.resample(audio, SAMPLING_RATE, rate, quality="MQ")
    soundfile.write(file, np.clip(narrow, -1, 1), rate, format=container, subtype=subtype, **settings)
    file.seek(0)
    decoded, _ = soundfile.read(file, dtype="float32")
    if rate != SAMPLING_RATE:
        decoded = soxr.resample(decoded, rate, SAMPLING_RATE, quality="MQ")
    result = np.zeros_like(audio)
    result[: decoded.size] = decoded[: audio.size]
    return result


def codec_shares() -> dict[str, float]:
    """The codecs of `through_codec`, in its order, and how often each is taken."""
    total = sum(codec[-1] for codec in _CODECS)
    return {f"{kind} {subtype} {rate // 1000} kHz": share / total for kind, subtype, rate, _, share in _CODECS}


def _babble(samples: int, rng: np.random.Generator, voice: Callable[[], FloatArray], speakers: int) -> FloatArray:
    """Several voices, each going on and on, of unit root mean square together."""
    mixed = np.zeros(samples, np.float32)
    for _ in range(speakers):
        audio = voice()
        rms = float(np.sqrt(np.mean(np.square(audio)))) if audio.size else 0.0
        if rms > 0:
            mixed += np.resize(np.roll(audio, int(rng.integers(audio.size))), samples) / np.float32(rms)
    rms = float(np.sqrt(np.mean(np.square(mixed))))
    return mixed / np.float32(rms) if rms > 0 else mixed


def _ratio(decibels: float) -> float:
    return float(10 ** (decibels / 20))


def _folder(folder: str | None) -> list[Utterance]:
    """The audio of a folder in parts of at most 30 s, so that none is long to load."""
    return [] if folder is None else read_audio_folder(folder)


@contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    """audiomentations draws from Python's and numpy's global generators: seed them for it, then put them back."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
