"""For `trust_remote_code=True`: finds the model's code, in `pip install whisper-hailo-hf`."""

from whisper_hailo_hf import (  # noqa: F401
    HailoWhisperEncoder,
    WhisperHailoConfig,
    WhisperHailoForConditionalGeneration,
    WhisperHailoModel,
)
