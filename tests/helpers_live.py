"""Parts of the tests of live transcription."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_hailo_hf.audio import read_audio
from whisper_hailo_hf.live import Committed, Event, LiveTranscriber, LiveWord

CLIP = Path(__file__).resolve().parent.parent / "examples" / "digits_theo.flac"
TEXT = CLIP.with_suffix(".txt").read_text(encoding="utf-8").strip()
RATE = 16_000


def clip(seconds: float | None = None) -> np.ndarray:
    """The bundled clip, fourteen digits in 9.8 s, or its beginning: float32 at 16 kHz."""
    samples = read_audio(CLIP)
    return samples if seconds is None else samples[: round(seconds * RATE)]


class Loudness:
    """A detector of its own for tests that are not about detection: loud is speech. It costs nothing."""

    name = "loudness"

    def __call__(self, frame: np.ndarray) -> float:
        return float(np.abs(frame).mean() > 0.002)

    def reset(self) -> None:
        pass


def play(transcriber: LiveTranscriber, samples: np.ndarray, sizes: Iterable[int], rate: int = RATE) -> list[Event]:
    """Feed samples in blocks of these sizes, taken again from the first when they have run out, and finish."""
    events: list[Event] = []
    place, sizes = 0, list(sizes)
    turn = 0
    while place < len(samples):
        size = sizes[turn % len(sizes)]
        events += transcriber.feed(samples[place : place + size], rate)
        place, turn = place + size, turn + 1
    return events + transcriber.finish()


def words_of(events: Iterable[Event]) -> list[LiveWord]:
    """All committed words, in order."""
    return [word for event in events if isinstance(event, Committed) for word in event.words]


def text_of(events: Iterable[Event]) -> str:
    """The committed text."""
    return "".join(word.text for word in words_of(events)).strip()


class PortAudioError(Exception):
    """As sounddevice's."""


class FakeSoundDevice(types.ModuleType):
    """The part of sounddevice 0.5 that is used, with a microphone that plays samples and may be unplugged.

    Args:
        devices: (name, input channels, own rate, rates that it can) of each.
        samples: what the microphone hears, (samples,), at the rate that it is opened with.
        ends: `plays on`, `silent` (no more callbacks, as ALSA does for some devices), `stops` (the stream ends), or
            `ctrl-c` (it plays on, and somebody presses that).
    """

    PortAudioError = PortAudioError

    def __init__(
        self, devices: list[tuple[str, int, int, tuple[int, ...]]], samples: np.ndarray, ends: str = "plays on"
    ) -> None:
        super().__init__("sounddevice")
        self.devices, self.samples, self.ends = devices, samples, ends
        self.default = types.SimpleNamespace(device=(0, 0))
        self.InputStream = lambda **settings: _FakeStream(self, settings)

    def query_devices(self, device: Any = None, kind: str | None = None) -> Any:
        found = [
            {"index": i, "name": name, "max_input_channels": channels, "default_samplerate": float(rate)}
            for i, (name, channels, rate, _) in enumerate(self.devices)
        ]
        if device is None and kind is None:
            return found
        if device is None:
            device = self.default.device[0]
        chosen = [d for d in found if device in (d["index"],) or (isinstance(device, str) and device in d["name"])]
        if len(chosen) != 1 or chosen[0]["max_input_channels"] < 1:
            raise ValueError(f"No input device matching {device!r}")
        return chosen[0]

    def check_input_settings(self, device: int, channels: int, dtype: str, samplerate: int) -> None:
        if samplerate not in self.devices[device][3]:
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")


class _FakeStream:
    def __init__(self, module: FakeSoundDevice, settings: dict[str, Any]) -> None:
        self.module, self.settings = module, settings
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _FakeStream:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._left.set()
        self._thread.join()

    def _run(self) -> None:
        size, rate = self.settings["blocksize"], self.settings["samplerate"]
        place, pressed = 0, False
        while not self._left.is_set():
            block = self.module.samples[place : place + size]
            if len(block) < size:
                if self.module.ends == "silent":
                    return
                if self.module.ends == "stops":
                    self.settings["finished_callback"]()
                    return
                if self.module.ends == "ctrl-c" and not pressed:
                    pressed = True
                    os.kill(os.getpid(), signal.SIGINT)
                block = np.zeros(size, np.float32)
            clock = types.SimpleNamespace(inputBufferAdcTime=100.0 + place / rate)
            frames = np.repeat(block[:, None], self.settings["channels"], axis=1)
            self.settings["callback"](frames, size, clock, types.SimpleNamespace(input_overflow=False))
            place += size
            time.sleep(0.002)


def install(monkeypatch: pytest.MonkeyPatch, module: types.ModuleType) -> None:
    """Let `import sounddevice` give this module."""
    monkeypatch.setitem(sys.modules, "sounddevice", module)
