"""The `attention` family is the stock encoder: the same states from the same weights, on every backend.

With the weights of a random Whisper always; with those of whisper-tiny.en and recorded speech where the environment
variable WHISPER_TINY_EN names a folder with `config.json` and `encoder.safetensors` (keys `model.encoder.*`). Speech
is taken from the folder that WHISPER_SPEECH names, or from `examples/`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_processor, speech_like
from safetensors.torch import load_file
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from whisper_hailo_hf import HailoWhisperEncoder, WhisperHailoConfig

BACKENDS, AXES = ["torch", "onnx"], ["width", "height"]
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def convert(stock: WhisperEncoder, time_axis: str = "width", **options: Any) -> HailoWhisperEncoder:
    known = stock.config.to_dict()
    known = {name: known[name] for name in known if name not in ("model_type", "architectures", "dtype")}
    config = WhisperHailoConfig(**known, encoder_family="attention", time_axis=time_axis, encoder_options=options)
    encoder = HailoWhisperEncoder(config).eval()
    encoder.load_stock_encoder(stock)
    return encoder


def cut(stock: WhisperEncoder, positions: int) -> WhisperEncoder:
    """The stock encoder for a shorter window: the first rows of its position table, nothing else."""
    config = WhisperConfig(**stock.config.to_dict() | {"max_source_positions": positions})
    short = WhisperEncoder(config).eval()
    state = stock.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][:positions]
    short.load_state_dict(state)
    return short


@torch.no_grad()
def states(encoder: Any, features: Tensor) -> Tensor:
    return encoder(features).last_hidden_state


def assert_states(ours: Tensor, theirs: Tensor, atol: float) -> None:
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


# A random Whisper


@pytest.fixture(scope="module", params=[80, 128], ids=["80 bins", "128 bins"])
def random_teacher(request) -> tuple[WhisperEncoder, Tensor]:
    folder = request.getfixturevalue("stock_whisper" if request.param == 80 else "stock_whisper_128")
    stock = WhisperForConditionalGeneration.from_pretrained(folder)
    audio = [speech_like(seconds, seed) for seed, seconds in enumerate((30, 11, 3))]
    extract = make_processor(request.param).feature_extractor
    return stock.model.encoder, extract(audio, sampling_rate=16_000, return_tensors="pt").input_features


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_states_of_a_random_teacher(random_teacher, backend, axis):
    stock, features = random_teacher
    encoder = convert(stock, axis)
    encoder.set_encoder_backend(backend)
    expected = states(stock, features)
    batch = torch.cat([features, features[:2]])
    for count in (1, 2, 5):
        together = states(encoder, batch[:count])
        assert_states(together, states(stock, batch[:count]), 1e-4)
        for index in range(min(count, len(features))):
            assert_states(together[index], expected[index], 1e-4)


@pytest.mark.parametrize("seconds", [10, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_are_the_stock_encoder_with_its_positions_cut(random_teacher, backend, seconds):
    stock, features = random_teacher
    compare_tiles(stock, features[:2], backend, seconds, 1e-4)


def compare_tiles(stock: WhisperEncoder, features: Tensor, backend: str, seconds: int, atol: float) -> None:
    positions = 50 * seconds
    encoder = convert(stock, window_seconds=seconds)
    encoder.set_encoder_backend(backend)
    tiles = states(encoder, features).split(positions, dim=1)
    inputs = features.split(2 * positions, dim=2)
    assert len(tiles) == len(inputs) == 30 // seconds
    short = cut(stock, positions)
    expected = [states(short, window.contiguous()) for window in inputs]
    for tile, window in zip(tiles, expected, strict=True):
        assert_states(tile, window, atol)
    first = convert(stock, window_seconds=seconds, tiles="first")
    first.set_encoder_backend(backend)
    padded = states(first, features)
    assert padded.shape == (len(features), 1500, stock.config.d_model)
    assert_states(padded[:, :positions], expected[0], atol)
    assert not padded[:, positions:].any()


# whisper-tiny.en


@pytest.fixture(scope="module")
def teacher() -> WhisperEncoder:
    folder = os.environ.get("WHISPER_TINY_EN")
    if not folder or not (Path(folder) / "encoder.safetensors").is_file():
        pytest.skip("WHISPER_TINY_EN names no folder with encoder.safetensors")
    encoder = WhisperEncoder(WhisperConfig.from_pretrained(folder)).eval()
    weights = load_file(Path(folder) / "encoder.safetensors")
    encoder.load_state_dict({name.removeprefix("model.encoder."): tensor for name, tensor in weights.items()})
    return encoder


@pytest.fixture(scope="module")
def speech(teacher: WhisperEncoder) -> Tensor:
    """Features of recorded speech: one full window of several recordings, and the longest one by itself."""
    folder = Path(os.environ.get("WHISPER_SPEECH", EXAMPLES))
    files = sorted([*folder.rglob("*.flac"), *folder.rglob("*.wav"), *folder.rglob("*.ogg")])
    if not files:
        pytest.skip(f"no recordings in {folder}: let WHISPER_SPEECH name a folder with some")
    recordings = [read(path) for path in files[:: max(1, len(files) // 12)][:12]]
    windows = [np.concatenate(recordings)[: 30 * 16_000], max(recordings, key=len)]
    extract = WhisperFeatureExtractor(feature_size=teacher.config.num_mel_bins)
    return extract(windows, sampling_rate=16_000, return_tensors="pt").input_features


def read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate == 16_000:
        return samples[:, 0]
    import soxr

    return soxr.resample(samples[:, 0], rate, 16_000)


@pytest.mark.parametrize(("backend", "axis"), [("torch", "width"), ("onnx", "width"), ("onnx", "height")])
def test_states_of_whisper_tiny_en(teacher, speech, backend, axis):
    encoder = convert(teacher, axis)
    encoder.set_encoder_backend(backend)
    assert_states(states(encoder, speech), states(teacher, speech), 1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_of_whisper_tiny_en(teacher, speech, backend):
    compare_tiles(teacher, speech[:1], backend, 10, 1e-3)
