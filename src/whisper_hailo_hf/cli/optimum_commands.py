"""`optimum-cli export hailo`, a model with all that is made from its encoder, and `optimum-cli hailo`, all verbs.

Optimum loads the classes at every start of its command line, from `optimum/commands/register/register_hailo.py`.
"""

import argparse
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from whisper_hailo_hf.cli import console
from whisper_hailo_hf.version import __version__


class HailoCommand(BaseOptimumCLICommand):
    """Hands its arguments to `whisper-hailo`."""

    COMMAND = CommandInfo(
        name="hailo", help="Whisper with its encoder on a Hailo chip: `optimum-cli hailo --help` lists the verbs."
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.description = "The verbs of whisper-hailo: `optimum-cli hailo VERB --help` says more of one."
        parser.add_argument("verb", help="init, distill, export, check, quantize, compile, verify, doctor, ...")
        parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what that verb takes")

    def run(self) -> None:
        from whisper_hailo_hf.cli.main import main

        main([self.args.verb, *self.args.arguments])


class HailoExportCommand(BaseOptimumCLICommand):
    """A model to a folder of its own, with the encoder's graph, and where asked its integers and its HEF."""

    COMMAND = CommandInfo(name="hailo", help="Export the encoder of a whisper_hailo model for a Hailo chip.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.description = (
            "Saves the model with onnx/encoder.onnx; with --audio also onnx/encoder_int8.onnx, its 8-bit form on the "
            "CPU; with --dfc-python also the HEF for the chip. The verbs of `optimum-cli hailo` have more options."
        )
        parser.add_argument("-m", "--model", required=True, help="Model with a pluggable encoder: folder or Hub id.")
        parser.add_argument("output", type=Path, help="Folder to make.")
        parser.add_argument("-a", "--audio", help="Speech to calibrate with: a file, a folder, or a .tsv table.")
        parser.add_argument("--dfc-python", type=Path, help="Python of the Dataflow Compiler's environment.")
        parser.add_argument("--device", default="hailo8l", help="Target: hailo8l (the default), hailo8 or hailo8r.")
        parser.add_argument("--json", action="store_true", help="Print one JSON document.")

    def run(self) -> None:
        from whisper_hailo_hf.cli.main import end_with

        end_with(lambda: _export(self.args))


def _export(args: Any) -> None:
    console.quiet_libraries()
    from transformers import WhisperProcessor

    from whisper_hailo_hf import artefacts
    from whisper_hailo_hf.cli.compile import Shower as CompileShower
    from whisper_hailo_hf.cli.quantize import Shower as QuantizeShower
    from whisper_hailo_hf.compile import check_graph, compile_encoder, export_encoder, quantize_encoder
    from whisper_hailo_hf.compile.compile_report import finding
    from whisper_hailo_hf.errors import RequestError
    from whisper_hailo_hf.model_loading import open_model

    output = args.output.expanduser()
    if output.exists() and not (output / "config.json").is_file() and (not output.is_dir() or any(output.iterdir())):
        raise RequestError(f"{output} is there already and is no model's folder: name a new one")
    if args.dfc_python is not None and args.audio is None:
        raise RequestError("Hailo's compiler calibrates with speech: name some with --audio")
    model = open_model(args.model)
    with tempfile.TemporaryDirectory(prefix="whisper-hailo-") as room:
        exported = export_encoder(model, Path(room) / "encoder.onnx")
        judged = check_graph(exported.path, "hailo8l" if args.device == "hailo8l" else "hailo8")
        _take_along(model, Path(exported.path))
        model.save_pretrained(output)
    with suppress(OSError, ValueError, TypeError, AttributeError):  # an encoder alone has none
        WhisperProcessor.from_pretrained(args.model).save_pretrained(output)
    if not judged.passed:
        console.note(f"the compiler is known to rewrite or reject parts of {artefacts.ONNX_PATH}: see the verb check")
    size, off = f"{exported.size / 1e6:.1f} MB", f"at most {exported.max_difference:.2g} off torch"
    document: dict[str, Any] = {"export": exported.to_dict(), "check": judged.to_dict()}
    for part in document.values():
        part["path"] = str(output / artefacts.ONNX_PATH)
    rows = [(artefacts.ONNX_PATH, size, off)]
    with console.progress() as bars:
        if args.audio is not None:
            quantized = quantize_encoder(output, args.audio, choices=False, progress=QuantizeShower(bars))
            document["quantize"] = quantized.to_dict()
            snr = f"SNR {quantized.states.snr_db:.1f} dB against float"
            rows.append((artefacts.ONNX_INT8_PATH, f"{quantized.size / 1e6:.1f} MB", snr))
        if args.dfc_python is not None:
            given = {"dfc_python": args.dfc_python, "hw_arch": args.device, "observe": CompileShower(bars)}
            compiled = compile_encoder(output, args.audio, **given)
            document["compile"] = compiled.to_dict()
            emulated = finding(compiled.stages["compare-quantized"])
            rows.append((f"{args.device}/encoder.hef", f"{(compiled.size or 0) / 1e6:.1f} MB", emulated))
    if args.json:
        console.print_json(document)
    else:
        console.print_table(str(output), rows)


def _take_along(model: Any, graph: Path) -> None:
    """Makes a graph that was just exported what lies beside a model's weights when it is saved."""
    from whisper_hailo_hf import artefacts
    from whisper_hailo_hf.model_loading import encoder_of

    encoder = encoder_of(model)
    facts = {
        "time_axis": encoder.config.time_axis,
        "frames": encoder.core.frames,
        "producer": f"whisper_hailo_hf {__version__}",
        "versions": artefacts.tool_versions("torch", "onnx"),
        "source": encoder.config.source,
    }
    encoder.artefacts[artefacts.ONNX_PATH] = graph
    encoder.config.artefacts[artefacts.ONNX_PATH] = artefacts.record(
        graph, artefacts.fingerprint(encoder.core), **facts
    )
