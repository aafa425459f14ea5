"""The shorter pages of docs and the models' cards: every command and every program in them runs."""

import json
import shutil
from pathlib import Path

import pytest
from helpers_docs import ROOT, Reader
from helpers_docs_place import (
    MODELS,
    place,  # noqa: F401  # a fixture
    put_clip,
    put_digits,
    put_model,
    put_stock,
    put_wide_stock,
    there,
)

from whisper_hailo_hf.compile.cost_model import coefficients
from whisper_hailo_hf.compile.export import export_encoder

pytestmark = pytest.mark.usefixtures("place")
pytest.importorskip("onnxruntime")


def zoo() -> dict:
    """The zoo's tables, from what the package keeps of them."""
    columns = coefficients()["columns"]
    tables = {}
    for device, entry in coefficients()["devices"].items():
        rows = [dict(zip(columns, row, strict=True)) for row in entry["networks"]]
        tables[device.upper()] = [
            {
                "name": row["network"],
                "gops": row["gop"],
                "params": row["mparams"],
                "fps1": row["fps1"],
                "fps8": row["fps8"],
            }
            for row in rows
        ]
    return tables


def test_cost_model(monkeypatch, capsys, stock_whisper, multilingual_processor):
    page = Path("docs/cost-model.md")
    page.parent.mkdir()
    shutil.copy(ROOT / page, page)
    shutil.copytree(ROOT / "benchmarks", "benchmarks")
    Path("src/whisper_hailo_hf/compile").mkdir()  # a script writes there
    Path("hailo_model_zoo_speeds.json").write_text(json.dumps(zoo()))
    Path("onnx").mkdir()
    export_encoder(put_model(stock_whisper, "model", multilingual_processor, preset="micro"), "onnx/encoder.onnx")
    seen = {}
    Reader(
        "docs/cost-model.md",
        monkeypatch,
        capsys,
        here={"check FILE": "check onnx/encoder.onnx"},
        more={"python benchmarks/cost_table.py": "--presets tiny --stock"},
        after={
            "whisper-hailo check FILE": lambda done: seen.update(check=done.out),
            "from whisper_hailo_hf.compile": lambda done: seen.update(python=done.out),
        },
    ).read()
    assert "on a Raspberry Pi 5 (modelled)" in seen["check"]
    assert seen["python"].strip()
    fitted = json.loads(Path("src/whisper_hailo_hf/compile/cost_model.json").read_text())
    assert fitted["devices"].keys() == coefficients()["devices"].keys()
    for device, entry in coefficients()["devices"].items():
        assert fitted["devices"][device]["single"] == pytest.approx(entry["single"], abs=1e-4)

    def table(text: str, name: str) -> list[str]:
        return text.partition(f"<!-- {name}:")[2].partition(f"<!-- end of {name}")[0].splitlines()

    written, known = page.read_text(encoding="utf-8"), (ROOT / page).read_text(encoding="utf-8")
    assert table(written, "errors") == table(known, "errors")
    assert 10 < len(table(written, "costs")) < len(table(known, "costs"))
    assert set(table(written, "costs")) <= set(table(known, "costs"))  # those of the preset tiny


@pytest.mark.filterwarnings("ignore:__array_wrap__ must:DeprecationWarning")  # word timestamps of Transformers
def test_decoder(monkeypatch, capsys, stock_whisper, multilingual_processor):
    put_stock(stock_whisper, "stock")
    put_model("stock", "my-whisper", multilingual_processor, family="attention")
    put_digits("recordings")
    for name, folder in (("benchmarks", "benchmarks"), ("digits", "src/whisper_hailo_hf/demo")):
        Path(name).symlink_to(ROOT / folder)
    seen = {}
    Reader(
        "docs/decoder.md",
        monkeypatch,
        capsys,
        more={
            "python benchmarks/decoder_speed.py": "--threads 1 --repeats 1 --tokens 2 --no-memory",
            "python benchmarks/digits_wer.py": "--sequences 2 --batch-size 25",
        },
        after={
            "from transformers import pipeline": lambda done: seen.update(
                backend=done.names["asr"].model.decoder_backend
            ),
            "whisper-hailo transcribe": lambda done: seen.update(text=done.out),
            "python benchmarks/digits_wer.py": lambda done: seen.update(rates=done.out),
        },
    ).read()
    for backend in ("torch", "torch, decoder backend onnx", "torch, decoder backend onnx-int8"):
        assert f"encoder backend {backend}, real-time factor" in seen["rates"]
    assert seen["backend"] == "onnx-int8"
    assert len(set(seen["text"].split()) & set((ROOT / "examples/digits_theo.txt").read_text().split())) > 5


def test_graph_rules(monkeypatch, capsys, stock_whisper, multilingual_processor):
    Path("docs").mkdir()
    export_encoder(put_model(stock_whisper, "model", multilingual_processor, preset="micro"), "encoder.onnx")
    seen = {}
    Reader(
        "docs/graph-rules.md",
        monkeypatch,
        capsys,
        here={"check FILE": "check encoder.onnx"},
        after={"whisper-hailo check FILE": lambda done: seen.update(check=done.out)},
    ).read()
    assert "result  passed" in seen["check"]
    assert Path("docs/graph-rules.md").read_bytes() == (ROOT / "docs" / "graph-rules.md").read_bytes()


def test_student(monkeypatch, capsys, multilingual_processor):
    put_wide_stock("openai/whisper-tiny.en", multilingual_processor)
    found = []
    after = {"from whisper_hailo_hf": lambda done: found.append(done.names["model"].config.d_model)}
    Reader("docs/student.md", monkeypatch, capsys, after=after).read()
    assert found == [384]


def test_card_of_the_demo(monkeypatch, capsys):
    put_clip("recording.wav")
    said = []
    after = {"whisper-hailo transcribe": lambda done: said.append(done.out.split())}
    Reader("hub_cards/digits.md", monkeypatch, capsys, after=after).read()
    assert said == [["one", "eight", "zero", "nine"]]


def test_card_of_the_student(monkeypatch, capsys, multilingual_processor):
    put_wide_stock("openai/whisper-tiny.en", multilingual_processor)
    put_clip("recording.wav")
    said = []
    after = {
        "whisper-hailo init": there("my-whisper/model.safetensors", "my-whisper/tokenizer.json"),
        "whisper-hailo transcribe": lambda done: said.append(done.err),
    }
    Reader("hub_cards/whisper-tiny.en-hailo.md", monkeypatch, capsys, after=after).read()
    assert "1 file, 2.6 s of audio" in said[0]


def test_how_cards_are_made(monkeypatch, capsys):
    """In a copy, since it writes."""
    shutil.copytree(ROOT / "hub_cards", "hub_cards")
    for folder in MODELS:
        Path(folder).unlink()
        shutil.copytree(ROOT / folder, folder)
    Path("hub_cards/digits.md").write_text("old")
    said = []
    after = {
        "python hub_cards/generate.py    ": lambda done: said.append(done.out),
        "python hub_cards/generate.py --check": lambda done: said.append(done.out),
    }
    Reader("hub_cards/README.md", monkeypatch, capsys, after=after).read()
    assert said == ["hub_cards/digits.md: written\n", ""]
    assert Path("hub_cards/digits.md").read_bytes() == (ROOT / "hub_cards" / "digits.md").read_bytes()
