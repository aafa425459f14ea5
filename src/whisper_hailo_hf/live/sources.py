"""Where the audio comes from: a microphone, a file played in its own time or faster, raw samples on standard input."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray, check_audio, iter_audio
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

BLOCK_S = 0.1
# A microphone that gives nothing for so long has gone: PortAudio does not tell on every system.
_GONE_S = 5.0
_RATES = (SAMPLING_RATE, 48_000, 44_100, 32_000, 8_000)
FORMATS: dict[str, np.dtype[Any]] = {
    "s16le": np.dtype("<i2"),
    "s32le": np.dtype("<i4"),
    "f32le": np.dtype("<f4"),
}


@dataclass(frozen=True)
class Block:
    """Samples, (samples,) or (samples, channels), their rate in Hz, and where they begin, if the source knows: s."""

    samples: Any
    rate: int
    at: float | None = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


class Source(Protocol):
    """A stream of blocks.

    Attributes:
        name: for people.
        speed: how many seconds of audio come in a second; 0 for as many as are asked for.
        waits: whether it can wait for who listens; a microphone cannot.
    """

    name: str
    speed: float
    waits: bool

    def __iter__(self) -> Iterator[Block]:
        """The blocks, until the stream ends or `close` is called.

        Raises:
            WhisperHailoError: the source is gone, in one line.
        """

    def close(self) -> None:
        """End the stream; may be called from another thread."""


class FileSource:
    """A recording played as if it were spoken now.

    Args:
        path: any file that `audio.iter_audio` reads.
        speed: 1 for real time, 20 for twenty times as fast, 0 for as fast as can be.

    Raises:
        RequestError: not a recording that can be read to its end.
    """

    waits = True

    def __init__(self, path: str | os.PathLike[str], speed: float = 1.0) -> None:
        if not 0 <= speed <= 1000:
            raise RequestError(f"a speed is between 0, as fast as can be, and 1000, not {speed}")
        check_audio(path)
        self.name, self.speed, self._path = Path(path).name, speed, path
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Block]:
        size, place, began = round(BLOCK_S * SAMPLING_RATE), 0, time.monotonic()
        for long in iter_audio(self._path, block_seconds=10 * BLOCK_S):
            for first in range(0, len(long), size):
                block = Block(long[first : first + size], SAMPLING_RATE)
                place += len(block.samples)
                due = began + place / SAMPLING_RATE / self.speed if self.speed else 0.0
                if self._closed.wait(max(0.0, due - time.monotonic())):
                    return
                yield block

    def close(self) -> None:
        self._closed.set()


class PipeSource:
    """Raw interleaved samples from a pipe: `arecord`, `ffmpeg`, GStreamer, a program of your own.

    Args:
        stream: binary, standard input most often.
        rate: Hz.
        channels: 1 or 2.
        sample_format: one of `FORMATS`, by FFmpeg's names.
    """

    speed, waits = 1.0, True

    def __init__(
        self, stream: BinaryIO, rate: int = SAMPLING_RATE, channels: int = 1, sample_format: str = "s16le"
    ) -> None:
        if sample_format not in FORMATS:
            raise RequestError(f"unknown sample format {sample_format!r}: choose {', '.join(FORMATS)}")
        if channels not in (1, 2):
            raise RequestError(f"one or two channels are read, not {channels}: mix down before the pipe")
        if stream.isatty():
            raise RequestError("standard input is a terminal: pipe raw audio into it, as arecord -t raw gives it")
        self.name = f"standard input, {rate} Hz"
        self._stream, self._rate, self._channels = stream, rate, channels
        self._type = FORMATS[sample_format]
        self._closed = False

    def __iter__(self) -> Iterator[Block]:
        frame = self._type.itemsize * self._channels
        size = frame * max(1, round(BLOCK_S * self._rate))
        # Not through a buffer's lock: this thread may still wait here when the program ends.
        read = getattr(self._stream, "raw", self._stream).read
        rest = b""
        while not self._closed and (data := read(size)):
            data = rest + data
            whole = len(data) // frame * frame
            data, rest = data[:whole], data[whole:]  # what is left of a frame at the very end is no sample
            if data:
                yield Block(np.frombuffer(data, self._type).reshape(-1, self._channels), self._rate)

    def close(self) -> None:
        self._closed = True


def input_devices() -> list[dict[str, Any]]:
    """The devices that can record: `index`, `name`, `channels`, `rate` (Hz) and whether it is the `default`.

    Raises:
        RequestError: sounddevice or PortAudio is not installed.
    """
    sd = _sounddevice()
    default = sd.default.device[0]
    return [
        {
            "index": index,
            "name": str(device["name"]),
            "channels": int(device["max_input_channels"]),
            "rate": int(device["default_samplerate"]),
            "default": index == default,
        }
        for index, device in enumerate(sd.query_devices())
        if device["max_input_channels"] > 0
    ]


class MicrophoneSource:
    """A microphone, through PortAudio.

    Args:
        device: index or part of a name; None is the system's default.
        rate: Hz; None is 16 kHz where the device can, otherwise its own.

    Raises:
        RequestError: no PortAudio, no such device, or a rate that it cannot record at.
    """

    speed, waits = 1.0, False

    def __init__(self, device: str | int | None = None, rate: int | None = None) -> None:
        self._sd = _sounddevice()
        if isinstance(device, str) and device.strip().isdigit():
            device = int(device)
        found = self._find(device)
        self._device, self._channels = found["index"], min(2, found["max_input_channels"])
        self.rate = self._choose_rate(found, rate)
        self.name = f"{found['name']}, {self.rate} Hz"
        # Called on PortAudio's own thread, where nothing may wait.
        self._blocks: queue.SimpleQueue[Block | None] = queue.SimpleQueue()
        self._began: float | None = None
        self._closed = False

    def _find(self, device: str | int | None) -> dict[str, Any]:
        try:
            return dict(self._sd.query_devices(device, "input"))
        except (ValueError, self._sd.PortAudioError) as error:
            known = ", ".join(f"{entry['index']}: {entry['name']}" for entry in input_devices())
            if not known:
                raise RequestError(
                    "this machine has no microphone: plug one in, play a file, or pipe audio in"
                ) from error
            which = "the system has no default microphone" if device is None else f"no microphone {device!r}"
            raise RequestError(f"{which}: choose with --device from {known}") from error

    def _choose_rate(self, found: dict[str, Any], rate: int | None) -> int:
        tried = (rate,) if rate is not None else (SAMPLING_RATE, int(found["default_samplerate"]), *_RATES)
        reason = ""
        for candidate in tried:
            try:
                self._sd.check_input_settings(self._device, self._channels, "float32", samplerate=candidate)
            except (ValueError, self._sd.PortAudioError) as error:
                reason = str(error).splitlines()[0]
            else:
                return candidate
        rates = ", ".join(str(candidate) for candidate in dict.fromkeys(tried))
        raise RequestError(f"{found['name']} cannot record at {rates} Hz ({reason})")

    def _callback(self, samples: FloatArray, frames: int, clock: Any, status: Any) -> None:
        place = float(clock.inputBufferAdcTime)
        if self._began is None:
            self._began = place
        # Audio was lost: the clock of the converter tells how much, on systems that have one.
        lost = bool(getattr(status, "input_overflow", False)) and place > self._began
        self._blocks.put(Block(samples.copy(), self.rate, place - self._began if lost else None))

    def __iter__(self) -> Iterator[Block]:
        try:
            stream = self._sd.InputStream(
                samplerate=self.rate,
                device=self._device,
                channels=self._channels,
                dtype="float32",
                blocksize=round(BLOCK_S * self.rate),
                callback=self._callback,
                finished_callback=lambda: self._blocks.put(None),
            )
            with stream:
                while not self._closed:
                    block = self._blocks.get(timeout=_GONE_S)
                    if block is None:
                        break
                    yield block
        except queue.Empty:
            raise WhisperHailoError(f"{self.name}: no audio for {_GONE_S:.0f} s: is it still plugged in?") from None
        except self._sd.PortAudioError as error:
            raise WhisperHailoError(f"{self.name}: {str(error).splitlines()[0]}") from error
        if not self._closed:
            raise WhisperHailoError(f"{self.name}: the recording has stopped: is it still plugged in?")

    def close(self) -> None:
        self._closed = True
        self._blocks.put(None)


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise RequestError("a microphone needs sounddevice: pip install 'whisper-hailo-hf[mic]'") from error
    except OSError as error:  # the wheel for Linux has no PortAudio in it
        raise RequestError(
            "a microphone needs PortAudio, which is not installed: apt install libportaudio2"
        ) from error
    return sounddevice
