"""From a microphone or a stream to captions: words that appear early and, once committed, stay."""

from whisper_hailo_hf.live.engine import LiveTranscriber, Work
from whisper_hailo_hf.live.events import (
    Committed,
    Dropped,
    EndOfPhrase,
    Event,
    LiveWord,
    Notice,
    Pace,
    Partial,
    Silence,
)
from whisper_hailo_hf.live.policies import POLICIES
from whisper_hailo_hf.voice_activity import VAD_NAMES

__all__ = [
    "POLICIES",
    "VAD_NAMES",
    "Committed",
    "Dropped",
    "EndOfPhrase",
    "Event",
    "LiveTranscriber",
    "LiveWord",
    "Notice",
    "Pace",
    "Partial",
    "Silence",
    "Work",
]
