# /// script
# dependencies = ["whisper-hailo-hf[onnx,eval]"]
# ///
"""What 8 bits do to Whisper's own encoder, to a convolutional student and to kernel attention: the tables of
docs/why-convolutions.md.

One quantizer, with the same settings, the same calibration and the same held-out windows, on each encoder:

    python benchmarks/why_convolutions.py --teacher whisper-tiny.en --student models/whisper-tiny.en-hailo \\
        --linear linear-attention --audio train.tsv --windows 64 --out build/why

Each line that is not in OUT yet is worked out and written there as JSON. The fidelity ladder of each follows, on the
first 8 windows of `--audio`, with the stages that are here.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whisper_hailo_hf import HailoWhisperEncoder, check_graph, compare_stages, export_encoder, quantize_encoder
from whisper_hailo_hf.distillation.teacher import load_teacher
from whisper_hailo_hf.model_loading import encoder_of, open_model
from whisper_hailo_hf.stock import config_from_stock

SETTINGS: dict[str, dict[str, Any]] = {
    "all 8 bits, min-max": {"method": "minmax", "equalize": False, "bias_correction": False},
    "all 8 bits, MSE, equalised, biases corrected": {"method": "mse"},
    "the same, residual adds and output in 16 bits": {"method": "mse", "sixteen_bit": ("residual_adds", "output")},
}


def stock(teacher: str) -> HailoWhisperEncoder:
    """The teacher's own encoder, its weights in the form of the `attention` family: Conv2d all over."""
    found = load_teacher(teacher)
    encoder = HailoWhisperEncoder(config_from_stock(found.config, "attention", None, "width", None, None))
    encoder.load_stock_encoder(found.encoder)
    return encoder.eval()


def quantised(encoder: HailoWhisperEncoder, settings: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = quantize_encoder(
            encoder,
            options.audio,
            output=Path(folder) / "encoder_int8.onnx",
            windows=options.windows,
            layer_windows=options.layer_windows,
            choices=False,
            **settings,
        )
    states = report.states
    worst = sorted((layer for layer in report.layers if layer.alone_db is not None), key=lambda x: x.alone_db or 0.0)
    return {
        "snr_db": states.snr_db,
        "cosine_mean": states.cosine_mean,
        "cosine_p5": states.cosine_p5,
        "calibration_windows": report.calibration_windows,
        "report_windows": report.report_windows,
        "held_out": report.held_out,
        "left_in_float": report.left_in_float,
        "worst": [
            {"name": x.name, "alone_db": x.alone_db, "range": x.range, "outliers": x.outliers[:3]} for x in worst[:8]
        ],
        "seconds": report.seconds,
    }


def ladder(encoder: HailoWhisperEncoder, options: argparse.Namespace) -> dict[str, Any]:
    """From torch to 8 bits, and what the check says of the graph."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        export_encoder(encoder, path, windows=0)
        check = check_graph(path)
        quantize_encoder(encoder, options.audio, output=Path(folder) / "int8.onnx", windows=options.windows,
                         layer_windows=0, choices=False)  # fmt: skip
        report = compare_stages(encoder, options.audio, ["torch", "onnx", "emulator"], windows=8)
    steps = [n.metrics | {"from": n.reference, "to": n.stage} for n in report.neighbours]
    return {"first_broken": report.first_broken, "broken": report.broken, "neighbours": steps, "check": check.counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="stock Whisper, or its encoder")
    parser.add_argument("--student", required=True, help="folder of a student of the conv family")
    parser.add_argument("--linear", help="folder of a student of the linear_attention family")
    parser.add_argument("--audio", required=True, help="speech to calibrate with and to judge by")
    parser.add_argument("--windows", type=int, default=72, help="of 30 s; one in nine is held out to judge by")
    parser.add_argument("--layer-windows", type=int, default=1, help="to find the worst layers with, or 0")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    encoders: dict[str, Callable[[], HailoWhisperEncoder]] = {
        "stock": lambda: stock(options.teacher),
        "conv": lambda: encoder_of(open_model(options.student)),
    }
    if options.linear:
        encoders["linear_attention"] = lambda: encoder_of(open_model(options.linear))
    for name, make in encoders.items():
        for number, (what, settings) in enumerate(SETTINGS.items()):
            result = options.out / f"{name}-{number}.json"
            if not result.exists():
                result.write_text(json.dumps({"what": what} | quantised(make(), settings, options), indent=2) + "\n")
            known = json.loads(result.read_text())
            cosine = f"cosine {known['cosine_mean']:.4f}, 5th percentile {known['cosine_p5']:.4f}"
            print(f"{name:18s} {what:48s} {known['snr_db']:6.2f} dB  {cosine}", flush=True)
        result = options.out / f"{name}-ladder.json"
        if not result.exists():
            result.write_text(json.dumps(ladder(make(), options), indent=2) + "\n")
        known = json.loads(result.read_text())
        print(f"{name:18s} ladder: first broken stage {known['first_broken']}; check: {known['check']}", flush=True)


if __name__ == "__main__":
    main()
