"""From a trained encoder to the chip: ONNX export, graph check, quantizer, diff with the compiler's form, cost."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whisper_hailo_hf.compile.check import GraphReport, Verdict, check_graph
    from whisper_hailo_hf.compile.compile_report import CompileReport
    from whisper_hailo_hf.compile.cost import CostReport, estimate_cost
    from whisper_hailo_hf.compile.driver import compile_encoder
    from whisper_hailo_hf.compile.export import ExportReport, export_encoder
    from whisper_hailo_hf.compile.har_stages import compiler_stages
    from whisper_hailo_hf.compile.hn_diff import HnDiff, diff_har
    from whisper_hailo_hf.compile.quantize import quantize_encoder
    from whisper_hailo_hf.compile.quantize_report import QuantizationReport
    from whisper_hailo_hf.compile.rules import Rule

# loaded at first use: a look at a graph must not wait for torch
_HOMES = {
    "CompileReport": "compile_report",
    "CostReport": "cost",
    "ExportReport": "export",
    "GraphReport": "check",
    "HnDiff": "hn_diff",
    "QuantizationReport": "quantize_report",
    "Rule": "rules",
    "Verdict": "check",
    "check_graph": "check",
    "compile_encoder": "driver",
    "compiler_stages": "har_stages",
    "diff_har": "hn_diff",
    "estimate_cost": "cost",
    "export_encoder": "export",
    "quantize_encoder": "quantize",
}

__all__ = [
    "CompileReport",
    "CostReport",
    "ExportReport",
    "GraphReport",
    "HnDiff",
    "QuantizationReport",
    "Rule",
    "Verdict",
    "check_graph",
    "compile_encoder",
    "compiler_stages",
    "diff_har",
    "estimate_cost",
    "export_encoder",
    "quantize_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
