# /// script
# dependencies = ["whisper-hailo-hf[onnx,serve,train,eval]"]
# ///
"""Whether adaptation repairs what harsh quantisation broke, on spoken digits of speakers that it never heard.

    python benchmarks/adapt_digits.py --speech recordings --held-out theo yweweler

The encoder of the bundled demo model gets weights of a few bits, and integers as on a chip. Its states, and those of
the float encoder, are collected from two services on the loopback address, on sequences of the other speakers to learn
from and of the held-out ones to measure on. The decoder is adapted, and measured on both encoders before and after.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor

from whisper_hailo_hf import quantize_encoder
from whisper_hailo_hf.model_loading import open_model
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder
from whisper_hailo_hf.service.adaptation import DecoderAdaptationArguments, adapt
from whisper_hailo_hf.service.collection import CollectionSettings, collect
from whisper_hailo_hf.service.running import background_server
from whisper_hailo_hf.service.settings import ServerSettings
from whisper_hailo_hf.speech_model import demo_model_path
from whisper_hailo_hf.wire.client import Connection

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "digits"))

from digit_clips import digit_files, load_digits
from digit_sequences import random_sequence


@dataclass
class Spoken:
    """A sequence of digits, as the collection wants it."""

    id: str
    samples: np.ndarray
    text: str
    language: str | None = "en"
    audio: Any = None

    @property
    def seconds(self) -> float:
        return len(self.samples) / 16000

    def load(self) -> np.ndarray:
        return self.samples


def sequences(speech: Path, speakers: list[str], count: int, seed: int) -> list[Spoken]:
    rng = np.random.default_rng(seed)
    clips = [load_digits(f for f in digit_files(speech) if f[2] == who) for who in speakers]
    drawn = [random_sequence(rng, clips[i % len(clips)]) for i in range(count)]
    return [Spoken(f"{seed}-{i}", one.samples, one.text) for i, one in enumerate(drawn)]


@torch.no_grad()
def coarsen(encoder: HailoWhisperEncoder, bits: int, head_bits: int) -> None:
    """Rounds the weights to so few bits, with a scale for each output channel; the last layer to `head_bits`."""
    for name, layer in encoder.core.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            most = 2 ** ((head_bits if name == "head" else bits) - 1) - 1
            scale = layer.weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12) / most
            layer.weight.copy_((layer.weight / scale).round() * scale)


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(demo_model_path()).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder of {digit}_{speaker}_{n}.flac")
    parser.add_argument("--held-out", nargs="+", default=["theo", "yweweler"])
    parser.add_argument("--train", type=int, default=400, help="sequences to learn from")
    parser.add_argument("--test", type=int, default=100, help="sequences to measure on")
    parser.add_argument("--bits", type=int, default=4, help="of the encoder's weights")
    parser.add_argument("--head-bits", type=int, default=2, help="of the last layer's")
    parser.add_argument("--part", default="full")
    parser.add_argument("--labels", default="original")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--work", type=Path, help="folder to keep what is made, and to go on from")
    parser.add_argument("--only-measure", action="store_true", help="one step only: what quantisation costs")
    options = parser.parse_args()
    speakers = sorted({f[2] for f in digit_files(options.speech)} - set(options.held_out))
    print(f"learning from {speakers}, measured on {options.held_out}", file=sys.stderr)
    train = sequences(options.speech, speakers, options.train, 1)
    test = sequences(options.speech, options.held_out, options.test, 2)
    temporary = None if options.work else tempfile.TemporaryDirectory()
    work = options.work or Path(temporary.name if temporary else ".")
    work.mkdir(parents=True, exist_ok=True)
    folders, start = {"torch": work / "float" / "model", "emulator": work / "coarse" / "model"}, time.monotonic()
    if not folders["emulator"].exists():
        save(open_model(demo_model_path()), folders["torch"])
        model = open_model(demo_model_path())
        coarsen(model.get_encoder(), options.bits, options.head_bits)
        quick: dict[str, Any] = {"layer_windows": 0, "choices": False, "report_windows": 1}
        calibration = [one.samples for one in train[:32]]
        quantize_encoder(model, calibration, output=work / "int.onnx", **quick)
        save(model, folders["emulator"])
    quantised = time.monotonic()
    for backend, settings in (
        ("emulator", CollectionSettings()),
        ("torch", CollectionSettings(states="float16", send="float16")),
    ):
        with background_server(folders[backend], ServerSettings(port=0), backend) as server:
            connections = [Connection(f"127.0.0.1:{server.port}")]
            collect(train, work / f"train-{backend}", connections, settings)
            collect(test, work / f"test-{backend}", connections, settings)
    collected = time.monotonic()
    args = DecoderAdaptationArguments(
        output_dir=str(work / "adapted"),
        part=options.part,
        labels=options.labels,
        max_steps=1 if options.only_measure else options.steps,
        per_device_train_batch_size=8,
        learning_rate=options.learning_rate,
        save_strategy="no",
        disable_tqdm=True,
        max_new_tokens=100,
        eval_batch_size=10,
        logging_steps=20,
    )
    metrics = adapt(
        folders["emulator"],
        work / "train-emulator",
        args,
        reference=work / "train-torch",
        eval_data=work / "test-emulator",
        eval_reference=work / "test-torch",
    )
    clean = metrics["reference_wer_before"]
    lost, left = metrics["wer_before"] - clean, metrics["wer_after"] - clean
    result = {
        "bits": options.bits,
        "head_bits": options.head_bits,
        "part": options.part,
        "labels": options.labels,
        "steps": args.max_steps,
        "train_sequences": len(train),
        "test_sequences": len(test),
        "test_words": sum(len(one.text.split()) for one in test),
        **{name: round(value, 4) for name, value in metrics.items()},
        "points_lost_to_quantisation": round(100 * lost, 2),
        "share_recovered": round(1 - left / lost, 3) if lost > 0 else None,
        "points_cost_on_float": round(100 * (metrics["reference_wer_after"] - clean), 2),
        "seconds": {
            "quantise": round(quantised - start),
            "collect": round(collected - quantised),
            "adapt": round(time.monotonic() - collected),
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
