"""Evaluation: the fidelity ladder, from the trained encoder to what the chip gives."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whisper_hailo_hf.evaluation.comparison import Comparison, compare_states
    from whisper_hailo_hf.evaluation.ladder import compare_stages
    from whisper_hailo_hf.evaluation.report import Gates, StageReport, StageResult
    from whisper_hailo_hf.evaluation.stages import Stage, StageAbsent, register_stage, stage_names
    from whisper_hailo_hf.evaluation.windows import AudioWindows, load_windows

_HOMES = {
    "AudioWindows": "windows",
    "Comparison": "comparison",
    "Gates": "report",
    "Stage": "stages",
    "StageAbsent": "stages",
    "StageReport": "report",
    "StageResult": "report",
    "compare_stages": "ladder",
    "compare_states": "comparison",
    "load_windows": "windows",
    "register_stage": "stages",
    "stage_names": "stages",
}

__all__ = [
    "AudioWindows",
    "Comparison",
    "Gates",
    "Stage",
    "StageAbsent",
    "StageReport",
    "StageResult",
    "compare_stages",
    "compare_states",
    "load_windows",
    "register_stage",
    "stage_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
