"""From names and folders to a distilled student: the verbs `init` and `distill`, and the example script."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_audio import write
from helpers_distillation import make_stock
from transformers import pipeline

from whisper_hailo_hf import HailoWhisperEncoder, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.distillation.run import open_student

EXAMPLE = Path(__file__).parents[1] / "examples" / "distill_encoder.py"
# one step or two on one CPU thread, with nothing written but the student and its checkpoint
QUICK = {
    "use_cpu": "true",
    "report_to": "none",
    "augment": "false",
    "eval_steps": "2",
    "save_steps": "2",
    "statistics_windows": "2",
    "per_device_eval_batch_size": "2",
    "preset": "micro",
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory, make_speech: Any) -> Path:
    """A table of four recordings."""
    folder = tmp_path_factory.mktemp("speech")
    rows = ["id\tpath\tseconds\ttext"]
    for index in range(4):
        write(folder / f"{index}.flac", make_speech(4.0, index))
        rows.append(f"{index}\t{index}.flac\t4.0\tone two")
    (folder / "speech.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "speech.tsv"


def _settings(**more: str) -> list[str]:
    return [word for name, value in (QUICK | more).items() for word in ("--set", f"{name}={value}")]


def test_init_makes_a_student_that_the_pipeline_runs(cli: Any, stock_whisper: str, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    status, out, _ = cli("init", stock_whisper, folder, "--preset", "micro", "--option", "width=24", "--json")
    assert status == 0
    facts = json.loads(out)
    model = WhisperHailoForConditionalGeneration.from_pretrained(folder)
    assert model.config.encoder_options["width"] == 24
    assert facts["encoder_parameters"] == sum(p.numel() for p in model.get_encoder().parameters())
    said = pipeline("automatic-speech-recognition", model=str(folder))(np.zeros(16_000, np.float32))
    assert isinstance(said["text"], str)
    status, out, err = cli("init", stock_whisper, folder)
    assert (status, out) == (2, "")
    assert "not empty" in err


def test_init_of_an_encoder_alone(cli: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    stock = make_stock()
    (tmp_path / "teacher").mkdir()
    stock.config.save_pretrained(tmp_path / "teacher")
    state = {f"model.encoder.{k}": v for k, v in stock.model.encoder.state_dict().items()}
    save_file(state, tmp_path / "teacher" / "encoder.safetensors")
    status, out, _ = cli("init", tmp_path / "teacher", tmp_path / "student", "--family", "attention")
    assert status == 0
    assert "attention" in out
    student = open_student(tmp_path / "student")
    assert isinstance(student, HailoWhisperEncoder)
    features = torch.randn(1, 8, 60)
    torch.testing.assert_close(
        student(features).last_hidden_state, stock.model.encoder(features).last_hidden_state, rtol=1e-4, atol=1e-4
    )


def test_init_says_what_is_wrong(cli: Any, stock_whisper: str, tmp_path: Path) -> None:
    for arguments, words in (
        ((stock_whisper, tmp_path / "a", "--preset", "huge"), "preset 'huge'"),
        ((stock_whisper, tmp_path / "b", "--option", "width"), "name=value"),
        ((stock_whisper, tmp_path / "c", "--option", "colour=red"), "colour"),
        ((tmp_path / "nothing" / "here" / "either", tmp_path / "d"), "cannot load"),
    ):
        status, out, err = cli("init", *arguments)
        assert (status, out) == (2, "")
        assert words in err
        assert len(err.splitlines()) == 1


def test_distill_and_resume(cli: Any, stock_whisper: str, speech: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    arguments = ["--teacher", stock_whisper, "--train", speech, "--eval", speech, "--output", folder, "-b", "2"]
    status, out, err = cli(
        "distill", *arguments, "--steps", 2, "--json", *_settings(cache_epochs="2"), "--cache", tmp_path / "cache"
    )
    assert status == 0, err
    metrics = json.loads(out)["metrics"]
    assert metrics["eval_windows"] == 4
    assert 0 < metrics["eval_whitened_cosine"] < 1
    assert (tmp_path / "cache").is_dir()
    student = WhisperHailoForConditionalGeneration.from_pretrained(folder)
    before = student.model.encoder.core.conv1.conv.weight.clone()
    assert (folder / "tokenizer_config.json").is_file()
    status, out, err = cli("distill", *arguments, "--steps", 4, "--resume", *_settings())
    assert status == 0, err
    assert "eval_whitened_cosine" in out
    assert (folder / "checkpoint-4").is_dir()
    after = WhisperHailoForConditionalGeneration.from_pretrained(folder).model.encoder.core.conv1.conv.weight
    assert not torch.equal(before, after)


def test_distill_with_text_on_a_student_of_its_own(cli: Any, stock_whisper: str, speech: Path, tmp_path: Path) -> None:
    cli("init", stock_whisper, tmp_path / "start", "--preset", "micro")
    arguments = ["--teacher", stock_whisper, "--train", speech, "--output", tmp_path / "end", "-b", "2", "--steps", 2]
    status, _, err = cli(
        "distill", *arguments, "--student", tmp_path / "start", *_settings(text="true", logging_steps="1")
    )
    assert status == 0, err
    state = json.loads((tmp_path / "end" / "checkpoint-2" / "trainer_state.json").read_text())
    assert any("loss_kl" in entry for entry in state["log_history"])


def test_distill_says_what_is_wrong(cli: Any, stock_whisper: str, speech: Path, tmp_path: Path) -> None:
    good = ["--teacher", stock_whisper, "--train", speech, "--output", tmp_path / "out"]
    other = tmp_path / "other"
    make_stock().save_pretrained(other)
    cli("init", other, tmp_path / "small")
    (tmp_path / "empty").mkdir()
    for more, words in (
        (["--set", "whitened_mse_weight=-1"], "weight is 0 or more"),
        (["--set", "learning_rat=1"], "learning_rat"),
        (["--set", "learning_rate"], "name=value"),
        (["--set", "max_steps"], "name=value"),
        (["--set", "teacher=x"], "option of its own"),
        (["--student", tmp_path / "small"], "the student has d_model 16"),
        (["--student", tmp_path / "none" / "at" / "all"], "no student"),
        (["--train", tmp_path / "empty"], "no audio"),
        (["--resume"], "no complete checkpoint"),
        (["--set", "streaming=true", "--cache", tmp_path / "c"], "stream"),
    ):
        status, out, err = cli("distill", *good, *_settings(), *more)
        assert (status, out) == (2, ""), more
        assert words in err.splitlines()[-1], more
        assert "Traceback" not in err


def test_the_example_script(stock_whisper: str, speech: Path, tmp_path: Path) -> None:
    settings = {name: json.loads(value) if value in ("true", "false", "2") else value for name, value in QUICK.items()}
    settings |= {
        "teacher": stock_whisper,
        "train_data": str(speech),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "disable_tqdm": True,
    }
    (tmp_path / "run.json").write_text(json.dumps(settings))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLE), str(tmp_path / "run.json")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "train_loss: " in run.stdout
    assert isinstance(open_student(tmp_path / "out"), WhisperHailoForConditionalGeneration)
