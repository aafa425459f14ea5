"""Evaluation: error rates, speed, and the fidelity ladder from the trained encoder to what the chip gives."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whisper_hailo_hf.evaluation.bench_report import BenchmarkReport
    from whisper_hailo_hf.evaluation.benchmark import run_benchmark
    from whisper_hailo_hf.evaluation.comparison import Comparison, compare_states
    from whisper_hailo_hf.evaluation.evaluator import SpeechRecognitionEvaluator
    from whisper_hailo_hf.evaluation.ladder import compare_stages
    from whisper_hailo_hf.evaluation.metrics import CharacterErrorRate, WordErrorRate
    from whisper_hailo_hf.evaluation.recognition import RecognitionOptions, evaluate_recognition
    from whisper_hailo_hf.evaluation.recognition_report import RecognitionReport
    from whisper_hailo_hf.evaluation.report import StageReport, StageResult
    from whisper_hailo_hf.evaluation.stages import Stage, StageAbsent, register_stage, stage_names
    from whisper_hailo_hf.evaluation.windows import AudioWindows, load_windows
    from whisper_hailo_hf.fidelity import Gates

_HOMES = {
    "AudioWindows": "windows",
    "BenchmarkReport": "bench_report",
    "CharacterErrorRate": "metrics",
    "Comparison": "comparison",
    "Gates": "report",
    "RecognitionOptions": "recognition",
    "RecognitionReport": "recognition_report",
    "SpeechRecognitionEvaluator": "evaluator",
    "Stage": "stages",
    "StageAbsent": "stages",
    "StageReport": "report",
    "StageResult": "report",
    "WordErrorRate": "metrics",
    "compare_stages": "ladder",
    "compare_states": "comparison",
    "evaluate_recognition": "recognition",
    "load_windows": "windows",
    "register_stage": "stages",
    "run_benchmark": "benchmark",
    "stage_names": "stages",
}

__all__ = [
    "AudioWindows",
    "BenchmarkReport",
    "CharacterErrorRate",
    "Comparison",
    "Gates",
    "RecognitionOptions",
    "RecognitionReport",
    "SpeechRecognitionEvaluator",
    "Stage",
    "StageAbsent",
    "StageReport",
    "StageResult",
    "WordErrorRate",
    "compare_stages",
    "compare_states",
    "evaluate_recognition",
    "load_windows",
    "register_stage",
    "run_benchmark",
    "stage_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
