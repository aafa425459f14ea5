"""docs/raspberry-pi.md: what can run without a chip runs, on a stand-in that has the traps of one."""

import json
from pathlib import Path

import pytest
from helpers_docs import Reader
from helpers_docs_place import (
    clip,
    place,  # noqa: F401  # a fixture
    put_clip,
    put_integers,
    put_model,
    put_stock,
    there,
)
from helpers_hef import hailo_platform, hef_of_graph, install_hef

pytest.importorskip("onnxruntime")


def test_the_page(place, monkeypatch, capsys, stock_whisper, multilingual_processor):  # noqa: F811
    put_clip("recording.wav", "srv/recordings/one.wav")
    put_stock(stock_whisper, "openai/whisper-tiny")
    put_model("openai/whisper-tiny", "models/my-whisper", multilingual_processor, preset="micro")
    put_integers("models/my-whisper")
    windows = {"family": "attention", "encoder_options": {"window_seconds": 10}}
    put_model("openai/whisper-tiny", "tiles", multilingual_processor, **windows)
    put_integers("tiles")
    seen = {}

    def states(done):
        model = done.names["model"]
        features = multilingual_processor(clip(1.0), sampling_rate=16_000, return_tensors="pt").input_features
        shape = tuple(model.get_encoder()(features)[0].shape)
        seen.setdefault("states", []).append((model.encoder_backend, shape))
        model.get_encoder().backend.close()

    with hailo_platform("4.20") as chip:
        install_hef("models/my-whisper")
        Path("tiny-whisper-encoder-10s_15dB_h8l.hef").write_bytes(hef_of_graph("tiles/onnx/encoder_int8.onnx"))
        Reader(
            "docs/raspberry-pi.md",
            monkeypatch,
            capsys,
            here={"/srv/": f"{place}/srv/", "/home/pi/whisper/bin/": "", "/home/pi/": f"{place}/"},
            more={"python3 -m venv": "--without-pip"},
            after={
                "whisper-hailo doctor": lambda done: seen.update(doctor=done.out),
                "whisper-hailo doctor --json": lambda done: seen.update(json=done.out),
                "whisper-hailo transcribe recording.wav": lambda done: seen.update(text=done.out, said=done.err),
                "from whisper_hailo_hf import WhisperHailoForConditionalGeneration": states,
                "model = WhisperHailoForConditionalGeneration": states,
                "/home/pi/whisper/bin/whisper-hailo": there("srv/transcripts/one.txt"),
            },
        ).read()
    assert chip.violations == []
    assert json.loads(seen["json"])["backends"]["hef"]["available"]
    assert "compiled for  hailo8l" in seen["doctor"]
    assert seen["text"].strip()
    assert "encoder on hef" in seen["said"]
    assert seen["states"] == [("hef", (1, 1500, 64))] * 2
