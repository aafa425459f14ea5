# /// script
# dependencies = ["whisper-hailo-hf[onnx]"]
# ///
"""How much faster the student's encoder runs than the stock one on a CPU, in float and in 8 bits.

Both are exported the same way, as static graphs of one window of 30 s, and run by ONNX Runtime in turn, so that
whatever else the machine does meets all of them; what counts are the ratios to the stock encoder in float:

    python benchmarks/encoder_speed.py --threads 2 --repeats 40

The presets have random weights, which does not change their speed; `--model FOLDER` measures a trained one. The 8-bit
graphs are calibrated on noise, or on `--audio`, which changes no speed either.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import WhisperConfig

from whisper_hailo_hf import HailoWhisperEncoder, WhisperHailoConfig, export_encoder, quantize_encoder
from whisper_hailo_hf.stock import config_from_stock

# d_model, layers, heads of the published sizes (Radford et al. 2022, arXiv:2212.04356, table 1)
SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}


RUNS = 3  # timed, in each turn


def stock_config(size: str) -> WhisperConfig:
    d_model, layers, heads = SIZES[size]
    return WhisperConfig(
        d_model=d_model,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * d_model,
        decoder_layers=layers,
        decoder_attention_heads=heads,
        decoder_ffn_dim=4 * d_model,
    )


def random_encoder(size: str, family: str, time_axis: str) -> HailoWhisperEncoder:
    torch.manual_seed(0)
    preset = size if family == "conv" else None
    config: WhisperHailoConfig = config_from_stock(stock_config(size), family, preset, time_axis, None, None)
    encoder = HailoWhisperEncoder(config).eval()
    if family == "conv":  # normalisation by what it really sees, or its activations would shrink or grow
        encoder.core.train()
        with torch.no_grad():
            for _ in range(3):
                encoder.core(encoder.host.windows(features(4)))
        encoder.core.eval()
    return encoder


def features(windows: int) -> torch.Tensor:
    """Noise in the range of log-mel features, (windows, 80, 3000)."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(windows, 80, 3000, generator=generator) * 0.4).clamp(-1.5, 2)


def session_of(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # by default a session's idle threads go on spinning for a while, and would steal the next one's processor
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(sessions: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    """Seconds of a run, by the turn. The sessions take turns of one untimed run, which finds another session's memory
    in the caches, and three timed ones.
    """
    feeds = {}
    for name, session in sessions.items():
        entry = session.get_inputs()[0]
        values = np.random.default_rng(0).standard_normal(entry.shape).astype(np.float32) * 0.4
        feeds[name] = {entry.name: values}
        for _ in range(3):
            session.run(None, feeds[name])
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(repeats):
        for name, session in sessions.items():
            session.run(None, feeds[name])
            start = time.perf_counter()
            for _ in range(RUNS):
                session.run(None, feeds[name])
            times[name].append((time.perf_counter() - start) / RUNS)
    return times


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, (10, 50, 90))
    return {"p10": float(low), "median": float(middle), "p90": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny", help="of the stock encoder and of the preset")
    parser.add_argument("--model", help="folder of a trained student, in place of the random preset")
    parser.add_argument("--audio", help="speech to calibrate with, in place of noise")
    parser.add_argument("--time-axis", choices=["width", "height"], default="width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()

    stock = random_encoder(options.size, "attention", options.time_axis)
    ours: Any = options.model or random_encoder(options.size, "conv", options.time_axis)
    calibration: Any = options.audio or features(8).numpy()
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("stock_fp32", "conv_fp32", "conv_int8")}
        export_encoder(stock, paths["stock_fp32"], windows=0)
        export_encoder(ours, paths["conv_fp32"], windows=0, time_axis=options.time_axis)
        quantize_encoder(
            ours, calibration, output=paths["conv_int8"], method="minmax", windows=64, layer_windows=0, choices=False
        )
        sessions = {name: session_of(path, options.threads) for name, path in paths.items()}
        times = measure(sessions, options.repeats)
    baseline = times["stock_fp32"]
    ratios = {
        name: spread([ours / theirs for ours, theirs in zip(baseline, times[name], strict=True)])
        for name in ("conv_fp32", "conv_int8")
    }
    result = {
        "size": options.size,
        "model": options.model or "random weights",
        "time_axis": options.time_axis,
        "threads": options.threads,
        "repeats": options.repeats,
        "machine": platform.processor() or platform.machine(),
        "onnxruntime": onnxruntime.__version__,
        "median_ms": {name: 1000 * statistics.median(values) for name, values in times.items()},
        "times_faster_than_stock_fp32": ratios,
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    turns = f"{options.repeats} turns of {RUNS} runs, onnxruntime {onnxruntime.__version__}"
    print(f"{options.size}, {options.threads} threads, {turns}; times as fast as stock fp32, 10th to 90th percentile:")
    for name, ms in result["median_ms"].items():
        print(f"  {name:12s} {ms:8.1f} ms", end="")
        if name in ratios:
            print("   {median:.1f} ({p10:.1f}-{p90:.1f})".format(**ratios[name]), end="")
        print()


if __name__ == "__main__":
    main()
