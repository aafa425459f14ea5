"""`whisper-hailo eval`: real speech through the bundled demo model, several systems, and runs that are cut off."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jiwer
import numpy as np
import pytest
from helpers_audio import cut, write

pytest.importorskip("evaluate")

from whisper_hailo_hf.audio import read_audio
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.evaluation import RecognitionOptions, evaluate_recognition
from whisper_hailo_hf.evaluation.decoding_log import DecodingLog
from whisper_hailo_hf.evaluation.recogniser import Recogniser
from whisper_hailo_hf.evaluation.references import load_references
from whisper_hailo_hf.sources import Utterance
from whisper_hailo_hf.speech_model import load_speech_model

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SAID = (EXAMPLES / "digits_theo.txt").read_text(encoding="utf-8").strip()
FEW = RecognitionOptions(resamples=200)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Spoken digits: with the right text, with one that has other words, and silence."""
    folder = tmp_path_factory.mktemp("digits")
    shutil.copy(EXAMPLES / "digits_theo.flac", folder / "clip.flac")
    write(folder / "quiet.wav", np.zeros(32_000, np.float32))
    wrong = SAID.replace("eight", "nine", 1) + " zero"  # one substituted, one deleted
    rows = [("id", "path", "seconds", "text"), ("right", "clip.flac", "9.847", SAID.upper() + ".")]
    rows += [("wrong", "clip.flac", "9.847", wrong), ("quiet", "quiet.wav", "2.0", "")]
    (folder / "digits.tsv").write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "digits.tsv"


def test_two_backends_on_real_speech(table, tmp_path, cli):
    pytest.importorskip("onnxruntime")
    backends = ("--encoder-backend", "torch", "--encoder-backend", "onnx")
    out = tmp_path / "results"
    status, printed, notes = cli("eval", table, *backends, "--resamples", 200, "--output-dir", out)
    assert status == 0, notes
    for words in (
        "demo torch",
        "demo onnx",
        "WER",
        "paired differences",
        "most word errors",
        "3 utterances, 1 of them",
    ):
        assert words in printed
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    torch, onnx = report["systems"]
    assert (torch["encoder_backend"], onnx["encoder_backend"]) == ("torch", "onnx")
    assert torch["words"] == {"hits": 27, "substitutions": 1, "deletions": 1, "insertions": 0}
    assert torch["wer"] == 2 / 29
    assert torch["wer_interval"]["low"] <= torch["wer"] <= torch["wer_interval"]["high"]
    assert (torch["utterances"], torch["without_error"], torch["silent"], torch["empty"]) == (3, 2, 1, 0)
    assert torch["hallucinated"] == 0
    assert torch["real_time_factor"] == pytest.approx(torch["seconds"] / torch["audio_seconds"])
    (pair,) = report["comparisons"]
    assert (pair["first"], pair["second"], pair["value"], pair["p_value"]) == ("demo torch", "demo onnx", 0, 1)
    (worst,) = report["worst"]
    assert (worst["id"], worst["word_errors"]) == ("wrong", {"demo torch": 2, "demo onnx": 2})
    lines = [json.loads(line) for line in (out / "utterances.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["system"], line["id"]) for line in lines[:4]] == [
        *(("demo torch", name) for name in ("right", "wrong", "quiet")),
        ("demo onnx", "right"),
    ]
    for line in lines:
        assert line["wer"] == jiwer.wer(line["reference_normalized"], line["text_normalized"])
        assert line["cer"] == jiwer.cer(line["reference_normalized"], line["text_normalized"])
    assert lines[0]["text_normalized"] == SAID

    # the decoder on two backends
    decoders = ("--decoder-backend", "torch", "--decoder-backend", "onnx-int8", "--output-dir", tmp_path / "decoders")
    status, printed, _ = cli("eval", table, "--encoder-backend", "torch", *decoders, "--limit", 1, "--json")
    assert status == 0
    systems = json.loads(printed)["systems"]
    assert [one["name"] for one in systems] == ["demo torch", "demo torch, decoder onnx-int8"]
    assert [one["decoder_backend"] for one in systems] == ["torch", "onnx-int8"]
    assert systems[1]["words"]["hits"] >= 12

    # again: nothing is decoded anew, another way to count needs no decoding
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("demo-*.jsonl")}
    assert sorted(before) == ["demo-onnx.jsonl", "demo-torch.jsonl"]
    status, printed, _ = cli("eval", table, *backends, "--normalizer", "none", "--output-dir", out, "--json")
    assert status == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("demo-*.jsonl")} == before
    assert json.loads(printed)["systems"][0]["words"]["hits"] < 27  # upper case is another word now
    status, _, notes = cli("eval", table, *backends, "--num-beams", 2, "--output-dir", out)
    assert status == 2
    assert "holds results with another num_beams: name another folder" in notes


def test_stock_and_student_differ(stock_whisper, table):
    options = RecognitionOptions(resamples=200, language="en", max_new_tokens=12, batch_size=3)
    seen = []
    report = evaluate_recognition(
        table, [stock_whisper, None], ["torch"], options, observe=lambda *step: seen.append(step)
    )
    stock, demo = report.systems
    assert stock.name == "whisper torch"
    assert stock.wer > demo.wer
    (pair,) = report.comparisons
    assert pair.difference.value == pytest.approx(stock.wer - demo.wer)
    assert stock.hallucinations["on_silence"] == 1
    assert stock.hallucinated >= stock.hallucinations["unrelated"] >= 0
    assert seen[-1] == ("demo torch", pytest.approx(21.69, abs=0.01), pytest.approx(21.69, abs=0.01))


def test_a_batch_hears_what_each_alone_does(stock_whisper, make_speech):
    speech = load_speech_model(stock_whisper)
    recogniser = Recogniser(speech, "en", max_new_tokens=10)
    samples = [make_speech(seconds, seed) for seed, seconds in enumerate((3.0, 8.0, 31.0))]
    together = recogniser(samples[:2], [None, None])
    assert [text for text, _ in together] == [recogniser([one], [None])[0][0] for one in samples[:2]]
    assert all(text for text, _ in together)
    seconds = [time for _, time in together]
    assert seconds[1] / seconds[0] == pytest.approx(8 / 3)
    # longer than a window: alone, and of both windows
    lengths = [one.size for one in samples]
    assert [list(batch) for batch in recogniser.batches([*lengths, 0, 0, 0], 2)] == [[0, 1], [2], [3, 4], [5]]
    assert len(recogniser(samples[2:], [None])[0][0]) > 0
    mixed = Recogniser(speech, max_new_tokens=10)(samples[:2], ["de", None])
    assert mixed[0][0] == Recogniser(speech, "german", max_new_tokens=10)(samples[:1], [None])[0][0]
    with pytest.raises(RequestError, match="unknown language 'elvish'"):
        Recogniser(speech, "elvish")


def test_a_kill_loses_no_utterance_that_was_done(tmp_path):
    samples = read_audio(EXAMPLES / "digits_theo.flac")
    rows = ["path\ttext"]
    for number in range(8):
        write(tmp_path / f"{number:02}.flac", samples[: 16_000 * (2 + number % 3)])
        rows.append(f"{number:02}.flac\tone eight")
    (tmp_path / "many.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    code = (
        "from whisper_hailo_hf.evaluation import evaluate_recognition\n"
        f"evaluate_recognition({str(tmp_path / 'many.tsv')!r}, backends=['torch'], output_dir={str(out)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    log, deadline = out / "demo-torch.jsonl", time.monotonic() + 120
    while not log.is_file() or log.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = log.read_bytes().splitlines(keepends=True)
    assert 3 <= len(done) < 9
    log.write_bytes(b"".join(done) + b'{"id": "cut o')  # in the middle of a line
    report = evaluate_recognition(tmp_path / "many.tsv", backends=["torch"], options=FEW, output_dir=out)
    assert report.systems[0].utterances == 8
    lines = log.read_bytes().splitlines(keepends=True)
    assert lines[: len(done)] == done
    assert len(lines) == 9
    assert sorted(json.loads(line)["id"] for line in lines[1:]) == [f"{number:02}.flac" for number in range(8)]


def test_log_takes_only_what_is_the_same(tmp_path):
    path, head = tmp_path / "log.jsonl", {"system": "a", "weights": "1"}
    with DecodingLog(path, head) as log:
        log.add([{"id": "x", "audio": "x 10", "reference": "one", "text": "one"}])
        with pytest.raises(RequestError, match="another process writes"), DecodingLog(path, head):
            pass
    with DecodingLog(path, head) as log:
        assert log.known("x", "x 10", "one") is not None
        assert log.known("x", "x 11", "one") is None
        assert log.known("x", "x 10", "two") is None
        assert log.known("y", "x 10", "one") is None
    with pytest.raises(RequestError, match="another weights"), DecodingLog(path, head | {"weights": "2"}):
        pass
    path.write_text(path.read_text().replace('"x"', '"x', 1))
    with pytest.raises(RequestError, match="line 2 is damaged"), DecodingLog(path, head):
        pass


def test_data_in_every_form(table, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "audiofolder"
    folder.mkdir()
    for name in ("clip.flac", "quiet.wav"):
        shutil.copy(table.parent / name, folder)
    write(folder / "unknown.wav", np.zeros(800, np.float32))
    (folder / "metadata.csv").write_text(f"file_name,text\nclip.flac,{SAID}\nquiet.wav,\n", encoding="utf-8")
    data = datasets.Dataset.from_dict(
        {"audio": [str(folder / "clip.flac"), str(folder / "quiet.wav")], "sentence": [SAID, ""]}
    ).cast_column("audio", datasets.Audio())
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"test": data, "train": data.select([0])}).save_to_disk(tmp_path / "splits")
    forms = [
        (folder, {}),
        (data, {}),
        (tmp_path / "saved", {"columns": {"text_column": "sentence"}}),
        (tmp_path / "splits", {}),
        ([Utterance("a", folder / "clip.flac", SAID), Utterance("b", folder / "quiet.wav", "")], {}),
    ]
    for form, settings in forms:
        found = load_references(form, **settings)
        assert [one.text for one in found.utterances] == [SAID, ""], form
        assert [one.load().size for one in found.utterances] == [157_547, 32_000]
    assert load_references(folder).without_text == 1
    assert len(load_references(tmp_path / "splits", split="train").utterances) == 1
    assert len(load_references(data, limit=1).utterances) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{folder}/nothing.tsv"], "no such table or folder of audio"),
        (["{table}", "--encoder-backend", "abacus"], "unknown encoder backend 'abacus'"),
        (["{table}", "--model", "{folder}"], "is no model folder: it has no config.json"),
        (["{table}", "--normalizer", "german"], "unknown normalizer 'german'"),
        (["{table}", "--limit", "0"], "the limit is a positive number, not 0"),
        (["{table}", "--batch-size", "0"], "batch_size is 1 or more, not 0"),
        (["{table}", "--confidence", "95"], "lies between 0 and 1"),
        (["{table}", "--split", "test"], "is no data set: leave out split"),
        (["{table}", "--language", "elvish"], "unknown language 'elvish'"),
        (["{untold}"], "says of no recording what is said in it"),
        (["{twice}"], "has 1 ids more than once, the first 'a'"),
    ],
)
def test_wrong_requests_have_one_line(arguments, says, table, cli, tmp_path):
    (tmp_path / "untold.tsv").write_text(f"path\n{table.parent / 'clip.flac'}\n", encoding="utf-8")
    rows = f"a\t{table.parent / 'clip.flac'}\tone\n" * 2
    (tmp_path / "twice.tsv").write_text(f"id\tpath\ttext\n{rows}", encoding="utf-8")
    names = {"folder": tmp_path, "table": table, "untold": tmp_path / "untold.tsv", "twice": tmp_path / "twice.tsv"}
    status, out, err = cli("eval", *(argument.format(**names) for argument in arguments))
    assert (status, out) == (2, "")
    (line,) = [line for line in err.splitlines() if not line.startswith("encoder backend: ")]
    assert line.startswith("error: ")
    assert says in line


def test_a_recording_that_cannot_be_read_is_left_out_and_told(table, tmp_path, cli):
    for name in ("clip.flac", "quiet.wav"):
        shutil.copy(table.parent / name, tmp_path)
    broken = cut(tmp_path / "clip.flac", 0.5)
    (tmp_path / "some.tsv").write_text(
        f"path\ttext\nquiet.wav\t\nclip.flac\t{SAID}\n{broken.name}\tone\n", encoding="utf-8"
    )
    status, out, err = cli("eval", tmp_path / "some.tsv", "--encoder-backend", "torch", "--json")
    assert status == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert broken.name in line
    report = json.loads(out)
    assert report["utterances"] == 2
    assert [one["id"] for one in report["failures"]] == [broken.name]
    assert report["systems"][0]["wer"] == 0
    assert report["systems"][0]["wer_interval"]["high"] == pytest.approx(1 - 0.05 ** (1 / 14))
