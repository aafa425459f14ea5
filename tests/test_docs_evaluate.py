"""docs/evaluate.md: every command and every program in it runs, on small models."""

import io
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers_docs import pieces
from helpers_docs_place import BenchmarkHere
from transformers import WhisperProcessor

from whisper_hailo_hf import WhisperHailoForConditionalGeneration
from whisper_hailo_hf.cli.main import main
from whisper_hailo_hf.evaluation import benchmark
from whisper_hailo_hf.evaluation.bench_process import BenchProcess

for name in ("datasets", "evaluate", "matplotlib", "onnxruntime"):
    pytest.importorskip(name)

ROOT = Path(__file__).resolve().parent.parent
PAGE = pieces("docs/evaluate.md")
SAID = (ROOT / "examples" / "digits_theo.txt").read_text(encoding="utf-8").strip()
QUICK = "--turns 1 --warm-up 0 --tokens 2 --threads 1 --no-faster-whisper"


def commands(verb: str) -> list[list[str]]:
    return [shlex.split(piece.text)[1:] for piece in PAGE if piece.text.startswith(f"whisper-hailo {verb}")]


@pytest.fixture(scope="module")
def place(tmp_path_factory, stock_whisper) -> Path:
    """What the page takes for granted: speech, as a table and as a folder, and a student."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "speech").mkdir()
    samples, rate = soundfile.read(ROOT / "examples" / "digits_theo.flac", dtype="float32")
    for name, part in (("clip.flac", samples), ("one.flac", samples[: 2 * rate])):
        soundfile.write(folder / "speech" / name, part, rate)
    (folder / "speech" / "test.tsv").write_text(f"path\ttext\nclip.flac\t{SAID}\none.flac\tone\n", encoding="utf-8")
    (folder / "speech" / "metadata.csv").write_text(f"file_name,text\nclip.flac,{SAID}\n", encoding="utf-8")
    WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, "attention").save_pretrained(folder / "student")
    WhisperProcessor.from_pretrained(stock_whisper).save_pretrained(folder / "student")
    # it is random, and would go on talking to the end of its window
    path = folder / "student" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 24}))
    return folder


@pytest.fixture
def cli(place, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(place)

    def run(words: list[str]) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(words)
        captured = capsys.readouterr()
        assert not end.value.code, captured.err
        return captured.out, captured.err

    return run


def hub_dataset(name: str, config: str, *, split: str, streaming: bool):
    """In place of the Hub: a stream of one row, in the form of FLEURS."""
    from datasets import Audio, Dataset

    assert (name, config, split, streaming) == ("google/fleurs", "fr_fr", "test", True)
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(16_000) / 20).astype(np.float32), 16_000, format="WAV")
    rows = {"audio": [{"bytes": file.getvalue(), "path": "a.wav"}], "raw_transcription": ["Où est la rue ?"]}
    return Dataset.from_dict(rows).cast_column("audio", Audio()).to_iterable_dataset()


def test_error_rates(cli, place, monkeypatch, stock_whisper):
    monkeypatch.setattr("datasets.load_dataset", hub_dataset)
    plain, several, english, hub = commands("eval")
    out, _ = cli(plain)
    assert "demo" in out
    shutil.copytree(stock_whisper, place / "openai-whisper")
    path = place / "openai-whisper" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 24}))
    out, err = cli([word.replace("openai/whisper-tiny", "openai-whisper") for word in several])
    for name in ("student torch", "student onnx", "openai-whisper torch"):
        assert name in out
    assert "results/report.json" in err
    names = {"student-torch", "student-onnx", "openai-whisper-torch", "utterances"}
    assert {path.stem for path in (place / "results").glob("*.jsonl")} == names
    report = json.loads((place / "results" / "report.json").read_text(encoding="utf-8"))
    # the student's encoder has the stock weights
    assert [pair["value"] for pair in report["comparisons"]] == [0, 0, 0]
    out, _ = cli(english)
    (system,) = json.loads(out)["systems"]
    assert system["words"]["hits"] == 1  # of digits, the English normaliser makes one number
    out, _ = cli(hub)
    assert "google/fleurs: 1 utterances" in out


def test_speed(cli, place, monkeypatch):
    first, second, third, measured = ([*words, *QUICK.split()] for words in commands("bench"))

    def stock_in_its_own_process(spec, *settings):
        return (BenchProcess if spec.kind == "stock" else BenchmarkHere)(spec, *settings)

    monkeypatch.setattr(benchmark, "BenchProcess", stock_in_its_own_process)
    out, err = cli([word.replace("tiny", "micro") for word in first])
    for words in ("stock torch", "ours onnx", "ours emulator", "end to end", "peak memory", "1 turns, 2 tokens"):
        assert words in out
    assert "wrote benchmark.json" in err
    assert (place / "before" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    page = (place / "before" / "benchmark.html").read_text(encoding="utf-8")
    assert "<svg" in page
    found = json.loads((place / "before" / "benchmark.json").read_text(encoding="utf-8"))
    assert [system["name"] for system in found["systems"]] == [
        "stock torch",
        "ours onnx",
        "ours onnx, decoder onnx",
        "ours emulator",
        "ours emulator, decoder onnx-int8",
    ]
    assert found["systems"][0]["peak_mib"] > found["systems"][0]["before_mib"] > 0
    assert found["systems"][0]["loading_seconds"] > 0
    for system in found["systems"]:
        assert all(len(seconds) == 1 for seconds in system["seconds"].values())
    assert found["provenance"]["versions"]["torch"]
    monkeypatch.setattr(benchmark, "BenchProcess", BenchmarkHere)
    out, err = cli([word.replace("tiny", "micro") for word in second])
    assert "now and then" in out
    assert "ours onnx" in out
    out, _ = cli(third)
    assert [system["kind"] for system in json.loads(out)["systems"]] == ["stock", "ours", "ours"]
    measured += ["--encoder-backend", "torch", "--decoder-backend", "torch"]  # all of them had their turn above
    out, _ = cli([word.replace("tiny", "micro") for word in measured])
    assert "stock torch" in out


def test_programs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for piece in PAGE:
        if piece.kind == "program":
            exec(compile(piece.text, str(piece), "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert "student torch student onnx 0.0 1.0" in out
