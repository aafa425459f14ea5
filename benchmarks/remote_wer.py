# /// script
# dependencies = ["whisper-hailo-hf[onnx,serve,eval]"]
# ///
"""The same text through the service: a digits model with its encoder here and behind a service, feature by feature.

    python benchmarks/remote_wer.py --speech recordings --speakers theo yweweler --sequences 60

Sequences of spoken digits go through the pipeline with the local backend, with `remote` as it comes, and with features
in 8 bits. Reported are the word error rates and how many texts are the same as the local backend's.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
from transformers import pipeline
from transformers.utils import logging

from whisper_hailo_hf import quantize_encoder
from whisper_hailo_hf.model_loading import open_model
from whisper_hailo_hf.service.running import background_server
from whisper_hailo_hf.speech_model import demo_model_path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "digits"))

from digit_clips import digit_files, load_digits
from digit_sequences import random_sequence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder of {digit}_{speaker}_{n}.flac")
    parser.add_argument("--speakers", nargs="+", default=["theo", "yweweler"])
    parser.add_argument("--sequences", type=int, default=60)
    parser.add_argument("--backends", nargs="+", default=["emulator", "onnx"])
    options = parser.parse_args()
    logging.set_verbosity_error()
    rng = np.random.default_rng(3)
    clips = {who: load_digits(f for f in digit_files(options.speech) if f[2] == who) for who in options.speakers}
    names = [options.speakers[i % len(options.speakers)] for i in range(options.sequences)]
    said = [random_sequence(rng, clips[who]) for who in names]
    result: dict[str, Any] = {"sequences": len(said), "words": sum(len(one.words) for one in said)}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        model = open_model(demo_model_path())
        model.set_encoder_backend("onnx")
        quick: dict[str, Any] = {"layer_windows": 0, "choices": False, "report_windows": 1}
        quantize_encoder(model, [one.samples for one in said[:24]], output=Path(work) / "int8.onnx", **quick)
        model.save_pretrained(folder)
        from transformers import AutoProcessor

        AutoProcessor.from_pretrained(demo_model_path()).save_pretrained(folder)

        def texts(**model_kwargs: Any) -> list[str]:
            asr = pipeline("automatic-speech-recognition", model=str(folder), model_kwargs=model_kwargs)
            return [asr(one.samples.copy())["text"].strip().lower() for one in said]

        for backend in options.backends:
            found = {"local": texts(encoder_backend=backend)}
            with background_server(folder, backend=backend) as server:
                there: dict[str, Any] = {"encoder_backend": "remote", "address": f"127.0.0.1:{server.port}"}
                found["remote"] = texts(**there)
                found["remote, uint8 features"] = texts(**there, encoder_backend_options={"features": "uint8"})
            wanted = [one.text for one in said]
            result[backend] = {
                name: {
                    "wer": round(jiwer.wer(wanted, one), 4),
                    "same_text_as_local": sum(a == b for a, b in zip(one, found["local"], strict=True)),
                }
                for name, one in found.items()
            }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
