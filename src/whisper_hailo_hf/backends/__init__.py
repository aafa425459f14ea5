"""Where the encoder's forward runs: one protocol, one registry, and the choice of `auto`."""

from whisper_hailo_hf.backends.base import BackendStatus, EncoderBackend, EncoderParts, weights_version
from whisper_hailo_hf.backends.registry import available_backends, backend_class, backend_names, make_backend

__all__ = [
    "BackendStatus",
    "EncoderBackend",
    "EncoderParts",
    "available_backends",
    "backend_class",
    "backend_names",
    "make_backend",
    "weights_version",
]
