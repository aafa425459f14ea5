"""Recordings that are made for the tests of reading and transcribing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def noise(seconds: float, sampling_rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Quiet noise that swells and ebbs, no two seconds alike: float32 (samples,) or (samples, channels)."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(round(seconds * sampling_rate), channels)) * 0.1
    samples *= 0.2 + np.abs(np.sin(np.arange(len(samples)) / sampling_rate * 2.1))[:, None]
    samples = samples.clip(-1, 1).astype(np.float32)
    return samples[:, 0] if channels == 1 else samples


def sine(seconds: float, sampling_rate: int = 16_000, frequency: float = 440.0) -> np.ndarray:
    """A tone at half of full scale: float32 (samples,)."""
    time = np.arange(round(seconds * sampling_rate)) / sampling_rate
    return (0.5 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = 16_000, subtype: str | None = None) -> Path:
    """Write samples to a file, whose suffix says the format, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def cut(path: Path, fraction: float) -> Path:
    """A copy of the file that ends early."""
    short = path.with_name(f"cut-{path.name}")
    content = path.read_bytes()
    short.write_bytes(content[: int(len(content) * fraction)])
    return short
