"""The stages of a compilation, each done once: parse, optimize and compile in the DFC, and comparisons between."""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from whisper_hailo_hf.compile.check import check_graph
from whisper_hailo_hf.compile.compile_source import (
    Source,
    Windows,
    compare,
    emulated_outputs,
    onnx_outputs,
    rows_of,
    write_set,
)
from whisper_hailo_hf.compile.dfc_process import Answer, DataflowCompiler, StageStopped
from whisper_hailo_hf.compile.hef_check import check_hef
from whisper_hailo_hf.compile.hn_diff import HnDiff, diff_har
from whisper_hailo_hf.compile.journal import Event, Journal, key_of, outputs_of
from whisper_hailo_hf.compile.model_script import check_script, generate, script_text
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.hailo.har import Har, read_har

STAGES = (
    "export",
    "parse",
    "windows",
    "compare-native",
    "model-script",
    "optimize",
    "noise-check",
    "compare-quantized",
    "compile",
    "compare-hef",
)
_ASKED_FOR = ("export", "windows", "model-script")  # where a request can turn out to be wrong
NAME = "encoder"  # of the network, and of its files
ONNX, HAR, SCRIPT = f"{NAME}.onnx", f"{NAME}.har", f"{NAME}.alls"
OPTIMIZED, COMPILED, HEF = f"{NAME}_optimized.har", f"{NAME}_compiled_model.har", f"{NAME}.hef"
CALIBRATION, COMPARISON = "calibration.npy", "comparison.npy"


@dataclass(frozen=True)
class Choices:
    """What was asked for, as far as it changes what the stages give; see `compile_encoder`."""

    hw_arch: str
    noise_check: bool
    finetune_epochs: int
    script: str | None
    report: dict[str, Any] | None
    batch_size: int = 8


@dataclass
class Build:
    """One compilation in a work folder.

    Attributes:
        source: what is compiled.
        windows: to calibrate and to compare with.
        choices: what was asked for.
        dfc: the compiler.
        versions: of what is installed in its environment.
        folder: for all files.
        journal: of what was done.
        observe: told each line of the journal.
        events: of the stages of this run, finished now or before.
        status: `"done"` or `"kept"`, by stage.
        warnings: for the user, in the order in which they came up.
    """

    source: Source
    windows: Windows
    choices: Choices
    dfc: DataflowCompiler
    versions: dict[str, Any]
    folder: Path
    journal: Journal
    observe: Callable[[Event], None]
    events: dict[str, Event] = field(default_factory=dict)
    status: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def run(self, stage: str) -> Event:
        """Does a stage, or finds it done. Those before it have been."""
        return getattr(self, f"_{stage.replace('-', '_')}")()

    def warn(self, line: str) -> None:
        """A line for the user, and for the journal."""
        if line not in self.warnings:
            self.warnings.append(line)
            self.observe(self.journal.write("warning", message=line))

    # what every stage does

    def _stage(
        self, stage: str, depends: dict[str, Any], outputs: Sequence[str], work: Callable[[Path], dict[str, Any]]
    ) -> Event:
        key = key_of(stage, **depends)
        event = self.journal.reusable(stage, key, self.folder)
        if event is not None:
            self.observe(self.journal.write("kept", stage=stage, key=key))
        else:
            self.observe(self.journal.write("started", stage=stage, key=key))
            event = self._do(stage, key, outputs, work)
            self.observe(event)
        self.events[stage] = event
        self.status.setdefault(stage, "done" if event is self.journal.events[-1] else "kept")
        for line in event.get("warnings", []):
            self.warn(line)
        return event

    def _do(self, stage: str, key: str, outputs: Sequence[str], work: Callable[[Path], dict[str, Any]]) -> Event:
        room, started = self.folder / f".{stage}", time.monotonic()
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir()
        try:
            found = work(room)
            written = outputs_of(room, list(outputs))
            for name in outputs:
                os.replace(room / name, self.folder / name)
        except BaseException as error:
            how = "failed" if isinstance(error, Exception) and not isinstance(error, StageStopped) else "stopped"
            seconds, reason = round(time.monotonic() - started, 3), str(error) or type(error).__name__
            self.observe(self.journal.write(how, stage=stage, key=key, seconds=seconds, reason=reason))
            if isinstance(error, RequestError) and stage not in _ASKED_FOR:  # of a file that the compiler wrote
                raise WhisperHailoError(f"{stage}: {error}") from error
            if isinstance(error, WhisperHailoError):
                error.args = (f"{stage}: {error}",)
            raise
        finally:
            shutil.rmtree(room, ignore_errors=True)
        seconds = round(time.monotonic() - started, 3)
        return self.journal.write("finished", stage=stage, key=key, seconds=seconds, outputs=written, **found)

    def _hash(self, stage: str, name: str) -> str:
        return self.events[stage]["outputs"][name]["sha256"]

    def _ask(self, stage: str, do: str, **files: Any) -> Answer:
        return self.dfc.run(stage, do, **files)

    # the stages

    def _export(self) -> Event:
        def work(room: Path) -> dict[str, Any]:
            facts = {"made_from": self.source.identity} | self.source.write_graph(room / ONNX)
            judged = check_graph(room / ONNX, "hailo8l" if self.choices.hw_arch == "hailo8l" else "hailo8")
            if not judged.passed:
                bad = sum(one.status in ("rewritten", "rejected") for one in (*judged.nodes, *judged.findings))
                facts["warnings"] = [
                    (
                        f"the graph check finds {bad} places that the compiler is known to rewrite or to reject: "
                        "whisper-hailo check names them"
                    )
                ]
            return facts

        depends = {"source": self.source.identity, "time_axis": self.source.time_axis}
        return self._stage("export", depends, [ONNX], work)

    def _parse(self) -> Event:
        def work(room: Path) -> dict[str, Any]:
            answer = self._ask(
                "parse", "parse", onnx=self.folder / ONNX, name=NAME, hw_arch=self.choices.hw_arch, har=room / HAR
            )
            har = read_har(room / HAR)
            facts = {"made_from": {ONNX: self._hash("export", ONNX)}, "time_axis": self.source.time_axis}
            return {**facts, "sdk_version": har.metadata.get("sdk_version"), **answer.facts, **answer.to_dict()}

        depends = {
            "onnx": self._hash("export", ONNX),
            "hw_arch": self.choices.hw_arch,
            "dfc": self.versions["dfc"],
        }
        return self._stage("parse", depends, [HAR], work)

    def _windows(self) -> Event:
        shape = input_shape(read_har(self.folder / HAR))
        data = self.windows

        def work(room: Path) -> dict[str, Any]:
            def tell(done: int, total: int) -> None:
                self.observe({"event": "progress", "stage": "windows", "done": done, "total": total})

            write_set(room / CALIBRATION, self.source, data.audio, data.calibration, shape, tell)
            write_set(room / COMPARISON, self.source, data.audio, data.comparison, shape)
            return {
                "entries": len(data.calibration) * self.source.tiles,
                "compared": len(data.comparison),
                "held_out": data.held_out,
                "shape": list(shape),
            }

        depends = {
            "source": self.source.identity if self.source.tiles > 1 else None,
            "shape": shape,
            "mel_bins": self.source.mel_bins,
            "frames": self.source.frames,
            "tiles": self.source.tiles,
            **data.identity(),
        }
        return self._stage("windows", depends, [CALIBRATION, COMPARISON], work)

    def _compare_native(self) -> Event:
        def work(room: Path) -> dict[str, Any]:
            diff = self._diff()
            errors = [finding.message for finding in diff.findings if finding.severity == "error"]
            answer, figures = self._emulate("compare-native", "SDK_NATIVE", HAR, room)
            facts = {"hn_diff": {"summary": diff.summary(), "errors": errors[:20]}, "figures": figures}
            return facts | {"native_range": figures.pop("range", None)} | answer.to_dict()

        depends = {"har": self._hash("parse", HAR), "onnx": self._hash("export", ONNX)}
        depends["windows"] = self._hash("windows", COMPARISON)
        return self._stage("compare-native", depends, [], work)

    def _model_script(self) -> Event:
        entries, choices = self.events["windows"]["entries"], self.choices

        def work(room: Path) -> dict[str, Any]:
            har, why = read_har(self.folder / HAR), []
            text = choices.script
            if text is None:
                lines = generate(
                    har,
                    self._diff(),
                    entries,
                    report=choices.report,
                    finetune_epochs=choices.finetune_epochs,
                    noise_check=choices.noise_check,
                )
                text, why = script_text(lines), [[line.command, line.why] for line in lines]
            warnings = check_script(text, SCRIPT, har, entries, choices.noise_check)
            (room / SCRIPT).write_text(text, encoding="utf-8")
            return {"own": choices.script is not None, "text": text, "why": why, "warnings": warnings}

        report = choices.report or {}
        depends = {
            "har": self._hash("parse", HAR),
            "entries": entries,
            "script": choices.script,
            "report": {name: report.get(name) for name in ("layers", "settings")},
            "finetune_epochs": choices.finetune_epochs,
            "noise_check": choices.noise_check,
        }
        return self._stage("model-script", depends, [SCRIPT], work)

    def _optimize(self) -> Event:
        def work(room: Path) -> dict[str, Any]:
            answer = self._ask(
                "optimize",
                "optimize",
                har=self.folder / HAR,
                script=self.folder / SCRIPT,
                calibration=self.folder / CALIBRATION,
                work_dir=room / "work",
                optimized=room / OPTIMIZED,
            )
            reduced = [line for line in answer.warnings if "educing optimization level" in line]
            return {
                "made_from": {HAR: self._hash("parse", HAR)},
                "warnings": [f"the compiler says: {line}" for line in reduced],
                **answer.facts,
                **answer.to_dict(),
            }

        depends = {
            "har": self._hash("parse", HAR),
            "script": self._hash("model-script", SCRIPT),
            "calibration": self._hash("windows", CALIBRATION),
            "dfc": self.versions["dfc"],
        }
        return self._stage("optimize", depends, [OPTIMIZED], work)

    def _noise_check(self) -> Event:
        def work(room: Path) -> dict[str, Any]:
            if not self.choices.noise_check:
                return {"skipped": True, "warnings": ["the noise check was left out, as asked"]}
            answer = self._ask("noise-check", "analyze", har=self.folder / OPTIMIZED, inputs=self.folder / COMPARISON)
            found: dict[str, Any] = {"skipped": False, **answer.facts, **answer.to_dict()}
            if answer.facts["analysis"] is None:
                found["note"] = "the compiler's analyze_noise gave nothing back; what it printed is in the log"
            return found

        depends = {
            "har": self._hash("optimize", OPTIMIZED),
            "windows": self._hash("windows", COMPARISON),
            "noise_check": self.choices.noise_check,
        }
        return self._stage("noise-check", depends, [], work)

    def _compare_quantized(self) -> Event:
        emulator = self.source.emulator()

        def work(room: Path) -> dict[str, Any]:
            answer, figures = self._emulate("compare-quantized", "SDK_QUANTIZED", OPTIMIZED, room)
            found: dict[str, Any] = {"output_range": figures.pop("range", None), "figures": figures}
            if emulator is not None:
                inputs, axis = np.load(self.folder / COMPARISON), self.source.time_axis
                ours = emulated_outputs(emulator, inputs, axis)
                found["emulator"] = compare(self.source, onnx_outputs(self.folder / ONNX, inputs, axis), ours)
            return found | answer.to_dict()

        depends = {
            "har": self._hash("optimize", OPTIMIZED),
            "onnx": self._hash("export", ONNX),
            "windows": self._hash("windows", COMPARISON),
            "emulator": emulator is not None,
        }
        return self._stage("compare-quantized", depends, [], work)

    def _compile(self) -> Event:
        def work(room: Path) -> dict[str, Any]:
            answer = self._ask(
                "compile", "compile", har=self.folder / OPTIMIZED, hef=room / HEF, compiled=room / COMPILED
            )
            return answer.facts | answer.to_dict()

        depends = {"har": self._hash("optimize", OPTIMIZED), "dfc": self.versions["dfc"]}
        return self._stage("compile", depends, [HEF, COMPILED], work)

    def _compare_hef(self) -> Event:
        def work(room: Path) -> dict[str, Any]:
            har = read_har(self.folder / HAR)
            return check_hef(
                self.folder / HEF,
                hw_arch=self.choices.hw_arch,
                dfc=self.versions["dfc"],
                input_shape=input_shape(har),
                output_shape=output_shape(har),
                output_range=self.events["compare-quantized"].get("output_range"),
                script=(self.folder / SCRIPT).read_text(encoding="utf-8"),
                har=har,
            )

        depends = {
            "hef": self._hash("compile", HEF),
            "har": self._hash("parse", HAR),
            "script": self._hash("model-script", SCRIPT),
            "output_range": self.events["compare-quantized"].get("output_range"),
        }
        return self._stage("compare-hef", depends, [], work)

    # what several need

    def _diff(self) -> HnDiff:
        return diff_har(self.folder / ONNX, self.folder / HAR)

    def _emulate(self, stage: str, context: str, har: str, room: Path) -> tuple[Answer, dict[str, Any]]:
        """The compiler's emulation of a HAR against ONNX Runtime, on the windows for comparisons."""
        answer = self._ask(
            stage,
            "infer",
            har=self.folder / har,
            context=context,
            inputs=self.folder / COMPARISON,
            outputs=room / "outputs.npy",
            batch_size=self.choices.batch_size,
        )
        inputs, found = np.load(self.folder / COMPARISON), rows_of(np.load(room / "outputs.npy"))
        reference = onnx_outputs(self.folder / ONNX, inputs, self.source.time_axis)
        figures: dict[str, Any] = dict(compare(self.source, reference, found))
        if "bad_frames" not in figures:
            figures["range"] = [float(found.min()), float(found.max())]
        return answer, figures


def input_shape(har: Har) -> tuple[int, int, int]:
    """(height, width, channels) of the parsed network's one input."""
    return _end(har, "input_layer")


def output_shape(har: Har) -> tuple[int, int, int]:
    """(height, width, channels) of its one output."""
    return _end(har, "output_layer")


def _end(har: Har, kind: str) -> tuple[int, int, int]:
    ends = [layer for layer in har.layers.values() if layer.type == kind]
    shapes = [
        shape for layer in ends for shape in (layer.output_shapes if kind == "input_layer" else layer.input_shapes)
    ]
    if len(ends) != 1 or not shapes or len(shapes[0]) != 4:
        what = kind.partition("_")[0]
        raise WhisperHailoError(
            f"the parsed network has {len(ends)} {what}s {json.dumps(shapes)}, one of rank 4 is needed"
        )
    return shapes[0][1], shapes[0][2], shapes[0][3]
