"""Files in; text, JSON, SRT, VTT or TSV out."""

from whisper_hailo_hf.speech_model import SpeechModel, demo_model_path, load_speech_model
from whisper_hailo_hf.transcription.files import Observer, Report, TranscriptionOptions, transcribe
from whisper_hailo_hf.transcription.inputs import AudioFile, FoundAudio, find_audio
from whisper_hailo_hf.transcription.transcriber import TIMESTAMPS, Transcriber

__all__ = [
    "TIMESTAMPS",
    "AudioFile",
    "FoundAudio",
    "Observer",
    "Report",
    "SpeechModel",
    "Transcriber",
    "TranscriptionOptions",
    "demo_model_path",
    "find_audio",
    "load_speech_model",
    "transcribe",
]
