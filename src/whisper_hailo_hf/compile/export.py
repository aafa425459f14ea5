"""The encoder's core as one ONNX file, held to torch's own numbers on the spot."""

import copy
import json
import os
import uuid
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.backends.base import host_states
from whisper_hailo_hf.backends.onnx import graph_record
from whisper_hailo_hf.encoders import EncoderCore, build_encoder
from whisper_hailo_hf.encoders.export import INPUT_NAME, OUTPUT_NAME, export_core
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.model_loading import encoder_of
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder
from whisper_hailo_hf.version import __version__

TOLERANCE = 1e-4  # of an encoder state's value, absolute


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far its numbers are from torch's.

    Attributes:
        path: the file.
        sha256, size: of the file; bytes.
        opset: version of ONNX's operator set.
        time_axis: `"width"` or `"height"`.
        input_shape, output_shape: of the graph, (batch, channels, height, width).
        operators: how many nodes of each.
        parameters: numbers in the weights and tables, normalisation folded in.
        metadata: what `metadata_props` says.
        windows: windows of features that torch and ONNX Runtime were compared on; 0 if they were not.
        max_difference: largest absolute difference of any value of the encoder states, host epilogue included.
        max_value: largest absolute value of theirs.
        snr_db: power of torch's states over that of the difference, in dB; None if they are equal.
        tolerance: what `max_difference` was held to.
        graph_difference, graph_max_value: the same of the graph's own output, before the host epilogue.
    """

    path: str
    sha256: str
    size: int
    opset: int
    time_axis: str
    input_shape: list[int]
    output_shape: list[int]
    operators: dict[str, int]
    parameters: int
    metadata: dict[str, str]
    windows: int
    max_difference: float | None
    max_value: float | None
    snr_db: float | None
    tolerance: float
    graph_difference: float | None
    graph_max_value: float | None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        return asdict(self)


def export_encoder(
    model_or_folder: str | os.PathLike | PreTrainedModel,
    path: str | os.PathLike | None = None,
    *,
    opset: int = 17,
    time_axis: str | None = None,
    tolerance: float = TOLERANCE,
    windows: int = 3,
) -> ExportReport:
    """Writes the part of the encoder that runs on the chip as one self-contained ONNX file.

    The graph has rank 4 throughout, fixed shapes and batch 1; BatchNorm is folded into the convolutions. It takes
    `input_features` (1, mel bins, 1, frames) and gives `states` (1, d_model, 1, frames // 2), before the host
    epilogue; with time on the height, the last two swapped. The file is put in place only after ONNX's checker has
    passed it with full shape inference and ONNX Runtime has given torch's numbers on features like those of speech,
    of a short utterance, and of silence.

    Args:
        model_or_folder: a model or encoder of ours, or its folder or Hub id.
        path: the ONNX file; by default `onnx/encoder.onnx` in the model's folder, recorded in `config.json` for the
            `onnx` backend to run.
        opset: 13 to 18.
        time_axis: `"width"` or `"height"`; the model's own by default. The weights are the same in both.
        tolerance: largest absolute difference from torch, of the encoder states.
        windows: how many windows of features the two are compared on; 0 for no comparison.

    Raises:
        RequestError: no such model, axis or opset, or `onnx` or `onnxruntime` is not installed.
        WhisperHailoError: the numbers differ by more than the tolerance, or the encoder is too large for one file.
    """
    if time_axis not in (None, "width", "height"):
        raise RequestError(f"time_axis is 'width' or 'height', not {time_axis!r}")
    if windows < 0 or not tolerance > 0:
        raise RequestError("windows is 0 or more, tolerance more than 0")
    if windows and find_spec("onnxruntime") is None:
        raise RequestError("the comparison needs onnxruntime: pip install 'whisper-hailo-hf[onnx]', or ask for none")
    in_place = path is None
    path = _place(model_or_folder) if path is None else Path(path)
    if path.is_dir():
        raise RequestError(f"{path} is a folder: name an ONNX file in it, such as {path / 'encoder.onnx'}")
    encoder = encoder_of(model_or_folder)
    if in_place and time_axis not in (None, encoder.config.time_axis):
        raise RequestError(f"the model's own graph lies along its {encoder.config.time_axis}: name a file for another")
    if any(parameter.is_meta for parameter in encoder.core.parameters()):
        raise RequestError("the encoder's weights are off-loaded: load the model without disk off-loading")
    axis, mel_bins = time_axis or encoder.config.time_axis, encoder.config.num_mel_bins
    if in_place:
        path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        export_core(_core_along(encoder, axis), mel_bins, axis, partial, opset, _metadata(encoder, axis))
        facts = _facts(partial)
        compared = _compare(encoder, axis, partial, windows)
        if compared["max_difference"] is not None and not compared["max_difference"] <= tolerance:
            raise WhisperHailoError(
                f"ONNX Runtime's states differ from torch's by up to {compared['max_difference']:.2g} where they "
                f"reach {compared['max_value']:.3g}: {path.name} was not written; if that is float32's own rounding, "
                f"allow more than {tolerance:g} as tolerance"
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if in_place:
        record = graph_record(path, encoder.core, axis, source=encoder.config.source)
        artefacts.write_records(path.parent.parent, {artefacts.ONNX_PATH: record})
    return ExportReport(
        path=str(path),
        sha256=artefacts.sha256_of(path),
        size=path.stat().st_size,
        opset=opset,
        time_axis=axis,
        windows=windows,
        tolerance=tolerance,
        **facts,
        **compared,
    )


def _place(model_or_folder: Any) -> Path:
    if isinstance(model_or_folder, str | os.PathLike) and Path(model_or_folder).expanduser().is_dir():
        return Path(model_or_folder).expanduser() / artefacts.ONNX_PATH
    raise RequestError("name an ONNX file to write: only for a model's folder is it known where the graph belongs")


def _core_along(encoder: HailoWhisperEncoder, axis: str) -> EncoderCore:
    """The core with time on that axis: weights are stored without regard to it."""
    if axis == encoder.config.time_axis:
        return encoder.core
    config = copy.deepcopy(encoder.config)
    config.time_axis = axis  # type: ignore[assignment]  # one of the two, as was checked
    with torch.device("meta"):  # no random numbers are drawn, nothing is copied
        core, _ = build_encoder(config)
    core.load_state_dict(encoder.core.state_dict(), assign=True)
    return core


def _metadata(encoder: HailoWhisperEncoder, axis: str) -> dict[str, str]:
    """What a reader of the file must know: whose weights these are, and what the host does behind the graph."""
    config, host = encoder.config, encoder.host
    epilogue = {
        "states": host.positions,
        "tiles": host.positions // host.window_positions if host.tiles == "all" else 1,
        "positional_map": host.positional_map is not None,
        "layer_norm": True,
        "layer_norm_eps": host.layer_norm.eps,
    }
    facts = {
        "weights": artefacts.fingerprint(encoder.core),
        "encoder_family": config.encoder_family,
        "encoder_preset": config.encoder_preset or "",
        "encoder_options": json.dumps(config.encoder_options, sort_keys=True),
        "encoder_layers": str(config.encoder_layers),
        "time_axis": axis,
        "host_epilogue": json.dumps(epilogue),
        "producer": f"whisper_hailo_hf {__version__}",
    }
    return {f"whisper_hailo.{name}": value for name, value in facts.items()}


def _facts(path: Path) -> dict[str, Any]:
    """What the file holds, after ONNX's own checker has passed it."""
    import onnx

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph

    def shape(value: Any) -> list[int]:
        return [size.dim_value for size in value.type.tensor_type.shape.dim]

    floats = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    return {
        "input_shape": shape(graph.input[0]),
        "output_shape": shape(graph.output[0]),
        "operators": dict(sorted(Counter(node.op_type for node in graph.node).items())),
        "parameters": sum(int(np.prod(tensor.dims)) for tensor in floats),
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


@torch.no_grad()
def _compare(encoder: HailoWhisperEncoder, axis: str, path: Path, windows: int) -> dict[str, Any]:
    """The graph in ONNX Runtime against the untouched core in torch, normalisation unfolded, in its own layout."""
    if not windows:
        return dict.fromkeys(("max_difference", "max_value", "snr_db", "graph_difference", "graph_max_value"))
    import onnxruntime

    core = copy.deepcopy(encoder.core).to("cpu", torch.float32).eval()
    host, turned = encoder.host, axis != encoder.config.time_axis
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"graph": [], "states": []}
    for window in speech_like_features(encoder.config.num_mel_bins, 2 * host.positions, windows):
        tiles = host.windows(torch.from_numpy(window)[None]).contiguous()
        expected, given = core(tiles), (tiles.transpose(2, 3) if turned else tiles)
        outputs = [session.run([OUTPUT_NAME], {INPUT_NAME: tile[None].numpy()})[0] for tile in given.contiguous()]
        found = torch.from_numpy(np.concatenate(outputs))
        found = found.transpose(2, 3) if turned else found
        pairs["graph"].append((expected.numpy(), found.numpy()))
        pairs["states"].append((host_states(host, expected).numpy(), host_states(host, found).numpy()))
    (wanted_graph, graph), (wanted, states) = (map(np.stack, zip(*pairs[name], strict=True)) for name in pairs)
    noise = np.square(states - wanted, dtype=np.float64).sum()
    signal = np.square(wanted, dtype=np.float64).sum()
    return {
        "max_difference": float(np.abs(states - wanted).max()),
        "max_value": float(np.abs(wanted).max()),
        "snr_db": 10 * float(np.log10(signal / noise)) if noise > 0 and signal > 0 else None,
        "graph_difference": float(np.abs(graph - wanted_graph).max()),
        "graph_max_value": float(np.abs(wanted_graph).max()),
    }


def speech_like_features(mel_bins: int, frames: int, windows: int, seed: int = 0) -> np.ndarray:
    """Log-mel features as Whisper scales them (-1.5 to about 2), of what changes as speech does.

    Syllables of three resonances over a floor of noise, and pauses. Every third window is filled, every third holds a
    short utterance followed by silence, every third silence alone.

    Returns:
        float32, (windows, mel bins, frames).
    """
    random = np.random.default_rng(seed)
    bins = np.linspace(0, 1, mel_bins)[:, None]
    features = np.empty((windows, mel_bins, frames), dtype=np.float32)
    for index in range(windows):
        power = 1e-5 * random.gamma(1.0, size=(mel_bins, frames))
        end = (frames, frames // 3, 0)[index % 3]
        start = 0
        while start < end:
            length = int(random.integers(8, 35))
            centres = random.uniform((0.05, 0.2, 0.5), (0.2, 0.5, 0.9))
            shape = sum(np.exp(-(((bins - centre) / 0.06) ** 2)) / 4**n for n, centre in enumerate(centres))
            syllable = shape * np.hanning(length) * random.gamma(2.0, size=(mel_bins, length))
            power[:, start : start + length] += syllable[:, : frames - start]
            start += length + int(random.choice([1, 5, 60]))
        power[:, end:] = 0
        # as WhisperFeatureExtractor does: 80 dB below the window's peak is the floor
        levels = np.log10(np.maximum(power, 1e-10))
        features[index] = (np.maximum(levels, levels.max() - 8) + 4) / 4
    return features
