"""README.md: every command and every program in it runs, on small models."""

import json
import shutil
from pathlib import Path

import pytest
from helpers_docs import ROOT, Reader
from helpers_docs_place import (
    BenchmarkHere,
    Services,
    place,  # noqa: F401  # a fixture
    put_clip,
    put_compiler,
    put_microphone,
    put_speech,
    put_stock,
    put_table,
    put_wide_stock,
    there,
)

for name in ("datasets", "grpc", "jiwer", "onnxruntime", "silero_vad"):
    pytest.importorskip(name)

CARD = (
    "{title: T, name: user/distilled-hailo, summary: S, license: mit, language: [en], training: T, limits: L,"
    " data: [{name: D, licence: CC0}]}"
)
BENCH = (
    "--turns 1 --warm-up 0 --tokens 2 --threads 1 --no-faster-whisper --encoder-backend onnx --decoder-backend torch"
)
QUICK = "--set use_cpu=true --set report_to=none"
# one step that is large enough for the encoder to tell windows apart
STEP = f"--steps 1 --batch-size 2 {QUICK} --set statistics_windows=2 --set learning_rate=0.01 --set warmup_steps=0"


@pytest.mark.usefixtures("place")
def test_the_page(monkeypatch, capsys, stock_whisper, multilingual_processor):
    put_clip("talk.wav", "talk.flac", "podcast.flac", "recordings/one.wav")
    put_speech("speech", 72, 16.0)
    put_table("speech.tsv", "speech", 2)
    put_stock(stock_whisper, "openai/whisper-tiny")
    put_wide_stock("openai/whisper-tiny.en", multilingual_processor)
    put_compiler()
    Path("card.yaml").write_text(CARD)
    shutil.copy(ROOT / "Makefile", "Makefile")
    put_microphone(monkeypatch)
    monkeypatch.setattr("whisper_hailo_hf.evaluation.benchmark.BenchProcess", BenchmarkHere)
    seen = {}
    with Services(monkeypatch) as services:
        Reader(
            "README.md",
            monkeypatch,
            capsys,
            here={"--server pi.local": lambda: f"--server {services.address()}", "--shape tiny": "--shape micro"},
            more={
                "whisper-hailo init": "--preset micro",
                "whisper-hailo distill": STEP,
                "whisper-hailo quantize": "--windows 4",
                "whisper-hailo verify": "--windows 2",
                "whisper-hailo bench": BENCH,
                "whisper-hailo serve": "--port 0",
                "whisper-hailo adapt": f"--batch-size 2 --epochs 1 {QUICK} --set save_strategy=no",
            },
            after={
                "make help": lambda done: seen.update(goals=done.out),
                "whisper-hailo transcribe talk.wav": lambda done: seen.update(digits=done.out),
                "whisper-hailo transcribe recordings/": there("captions/one.srt"),
                "whisper-hailo transcribe talk.flac": lambda done: seen.update(words=json.loads(done.out)),
                "whisper-hailo transcribe podcast.flac": lambda done: seen.update(spoken=done.out),
                "whisper-hailo init": there("student/model.safetensors"),
                "whisper-hailo distill": there("distilled/model.safetensors"),
                "whisper-hailo export": there("encoder.onnx"),
                "whisper-hailo check": lambda done: seen.update(cost=done.out),
                "whisper-hailo quantize": there("distilled/onnx/encoder_int8.onnx"),
                "whisper-hailo compile": there("distilled/hailo8l/encoder.hef"),
                "whisper-hailo doctor distilled": lambda done: seen.update(hef=done.out),
                "whisper-hailo eval": lambda done: seen.update(rates=done.out),
                "whisper-hailo bench": lambda done: seen.update(speed=done.out),
                "whisper-hailo collect": there("states/manifest.json"),
                "whisper-hailo adapt": there("adapted/model.safetensors"),
                "whisper-hailo push": lambda done: seen.update(push=done.out + done.err),
                "whisper-hailo listen": lambda done: seen.update(heard=done.out),
            },
        ).read()
    assert seen["goals"].startswith("help ")
    assert seen["digits"].split() == ["one", "eight", "zero", "nine"] == seen["heard"].split()
    assert seen["spoken"] == seen["digits"]
    assert seen["words"]["segments"][0]["words"][0].keys() == {"text", "start", "end"}
    for name, words in {
        "cost": ("result  passed", "on a Raspberry Pi 5 (modelled)"),
        "hef": ("compiled for  hailo8l", "Hailo\n"),
        "rates": ("distilled torch", "distilled emulator", "95% interval", "paired differences"),
        "speed": ("stock torch", "ours onnx", "end to end"),
        "push": ("distilled would go to user/distilled-hailo", "hailo8l/encoder.hef", "nothing was sent"),
    }.items():
        for one in words:
            assert one in seen[name], (name, one)
