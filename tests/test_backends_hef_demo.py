"""The bundled demo through the ASR pipeline on a stand-in for the chip: the emulator's text, to the letter."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers_hef import hailo_platform, install_hef

from whisper_hailo_hf import WhisperHailoForConditionalGeneration
from whisper_hailo_hf.compile.quantize import quantize_encoder
from whisper_hailo_hf.speech_model import demo_model_path

RECORDING = Path(__file__).resolve().parent.parent / "examples" / "digits_theo.flac"


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    samples, rate = soundfile.read(RECORDING, dtype="float32")
    assert rate == 16_000
    return samples


@pytest.fixture(scope="module")
def chip():
    with hailo_platform("4.20") as world:
        yield world


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chip) -> Path:
    """The demo with its integer graph and a HEF of that; whatever family its encoder is of."""
    from transformers import AutoProcessor

    source, folder = demo_model_path(), tmp_path_factory.mktemp("demo") / "model"
    model = WhisperHailoForConditionalGeneration.from_pretrained(source, encoder_backend="torch")
    quantize_encoder(
        model, str(RECORDING), output=folder.parent / "int8.onnx", method="minmax", layer_windows=0, choices=False,
        equalize=False, bias_correction=False, report_windows=1,
    )  # fmt: skip
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(source).save_pretrained(folder)
    install_hef(folder)
    return folder


def recognizer(model, folder):
    from transformers import AutoProcessor, pipeline

    processor = AutoProcessor.from_pretrained(folder)
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    return pipeline("automatic-speech-recognition", model, **parts)


@pytest.fixture(scope="module")
def recognizers(folder, chip):
    """The pipeline on the emulator and on the chip."""

    def make(backend: str):
        model = WhisperHailoForConditionalGeneration.from_pretrained(folder, encoder_backend=backend)
        return recognizer(model, folder)

    pair = make("emulator"), make("hef")
    yield pair
    pair[1].model.get_encoder().backend.close()
    assert chip.violations == []


def test_one_recording(recognizers, audio):
    emulator, chip = (one(audio.copy()) for one in recognizers)
    assert chip == emulator
    assert len(chip["text"].split()) >= 2


def test_batch(recognizers, audio):
    parts = [audio[: 16_000 * 3], audio, audio[16_000:], np.zeros(16_000, np.float32)]
    emulator, chip = (one([part.copy() for part in parts], batch_size=4) for one in recognizers)
    assert chip == emulator
    assert len({one["text"] for one in chip}) > 1


def test_long_form_with_timestamps(recognizers, audio):
    long = np.concatenate([audio, np.zeros(16_000 * 14, np.float32)] * 3)
    assert len(long) > 16_000 * 35
    emulator, chip = (one(long.copy(), return_timestamps=True) for one in recognizers)
    assert chip == emulator
    assert len(chip["chunks"]) >= 2


def test_two_threads(recognizers, audio):
    """Features come from the threads, states from one chip; the decoder is each thread's own business."""
    emulator, chip = recognizers
    parts = [audio, audio[8000:], audio[16_000:], audio[:32_000]]
    extract = chip.feature_extractor
    features = [extract(part, sampling_rate=16_000, return_tensors="np").input_features for part in parts]
    expected = [emulator.model.get_encoder().backend.encode(one) for one in features]
    backend = chip.model.get_encoder().backend
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(backend.encode, features * 2))
    for one, other in zip(found, expected * 2, strict=True):
        assert np.array_equal(one, other)
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda part: chip(part.copy())["text"], parts))
    assert texts == [emulator(part.copy())["text"] for part in parts]


def test_a_model_that_was_pickled_and_restored(recognizers, audio, folder):
    emulator, chip = recognizers
    model = pickle.loads(pickle.dumps(chip.model))
    assert model.encoder_backend == "hef"
    assert recognizer(model, folder)(audio.copy()) == emulator(audio.copy())
    model.get_encoder().backend.close()


def test_a_process_of_its_own(recognizers, audio, folder):
    """The command line, on the chip, in a process that was spawned."""
    recognizers[1].model.get_encoder().backend.close()  # one process at a time
    program = "import sys; from whisper_hailo_hf.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "transcribe", str(RECORDING), "--model", str(folder)]
    texts = []
    for backend in ("emulator", "hef"):
        done = subprocess.run(
            [*command, "--encoder-backend", backend], capture_output=True, text=True, env=dict(os.environ), timeout=200
        )
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1]
    assert len(texts[0].split()) >= 2
