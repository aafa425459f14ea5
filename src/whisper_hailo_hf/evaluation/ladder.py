"""The fidelity ladder: the same windows through every form of the encoder, each held to the one before."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedModel, WhisperForConditionalGeneration

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.evaluation.comparison import compare_states
from whisper_hailo_hf.evaluation.report import StageReport, StageResult
from whisper_hailo_hf.evaluation.stages import Opener, Stage, StageAbsent
from whisper_hailo_hf.evaluation.stages import openers as openers_of
from whisper_hailo_hf.evaluation.transcripts import Transcriber
from whisper_hailo_hf.evaluation.windows import Audio, AudioWindows, load_windows
from whisper_hailo_hf.fidelity import Gates
from whisper_hailo_hf.model_loading import encoder_of, open_model
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder

Observe = Callable[[str, int, int], None]


def compare_stages(
    model_or_folder: str | os.PathLike | PreTrainedModel,
    audio: "Audio | AudioWindows | Sequence[Audio]",
    stages: Sequence[str | Stage] | None = None,
    *,
    windows: int = 16,
    gates: Gates | None = None,
    batch_size: int = 1,
    openers: Mapping[str, Opener] | None = None,
    tokenizer: Any = None,
    language: str | None = None,
    quantization_report: str | os.PathLike | None = None,
    observe: Observe | None = None,
) -> StageReport:
    """Runs real windows through the forms of an encoder and compares neighbouring ones.

    The states of all windows of three stages are in memory at a time: 2.3 MB a window and stage for d_model 384.

    Args:
        model_or_folder: a model with a pluggable encoder, its encoder, or the folder or Hub id of either. Its own
            choice of a backend stays as it is.
        audio: see [`load_windows`].
        stages: names of `stage_names()` or [`Stage`]s of your own, in order; None takes those of the ladder that are
            here. A stage that is asked for by name and cannot be had is an error.
        windows: most windows.
        gates: what neighbouring stages must agree in.
        batch_size: windows at a time, for stages that have no wish of their own.
        openers: of stages that this module cannot open by itself, by name; those of the forms inside Hailo's compiler
            are what [`compile.compiler_stages`] gives.
        tokenizer: for word error rates; of a folder, its own is taken. They need a whole model and texts.
        language: of the speech, for a multilingual decoder.
        quantization_report: JSON that `whisper-hailo quantize --report` wrote for the integer graph beside the
            weights: what it says of the layers stands in the report beside `emulator`.
        observe: told the stage, the windows done and their number.

    Returns:
        The report; `report.first_broken` names the first stage that broke.

    Raises:
        RequestError: no such model, audio or stage, or fewer than two stages that can be compared.
    """
    gates, chosen = gates or Gates(), openers_of(stages, openers)
    if batch_size < 1:
        raise RequestError(f"batch_size is 1 or more, not {batch_size}")
    named = isinstance(model_or_folder, str | os.PathLike)
    model: Any = open_model(model_or_folder) if named else model_or_folder  # type: ignore[arg-type]
    encoder = encoder_of(model).eval()
    layers = {} if quantization_report is None else _layers(Path(quantization_report), encoder)
    data = load_windows(audio, encoder.config, windows)
    if tokenizer is None and named and any(data.texts):
        tokenizer = _tokenizer(model_or_folder)
    reader, note = _reader(model, tokenizer, data, language)
    report = StageReport(
        str(model_or_folder) if named else type(model).__name__, list(data.names), gates, [], [], [], {}, note
    )
    first: tuple[str, np.ndarray] | None = None
    before: tuple[str, np.ndarray] | None = None
    for name, opener in chosen:
        result, states = _run(name, opener, encoder, data, batch_size, stages is not None, observe)
        report.stages.append(result)
        if name == "emulator" and layers:
            result.layer_snr = layers
        if result.status == "failed":
            report.broken[name] = result.why
        if states is None:
            continue
        if reader is not None and np.isfinite(states).all():
            for field, value in reader.read(states).items():
                setattr(result, field, value)
        if before is not None and first is not None:
            neighbour = compare_states(before[1], states, data.heard, (before[0], name))
            report.neighbours.append(neighbour)
            if failures := gates.failures(neighbour.metrics):
                report.broken[name] = f"against {before[0]}, {', '.join(failures)}"
            if before is not first:
                report.against_first.append(compare_states(first[1], states, data.heard, (first[0], name)))
        before = (name, states)
        first = first or before
    if not report.neighbours and not report.broken:
        absent = "; ".join(f"{stage.name}: {stage.why}" for stage in report.stages if stage.status == "absent")
        raise RequestError(
            "nothing to compare, fewer than two stages can be run here" + (f" ({absent})" * bool(absent))
        )
    return report


def _run(
    name: str,
    opener: Opener,
    encoder: HailoWhisperEncoder,
    data: AudioWindows,
    batch_size: int,
    asked_for: bool,
    observe: Observe | None,
) -> tuple[StageResult, np.ndarray | None]:
    """The stage's states of all windows, or why there are none."""
    try:
        stage = opener(encoder)
    except StageAbsent as error:
        if asked_for:
            raise RequestError(f"the stage {name!r} cannot be had here: {error}") from error
        return StageResult(name, "absent", str(error)), None
    except WhisperHailoError as error:
        return StageResult(name, "failed", str(error)), None
    shape = (len(data), encoder.config.max_source_positions, encoder.config.d_model)
    states, started, timed = np.empty(shape, np.float32), time.perf_counter(), len(data)
    batch_size = stage.batch_size or batch_size
    if observe is not None:
        observe(name, 0, len(data))
    try:
        for begin in range(0, len(data), batch_size):
            part = slice(begin, begin + batch_size)
            found = np.asarray(stage.run(data.features[part].copy()))
            if found.shape != states[part].shape:
                raise WhisperHailoError(f"its states have the shape {found.shape}, not {states[part].shape}")
            states[part] = found
            if begin == 0 and len(data) > batch_size:  # what is opened or exported at the first run is no run
                started, timed = time.perf_counter(), len(data) - batch_size
            if observe is not None:
                observe(name, min(begin + batch_size, len(data)), len(data))
        seconds = (time.perf_counter() - started) / timed
        info = dict(stage.info())
        layers = info.pop("layer_snr", {})
        return StageResult(name, "run", "", info, seconds, layer_snr=layers), states
    except Exception as error:  # whatever a runtime throws, the ladder names the stage and goes on
        text = " ".join(str(error).split())[:300]
        why = text if isinstance(error, WhisperHailoError) else f"{type(error).__name__}: {text}"
        return StageResult(name, "failed", why), None
    finally:
        stage.close()


def _layers(path: Path, encoder: HailoWhisperEncoder) -> dict[str, float]:
    """SNR of what each layer gives when everything is rounded, dB."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        layers = {str(layer["name"]): float(layer["cumulated_db"]) for layer in known["layers"]}
        sha256 = known["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is no report of whisper-hailo quantize ({type(error).__name__})") from error
    if sha256 != encoder.config.artefacts.get(artefacts.ONNX_INT8_PATH, {}).get("sha256"):
        raise RequestError(f"{path} is about another integer graph than the one beside these weights")
    return layers


def _tokenizer(folder_or_id: Any) -> Any:
    local = Path(folder_or_id).is_dir()
    if local and not any((Path(folder_or_id) / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder_or_id)
    except (OSError, ValueError, KeyError):
        return None


def _reader(model: Any, tokenizer: Any, data: AudioWindows, language: str | None) -> tuple[Transcriber | None, str]:
    """What reads states, or why nothing does."""
    if not isinstance(model, WhisperForConditionalGeneration):
        return None, "no word error rates: the model is an encoder without a decoder"
    if not any(data.texts):
        return None, "no word error rates: the data has no texts"
    if tokenizer is None:
        return None, "no word error rates: the model has no tokenizer"
    reader = Transcriber(model, tokenizer, data.texts, language)
    return (reader, "") if reader.wanted else (None, "no word error rates: the texts hold no words")
