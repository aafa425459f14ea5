"""Whisper on a Raspberry Pi with a Hailo chip, inside the Transformers API that people already use.

Importing this package registers its classes with Transformers' Auto classes and the ASR pipeline. The public names are
loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from whisper_hailo_hf import registration as registration
from whisper_hailo_hf.version import __version__ as __version__

if TYPE_CHECKING:
    from whisper_hailo_hf.compile import check_graph, compile_encoder, export_encoder, quantize_encoder
    from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig
    from whisper_hailo_hf.distillation import EncoderDistillationArguments, EncoderDistillationTrainer
    from whisper_hailo_hf.errors import RequestError, WhisperHailoError
    from whisper_hailo_hf.evaluation import compare_stages
    from whisper_hailo_hf.modeling_whisper_hailo import (
        HailoWhisperEncoder,
        WhisperHailoForConditionalGeneration,
        WhisperHailoModel,
    )

_HOMES = {
    "EncoderDistillationArguments": "distillation",
    "EncoderDistillationTrainer": "distillation",
    "HailoWhisperEncoder": "modeling_whisper_hailo",
    "RequestError": "errors",
    "WhisperHailoConfig": "configuration_whisper_hailo",
    "WhisperHailoError": "errors",
    "WhisperHailoForConditionalGeneration": "modeling_whisper_hailo",
    "WhisperHailoModel": "modeling_whisper_hailo",
    "check_graph": "compile",
    "compare_stages": "evaluation",
    "compile_encoder": "compile",
    "export_encoder": "compile",
    "quantize_encoder": "compile",
}

__all__ = [
    "EncoderDistillationArguments",
    "EncoderDistillationTrainer",
    "HailoWhisperEncoder",
    "RequestError",
    "WhisperHailoConfig",
    "WhisperHailoError",
    "WhisperHailoForConditionalGeneration",
    "WhisperHailoModel",
    "__version__",
    "check_graph",
    "compare_stages",
    "compile_encoder",
    "export_encoder",
    "quantize_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
