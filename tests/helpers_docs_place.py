"""What a page of the docs takes for granted: models under its names, speech, a compiler, a service, a microphone."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers_dfc import STANDIN
from helpers_live import FakeSoundDevice, install
from helpers_models import randomise
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from whisper_hailo_hf import WhisperHailoForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "examples" / "digits_theo.flac"
MODELS = ("src/whisper_hailo_hf/demo", "models/whisper-tiny.en-hailo")
RATE = 16_000


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder that is also the reader's home, with the checkout's recording and models: links, to be read only."""
    for name in ("examples", *MODELS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    own = logging.getLogger("whisper_hailo_hf")
    before = own.handlers, own.level
    yield tmp_path
    own.handlers, own.level = before


def there(*paths: str) -> Any:
    """A check that files are there, and hold something."""

    def look(_done: Any) -> None:
        for path in paths:
            assert Path(path).stat().st_size > 0, path

    return look


def clip(seconds: float | None = None) -> np.ndarray:
    """The bundled recording of digits, or its beginning: float32 at 16 kHz."""
    samples, rate = soundfile.read(CLIP, dtype="float32")
    assert rate == RATE
    return samples if seconds is None else samples[: round(seconds * RATE)]


def raw(samples: np.ndarray, channels: int = 1) -> bytes:
    """As a recorder writes it, in 16 bits."""
    return (np.repeat(samples[:, None], channels, axis=1) * 32767).astype("<i2").tobytes()


def put_clip(*paths: str, seconds: float = 2.6) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, clip(seconds), RATE)


def put_speech(folder: str, count: int = 3, seconds: float = 3.0) -> None:
    """A folder of so many recordings, of the same sound."""
    Path(folder).mkdir(parents=True)
    first = Path(folder, "0.flac")
    soundfile.write(first, np.resize(clip(), round(seconds * RATE)), RATE)
    for number in range(1, count):
        os.link(first, Path(folder, f"{number}.flac"))


def put_digits(folder: str) -> None:
    """Recordings under the names of the Free Spoken Digit Dataset: pieces of the bundled one."""
    Path(folder).mkdir()
    for number, part in enumerate(np.array_split(clip(), 14)[:10]):
        for speaker in ("theo", "yweweler"):
            soundfile.write(Path(folder, f"{number}_{speaker}_0.flac"), part, RATE)


def put_table(path: str, folder: str, count: int = 3) -> None:
    """A table of recordings of that folder."""
    rows = [f"{folder}/{number}.flac\tone eight\ten" for number in range(count)]
    Path(path).write_text("\n".join(["path\ttext\tlanguage", *rows, ""]), encoding="utf-8")


def put_stock(source: str, folder: str, tokens: int = 16) -> None:
    """The small stock Whisper under another name; it is random, and says no more than so many tokens."""
    shutil.copytree(source, folder)
    path = Path(folder, "generation_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": tokens}))


def put_model(source: str, folder: str, processor: Any, **settings: Any) -> Any:
    """A model of ours from a stock Whisper, with the processor. Its encoder is the stock one's, or random."""
    model = WhisperHailoForConditionalGeneration.from_whisper(source, **settings)
    if model.config.encoder_family == "conv":  # a new one gives nearly the same for every window
        randomise(model.get_encoder())
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def put_wide_stock(folder: str, processor: WhisperProcessor) -> None:
    """A stock Whisper as wide as tiny.en, with a decoder of one layer."""
    tokenizer = processor.tokenizer
    start, end = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|endoftext|>"])
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=384,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    settings = {"max_length": 12, "no_timestamps_token_id": tokenizer.convert_tokens_to_ids("<|notimestamps|>")}
    model.generation_config.update(is_multilingual=False, **settings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def put_compiler(path: str = "dfc/bin/python") -> None:
    """Python of an environment that has the stand-in for Hailo's compiler."""
    Path(path).parent.mkdir(parents=True)
    Path(path).write_text(f'#!/bin/sh\nPYTHONPATH="{STANDIN}" OMP_NUM_THREADS=1 exec "{sys.executable}" "$@"\n')
    Path(path).chmod(0o755)


def put_integers(folder: str) -> None:
    """The integer graph of a model's encoder beside its weights."""
    from whisper_hailo_hf.compile.quantize import quantize_encoder

    quick: dict[str, Any] = {"layer_windows": 0, "choices": False, "equalize": False, "bias_correction": False}
    quantize_encoder(folder, str(CLIP), method="minmax", report_windows=1, **quick)


def put_microphone(monkeypatch: pytest.MonkeyPatch, seconds: float = 2.6) -> None:
    """One that hears the beginning of the bundled recording; then the reader presses Ctrl-C."""
    install(monkeypatch, FakeSoundDevice([("USB microphone", 1, RATE, (RATE,))], clip(seconds), "ctrl-c"))


class BenchmarkHere:
    """A benchmark's system in this process: starting one takes longer than all that it does here."""

    def __init__(self, spec: Any, windows: Any, tokens: int, threads: int) -> None:
        from whisper_hailo_hf.evaluation.bench_systems import make_system

        self.spec, self.system = spec, make_system(spec, list(np.load(windows)), tokens, threads)

    def __enter__(self) -> BenchmarkHere:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def run(self, measure: Any) -> Any:
        return self.system.run(measure)

    def look(self) -> dict[str, Any]:
        from whisper_hailo_hf.evaluation.bench_worker import resident_mib

        return {"seconds": 0.0, "before_mib": None, "peak_mib": resident_mib()[1], "info": self.system.info()}


class Services:
    """`whisper-hailo serve` of this process: it listens in a thread, while the reader goes on in another terminal. The
    next one on the page ends the last, whose port it would have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = ExitStack()
        self.port = 0
        monkeypatch.setattr("whisper_hailo_hf.service.running.serve", self._serve)

    def _serve(self, model: Any, settings: Any, backend: str, started: Any) -> None:
        from whisper_hailo_hf.service.running import background_server

        self._open.close()
        server = self._open.enter_context(background_server(model, settings, backend))
        started(server)
        self.port = server.port

    def address(self) -> str:
        return f"localhost:{self.port}"

    def __enter__(self) -> Services:
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()
