"""What makes a few clean voices sound like many, anywhere: rooms, noise, levels, channels, vocal tracts.

Everything here is numpy or torch on the CPU and cheap enough to run while training: noise and rooms are drawn from
banks made once, and filters and vocal tract lengths act on the spectrum that the features need anyway.
"""

import numpy as np
import torch
from digit_clips import SAMPLE_RATE, Clip
from scipy.signal import fftconvolve
from transformers import WhisperFeatureExtractor

N_FFT, HOP = 400, 160
_BINS = np.arange(N_FFT // 2 + 1) * SAMPLE_RATE / N_FFT


def coloured_noise(rng: np.random.Generator, n: int, slope: float) -> np.ndarray:
    """Noise of n samples whose power falls by `slope` times 3 dB an octave: 0 white, 1 pink, 2 brown; unit RMS."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    frequency = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), 20.0)
    noise = np.fft.irfft(spectrum * frequency ** (-slope / 2), n)
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def mains_hum(rng: np.random.Generator, n: int) -> np.ndarray:
    """50 or 60 Hz with harmonics of random strength, and a little white noise; unit RMS."""
    base, time = float(rng.choice([50.0, 60.0])) * float(rng.uniform(0.995, 1.005)), np.arange(n) / SAMPLE_RATE
    hum = sum(
        float(rng.uniform(0, 1)) / k**0.7 * np.sin(2 * np.pi * base * k * time + float(rng.uniform(0, 6.28)))
        for k in range(1, int(rng.integers(3, 24)))
    )
    hum = hum / np.sqrt(np.mean(hum**2)) + 0.05 * rng.standard_normal(n)
    return (hum / np.sqrt(np.mean(hum**2))).astype(np.float32)


def room_response(rng: np.random.Generator) -> np.ndarray:
    """A synthetic room impulse response: direct sound, a few early reflections, exponentially decaying noise."""
    decay = float(rng.uniform(0.08, 0.7))
    n = int(min(0.5, decay) * SAMPLE_RATE)
    time = np.arange(n) / SAMPLE_RATE
    tail = rng.standard_normal(n) * 10 ** (-3 * time / decay)
    tail[: int(float(rng.uniform(0.002, 0.02)) * SAMPLE_RATE)] = 0.0
    response = np.zeros(n)
    response[0] = 1.0
    for _ in range(int(rng.integers(0, 6))):
        response[int(rng.integers(1, int(0.03 * SAMPLE_RATE)))] += float(rng.uniform(-0.5, 0.5))
    ratio = 10 ** (float(rng.uniform(-15, 3)) / 20)
    response += tail / np.sqrt(np.sum(tail**2) + 1e-9) * ratio
    return response.astype(np.float32)


class Augmenter:
    """Banks of noise and rooms, and the chain that audio passes on its way to the features.

    Args:
        clips: Speech from which babble is mixed.
        seed: Of the banks.
        noises: Without them it can only compute features.
    """

    def __init__(self, clips: list[Clip], seed: int = 0, noises: bool = True) -> None:
        rng = np.random.default_rng(seed)
        if noises:
            self._fill_banks(rng, clips, 31 * SAMPLE_RATE)
        filters = WhisperFeatureExtractor(feature_size=80).mel_filters.astype(np.float32)  # (201, 80)
        position = np.arange(len(filters))
        # other vocal tracts: all formants moved together, and the lower against the higher a little; mildest first
        size = np.abs(rng.uniform(-0.14, 0.14, 64))
        self.filters = []
        for width in np.sort(size):
            low, middle, high = rng.choice([-1, 1]) * width + rng.normal(0, 0.3 * width, 3)
            moved = position * np.exp(np.interp(position, [0, 20, 60, 110, 200], [low, low, middle, high, high]))
            warped = np.stack([np.interp(moved, position, f, right=0.0) for f in filters.T], 1)
            self.filters.append(torch.from_numpy(warped).float())
        self.plain_filters = torch.from_numpy(filters)
        self.window = torch.hann_window(N_FFT)

    def _fill_banks(self, rng: np.random.Generator, clips: list[Clip], n: int) -> None:
        self.noises = [coloured_noise(rng, n, slope) for slope in (0, 0, 0.5, 1, 1, 1.5, 2, 2.5)]
        self.noises += [mains_hum(rng, n) for _ in range(5)]
        self.noises += [self._babble(rng, clips, n, voices) for voices in (4, 6, 8, 12, 20)]
        self.noises += [self._bursts(rng, n) for _ in range(4)]
        self.rooms = [room_response(rng) for _ in range(150)]

    def draw_warp(self, rng: np.random.Generator, strength: float) -> int | None:
        """Another length of the vocal tract: an index into the warped filters, or None for the speaker's own."""
        if rng.random() >= 0.7:
            return None
        return int(rng.integers(max(1, int(strength * len(self.filters)))))

    @staticmethod
    def _babble(rng: np.random.Generator, clips: list[Clip], n: int, voices: int) -> np.ndarray:
        out = np.zeros(n + 4 * SAMPLE_RATE, dtype=np.float32)
        for _ in range(voices):
            place = 0
            while place < n:
                clip = clips[int(rng.integers(len(clips)))].samples[:: int(rng.choice([-1, 1]))]
                out[place : place + len(clip)] += clip * float(rng.uniform(0.4, 1))
                place += len(clip) + int(rng.integers(0, SAMPLE_RATE // 4))
        return out[:n] / np.sqrt(np.mean(out[:n] ** 2))

    @staticmethod
    def _bursts(rng: np.random.Generator, n: int) -> np.ndarray:
        """Faint noise with knocks, clicks and rustling."""
        out = 0.1 * coloured_noise(rng, n, float(rng.uniform(0, 2)))
        for _ in range(int(rng.integers(15, 60))):
            length = int(float(rng.uniform(0.003, 0.25)) * SAMPLE_RATE)
            place = int(rng.integers(0, n - length))
            burst = coloured_noise(rng, max(64, length), float(rng.uniform(0, 2)))[:length]
            out[place : place + length] += burst * np.exp(-np.linspace(0, 5, length)) * float(rng.uniform(0.3, 3))
        return (out / np.sqrt(np.mean(out**2))).astype(np.float32)

    def noise(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """A stretch of one of the noises, unit RMS over the whole bank entry, sometimes two mixed."""
        total = np.zeros(n, dtype=np.float32)
        for _ in range(1 + int(rng.random() < 0.25)):
            bank = self.noises[int(rng.integers(len(self.noises)))]
            place = int(rng.integers(0, len(bank)))
            total += np.take(bank, np.arange(place, place + n), mode="wrap")
        return total

    def degrade(self, rng: np.random.Generator, speech: np.ndarray, audible: int, strength: float = 1.0) -> np.ndarray:
        """Room, noise, level, offset, clipping and quantisation over the first `audible` samples; zeros stay after."""
        out = speech[:audible]
        rms = float(np.sqrt(np.mean(out**2) + 1e-12) * np.sqrt(2.0))
        if rng.random() < 0.45 * strength:
            room = self.rooms[int(rng.integers(len(self.rooms)))]
            out = fftconvolve(out, room).astype(np.float32)[:audible]
        kind = rng.random() if rng.random() < strength else 0.0
        if kind > 0.18:
            low, high = (30, 50) if kind < 0.4 else (12, 30) if kind < 0.82 else (3, 12)
            out = out + self.noise(rng, audible) * (rms * 10 ** (-float(rng.uniform(low, high)) / 20))
        peak = float(np.abs(out).max()) + 1e-9
        out = out * (10 ** float(rng.uniform(-2.3, 0.0)) / peak)
        if rng.random() < 0.06:
            limit = float(rng.uniform(0.2, 0.8)) * float(np.abs(out).max())
            out = np.clip(out, -limit, limit)
        if rng.random() < 0.1:
            out = out + float(rng.uniform(-0.02, 0.02))
        if rng.random() < 0.08:  # mu-law, the coding of telephone lines
            level = np.sign(out) * np.log1p(255 * np.minimum(np.abs(out), 1)) / np.log(256)
            level = np.round(level * 127) / 127
            out = np.sign(level) * (256 ** np.abs(level) - 1) / 255
        full = np.zeros(len(speech), dtype=np.float32)
        full[:audible] = np.round(out * 32768) / 32768
        return full

    def silence(self, rng: np.random.Generator, n: int, audible: int) -> np.ndarray:
        """A window without speech: digital silence, noise of any level, hum, knocks, or tones; no babble."""
        full = np.zeros(n, dtype=np.float32)
        kind = rng.random()
        if kind < 0.12:
            return full
        if kind < 0.22:
            time = np.arange(audible) / SAMPLE_RATE
            for _ in range(int(rng.integers(1, 5))):
                gate = (np.sin(2 * np.pi * float(rng.uniform(0.1, 3)) * time) > float(rng.uniform(-1, 0.8))).astype(
                    "f4"
                )
                full[:audible] += (
                    gate * np.sin(2 * np.pi * float(rng.uniform(80, 4000)) * time) * float(rng.uniform(0, 1))
                )
        else:
            quiet = self.noises[:13] + self.noises[18:]
            bank = quiet[int(rng.integers(len(quiet)))]
            full[:audible] = np.take(bank, np.arange(audible) + int(rng.integers(len(bank))), mode="wrap")
        full *= 10 ** float(rng.uniform(-4.5, 0)) / (float(np.abs(full).max()) + 1e-9)
        return np.round(full * 32768) / 32768

    def channel(self, rng: np.random.Generator) -> np.ndarray | None:
        """A random microphone or line: power gain for each of the 201 frequency bins, or None for none."""
        if rng.random() < 0.3:
            return None
        gain = np.zeros(len(_BINS))  # dB
        gain += float(rng.uniform(-6, 6)) * np.log2(np.maximum(_BINS, 100) / 1000) * float(rng.random() < 0.6)
        knots = np.interp(_BINS, [0, 300, 1000, 2000, 4000, 8000], rng.uniform(-6, 6, size=6))
        gain += knots * float(rng.random() < 0.6)
        if rng.random() < 0.4:
            cut = float(rng.choice([3000, 3400, 3700, 4000, 5000, 6000, 7000]))
            gain -= np.maximum(0, np.log2(np.maximum(_BINS, 1) / cut)) * float(rng.uniform(24, 200))
        if rng.random() < 0.3:
            cut = float(rng.uniform(60, 350))
            gain -= np.maximum(0, np.log2(cut / np.maximum(_BINS, 10))) * float(rng.uniform(6, 24))
        return (10 ** (np.maximum(gain, -120) / 10)).astype(np.float32)

    def features(self, samples: np.ndarray, gain: np.ndarray | None = None, warp: int | None = None) -> torch.Tensor:
        """Whisper's log-mel features, (80, len(samples) / 160), through a channel and another vocal tract.

        As `WhisperFeatureExtractor` computes them where neither is given.
        """
        spectrum = torch.stft(
            torch.from_numpy(samples), N_FFT, HOP, window=self.window, return_complex=True, center=True
        )[:, :-1]
        power = spectrum.real**2 + spectrum.imag**2
        if gain is not None:
            power = power * torch.from_numpy(gain)[:, None]
        filters = self.plain_filters if warp is None else self.filters[warp]
        mel = torch.clamp(filters.T @ power, min=1e-10).log10()
        return (torch.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0

    @staticmethod
    def mask(rng: np.random.Generator, features: torch.Tensor) -> torch.Tensor:
        """SpecAugment (https://arxiv.org/abs/1904.08779): hides a few bands, and moments too short to hide a word."""
        for _ in range(int(rng.integers(0, 3))):
            width = int(rng.integers(2, 9))
            place = int(rng.integers(0, features.shape[0] - width))
            features[place : place + width] = features.mean()
        for _ in range(int(rng.integers(0, 1 + features.shape[1] // 200))):
            place, width = int(rng.integers(0, features.shape[1] - 8)), int(rng.integers(2, 8))
            features[:, place : place + width] = features.min()
        return features
