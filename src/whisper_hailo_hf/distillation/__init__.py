"""Distillation: the student encoder learns the teacher's states."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
    from whisper_hailo_hf.distillation.collator import DistillationCollator
    from whisper_hailo_hf.distillation.metrics import Fidelity, FidelityMeter, encoder_fidelity
    from whisper_hailo_hf.distillation.statistics import TeacherStatistics, measure_statistics, start_positional_map
    from whisper_hailo_hf.distillation.teacher import Teacher, load_teacher
    from whisper_hailo_hf.distillation.trainer import EncoderDistillationTrainer

# loaded at first use: the data half must not wait for the Trainer
_HOMES = {
    "DistillationCollator": "collator",
    "EncoderDistillationArguments": "arguments",
    "EncoderDistillationTrainer": "trainer",
    "Fidelity": "metrics",
    "FidelityMeter": "metrics",
    "Teacher": "teacher",
    "TeacherStatistics": "statistics",
    "encoder_fidelity": "metrics",
    "load_teacher": "teacher",
    "measure_statistics": "statistics",
    "start_positional_map": "statistics",
}

__all__ = [
    "DistillationCollator",
    "EncoderDistillationArguments",
    "EncoderDistillationTrainer",
    "Fidelity",
    "FidelityMeter",
    "Teacher",
    "TeacherStatistics",
    "encoder_fidelity",
    "load_teacher",
    "measure_statistics",
    "start_positional_map",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
