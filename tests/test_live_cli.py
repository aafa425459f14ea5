"""`whisper-hailo listen` as a user meets it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import types
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from helpers_audio import write
from helpers_live import CLIP, RATE, TEXT, FakeSoundDevice, clip, install

from whisper_hailo_hf.cli.main import main

COMMAND = Path(sys.executable).with_name("whisper-hailo")

pytest.importorskip("silero_vad")
pytest.importorskip("onnxruntime")


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run the command in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["listen", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def one_line(result):
    status, out, err = result
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.rstrip().endswith(line)
    return line


def test_a_recording_is_played_and_written_down(cli, tmp_path):
    status, out, err = cli(CLIP, "--speed", 0, "--srt", tmp_path / "a.srt", "--policy", "align-att")
    assert (status, " ".join(out.split())) == (0, TEXT)
    assert len(out.splitlines()) > 1  # a line for each phrase
    assert "listening to digits_theo.flac; silero voice activity, encoder on torch; Ctrl-C ends" in err
    assert re.search(r"9\.9 s of audio, \d+ passes, \d+\.\d+ s of computing for each", err)
    subtitles = (tmp_path / "a.srt").read_text()
    assert " ".join(re.findall(r"^[a-z ]+$", subtitles, re.M)) == TEXT


def test_encoder_and_decoder_run_where_they_are_told(cli):
    pytest.importorskip("grpc")
    from whisper_hailo_hf.service.running import background_server
    from whisper_hailo_hf.speech_model import demo_model_path

    with background_server(demo_model_path(), backend="torch") as server:
        remote = ("--encoder-backend", "remote", "--address", f"127.0.0.1:{server.port}")
        status, out, err = cli(CLIP, "--speed", 0, *remote, "--decoder-backend", "onnx")
    assert (status, " ".join(out.split())) == (0, TEXT)
    assert "encoder on remote, decoder on onnx; Ctrl-C ends" in err
    assert "the encoder backend 'remote' needs the address" in one_line(cli(CLIP, "--encoder-backend", "remote"))
    refused = one_line(cli(CLIP, "--address", "127.0.0.1:1"))
    assert "an address goes with the encoder backend remote, not with auto" in refused
    assert "choose torch, onnx, onnx-int8" in one_line(cli(CLIP, "--decoder-backend", "tpu"))


def test_json_is_one_line_for_each_event(cli):
    status, out, _ = cli(CLIP, "--speed", 0, "--json", "--min-chunk", 2)
    events = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    words = [word["text"] for event in events if event["event"] == "committed" for word in event["words"]]
    assert "".join(words).strip() == TEXT
    assert {"committed", "end_of_phrase"} <= {event["event"] for event in events}


@pytest.mark.parametrize(("rate", "channels", "layout"), [(8_000, 1, "s16le"), (48_000, 2, "f32le")])
def test_raw_audio_is_read_from_standard_input_until_it_is_closed(cli, monkeypatch, tmp_path, rate, channels, layout):
    import soxr

    samples = soxr.resample(clip(2.6), RATE, rate)  # closed in the middle of "nine", and of a sample
    frames = np.repeat(samples[:, None], channels, axis=1)
    data = frames.astype("<f4").tobytes() if layout == "f32le" else (frames * 32767).astype("<i2").tobytes()
    (tmp_path / "pipe").write_bytes(data + b"\x00")
    with (tmp_path / "pipe").open("rb") as stream:
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stream))
        status, out, err = cli(
            "-", "--rate", rate, "--channels", channels, "--sample-format", layout, "--min-chunk", 2
        )
    assert (status, out[:14]) == (0, "one eight zero"), err


def test_ctrl_c_commits_what_is_pending(tmp_path):
    path = tmp_path / "a.srt"
    process = subprocess.Popen(
        [COMMAND, "listen", CLIP, "--json", "--srt", path, "--web", "--port", "0", "--min-chunk", "5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    watchdog = threading.Timer(240, process.kill)
    watchdog.start()
    page = ""
    for line in process.stderr:
        page = page or next(iter(re.findall(r"http://127\.0\.0\.1:\d+/", line)), "")
        if line.startswith("listening"):
            break
    with urllib.request.urlopen(page, timeout=10) as response:
        assert b"Live captions" in response.read()
    first = json.loads(process.stdout.readline())  # it is speaking
    assert first["event"] in ("partial", "committed")
    process.send_signal(signal.SIGINT)
    # not communicate(): it forgets what readline() has read beyond its line
    out, err = process.stdout.read(), process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 0, err
    watchdog.cancel()
    events = [first, *map(json.loads, out.splitlines())]
    said = "".join(w["text"] for event in events if event["event"] == "committed" for w in event["words"]).strip()
    assert said
    assert TEXT.startswith(said)
    assert events[-1]["event"] == "end_of_phrase"
    assert said.split()[-1] in path.read_text()
    assert "Traceback" not in err


def test_ctrl_c_ends_a_pipe_that_stays_open():
    process = subprocess.Popen(
        [COMMAND, "listen", "-", "--json", "--min-chunk", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    watchdog = threading.Timer(240, process.kill)
    watchdog.start()
    process.stdin.write((clip(6.0) * 32767).astype("<i2").tobytes())
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["event"] == "partial"
    process.send_signal(signal.SIGINT)
    out, err = process.stdout.read(), process.stderr.read()
    assert process.wait(120) == 0, err
    watchdog.cancel()
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()
    assert json.loads(out.splitlines()[-1])["event"] == "end_of_phrase"
    assert b"Traceback" not in err
    assert b"Fatal" not in err


def test_microphones_are_listed_and_heard(cli, monkeypatch):
    module = FakeSoundDevice([("Desk microphone", 1, 48_000, (48_000,))], np.zeros(0, np.float32))
    install(monkeypatch, module)
    status, out, _ = cli("--list-devices")
    assert status == 0
    assert out.splitlines()[1].split() == ["0", "*", "Desk", "microphone", "48000", "Hz"]
    assert json.loads(cli("--list-devices", "--json")[1])[0]["name"] == "Desk microphone"
    import soxr

    module.samples, module.ends = soxr.resample(clip(3.2), RATE, 48_000), "stops"
    status, out, err = cli("--min-chunk", 2)
    assert "the microphone does not record at 16000 Hz: taking 48000 Hz" in err
    assert status == 1
    assert out.strip() == "one eight zero nine"  # what was heard before it was unplugged
    assert err.splitlines()[-1].startswith("error: Desk microphone, 48000 Hz: the recording has stopped")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere.wav",), "nowhere.wav: no such file"),
        ((CLIP, "--policy", "guess"), "unknown policy"),
        ((CLIP, "--vad", "ears"), "unknown voice activity detector"),
        ((CLIP, "--language", "klingon"), "unknown language"),
        ((CLIP, "--min-chunk", "0"), "min_chunk is between"),
        ((CLIP, "--window", "short"), "cannot use a shorter window"),
        ((CLIP, "--srt", "no/such/folder/a.srt"), "cannot write"),
        ((CLIP, "--model", "no-such-folder"), "no model folder"),
        ((CLIP, "--encoder-backend", "gpu"), "unknown encoder backend"),
        (("--device", "Nonesuch"), "no microphone 'Nonesuch'"),
    ],
)
def test_a_wrong_request_gets_one_line(cli, monkeypatch, arguments, says):
    install(monkeypatch, FakeSoundDevice([("Desk", 1, 16_000, (16_000,))], clip()))
    assert says in one_line(cli(*arguments))


def test_bad_audio_through_the_microphone_is_said_once(cli, tmp_path):
    loud = write(tmp_path / "loud.wav", np.clip(clip(3.2) * 40, -1, 1))
    status, _, err = cli(loud, "--speed", 0)
    assert status == 0
    assert err.count("the audio is clipped, words may be lost: turn the microphone down") == 1
