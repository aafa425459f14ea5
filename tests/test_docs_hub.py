"""Every command and every piece of Python in docs/hub.md, run in order against a Hub on the loopback."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import soundfile
from helpers_hub import hub  # noqa: F401  # a fixture

from whisper_hailo_hf import WhisperHailoForConditionalGeneration
from whisper_hailo_hf.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own, of httpx
PAGE = Path(__file__).resolve().parent.parent / "docs" / "hub.md"


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def place(hub, tmp_path, monkeypatch, stock_whisper, make_speech) -> Path:  # noqa: F811
    """A folder as the page speaks of it."""
    from transformers import AutoProcessor

    model = WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention")
    model.generation_config.max_new_tokens = 8
    model.generation_config.max_length = None
    model.set_encoder_backend("onnx", threads=1)
    model.save_pretrained(tmp_path / "my-whisper")
    AutoProcessor.from_pretrained(stock_whisper).save_pretrained(tmp_path / "my-whisper")
    soundfile.write(tmp_path / "recording.wav", make_speech(2.0), 16_000)
    (tmp_path / "card.yaml").write_text(
        "{title: T, name: user/my-whisper, summary: S, license: mit, language: [en], training: T, limits: L,"
        " data: [{name: D, licence: CC0}]}"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page(hub, place, capsys):  # noqa: F811
    commands = [line for kind, text in blocks() if kind == "bash" for line in text.splitlines()]
    assert len(commands) >= 3
    assert all(line.startswith("whisper-hailo ") for line in commands)
    names: dict[str, object] = {}
    run = 0
    for kind, text in blocks():
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), names)
            continue
        assert kind == "bash"
        for line in text.splitlines():
            with pytest.raises(SystemExit) as end:
                main(shlex.split(line)[1:])
            assert not end.value.code, (line, capsys.readouterr().err)
            run += 1
            if "--yes" not in line and "push" in line:
                assert hub.repositories == {}  # a dry run, before anything is there
    assert run == len(commands)
    assert hub.repositories["user/my-whisper"].private
    assert names["model"].encoder_backend == "onnx"


def test_options_that_the_page_names_exist():
    from typer.main import get_command

    from whisper_hailo_hf.cli.main import app

    known = {option for one in get_command(app).commands["push"].params for option in [*one.opts, *one.secondary_opts]}
    named = set(re.findall(r"`(--[a-z-]+)", PAGE.read_text(encoding="utf-8")))
    assert named <= known
