"""docs/compile.md: every command and every program in it runs, with a stand-in for Hailo's compiler."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from helpers_docs import ROOT, Reader
from helpers_docs_place import (
    place,  # noqa: F401  # a fixture
    put_compiler,
    put_model,
    put_speech,
    there,
)

for name in ("onnxruntime", "optimum"):
    pytest.importorskip(name)
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the compiler runs on Linux only")


@pytest.mark.usefixtures("place")
def test_the_page(monkeypatch, capsys, stock_whisper, multilingual_processor):
    put_model(stock_whisper, "my-model", multilingual_processor, preset="micro")
    put_speech("speech", 72, 16.0)
    put_compiler()
    Path("tests").symlink_to(ROOT / "tests")
    seen = {}

    def compiled(done):
        there("my-model-hailo8l/encoder.alls")(done)
        for file in ("encoder.onnx", "encoder.har"):  # the remedies are for what lies there
            shutil.copy(Path("my-model-hailo8l", file), file)

    Reader(
        "docs/compile.md",
        monkeypatch,
        capsys,
        here={
            "python tests/hailo_sdk_api.py": "~/dfc/bin/python tests/hailo_sdk_api.py",
            "jq -r": "jq -r" if shutil.which("jq") else "true",  # not everybody has it
        },
        more={
            "whisper-hailo quantize": "--windows 4",
            "whisper-hailo verify": "--windows 1",
            "optimum-cli hailo quantize": "--windows 4 --quick",
        },
        after={
            "python tests/hailo_sdk_api.py": lambda done: seen.update(api=done.out),
            "whisper-hailo compile": compiled,
            "whisper-hailo quantize": there("report.json"),
            "whisper-hailo verify": lambda done: seen.update(ladder=done.out),
            "cp ": there("mine.alls"),
            "jq ": lambda done: seen.update(journal=done.out),
            "whisper-hailo check encoder.onnx": lambda done: seen.update(check=done.out),
            "whisper-hailo check encoder.onnx --har": lambda done: seen.update(nodes=done.out),
            "whisper-hailo doctor": lambda done: seen.update(hef=done.out),
            "from whisper_hailo_hf import compile_encoder": lambda done: seen.update(python=done.out),
            "from whisper_hailo_hf import compare_stages": lambda done: seen.update(verdict=done.out),
            "optimum-cli export hailo": there("out/onnx/encoder.onnx"),
            "optimum-cli export hailo --model my-model --audio": there(
                "out/onnx/encoder_int8.onnx", "out/hailo8l/encoder.hef", "out-hailo8l/journal.jsonl"
            ),
        },
    ).read()
    there("my-model/hailo8l/encoder.hef", "my-model/hailo8l/encoder.alls")(None)
    there("my-model/hailo8l/encoder.journal.jsonl", "my-model/onnx/encoder_int8.onnx")(None)
    records = json.loads(Path("my-model/config.json").read_text())["artefacts"]
    assert {f"hailo8l/encoder.{end}" for end in ("hef", "alls", "journal.jsonl")} <= set(records)
    for row in seen["journal"].splitlines():
        stage, seconds, memory = row.split("\t")
        assert stage
        assert float(seconds) >= 0
        assert not memory or int(memory) > 0
    for name, words in {
        "api": ("entries hold",),
        "ladder": ("har-native against emulator", "har-quantized against har-native"),
        "check": ("encoder.onnx for hailo8l", "result  passed"),
        "nodes": ("encoder.har, present", "nodes and layers"),
        "hef": ("compiled for  hailo8l", "readable by   HailoRT"),
        "python": ("my-model/hailo8l/encoder.hef {'snr_db': ",),
        "verdict": ("ok: torch → onnx → emulator → har-native → har-quantized agree",),
    }.items():
        for one in words:
            assert one in seen[name], (name, one)
