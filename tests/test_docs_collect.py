"""docs/collect-and-adapt.md: every command and every program in it runs, on a small model behind a service here."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
from helpers_docs import Reader
from helpers_docs_place import (
    Services,
    clip,
    place,  # noqa: F401  # a fixture
    put_integers,
    put_model,
    put_speech,
    put_stock,
    put_table,
    there,
)
from helpers_hef import hailo_platform, install_hef

for name in ("accelerate", "cryptography", "datasets", "grpc", "onnxruntime"):
    pytest.importorskip(name)


def test_the_page(place, monkeypatch, capsys, stock_whisper, multilingual_processor):  # noqa: F811
    put_speech("speech", 3, 1.0)
    put_table("train.tsv", "speech")
    soundfile.write("talk.flac", clip(1.0), 16_000)
    put_stock(stock_whisper, "stock")
    put_model("stock", "MODEL", multilingual_processor, preset="micro")
    put_integers("MODEL")
    seen = {}

    def piped(done):
        seen["text"] = done.names["asr"](clip(1.0))["text"]

    def encrypted(done):
        from whisper_hailo_hf import WhisperHailoForConditionalGeneration

        model = WhisperHailoForConditionalGeneration.from_pretrained("MODEL", **done.names["model_kwargs"])
        features = multilingual_processor(clip(1.0), sampling_rate=16_000, return_tensors="pt").input_features
        seen["states"] = model.get_encoder()(features)[0].shape
        seen["info"] = model.get_encoder().backend.info()
        model.get_encoder().backend.close()
        monkeypatch.setenv("WHISPER_HAILO_TOKEN", Path("tls/token").read_text().strip())  # as the unit has it

    def as_a_unit(done):
        monkeypatch.delenv("WHISPER_HAILO_TOKEN")
        seen["unit"] = json.loads(done.out)

    def collected(done):
        there("states/manifest.json")(done)
        shutil.copytree("states", "held-out")

    def collected_floats(done):
        there("float-states/manifest.json")(done)
        shutil.copytree("float-states", "held-out-float")

    with hailo_platform("4.20") as chip, Services(monkeypatch) as services:
        install_hef("MODEL")
        Reader(
            "docs/collect-and-adapt.md",
            monkeypatch,
            capsys,
            here={
                '"localhost:50505"': lambda: repr(services.address()),
                '"address": "pi.local"': lambda: f'"address": {services.address()!r}',
                "--address pi.local": lambda: f"--address {services.address()}",
                "--server pi.local": lambda: f"--server {services.address()}",
                "--server localhost": lambda: f"--server {services.address()}",
                "/opt/whisper/bin/": "",
                "/opt/whisper/model": "MODEL",
                "/opt/whisper/tls": "tls",
            },
            more={
                "whisper-hailo serve": "--port 0",
                "whisper-hailo serve --make-certificates": "--name localhost",
                "/opt/whisper/bin/whisper-hailo serve": "--port 0",
                "whisper-hailo collect": "--check",
                "whisper-hailo adapt": "--batch-size 2 --epochs 1 --set use_cpu=true --set max_new_tokens=5",
                "accelerate launch": "--num_train_epochs 1 --max_steps 1 --use_cpu true --save_strategy no",
            },
            after={
                "whisper-hailo serve MODEL --encoder-backend hef": lambda done: seen.update(served=done.out),
                "from transformers import pipeline": piped,
                "whisper-hailo serve --make-certificates": there(
                    *(f"tls/{file}" for file in ("ca.pem", "server.pem", "server-key.pem", "client.pem", "token"))
                ),
                "from pathlib import Path": encrypted,
                "WHISPER_HAILO_CA": lambda done: seen.update(transcribed=done.out, summary=done.err),
                "/opt/whisper/bin/whisper-hailo serve": as_a_unit,
                "whisper-hailo collect train.tsv states": collected,
                "whisper-hailo collect train.tsv float-states": collected_floats,
                "whisper-hailo adapt": lambda done: seen.update(adapted=done.out),
                "accelerate launch": there("adapted/model.safetensors"),
            },
        ).read()
    assert chip.violations == []
    assert "backend          hef" in seen["served"]
    assert seen["text"]
    assert seen["info"]["encrypted"]
    assert seen["transcribed"].strip()
    assert "encoder on remote" in seen["summary"]
    assert (seen["unit"]["backend"], seen["unit"]["encrypted"], seen["unit"]["token"]) == ("hef", True, True)
    assert seen["states"] == (1, 1500, 64)
    for name in ("wer before", "wer after"):
        assert name in seen["adapted"]
