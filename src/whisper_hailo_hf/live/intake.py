"""Blocks of any size, rate and kind to one stream of 16 kHz mono samples with a clock that nothing stops.

What is done with a sample must not depend on how the samples were cut into blocks. Hence the input is cut anew, at its
own rate, into chunks of one length, and everything that works on more than one sample (the resampler, the detection of
clipping) works on those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.errors import RequestError

CHUNK_S = 0.032
RATES = (4_000, 384_000)
# A gap that is shorter than this is the jitter of a clock.
JITTER_S = 0.05
# A shorter gap is filled with silence; after a longer one nobody could tell what a sentence was.
FILL_S = 1.0
# Of a block's samples at full scale; speech that is not clipped has fewer.
_CLIPPED_SHARE = 0.01
_FULL_SCALE = 0.999
_INTEGERS = {np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}


@dataclass(frozen=True)
class Chunk:
    """A piece of the stream, at 16 kHz, and what was found on the way in."""

    samples: FloatArray
    clipped: bool = False
    broken: bool = False  # had samples that are not finite numbers; they are zero now


@dataclass(frozen=True)
class Gap:
    """No audio for so many seconds; `filled` if as much silence follows, otherwise the clock jumps."""

    seconds: float
    filled: bool


def as_mono(block: Any) -> FloatArray:
    """A block of samples as float32 (samples,), full scale ±1.

    Args:
        block: float or 16- or 32-bit integer samples, (samples,), or (samples, channels) of one or two channels, which
            are averaged.

    Raises:
        RequestError: another shape or type, in one line.
    """
    samples = np.asarray(block)
    if samples.dtype in _INTEGERS:
        samples = samples.astype(np.float32) / np.float32(_INTEGERS[samples.dtype])
    elif np.issubdtype(samples.dtype, np.floating):
        samples = samples.astype(np.float32)
    else:
        raise RequestError(f"samples are float, int16 or int32, not {samples.dtype}")
    if samples.ndim == 2 and samples.shape[1] in (1, 2):
        return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    if samples.ndim != 1:
        raise RequestError(f"a block is (samples,) or (samples, 1 or 2 channels), not {samples.shape}")
    return samples


class Intake:
    """Takes blocks, gives `Chunk`s and `Gap`s; which blocks the samples came in makes no difference to them."""

    def __init__(self) -> None:
        self._rate = 0
        self._resampler: Any = None
        self._rest = np.zeros(0, np.float32)
        self._seconds = 0.0  # of the stream, before the present rate
        self._frames = 0  # since then

    @property
    def clock(self) -> float:
        """Seconds of the stream that have been taken in, the gaps among them."""
        return self._seconds + (self._frames / self._rate if self._rate else 0.0)

    def push(self, block: Any, rate: int, at: float | None = None) -> Iterator[Chunk | Gap]:
        """Take one block.

        Args:
            block: as `as_mono` takes it.
            rate: its sampling rate, Hz.
            at: where in the stream the block begins, seconds, where its source knows; later than expected means that
                audio was lost before it.
        """
        if not RATES[0] <= rate <= RATES[1]:
            raise RequestError(f"a sampling rate is between {RATES[0]} and {RATES[1]} Hz, not {rate}")
        mono = as_mono(block)
        if rate != self._rate:
            yield from self._change_rate(rate)
        missing = 0.0 if at is None else at - self.clock
        if missing > JITTER_S:
            yield from self.skip(missing)
        self._frames += len(mono)
        size = max(1, round(CHUNK_S * rate))
        samples = np.concatenate([self._rest, mono])
        whole = len(samples) // size * size
        self._rest = samples[whole:].copy()
        for first in range(0, whole, size):
            yield self._convert(samples[first : first + size])

    def skip(self, seconds: float) -> Iterator[Chunk | Gap]:
        """Audio of so many seconds was lost: a short gap becomes silence, a long one a `Gap`."""
        if seconds <= FILL_S and self._rate:
            yield Gap(seconds, filled=True)
            yield from self.push(np.zeros(round(seconds * self._rate), np.float32), self._rate)
            return
        rate = self._rate
        yield from self.flush()
        self._seconds += seconds
        yield Gap(seconds, filled=False)
        if rate:
            yield from self._change_rate(rate)

    def flush(self) -> Iterator[Chunk | Gap]:
        """What is still on its way through the resampler; the stream goes on behind it."""
        self._seconds, self._frames = self.clock, 0
        if len(self._rest):
            yield self._convert(self._rest)
            self._rest = np.zeros(0, np.float32)
        if self._resampler is not None:
            yield Chunk(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            self._resampler = None
        self._rate = 0

    def _change_rate(self, rate: int) -> Iterator[Chunk | Gap]:
        import soxr

        yield from self.flush()
        self._seconds, self._frames, self._rate = self.clock, 0, rate
        if rate != SAMPLING_RATE:
            self._resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32", quality="HQ")

    def _convert(self, chunk: FloatArray) -> Chunk:
        finite = np.isfinite(chunk)
        broken = not finite.all()
        if broken:
            chunk = np.where(finite, chunk, np.float32(0))
        clipped = bool((np.abs(chunk) >= _FULL_SCALE).mean() > _CLIPPED_SHARE)
        if self._resampler is not None:
            chunk = self._resampler.resample_chunk(np.ascontiguousarray(chunk))
        return Chunk(np.clip(chunk, -1.0, 1.0), clipped, broken)
