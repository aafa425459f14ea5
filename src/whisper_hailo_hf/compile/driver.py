"""The compiler driver: an encoder and audio to a HEF, through Hailo's Dataflow Compiler (DFC) in an environment of its
own.

What the stages prove, and what to do when one fails, stands in `docs/compile.md`.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.compile.compile_report import CompileReport, report_of
from whisper_hailo_hf.compile.compile_source import Source, Windows, choose_windows, open_source, work_beside
from whisper_hailo_hf.compile.compile_stages import HEF, SCRIPT, STAGES, Build, Choices
from whisper_hailo_hf.compile.dfc_errors import Context
from whisper_hailo_hf.compile.dfc_process import DataflowCompiler, check_platform
from whisper_hailo_hf.compile.journal import Event, Journal
from whisper_hailo_hf.compile.memory_guard import ceiling, gib
from whisper_hailo_hf.compile.model_script import ENOUGH_WINDOWS, read_script
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.fidelity import Gates
from whisper_hailo_hf.version import __version__

ARCHITECTURES = ("hailo8l", "hailo8", "hailo8r")  # of DFC 3; a HEF for hailo8l runs on a Hailo-8 too
_GROWTH = 24  # bytes of all HARs and of the compiler's own files, for each of the ONNX file
_SLACK = 2**30
_PATIENCE = 30  # tenths of a second for a compiler to go whose driver was killed

Observe = Callable[[Event], None]


def compile_encoder(
    model_or_folder: Any,
    calibration: Any,
    *,
    dfc_python: str | os.PathLike,
    output: str | os.PathLike | None = None,
    work: str | os.PathLike | None = None,
    hw_arch: str = "hailo8l",
    time_axis: str | None = None,
    windows: int = ENOUGH_WINDOWS,
    compare_windows: int = 16,
    quantization_report: str | os.PathLike | None = None,
    model_script: str | os.PathLike | None = None,
    finetune_epochs: int = 4,
    noise_check: bool = True,
    gates: Gates | None = None,
    memory_ceiling: str | float = 0.8,
    timeout: float | None = None,
    stop_after: str | None = None,
    fresh: bool = False,
    seed: int = 0,
    observe: Observe | None = None,
) -> CompileReport:
    """Compiles an encoder for a Hailo chip.

    The stages are export, parse, windows, compare-native, model-script, optimize, noise-check, compare-quantized,
    compile and compare-hef. Each is done once: a call with the same inputs and settings goes on where the last one
    ended, however that was. What lies between is in the work folder, with a journal of it all.

    Args:
        model_or_folder: a model or encoder of ours, its folder or Hub id, or a float `.onnx` file of log-mel features.
        calibration: audio or features, as for `quantize_encoder`. Real speech, as various as what will be heard.
        dfc_python: the interpreter that `hailo_sdk_client` is installed for.
        output: folder for `encoder.hef`, its model script and its journal; by default `hailo8l/` in the model's
            folder, and then they are recorded in `config.json`.
        work: folder for what lies between, some gigabytes; by default one beside the model's folder, by its name.
        hw_arch: `"hailo8l"` (runs on Hailo-8L and on Hailo-8), `"hailo8"` or `"hailo8r"`.
        time_axis: `"width"` or `"height"`; the model's own by default.
        windows: to calibrate with, at most. With fewer than 1024 the compiler lowers its optimization level.
        compare_windows: of 30 s, on which the compiler's emulations are held to ONNX Runtime.
        quantization_report: JSON of `quantize_encoder`, for what has 16 bits and what 4.
        model_script: a script to take instead of a generated one.
        finetune_epochs: of the compiler's own fine-tuning, in a generated script; 0 leaves it out.
        noise_check: False leaves out the compiler's noise analysis; that is written into the artefact's record.
        gates: what the emulations must reach; cosine 0.98 and 15 dB by default.
        memory_ceiling: a share of the RAM (0.8, "80%") or a size ("24G"), at which the compiler is stopped.
        timeout: seconds that a stage may take in the compiler.
        stop_after: a stage to end after; nothing is put in place then.
        fresh: forget what earlier runs have finished.
        seed: of the choice of windows.
        observe: told each line of the journal as it is written, and lines of event `tick` and `progress` between.

    Raises:
        RequestError: no such model, interpreter, compiler, script or audio; too little audio or disk.
        WhisperHailoError: the compiler failed, was stopped, or a stage is not the encoder any more; the line says
            which and what to do.
    """
    tell = observe or (lambda event: None)
    check_platform()
    _check(hw_arch, stop_after, windows, compare_windows, finetune_epochs, timeout)
    limit = ceiling(memory_ceiling)
    choices = Choices(
        hw_arch,
        noise_check,
        finetune_epochs,
        None if model_script is None else read_script(Path(model_script).expanduser()),
        None if quantization_report is None else _report(Path(quantization_report).expanduser()),
    )
    target, folder = _places(model_or_folder, output, work, hw_arch, stop_after)
    source = open_source(model_or_folder, time_axis)
    _check_report(choices, source)
    data = choose_windows(calibration, source, windows, compare_windows, seed)
    with _locked(folder) as lock:
        if fresh:
            (folder / "journal.jsonl").unlink(missing_ok=True)
        journal = Journal(folder / "journal.jsonl")
        context = Context(hw_arch, source.time_axis, SCRIPT)

        def tick(stage: str, seconds: float, memory: int) -> None:
            tell({"event": "tick", "stage": stage, "seconds": seconds, "memory": memory})

        dfc = DataflowCompiler(dfc_python, folder / "logs", limit, context, timeout=timeout, keep_open=lock, tick=tick)
        versions = dfc.probe()
        tell(journal.write("run", number=journal.run, **_facts(versions, choices, source, data, limit.limit)))
        build = Build(source, data, choices, dfc, versions, folder, journal, tell)
        _warn_before(build)
        _run(build, gates or Gates(), stop_after)
        if target is not None:
            _install(build, model_or_folder, target, in_place=output is None)
        return _result(build, target)


def _check(
    hw_arch: str, stop_after: str | None, windows: int, compare_windows: int, epochs: int, timeout: float | None
) -> None:
    if hw_arch not in ARCHITECTURES:
        raise RequestError(f"no target {hw_arch!r} for DFC 3: choose {', '.join(ARCHITECTURES)}")
    if stop_after is not None and stop_after not in STAGES:
        raise RequestError(f"no stage {stop_after!r} to stop after: choose from {', '.join(STAGES)}")
    if windows < 1 or compare_windows < 1 or epochs < 0 or (timeout is not None and not timeout > 0):
        raise RequestError("windows, compare_windows and timeout are positive numbers, finetune_epochs is 0 or more")


def _report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        report["settings"]["sixteen_bit"], [layer["input_bits"] for layer in report["layers"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is no report of whisper-hailo quantize ({type(error).__name__})") from error
    return report


def _check_report(choices: Choices, source: Source) -> None:
    if choices.report is None or source.encoder is None:
        return
    if choices.report.get("weights") != artefacts.fingerprint(source.encoder.core):
        raise RequestError("the quantizer's report is about other weights than this model's: make it anew")


def _places(
    model: Any, output: str | os.PathLike | None, work: str | os.PathLike | None, hw_arch: str, stop_after: str | None
) -> tuple[Path | None, Path]:
    """Folders for the result (None if there shall be none) and for what lies between."""
    named = Path(model).expanduser() if isinstance(model, str | os.PathLike) else None
    if output is not None:
        target: Path | None = Path(output).expanduser()
    else:
        target = named / hw_arch if named is not None and named.is_dir() else None
    if target is None and stop_after is None:
        raise RequestError("name a folder for the HEF: only for a model's folder is it known where it belongs")
    if work is not None:
        folder = Path(work).expanduser()
    elif named is not None and (beside := work_beside(named, hw_arch)) is not None:
        folder = beside
    else:
        raise RequestError("name a folder for the work: only for a model's folder or file one is found beside it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder} cannot be made a folder for the work ({error.strerror}): name another") from None
    return (target if stop_after in (None, STAGES[-1]) else None), folder


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Keeps others out of the work folder, for as long as this process, or a compiler that it started, lives."""
    import fcntl  # Linux, as was checked

    with open(folder / "lock", "a", encoding="ascii") as file:
        for patience in range(_PATIENCE, -1, -1):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not patience:
                    raise RequestError(
                        f"another compilation is at work in {folder}: wait for it, or name another folder with --work"
                    ) from None
                time.sleep(0.1)
        yield file.fileno()


def _facts(versions: dict[str, Any], choices: Choices, source: Source, data: Windows, limit: int) -> dict[str, Any]:
    return {
        "producer": f"whisper_hailo_hf {__version__}",
        "versions": versions,
        "settings": {
            "hw_arch": choices.hw_arch,
            "time_axis": source.time_axis,
            "windows": len(data.calibration) * source.tiles,
            "compare_windows": len(data.comparison),
            "finetune_epochs": choices.finetune_epochs,
            "noise_check": choices.noise_check,
            "own_script": choices.script is not None,
            "memory_ceiling": limit,
        },
    }


def _warn_before(build: Build) -> None:
    """What a run will cost, said before hours are spent on it; a disk that is too small ends it here."""
    version, entries = str(build.versions["dfc"]), len(build.windows.calibration) * build.source.tiles
    if not version.startswith("3."):
        family = "Hailo-10 and Hailo-15" if version.startswith("5.") else "no known chip"
        build.warn(f"DFC {version or 'of an unknown version'} is for {family}; for Hailo-8 and 8L take 3.x")
    if entries < ENOUGH_WINDOWS:
        build.warn(
            f"{entries} windows to calibrate with, below the {ENOUGH_WINDOWS} that the compiler wants: it lowers its "
            "optimization level to 1, which leaves fine-tuning out unless the script asks for it, and costs fidelity"
        )
    if not build.versions.get("gpu"):
        epochs = build.choices.finetune_epochs if build.choices.script is None else 0
        hours = f"; {epochs} epochs of fine-tuning take hours each on a CPU (0 leaves them out)" if epochs else ""
        build.warn(f"no GPU in sight: the compiler lowers its optimization level to 0 without one{hours}")
    if not build.windows.held_out:
        build.warn("so little audio that the comparisons run on windows that were calibrated with: they flatter")


def disk_needed(onnx_bytes: int, entries: int, row_bytes: int) -> int:
    """Bytes that a compilation may take in its work folder, by estimate.

    The calibration set (and once more for what the compiler keeps of it), all HARs and the compiler's own files at 24
    times the ONNX file, and 1 GiB for the rest.
    """
    return 2 * entries * row_bytes + _GROWTH * onnx_bytes + _SLACK


def _check_disk(build: Build) -> None:
    onnx = build.events["export"]["outputs"]["encoder.onnx"]["size"]
    entries = len(build.windows.calibration) * build.source.tiles
    row = 4 * build.source.mel_bins * build.source.frames // build.source.tiles
    needed = disk_needed(onnx, entries, row)
    there = sum(path.stat().st_size for path in build.folder.iterdir() if path.is_file())
    free = shutil.disk_usage(build.folder).free
    if free + there < needed:
        raise RequestError(
            f"the disk of {build.folder} has {gib(free)} free, where about {gib(needed - there)} more are needed: "
            "name another folder with --work, or take fewer --windows"
        )


def _run(build: Build, gates: Gates, stop_after: str | None) -> None:
    for stage in STAGES:
        event = build.run(stage)
        if stage == "export":
            _check_disk(build)
        if broken := _broken(stage, event, gates):
            build.observe(build.journal.write("broken", stage=broken[0], found_by=stage, reason=broken[1]))
            raise WhisperHailoError(f"{broken[0]} broke the encoder: {broken[1]}")
        if stage == stop_after:
            return


def _broken(stage: str, event: Event, gates: Gates) -> tuple[str, str] | None:
    """The stage that a comparison finds broken, and why and what to do."""
    if stage == "compare-native":
        if errors := event["hn_diff"]["errors"]:
            more = f" (and {len(errors) - 1} more)" * (len(errors) > 1)
            return (
                "parse",
                f"the compiler made another network of it: {errors[0]}{more}; see whisper-hailo check --har",
            )
        if found := gates.failures(event["figures"]):
            return "parse", f"its float emulation against ONNX Runtime: {', '.join(found)}"
    if stage == "compare-quantized" and (found := gates.failures(event["figures"])):
        return "optimize", (
            f"its quantized emulation against ONNX Runtime: {', '.join(found)}; give more layers 16 bits (the noise "
            "check's log and whisper-hailo quantize say which), more windows, or epochs of fine-tuning"
        )
    if stage == "compare-hef" and (problems := event["problems"]):
        return "compile", "; ".join(problems)
    return None


def _install(build: Build, model: Any, target: Path, in_place: bool) -> None:
    """Puts the HEF, its script and its journal where they are used, and into the model's records."""
    target.mkdir(parents=True, exist_ok=True)
    files = {name: target / name for name in (HEF, SCRIPT, "encoder.journal.jsonl")}
    for name in (HEF, SCRIPT):
        _copy(build.folder / name, files[name])
    build.observe(build.journal.write("done", hef=build.events["compile"]["outputs"][HEF]["sha256"]))
    hidden = {str(build.folder.absolute()): ".", str(Path.home()): "~"}
    hidden.pop("/", None)  # a home that is none
    build.journal.copy_to(files["encoder.journal.jsonl"], hidden)
    encoder = build.source.encoder
    if encoder is None:
        return
    weights, events, arch = artefacts.fingerprint(encoder.core), build.events, build.choices.hw_arch
    hef = events["compare-hef"]["hef"]
    figures = {name: events[f"compare-{name}"]["figures"] for name in ("native", "quantized")}
    facts = {
        "producer": f"whisper_hailo_hf {__version__}, DFC {build.versions['dfc']}",
        "hw_arch": arch,
        "time_axis": build.source.time_axis,
        "input": hef["inputs"][0],
        "output": hef["outputs"][0],
        "contexts": hef["contexts"],
        "compiler": f"DFC {hef['dfc']}",
        "runtime_since": hef["runtime_since"],
        "versions": build.versions | artefacts.tool_versions("torch", "onnx"),
        "source": encoder.config.source,
        "noise_check": "done" if build.choices.noise_check else "skipped",
        "calibration": {"windows": events["windows"]["entries"]},
        "fidelity": {name: {key: found[key] for key in ("snr_db", "cosine_mean")} for name, found in figures.items()},
    }
    records = {f"{arch}/{HEF}": artefacts.record(files[HEF], weights, **facts)}
    for name in (SCRIPT, "encoder.journal.jsonl"):
        records[f"{arch}/{name}"] = artefacts.record(files[name], weights, producer=facts["producer"])
    if isinstance(model, str | os.PathLike):
        if in_place:
            artefacts.write_records(Path(model).expanduser(), records)
    else:
        encoder.artefacts |= {f"{arch}/{name}": path for name, path in files.items()}
        encoder.config.artefacts |= records


def _copy(path: Path, there: Path) -> None:
    partial = there.with_name(f"{there.name}.part")
    shutil.copyfile(path, partial)
    os.replace(partial, there)


def _result(build: Build, target: Path | None) -> CompileReport:
    script, noise = build.events.get("model-script"), build.events.get("noise-check")
    hef = build.events["compile"]["outputs"][HEF] if target is not None else None
    return CompileReport(
        hef=str(target / HEF) if target is not None else None,
        sha256=hef["sha256"] if hef else None,
        size=hef["size"] if hef else None,
        hw_arch=build.choices.hw_arch,
        versions=build.versions,
        work=str(build.folder),
        stages={name: report_of(event, build.status[name]) for name, event in build.events.items()},
        script=script["text"] if script else None,
        script_reasons=[(command, why) for command, why in script["why"]] if script else [],
        noise_check=None if noise is None else not noise["skipped"],
        warnings=build.warnings,
    )
