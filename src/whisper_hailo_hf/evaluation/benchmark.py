"""How fast a model hears, on this machine: systems take turns in one run, so that whatever else the machine does meets
all of them alike."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray, read_audio
from whisper_hailo_hf.backends import backend_class
from whisper_hailo_hf.decoders import decoder_backend_names
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.evaluation.bench_process import BenchProcess
from whisper_hailo_hf.evaluation.bench_report import BenchmarkReport, SystemTimes
from whisper_hailo_hf.evaluation.bench_systems import (
    MEASURES,
    WINDOW_SECONDS,
    SystemSpec,
    convert_for_faster_whisper,
    faster_whisper_installed,
    speech_like_windows,
)
from whisper_hailo_hf.evaluation.energy import energy_meter
from whisper_hailo_hf.evaluation.provenance import provenance
from whisper_hailo_hf.evaluation.stand_in import make_stock, make_stock_like, make_student
from whisper_hailo_hf.speech_model import SpeechModel, checkpoint_kind, demo_model_path, load_speech_model

Observer = Callable[[str, int, int], None]
PAUSE = 0.25  # s: Intel's OpenMP, which CTranslate2 has, lets idle threads spin for 0.2 s after its work
_DECODERS = {"onnx": ("onnx",), "emulator": ("onnx-int8",), "hef": ("onnx-int8",)}  # beside torch, where they can run
MOST_TOKENS = 200  # what CTranslate2 gives room for behind the prompt


@dataclass(frozen=True)
class BenchFolders:
    """The folders that a benchmark compares: a stock Whisper, and a model of ours with a decoder of the same shape.

    Attributes:
        name: what was asked for.
        stock, ours: the folders.
        untrained: whether ours was made for the benchmark, with random weights and nothing beside them.
    """

    name: str
    stock: Path
    ours: Path
    untrained: bool = False


def prepare_folders(
    work: str | os.PathLike[str],
    *,
    shape: str | None = None,
    model: str | os.PathLike[str] | None = None,
    stock: str | os.PathLike[str] | None = None,
) -> BenchFolders:
    """Makes what is not there: random weights are as fast as trained ones.

    Args:
        work: folder for what is made.
        shape: one of `stand_in.SHAPES`: both models with random weights.
        model: of ours, to which a stock Whisper of its decoder's shape is made, or a stock Whisper, to which an
            untrained student is made; None is the bundled demo model.
        stock: a stock Whisper to compare a model of ours with, in place of the one that would be made.

    Raises:
        RequestError: shape and model together, or no such model.
    """
    work = Path(work)
    if shape is not None:
        if model is not None or stock is not None:
            raise RequestError("name a shape or a model, not both")
        made = make_stock(shape, work / "stock")
        return BenchFolders(f"shape {shape}", made, make_student(made, work / "ours"), untrained=True)
    source = os.fspath(demo_model_path() if model is None else model)
    if checkpoint_kind(source) == "whisper":
        if stock is not None:
            raise RequestError(f"{source} is a stock Whisper itself: leave out {os.fspath(stock)}")
        folder = _local(source, work / "stock")
        return BenchFolders(source, folder, make_student(folder, work / "ours"), untrained=True)
    speech = load_speech_model(source, "torch")
    ours = Path(source) if Path(source).is_dir() else _save(speech, work / "ours")
    if stock is not None:
        return BenchFolders(source, _local(os.fspath(stock), work / "stock"), ours)
    return BenchFolders(source, make_stock_like(speech.model, _processor(speech), work / "stock"), ours)


def _local(name: str, folder: Path) -> Path:
    """A folder with all that is needed, in the present form: old checkpoints have no tokenizer.json."""
    if checkpoint_kind(name) != "whisper":
        raise RequestError(f"{name} is no stock Whisper: name one to compare with")
    return _save(load_speech_model(name), folder)


def _save(speech: SpeechModel, folder: Path) -> Path:
    speech.model.save_pretrained(folder)
    _processor(speech).save_pretrained(folder)
    return folder


def _processor(speech: SpeechModel) -> Any:
    from transformers import WhisperProcessor

    return WhisperProcessor(speech.feature_extractor, speech.tokenizer)


def choose_systems(
    folders: BenchFolders,
    work: str | os.PathLike[str],
    *,
    backends: Sequence[str] | None = None,
    decoders: Sequence[str] | None = None,
    faster_whisper: bool | None = None,
) -> tuple[list[SystemSpec], list[str]]:
    """The systems that can be measured here, the stock one first, and why others cannot, one line each.

    Args:
        folders: from `prepare_folders`.
        work: folder for converted weights.
        backends: of ours; None takes torch, onnx, emulator and hef, as far as they are here.
        decoders: where the decoder of each of them runs; None takes torch, and beside it ONNX Runtime in float32 for
            an encoder there, in 8 bits for one in integers.
        faster_whisper: None takes it if it is installed.

    Raises:
        RequestError: a backend that was named, of encoder or decoder, or faster-whisper, cannot run here.
    """
    if unknown := sorted(set(decoders or ()) - set(decoder_backend_names())):
        raise RequestError(f"unknown decoder backend {unknown[0]!r}: choose {', '.join(decoder_backend_names())}")
    specs = [SystemSpec("stock torch", "stock", str(folders.stock))]
    notes: list[str] = []
    beside = _DECODERS if backend_class("onnx").status().available else {}
    for backend in backends or ("torch", "onnx", "emulator", "hef"):
        status = backend_class(backend).status()
        reason = None if status.available else status.reason
        if reason is None:
            try:
                load_speech_model(folders.ours, backend)
            except RequestError as error:
                reason = str(error)
        if reason is None:
            for decoder in decoders or ("torch", *beside.get(backend, ())):
                name = f"ours {backend}" + ("" if decoder == "torch" else f", decoder {decoder}")
                specs.append(SystemSpec(name, "ours", str(folders.ours), backend, decoder))
        elif backends:
            raise RequestError(f"the encoder backend {backend!r} cannot be measured: {reason}")
        else:
            notes.append(f"not measured: ours {backend}: {reason}")
    installed = faster_whisper_installed()
    if faster_whisper and not installed:
        raise RequestError("faster-whisper is not installed: pip install faster-whisper")
    if faster_whisper is None and not installed:
        notes.append("not measured: faster-whisper: pip install faster-whisper")
    if installed and faster_whisper is not False:
        for kind in ("float32", "int8"):
            folder = convert_for_faster_whisper(folders.stock, Path(work) / f"ctranslate2-{kind}", kind)
            specs.append(SystemSpec(f"faster-whisper {kind}", "faster_whisper", str(folder), compute_type=kind))
    return specs, notes


def run_benchmark(
    specs: Sequence[SystemSpec],
    *,
    name: str = "",
    threads: int | None = None,
    turns: int = 10,
    warm_up: int = 2,
    tokens: int = 64,
    audio: str | os.PathLike[str] | None = None,
    notes: Sequence[str] = (),
    observe: Observer | None = None,
) -> BenchmarkReport:
    """Measures systems in turn: each in its own process, the others waiting meanwhile.

    In a turn, one system after the other, each turn beginning with another one, runs its encoder once untimed (its
    memory has left the caches meanwhile), then each of `MEASURES` once. Before it, the last one's threads have the
    time to fall asleep.

    Args:
        specs: systems; the first is what the others are compared with.
        name: of what is measured, for the report.
        threads: that each may use; None is all cores of this process.
        turns: timed.
        warm_up: turns before them that do not count.
        tokens: that each system says of a window; from 2 to 200.
        audio: a recording whose windows are heard, in place of noise; its end is padded.
        notes: for the report.
        observe: told what runs, the turns done and those of all.

    Raises:
        RequestError: settings out of range.
        WhisperHailoError: a system cannot be loaded or run.
    """
    if not specs:
        raise RequestError("name one system or more to measure")
    if not 2 <= tokens <= MOST_TOKENS:
        raise RequestError(f"the number of tokens lies between 2 and {MOST_TOKENS}, it cannot be {tokens}")
    if turns < 1 or warm_up < 0:
        raise RequestError(f"there must be one turn or more, and no less than 0 to warm up, not {turns} and {warm_up}")
    threads = _cores() if threads is None else threads
    if threads < 1:
        raise RequestError(f"threads is a positive number, not {threads}")
    windows = speech_like_windows() if audio is None else _windows_of(audio)
    before = provenance(threads)
    meter = energy_meter()
    seconds: dict[str, dict[str, list[float]]] = {spec.name: {measure: [] for measure in MEASURES} for spec in specs}
    joules: dict[str, list[float]] = {spec.name: [] for spec in specs}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="whisper-hailo-bench-")))
        np.save(folder / "windows.npy", np.stack(windows))
        processes = []
        for spec in specs:
            if observe is not None:
                observe(f"loading {spec.name}", 0, warm_up + turns)
            process = BenchProcess(spec, str(folder / "windows.npy"), tokens, threads)
            processes.append(stack.enter_context(process))
        for turn in range(-warm_up, turns):
            for process in (*processes[turn % len(specs) :], *processes[: turn % len(specs)]):
                if observe is not None:
                    observe(process.spec.name, turn + warm_up, warm_up + turns)
                time.sleep(PAUSE)
                process.run("encoder")
                for measure in MEASURES:
                    with meter if meter is not None and measure == "end_to_end" else nullcontext() as energy:
                        took = process.run(measure)
                    if turn >= 0:
                        seconds[process.spec.name][measure].append(took)
                        if energy is not None and energy.joules is not None:
                            joules[process.spec.name].append(energy.joules)
        facts = {process.spec.name: process.look() for process in processes}
    systems = [
        SystemTimes(
            spec.name,
            spec.kind,
            dict(facts[spec.name]["info"]),
            seconds[spec.name],
            tokens,
            float(facts[spec.name]["seconds"]),
            facts[spec.name]["before_mib"],
            facts[spec.name]["peak_mib"],
            joules[spec.name],
        )
        for spec in specs
    ]
    settings: dict[str, Any] = {"turns": turns, "warm_up": warm_up, "tokens": tokens, "windows": len(windows)}
    settings |= {"audio": None if audio is None else os.fspath(audio), "window_seconds": WINDOW_SECONDS}
    return BenchmarkReport(
        name,
        systems,
        settings,
        before | {"load_average_after": provenance(threads)["load_average"]},
        None if meter is None else meter.source,
        list(notes),
    )


def _windows_of(audio: str | os.PathLike[str]) -> list[FloatArray]:
    """The windows of a recording, two at least: each call hears another than the one before."""
    samples, size = read_audio(audio), WINDOW_SECONDS * SAMPLING_RATE
    samples = np.pad(samples, (0, -samples.size % size))
    windows = [samples[first : first + size] for first in range(0, samples.size, size)]
    return windows if len(windows) > 1 else [windows[0], windows[0][::-1].copy()]


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
