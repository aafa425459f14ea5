"""`whisper-hailo export`: the encoder as one ONNX file."""

from pathlib import Path
from typing import Annotated

import typer

from whisper_hailo_hf.cli import console


def export(
    model: Annotated[str, typer.Argument(help="Model of ours, or its encoder alone: folder or Hub id.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            help="ONNX file to write. [default: onnx/encoder.onnx in the model's folder]", show_default=False
        ),
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set, 13 to 18.")] = 17,
    time_axis: Annotated[
        str | None, typer.Option(help="Where time lies: width or height. [default: as in the model]")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference of an encoder state from torch's.")] = 1e-4,
    windows: Annotated[int, typer.Option(help="Windows compared with torch; 0 for none.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write the part of the encoder that runs on the chip as one ONNX file, and compare its numbers with torch's.

    The file is left out if they differ by more than the tolerance.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.compile import export_encoder

    report = export_encoder(model, file, opset=opset, time_axis=time_axis, tolerance=tolerance, windows=windows)
    if as_json:
        console.print_json(report.to_dict())
        return
    rows = [
        ("input", " x ".join(map(str, report.input_shape))),
        ("output", " x ".join(map(str, report.output_shape))),
        ("time axis", report.time_axis),
        ("opset", str(report.opset)),
        ("parameters", f"{report.parameters:,}"),
        ("size", f"{report.size / 1e6:.1f} MB"),
        ("operators", ", ".join(f"{name} {count}" for name, count in report.operators.items())),
    ]
    if report.max_difference is not None:
        off = f"at most {report.max_difference:.2g} off, of states up to {report.max_value:.3g}"
        snr = f", SNR {report.snr_db:.0f} dB" if report.snr_db is not None else ""
        rows.append(("against torch", f"{off}{snr}, in {report.windows} windows"))
    console.print_table(report.path, rows)
