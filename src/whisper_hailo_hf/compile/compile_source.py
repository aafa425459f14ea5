"""What is compiled: the graph, what the host does around it, and the windows that it is calibrated and judged on.

The compiler's arrays are float32 (windows, height, width, channels). Time lies on one of the two axes and the other
has the size 1, so here they are rows: (windows, time, channels).
"""

import copy
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.backends.base import host_states
from whisper_hailo_hf.backends.emulator import IntegerGraph
from whisper_hailo_hf.compile.export import export_encoder
from whisper_hailo_hf.compile.graph import view_graph
from whisper_hailo_hf.compile.quantize_report import ErrorMeter
from whisper_hailo_hf.compile.windows import AudioWindows, FeatureWindows, calibration_windows
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.model_loading import encoder_of
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder
from whisper_hailo_hf.version import __version__

FloatArray = npt.NDArray[np.float32]
LEAST_WINDOWS = 64  # to calibrate with
_HELD_OUT_SHARE = 8  # windows are held out for the comparisons if there are so many times as many


@dataclass(frozen=True)
class Source:
    """An encoder, or a bare ONNX graph of log-mel features.

    Attributes:
        encoder: None for a bare graph.
        onnx: the bare graph's file.
        time_axis: `"width"` or `"height"`, as it shall be compiled.
        mel_bins, frames: of the host's windows.
        tiles: how many windows of the network one of the host's is cut into.
    """

    encoder: HailoWhisperEncoder | None
    onnx: Path | None
    time_axis: str
    mel_bins: int
    frames: int
    tiles: int

    @property
    def identity(self) -> dict[str, Any]:
        """What the graph is made from, for the journal's keys."""
        if self.encoder is None:
            assert self.onnx is not None
            return {"onnx": artefacts.sha256_of(self.onnx)}
        return {"weights": artefacts.fingerprint(self.encoder.core), "producer": __version__}

    def write_graph(self, path: Path) -> dict[str, Any]:
        """Writes the graph; tells how far ONNX Runtime's numbers are from torch's, if there is a model."""
        if self.encoder is None:
            assert self.onnx is not None
            path.write_bytes(self.onnx.read_bytes())
            return {}
        report = export_encoder(self.encoder, path, time_axis=self.time_axis)
        return {"opset": report.opset, "max_difference": report.max_difference, "parameters": report.parameters}

    def rows(self, window: FloatArray) -> FloatArray:
        """A host's window (mel bins, frames) as rows of the network's own windows."""
        if self.encoder is None:
            return np.ascontiguousarray(window.T[None])
        tiles = self.encoder.host.windows(torch.from_numpy(np.asarray(window, np.float32))[None])
        return np.ascontiguousarray(tiles.flatten(2).transpose(1, 2).numpy())

    @torch.no_grad()
    def states(self, rows: FloatArray) -> FloatArray:
        """The network's outputs for one of the host's windows to encoder states, (positions, d_model).

        Of a bare graph, the outputs themselves.
        """
        if self.encoder is None:
            return rows[0]
        host = copy.deepcopy(self.encoder.host)
        outputs = torch.from_numpy(np.ascontiguousarray(rows)).transpose(1, 2)
        outputs = outputs.unsqueeze(2 if host.time_axis == "width" else 3)
        return host_states(host, outputs)[0].numpy()

    def emulator(self) -> IntegerGraph | None:
        """The integer graph beside the weights, if there is one that fits them."""
        if self.encoder is None or self.encoder.config.time_axis != self.time_axis:
            return None
        path = self.encoder.artefacts.get(artefacts.ONNX_INT8_PATH)
        record = self.encoder.config.artefacts.get(artefacts.ONNX_INT8_PATH)
        if path is None or artefacts.why_unfit(path, record, artefacts.fingerprint(self.encoder.core)) is not None:
            return None
        return IntegerGraph(path)


def open_source(model_or_folder: Any, time_axis: str | None) -> Source:
    """What was named: a model or encoder of ours, its folder or Hub id, or an ONNX file.

    Raises:
        RequestError: none of these, or a graph of another form.
    """
    if time_axis not in (None, "width", "height"):
        raise RequestError(f"time_axis is 'width' or 'height', not {time_axis!r}")
    if isinstance(model_or_folder, str | os.PathLike) and Path(model_or_folder).suffix.lower() == ".onnx":
        path = Path(model_or_folder).expanduser()
        shape, axis = _bare_shape(path)
        if time_axis not in (None, axis):
            raise RequestError(f"{path} has time on its {axis}: only of a model the time axis can be chosen")
        return Source(None, path, axis, shape[1], max(shape[2:]), 1)
    encoder = encoder_of(model_or_folder).eval()
    host = encoder.host
    tiles = host.positions // host.window_positions if host.tiles == "all" else 1
    axis = time_axis or encoder.config.time_axis
    return Source(encoder, None, axis, encoder.config.num_mel_bins, 2 * host.positions, tiles)


def _bare_shape(path: Path) -> tuple[tuple[int, ...], str]:
    view = view_graph(path)
    shape = view.shape(view.inputs[0]) if len(view.inputs) == 1 else ()
    if len(shape) != 4 or shape[0] != 1 or 1 not in shape[2:] or len(view.outputs) != 1:
        raise RequestError(
            f"{path}: log-mel features are one input (1, mel bins, 1, frames) or (1, mel bins, frames, 1), and the "
            f"encoder has one output; the graph's input has the shape {shape}"
        )
    return shape, "width" if shape[2] == 1 else "height"


def work_beside(model_or_file: str | os.PathLike, hw_arch: str) -> Path | None:
    """The folder for what lies between a model (its folder, or an ONNX file) and its HEF; None of what is not here."""
    named = Path(model_or_file).expanduser()
    if not named.exists():
        return None
    there = named.resolve()
    return there.with_name(f"{there.name if there.is_dir() else there.stem}-{hw_arch}")


@dataclass(frozen=True)
class Windows:
    """What to calibrate with and what to compare on, before any of it is computed.

    Attributes:
        audio: the host's windows.
        calibration, comparison: which of them.
        held_out: whether the two have none in common.
        limit, seed: of the choice.
    """

    audio: FeatureWindows | AudioWindows
    calibration: tuple[int, ...]
    comparison: tuple[int, ...]
    held_out: bool
    limit: int
    seed: int

    def identity(self) -> dict[str, Any]:
        """What the windows are made from: files by name, size and time of their last change, arrays by content."""
        digest = hashlib.sha256()
        if isinstance(self.audio, AudioWindows):
            for one in self.audio.recordings:
                if isinstance(one, np.ndarray):
                    digest.update(np.ascontiguousarray(one).tobytes())
                else:
                    found = os.stat(one)
                    digest.update(f"{os.path.abspath(one)}\n{found.st_size} {found.st_mtime_ns}\n".encode())
        else:
            for index in range(len(self.audio)):
                digest.update(self.audio[index].tobytes())
        return {
            "audio": digest.hexdigest(),
            "limit": self.limit,
            "seed": self.seed,
            "calibration": self.calibration,
            "comparison": self.comparison,
        }


def choose_windows(calibration: Any, source: Source, windows: int, comparison: int, seed: int) -> Windows:
    """Windows from audio or features, as `quantize_encoder` takes them.

    Args:
        calibration: what to take them from.
        source: what they are for.
        windows: of the network, at most, to calibrate with.
        comparison: of the host, to compare on.
        seed: of the choice.

    Raises:
        RequestError: no audio, or too little of it.
    """
    wanted = -(-windows // source.tiles)
    limit = wanted + comparison
    audio = calibration_windows(calibration, source.mel_bins, source.frames, limit, seed)
    total = len(audio)
    held_out = total >= _HELD_OUT_SHARE * comparison
    chosen = np.linspace(0, total - 1, min(comparison, total)).round().astype(int).tolist()
    rest = [index for index in range(total) if not held_out or index not in set(chosen)][:wanted]
    if len(rest) * source.tiles < LEAST_WINDOWS:
        raise RequestError(
            f"too little audio to calibrate with: it gives {len(rest) * source.tiles} windows, at least "
            f"{LEAST_WINDOWS} are needed and 1024 advised"
        )
    return Windows(audio, tuple(rest), tuple(dict.fromkeys(chosen)), held_out, limit, seed)


def write_set(
    path: Path,
    source: Source,
    audio: Any,
    which: Sequence[int],
    shape: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes windows as the compiler takes them: .npy, float32, (windows, height, width, channels).

    Args:
        path: the file.
        source: what they are for.
        audio: the host's windows.
        which: of them.
        shape: of the network's input, (height, width, channels).
        progress: told how many are done.

    Raises:
        WhisperHailoError: the network does not take them.
    """
    entries = (len(which) * source.tiles, *shape)
    data = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=entries)
    for number, index in enumerate(which):
        rows = source.rows(audio[index])
        if rows.shape[2] != shape[2] or rows[0].size != np.prod(shape) or 1 not in shape[:2]:
            raise WhisperHailoError(
                f"the parsed network takes (height, width, channels) = {tuple(shape)}, where the encoder's windows "
                f"are {rows.shape[1]} frames of {rows.shape[2]} mel bins: see the differences that parsing made"
            )
        data[number * source.tiles : (number + 1) * source.tiles] = rows.reshape(-1, *shape)
        progress(number + 1, len(which))
    data.flush()


def onnx_outputs(path: Path, inputs: FloatArray, time_axis: str) -> FloatArray:
    """ONNX Runtime's outputs, as rows, for inputs of the compiler's layout."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return _run(lambda window: session.run(None, {name: window})[0], inputs, time_axis)


def emulated_outputs(graph: IntegerGraph, inputs: FloatArray, time_axis: str) -> FloatArray:
    """The same of an integer graph."""
    return _run(graph.run, inputs, time_axis)


def _run(call: Callable[[FloatArray], FloatArray], inputs: FloatArray, time_axis: str) -> FloatArray:
    found = []
    for window in rows_of(inputs):
        laid = np.expand_dims(window.T[None], 2 if time_axis == "width" else 3)
        found.append(call(np.ascontiguousarray(laid)))
    outputs = np.concatenate(found)
    return np.ascontiguousarray(outputs.reshape(*outputs.shape[:2], -1).transpose(0, 2, 1))


def rows_of(array: FloatArray) -> FloatArray:
    """(windows, height, width, channels), one of height and width 1, as (windows, time, channels)."""
    return array.reshape(array.shape[0], -1, array.shape[-1])


def compare(source: Source, reference: FloatArray, found: FloatArray) -> dict[str, float]:
    """How far outputs (as rows) are from others, after the host's part, over all frames.

    Returns:
        `snr_db`, `cosine_mean`, `cosine_p5`, `cosine_min`, `mse`, `max_difference`, `windows`; `bad_frames` alone if
        there are values that are not finite.

    Raises:
        WhisperHailoError: the outputs have other shapes.
    """
    if reference.shape != found.shape:
        raise WhisperHailoError(f"the network gives {found.shape[1:]} where ONNX Runtime gives {reference.shape[1:]}")
    bad = int((~np.isfinite(found).all(-1)).sum())
    if bad:
        return {"bad_frames": float(bad)}
    meter, largest = ErrorMeter(), 0.0
    for start in range(0, len(reference), source.tiles):
        part = slice(start, start + source.tiles)
        ours, theirs = source.states(reference[part]), source.states(found[part])
        meter.add(ours, theirs)
        largest = max(largest, float(np.abs(ours - theirs).max()))
    error = meter.result()
    return {
        "snr_db": error.snr_db,
        "cosine_mean": error.cosine_mean,
        "cosine_p5": error.cosine_p5,
        "cosine_min": error.cosine_min,
        "mse": error.mse,
        "max_difference": largest,
        "windows": float(len(reference) // source.tiles),
    }
