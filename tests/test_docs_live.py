"""docs/live.md: every command and every program in it runs, with a microphone that plays the bundled recording."""

import json
import re
from pathlib import Path

import pytest
from helpers_docs import ROOT, Reader
from helpers_docs_place import (
    RATE,
    clip,
    place,  # noqa: F401  # a fixture
    put_clip,
    put_digits,
    put_microphone,
    put_model,
    put_stock,
    raw,
    there,
)

for name in ("grpc", "jiwer", "onnxruntime", "scipy", "silero_vad", "soxr"):
    pytest.importorskip(name)

HEARD = "one eight zero nine"


@pytest.mark.usefixtures("place")
def test_the_page(monkeypatch, capsys, stock_whisper, multilingual_processor):
    import soxr

    from whisper_hailo_hf.service.running import background_server
    from whisper_hailo_hf.service.settings import ServerSettings
    from whisper_hailo_hf.speech_model import demo_model_path

    put_clip("talk.wav")
    put_digits("recordings")
    put_stock(stock_whisper, "stock")
    put_model("stock", "whisper-tiny-hailo", multilingual_processor, family="attention")
    put_microphone(monkeypatch)
    Path("benchmarks").symlink_to(ROOT / "benchmarks")
    seen = {}

    def said(name):
        return lambda done: seen.update({name: done.out})

    with background_server(demo_model_path(), ServerSettings(port=0), "torch") as server:
        Reader(
            "docs/live.md",
            monkeypatch,
            capsys,
            here={"localhost:50505": f"localhost:{server.port}"},
            given={
                "whisper-hailo listen - --rate 48000": raw(soxr.resample(clip(2.6), RATE, 48_000), 2),
                "arecord -q -f S16_LE -r 16000": raw(clip(2.6)),
                "ffmpeg -loglevel error -i rtp://239.0.0.1:5004 -f s16le -ac 1 -ar 16000": raw(clip(2.6)),
            },
            more={
                "whisper-hailo listen --web": "--port 0",
                "python benchmarks/live.py digits": "--seconds 3",
                "python benchmarks/live.py quiet": "--seconds 1 --seconds-without 1",
                "python benchmarks/live.py speed": "--seconds 3 --min-chunk 3 --policy align-att --threads 1",
                "python benchmarks/live.py long": "--hours 0.002",
            },
            after={
                "whisper-hailo listen --list-devices": said("devices"),
                "whisper-hailo listen --device": said("by name"),
                "whisper-hailo listen talk.wav": said("recording"),
                "whisper-hailo listen - --rate 48000": said("raw"),
                "arecord": said("arecord"),
                "ffmpeg": said("ffmpeg"),
                "whisper-hailo listen --encoder-backend onnx": said("onnx"),
                "whisper-hailo listen --encoder-backend remote": said("remote"),
                "whisper-hailo listen --json": said("events"),
                "whisper-hailo listen --srt": there("talk.srt"),
                "whisper-hailo listen --web": lambda done: seen.update(page=done.err),
                "from whisper_hailo_hf.audio import iter_audio": said("python"),
                "python benchmarks/live.py digits": there("live-digits.json"),
                "python benchmarks/live.py quiet": said("quiet"),
                "python benchmarks/live.py speed": said("speed"),
                "python benchmarks/live.py long": said("long"),
                "python benchmarks/live.py pi": said("pi"),
            },
        ).read()
    assert "USB microphone" in seen["devices"]
    for name in ("recording", "raw", "arecord", "ffmpeg", "onnx", "remote"):
        assert " ".join(seen[name].split()) == HEARD, name
    events = [json.loads(line) for line in seen["events"].splitlines()]
    assert {"committed", "end_of_phrase"} <= {event["event"] for event in events}
    assert re.search(r"http://127\.0\.0\.1:\d+/", seen["page"])
    for name in ("quiet", "speed", "long", "pi"):
        assert json.loads(seen[name])["result"], name
    assert seen["python"].strip().startswith(HEARD)
