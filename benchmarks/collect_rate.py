# /// script
# dependencies = ["whisper-hailo-hf[onnx,serve,train]"]
# ///
"""Rate, disk and memory of a large collection, at micro shapes, where all but the encoder is what counts.

    python benchmarks/collect_rate.py --samples 50000

The server is a process of its own on the loopback address, with an int8 encoder of 30 positions and 16 channels; each
sample is 0.3 s of noise, whose log-mel is made here.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whisper_hailo_hf import WhisperHailoConfig, WhisperHailoForConditionalGeneration, quantize_encoder
from whisper_hailo_hf.service.collection import CollectionSettings, collect
from whisper_hailo_hf.service.shards import check_collection
from whisper_hailo_hf.wire.client import Connection

_VERB = "import sys; from whisper_hailo_hf.cli.main import main; main(sys.argv[1:])"


@dataclass
class Noise:
    """0.3 s of it."""

    id: str
    number: int
    seconds: float = 0.3
    text: str | None = "noise"
    language: str | None = "en"
    audio: Any = None

    def load(self) -> np.ndarray:
        return np.random.default_rng(self.number).normal(0, 0.1, 4800).astype(np.float32)


class Noises(Sequence):
    """So many, none of them in memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.count:
            raise IndexError
        return Noise(f"noise-{index:06d}", index)


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    shapes: dict[str, Any] = {"vocab_size": 120, "d_model": 16, "num_mel_bins": 8, "max_source_positions": 30}
    shapes |= {"encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    shapes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_options": {"width": 24, "inner": 12}}
    shapes |= {"pad_token_id": 100, "bos_token_id": 100, "eos_token_id": 100, "decoder_start_token_id": 101}
    shapes |= {"suppress_tokens": None, "begin_suppress_tokens": None}
    model = WhisperHailoForConditionalGeneration(WhisperHailoConfig(**shapes)).eval()
    with torch.no_grad():
        for part in model.get_encoder().modules():
            if isinstance(part, torch.nn.Conv2d):  # some begin as zeros, of which nothing could be calibrated
                part.weight.normal_(0, part.weight[0].numel() ** -0.5)
    calibration = np.random.default_rng(0).standard_normal((64, 8, 60)).astype(np.float32)
    quick: dict[str, Any] = {"layer_windows": 0, "choices": False, "method": "minmax"}
    quantize_encoder(model, calibration, output=folder / "int8.onnx", **quick)
    model.save_pretrained(folder / "model")


def peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        save_model(folder)
        verb = ["serve", folder / "model", "--encoder-backend", "emulator", "--option", "threads=1", "--port", "0"]
        command = [sys.executable, "-c", _VERB, *map(str, verb), "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line == "}\n":
                break
        estimates: list[Any] = []
        start = time.monotonic()
        try:
            connection = Connection(f"127.0.0.1:{json.loads(text)['port']}")
            small = CollectionSettings(shard_bytes=2 * 2**20)
            report = collect(Noises(options.samples), folder / "set", [connection], small, estimated=estimates.append)
            server_peak = peak_mib(process.pid)
        finally:
            process.terminate()
            process.wait(60)
        seconds = time.monotonic() - start
        checked = check_collection(folder / "set")
    result = {
        "samples": options.samples,
        "rows": checked["rows"],
        "seconds": round(seconds, 1),
        "samples_per_second": round(options.samples / seconds, 1),
        "estimated_bytes": estimates[0].bytes,
        "estimated_seconds": round(estimates[0].seconds, 1),
        "bytes_on_disk": report.bytes,
        "shards": report.shards,
        "client_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "server_peak_mib": round(server_peak, 1),
    }
    print(json.dumps(result, indent=2))
    if checked["rows"] != options.samples:
        raise SystemExit("samples were lost")


if __name__ == "__main__":
    main()
