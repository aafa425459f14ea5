"""The command line as a user meets it: what goes to stdout, what to stderr, and the exit status."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_audio import cut, noise, sine, write

import whisper_hailo_hf
from whisper_hailo_hf import WhisperHailoForConditionalGeneration, __version__
from whisper_hailo_hf.cli.main import app

COMMAND = Path(sys.executable).with_name("whisper-hailo")


@pytest.fixture
def refused(cli):
    """Run a request that is wrong: status 2, nothing on stdout, one line on stderr, which is returned."""

    def run(*arguments: object) -> str:
        status, out, err = cli(*arguments)
        assert (status, out) == (2, "")
        assert "Traceback" not in err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return line

    return run


@pytest.fixture(scope="module")
def ours(stock_whisper, tmp_path_factory) -> Path:
    from transformers import AutoProcessor

    folder = tmp_path_factory.mktemp("ours") / "model"
    WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention").save_pretrained(folder)
    AutoProcessor.from_pretrained(stock_whisper).save_pretrained(folder)
    return folder


@pytest.fixture
def speech_file(tmp_path, make_speech) -> Path:
    return write(tmp_path / "speech.wav", make_speech(3.0))


# Bad recordings


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("empty", "is empty"),
        ("text", "is not audio"),
        ("cut flac", "cut off"),
        ("nan", "not numbers (NaN), the first at 0.500 s"),
        ("no samples", "no samples"),
        ("six channels", "has 6 channels"),
        ("folder", "no audio files in this folder"),
        ("pattern", "no file matches"),
    ],
)
def test_a_bad_recording_is_one_line_and_status_2(refused, tmp_path, kind, words):
    path = tmp_path / "bad.wav"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("Dear Sir or Madam,\n" * 30)
    elif kind == "cut flac":
        path = cut(write(tmp_path / "bad.flac", noise(5.0)), 0.5)
    elif kind == "nan":
        samples = sine(1.0)
        samples[8_000:] = np.nan
        write(path, samples, subtype="FLOAT")
    elif kind == "no samples":
        write(path, np.zeros(0))
    elif kind == "six channels":
        write(path, noise(0.5, channels=6))
    elif kind == "folder":
        path.mkdir()
    elif kind == "pattern":
        path = tmp_path / "*.mp3"
    line = refused("transcribe", path, "--model", "never-loaded")
    assert words in line
    assert str(path) in line


# Bad requests


def test_a_detector_that_is_not_there(refused, speech_file, ours, monkeypatch):
    monkeypatch.setattr("whisper_hailo_hf.voice_activity.find_spec", lambda name: None)
    line = refused("transcribe", speech_file, "--model", ours, "--vad", "auto")
    assert "pip install 'whisper-hailo-hf[mic]', or choose --vad none" in line


def test_unknown_backend(refused, speech_file, stock_whisper):
    line = refused("transcribe", speech_file, "--model", stock_whisper, "--encoder-backend", "tpu")
    assert "unknown encoder backend 'tpu'" in line
    assert "auto, hef, onnx, torch" in line


def test_model_folder_without_weights(refused, speech_file, ours, tmp_path):
    shutil.copytree(ours, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    assert "has no weights" in refused("transcribe", speech_file, "--model", tmp_path / "model")


def test_onnx_without_onnxruntime(refused, speech_file, ours, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = refused("transcribe", speech_file, "--model", ours, "--encoder-backend", "onnx")
    assert "onnxruntime is not installed" in line
    assert "pip install" in line


def test_stock_model_on_onnx(refused, speech_file, stock_whisper):
    assert "from_whisper" in refused("transcribe", speech_file, "-m", stock_whisper, "--encoder-backend", "onnx")


@pytest.mark.parametrize("model", ["nowhere", "./no/where", "owner/model-that-is-nowhere"])
def test_model_that_is_not_there(refused, speech_file, model):
    assert model in refused("transcribe", speech_file, "--model", model)


def test_unknown_language(refused, speech_file, stock_whisper):
    line = refused("transcribe", speech_file, "--model", stock_whisper, "--language", "klingon")
    assert "unknown language 'klingon'" in line
    assert ", de, " in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "nonsense"),
        (["transcribe"], "Missing argument"),
        (["transcribe", "a.wav", "--nonsense"], "--nonsense"),
        (["transcribe", "a.wav", "--batch-size", "many"], "--batch-size"),
        (["transcribe", "a.wav", "--format", "docx"], "unknown format 'docx'"),
        (["transcribe", "a.wav", "--format", "srt", "--timestamps", "none"], "srt is made of timestamps"),
        (["transcribe", "a.wav", "--timestamps", "letter"], "unknown timestamps 'letter'"),
        (["transcribe", "a.wav", "b.wav", "--format", "srt"], "--output-dir"),
        (["transcribe", ""], "empty name"),
        (["transcribe", "line\nbreak.wav"], "line\\nbreak.wav: no such file"),
        (["doctor", "/no/model"], "no model folder"),
    ],
)
def test_a_wrong_request_is_one_line(refused, arguments, words):
    assert words in refused(*arguments)


def test_a_folder_that_cannot_be_written(refused, speech_file):
    assert "cannot write to the folder" in refused("transcribe", speech_file, "--output-dir", speech_file / "out")


# Transcribing


def test_text_on_stdout_and_the_summary_on_stderr(cli, speech_file, stock_whisper):
    status, out, err = cli("transcribe", speech_file, "--model", stock_whisper, "--language", "en")
    assert status == 0
    assert len(out.splitlines()) == 1
    (summary,) = err.splitlines()
    assert summary.startswith("1 file, 3.0 s of audio in ")
    assert "real-time factor" in summary
    assert summary.endswith("encoder on torch")


def test_a_model_of_ours_names_its_backend(cli, speech_file, ours, stock_whisper):
    status, out, err = cli("transcribe", speech_file, "--model", ours, "--encoder-backend", "onnx", "-l", "en")
    assert status == 0, err
    assert err.splitlines()[-1].endswith("encoder on onnx")
    assert out == cli("transcribe", speech_file, "--model", stock_whisper, "-l", "en")[1]


@pytest.mark.parametrize(
    ("output_format", "start"), [("srt", "1\n00:00:"), ("vtt", "WEBVTT\n\n00:00:"), ("tsv", "start\tend\ttext\n")]
)
def test_subtitles_on_stdout(cli, speech_file, stock_whisper, output_format, start):
    status, out, _ = cli("transcribe", speech_file, "--model", stock_whisper, "--format", output_format, "-l", "en")
    assert status == 0
    assert out.startswith(start)


def test_words_as_json(cli, speech_file, stock_whisper):
    status, out, _ = cli("transcribe", speech_file, "-m", stock_whisper, "-f", "json", "--timestamps", "word")
    assert status == 0
    data = json.loads(out)
    assert data["duration"] == 3.0
    assert any(segment["words"] for segment in data["segments"])


def test_a_bad_file_does_not_stop_the_others(cli, speech_file, stock_whisper, tmp_path):
    status, out, err = cli("transcribe", tmp_path / "none.wav", speech_file, "--model", stock_whisper)
    assert status == 2
    assert out.startswith(f"{speech_file}: ")
    first, summary = err.splitlines()
    assert first == f"error: {tmp_path}/none.wav: no such file"
    assert summary.startswith("1 file, ")


def test_one_json_report_of_it_all(cli, speech_file, stock_whisper, tmp_path):
    status, out, err = cli("transcribe", speech_file, tmp_path / "none.wav", "-m", stock_whisper, "--json", "-b", 2)
    assert status == 2
    report = json.loads(out)
    assert [transcript["file"] for transcript in report["transcripts"]] == [str(speech_file)]
    assert report["failures"][0]["input"] == f"{tmp_path}/none.wav"
    assert report["encoder_backend"] == "torch"
    assert report["real_time_factor"] > 0
    assert "error: " in err


def test_files_into_a_folder(cli, tmp_path, make_speech, stock_whisper):
    for name in ("in/a.wav", "in/sub/a.wav"):
        write(tmp_path / name, make_speech(1.0))
    status, out, err = cli("transcribe", tmp_path / "in", "-m", stock_whisper, "-f", "vtt", "-o", tmp_path / "out")
    assert (status, out) == (0, "")
    for name in ("a.vtt", "sub/a.vtt"):
        assert (tmp_path / "out" / name).read_text().startswith("WEBVTT\n")
        assert f"wrote {tmp_path}/out/{name}" in err.splitlines()


def test_an_unfinished_ogg_is_read_with_a_warning(cli, tmp_path, stock_whisper):
    path = write(tmp_path / "a.ogg", noise(8.0))
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"OggS")])
    status, _, err = cli("transcribe", path, "--model", stock_whisper, "--language", "en")
    assert status == 0
    assert err.splitlines()[0].startswith(f"warning: {path}: has no end-of-stream mark")


def test_without_a_model_the_demo_is_used_and_said(cli, speech_file):
    status, out, err = cli("transcribe", speech_file, "--encoder-backend", "torch")
    assert status == 0
    assert len(out.splitlines()) == 1
    note, summary = err.splitlines()
    assert "no --model given: using the bundled demo model" in note
    assert summary.startswith("1 file, 3.0 s of audio")


# The command as such


def test_version(cli):
    assert cli("--version") == (0, f"whisper-hailo {__version__}\n", "")


def test_nothing_asked_is_help(cli):
    status, out, err = cli()
    assert (status, err) == (0, "")
    assert (status, out, err) == cli("--help")
    assert "transcribe" in out
    assert "doctor" in out


def test_doctor(cli, ours):
    status, out, err = cli("doctor", ours)
    assert (status, err) == (0, "")
    for words in ("Versions", "transformers", "Encoder backends", "torch", "onnx", "weights", "ok"):
        assert words in out


def test_doctor_as_json(cli):
    status, out, _ = cli("doctor", "--json")
    data = json.loads(out)
    assert status == 0
    assert data["backends"]["torch"]["available"] is True
    assert data["model"] is None


def test_doctor_finds_fault_with_a_model(cli, ours, tmp_path):
    shutil.copytree(ours, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    status, out, err = cli("doctor", tmp_path / "model")
    assert (status, err) == (1, "")
    assert "WRONG" in out


def test_what_nobody_foresaw_is_one_line_with_a_hint(cli, speech_file, monkeypatch):
    def fail(*_args, **_settings):
        raise ZeroDivisionError("by\nnothing")

    monkeypatch.setattr("whisper_hailo_hf.transcription.transcribe", fail)
    status, out, err = cli("transcribe", speech_file)
    assert (status, out, err) == (1, "", "error: ZeroDivisionError: by nothing (--debug shows where)\n")
    status, out, err = cli("transcribe", speech_file, "--debug")
    assert status == 1
    assert "Traceback" in err
    assert err.splitlines()[-1] == "error: ZeroDivisionError: by nothing"


# The command in a process of its own


def run(*arguments: object, **settings) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment, **settings)


def test_help_imports_nothing_heavy():
    code = "import sys, whisper_hailo_hf.cli.main; print(sorted({'torch', 'onnxruntime'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_a_text_file_named_wav_in_a_shell(tmp_path):
    (tmp_path / "text.wav").write_text("no audio\n" * 100)
    result = run("transcribe", "text.wav", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: text.wav: is not audio")


def test_nothing_but_the_summary_on_stderr_in_a_shell(speech_file, ours):
    result = run(
        "transcribe", speech_file, "--model", ours, "--encoder-backend", "onnx", "--timestamps", "word", "-f", "srt"
    )
    assert result.returncode == 0
    (summary,) = result.stderr.splitlines()
    assert summary.startswith("1 file, 3.0 s of audio")


def test_a_reader_that_goes_away_is_no_error(speech_file, stock_whisper):
    script = 'set -o pipefail; "$0" "$@" | true'
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = ["bash", "-c", script, COMMAND, "transcribe", speech_file, "--model", stock_whisper, "-f", "json"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


@pytest.mark.parametrize("moment", ["importing", "transcribing"])
def test_interrupt(tmp_path, make_speech, stock_whisper, moment):
    path = write(tmp_path / "0.wav", np.tile(make_speech(30.0), 60))
    for name in range(1, 30):  # more than any machine is through with when it is interrupted
        os.link(path, tmp_path / f"{name}.wav")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [COMMAND, "transcribe", tmp_path, "--model", stock_whisper, "-l", "en", "-o", tmp_path / "out"]
    process = subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A background job of a shell ignores SIGINT, and so do the tests that it runs and what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        if moment == "importing":
            time.sleep(1)
        else:
            assert process.stderr.readline().startswith("wrote ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err


def test_interrupt_before_the_command_line_is_there():
    code = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from whisper_hailo_hf.cli.entry import main
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_options_that_lines_advise_exist():
    """In any text of the package, `--something` is an option of a verb, or of a program that is known."""
    import typer

    root = typer.main.get_command(app)
    parameters = [one for verb in (root, *root.commands.values()) for one in verb.params]
    options = {name for one in parameters for name in (*one.opts, *one.secondary_opts)}
    of_others = {"--system-site-packages", "--now", "--reinstall", "--help", "--query-gpu", "--format"}
    of_others |= {"--porcelain", "--untracked-files"}
    of_others |= {"--hints"}  # distill's training arguments have a parser of their own
    advised = {}
    for path in Path(whisper_hailo_hf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", node.value):
                    advised.setdefault(option, path.name)
    unknown = {option: name for option, name in advised.items() if option not in options | of_others}
    assert "--memory-ceiling" in advised
    assert unknown == {}
