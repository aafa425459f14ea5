"""The quantizer: a float encoder, and audio to calibrate with, to an integer graph and a report of what it cost."""

import copy
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.backends.emulator import IntegerGraph
from whisper_hailo_hf.compile.export import export_encoder
from whisper_hailo_hf.compile.graph import load_onnx, view_graph
from whisper_hailo_hf.compile.quantize_report import QuantizationReport
from whisper_hailo_hf.compile.quantize_settings import Network, Progress, Settings
from whisper_hailo_hf.compile.windows import calibration_windows
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.model_loading import encoder_of
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder
from whisper_hailo_hf.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto

_REPORT = artefacts.ONNX_INT8_PATH.removesuffix(".onnx") + ".report.json"


def quantize_encoder(
    model_or_folder: str | os.PathLike | PreTrainedModel,
    calibration: Any,
    *,
    output: str | os.PathLike | None = None,
    method: str = "mse",
    percentile: float = 99.999,
    sixteen_bit: str | Iterable[str] = (),
    weight_bits: Mapping[str, int] | None = None,
    windows: int = 256,
    equalize: bool = True,
    bias_correction: bool = True,
    finetune_steps: int = 0,
    finetune_learning_rate: float = 1e-5,
    report_windows: int = 8,
    layer_windows: int = 1,
    choices: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> QuantizationReport:
    """Makes an encoder's integer graph, as Hailo's chips compute: int8 weights with a scale for each output channel,
    uint8 activations with one for each tensor, int32 biases.

    The file is ONNX with QuantizeLinear and DequantizeLinear nodes, which ONNX Runtime runs as integers; its own input
    and output are float32. Written for a model in memory, it is at once what its `emulator` backend runs and what
    `save_pretrained` carries; written into a model's folder, it is recorded in `config.json`, its report beside it.

    Args:
        model_or_folder: a model or encoder of ours, its folder or Hub id, or a float `.onnx` file of log-mel features.
        calibration: audio (a file, a folder, a `.tsv` table with a column `path`, or a list of files or of samples at
            16 kHz), or log-mel features (windows, mel bins, frames). Real speech, as various as what will be heard.
        output: the file; `onnx/encoder_int8.onnx` in the model's folder by default.
        method: how a range is chosen: `"minmax"`, `"percentile"`, `"mse"` or `"kl"`.
        percentile: of the method of that name.
        sixteen_bit: what is kept in 16 bits: `"residual_adds"`, `"output"`, and names of layers, or patterns of them.
            ONNX Runtime runs these in float, between roundings to 16 bits.
        weight_bits: 4, 8 or 16 by names of layers, or patterns; 8 where nothing is said. Weights of 4 bits are stored
            one a byte.
        windows: use at most so many; 64 to 1024 are advised.
        equalize: even out channels of very different ranges first.
        bias_correction: take the mean error of each layer's output into its bias.
        finetune_steps: train weights and biases so many steps through the rounding, against the float states.
        finetune_learning_rate: of Adam.
        report_windows: windows that the errors are measured on; held out from calibration if there are eight times as
            many.
        layer_windows: windows for the error of each layer alone; 0 leaves it out.
        choices: also measure what more 16-bit places would give.
        seed: of all that is drawn.
        progress: called with what is being done, how far it is, and of how many.

    Raises:
        RequestError: no such model, method, layer or audio, no audio at all, or a graph that cannot be quantised.
        WhisperHailoError: activations that never change or are not finite; a loss of fine-tuning that is not finite.
    """
    started = time.monotonic()
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise RequestError(f"the quantizer needs {package}: pip install 'whisper-hailo-hf[onnx]'")
    from whisper_hailo_hf.compile.quantize_steps import Quantizer

    settings = Settings(
        method=method,
        percentile=percentile,
        sixteen_bit=(sixteen_bit,) if isinstance(sixteen_bit, str) else tuple(sixteen_bit),
        weight_bits=dict(weight_bits or {}),
        windows=windows,
        equalize=equalize,
        bias_correction=bias_correction,
        finetune_steps=finetune_steps,
        finetune_learning_rate=finetune_learning_rate,
        report_windows=report_windows,
        layer_windows=layer_windows,
        seed=seed,
    )
    encoder, network = _open(model_or_folder)
    path = _output_path(model_or_folder, output)
    audio = calibration_windows(calibration, network.mel_bins, network.frames, windows, seed)
    quantizer = Quantizer(network, audio, settings, progress or (lambda what, done, total: None))
    model = quantizer.run()
    _describe(model, settings, len(quantizer.calibration))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        _save(model, partial)
        graph = IntegerGraph(partial)
        states = quantizer.states_error(graph)
        layers = quantizer.layer_errors()
        found = quantizer.choices(layers) if choices else []
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    weights = None
    if encoder is not None:
        weights = artefacts.fingerprint(encoder.core)
        record = artefacts.record(
            path,
            weights,
            time_axis=encoder.config.time_axis,
            producer=f"whisper_hailo_hf {__version__}",
            versions=artefacts.tool_versions("torch", "onnx", "onnxruntime"),
            source=encoder.config.source,
            input=graph.input.to_dict(),
            output=graph.output.to_dict(),
            fidelity={"snr_db": states.snr_db, "cosine_mean": states.cosine_mean},
            calibration={"method": method, "windows": len(quantizer.calibration)},
        )
        _keep_record(model_or_folder, encoder, path, record, output is None)
    report = QuantizationReport(
        path=str(path),
        sha256=artefacts.sha256_of(path),
        size=path.stat().st_size,
        weights=weights,
        opset=model.opset_import[0].version,
        settings=asdict(settings),
        calibration_windows=len(quantizer.calibration),
        report_windows=len(quantizer.report),
        held_out=quantizer.held_out,
        states=states,
        input=graph.input.to_dict(),
        output=graph.output.to_dict(),
        steps=quantizer.steps,
        equalized=quantizer.equalized,
        bias_correction=quantizer.bias_correction,
        finetune_loss=quantizer.finetune_loss,
        layers=layers,
        choices=found,
        left_in_float=quantizer.left_in_float(),
        seconds=time.monotonic() - started,
    )
    if weights is not None and output is None:
        _keep_report(Path(model_or_folder).expanduser(), report, weights)  # type: ignore[arg-type]  # a folder
    return report


def _keep_report(folder: Path, report: QuantizationReport, weights: str) -> None:
    """Puts the report beside the graph, to travel with it."""
    path = folder / _REPORT
    data = report.to_dict() | {"path": artefacts.ONNX_INT8_PATH}
    path.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    producer = f"whisper_hailo_hf {__version__}"
    artefacts.write_records(folder, {_REPORT: artefacts.record(path, weights, producer=producer)})


def _output_path(model_or_folder: Any, output: str | os.PathLike | None) -> Path:
    if output is not None:
        path = Path(output).expanduser()
        if path.is_dir():
            raise RequestError(f"{output} is a folder: name an ONNX file in it, such as {path / 'encoder_int8.onnx'}")
        return path
    if isinstance(model_or_folder, str | os.PathLike) and Path(model_or_folder).expanduser().is_dir():
        return Path(model_or_folder).expanduser() / artefacts.ONNX_INT8_PATH
    raise RequestError("name an output file: only for a model's folder is it known where the integer graph belongs")


def _open(model_or_folder: Any) -> tuple[HailoWhisperEncoder | None, Network]:
    if isinstance(model_or_folder, str | os.PathLike) and Path(model_or_folder).suffix.lower() == ".onnx":
        return None, _onnx_network(load_onnx(model_or_folder))
    encoder = encoder_of(model_or_folder)
    with tempfile.TemporaryDirectory(prefix="whisper-hailo-") as folder:
        file = Path(folder) / "encoder.onnx"
        export_encoder(encoder, file, windows=0)
        model = load_onnx(file)
    host = copy.deepcopy(encoder.host).to("cpu", torch.float32).eval().requires_grad_(False)
    return encoder, Network(
        model=model,
        mel_bins=encoder.config.num_mel_bins,
        frames=2 * host.positions,
        tiles=lambda features: host.windows(features[None]).unsqueeze(1).unbind(),
        states=lambda outputs: host.states(torch.cat(list(outputs)))[0],
    )


def _onnx_network(model: "ModelProto") -> Network:
    view = view_graph(model)
    shape = view.shape(view.inputs[0]) if len(view.inputs) == 1 else ()
    if len(shape) != 4 or shape[0] != 1 or 1 not in shape[2:]:
        raise RequestError(
            f"the graph's input has the shape {shape}: log-mel features are (1, mel bins, 1, frames) or "
            "(1, mel bins, frames, 1)"
        )

    def states(outputs: Any) -> Tensor:
        return outputs[0].flatten(2)[0].T if outputs[0].dim() > 2 else outputs[0]

    return Network(model, shape[1], max(shape[2:]), tiles=lambda features: [features], states=states)


def _describe(model: "ModelProto", settings: Settings, windows: int) -> None:
    """Says in the file how it was made."""
    entry = model.metadata_props.add()
    entry.key = "whisper_hailo.quantization"
    entry.value = json.dumps(asdict(settings) | {"windows": windows}, sort_keys=True)


def _save(model: "ModelProto", path: Path) -> None:
    import onnx

    onnx.save(model, path)


def _keep_record(
    model_or_folder: Any, encoder: HailoWhisperEncoder, path: Path, record: dict[str, Any], in_place: bool
) -> None:
    """Makes the file an artefact of the model in memory, or of that in the folder."""
    if not isinstance(model_or_folder, str | os.PathLike):
        encoder.artefacts[artefacts.ONNX_INT8_PATH] = path
        encoder.config.artefacts[artefacts.ONNX_INT8_PATH] = record
    elif in_place:
        artefacts.write_records(Path(model_or_folder).expanduser(), {artefacts.ONNX_INT8_PATH: record})
