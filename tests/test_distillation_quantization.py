"""Quantisation-aware training through the Trainer: what is rounded when, what comes of it, and that it can resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_distillation import MELS, POSITIONS, ToyWindows, arguments, make_student, make_teacher

from whisper_hailo_hf import EncoderDistillationTrainer, HailoWhisperEncoder, RequestError
from whisper_hailo_hf.distillation.quantization import make_rounding
from whisper_hailo_hf.encoders.fake_quant import FakeQuantSettings, prepare_fake_quant


def trainer_of(
    folder: Path, student: HailoWhisperEncoder | None = None, **settings: Any
) -> EncoderDistillationTrainer:
    return EncoderDistillationTrainer(
        make_student() if student is None else student,
        make_teacher(),
        arguments(folder, **settings),
        train_dataset=ToyWindows(64),
        eval_dataset=ToyWindows(16, seed=5),
    )


def features() -> torch.Tensor:
    return torch.stack([ToyWindows(8, seed=7)[i]["input_features"] for i in range(8)])


@torch.no_grad()
def cost_of_rounding(student: HailoWhisperEncoder, bits: int) -> float:
    """By how much rounding raises the squared error against the teacher; the ranges are those of other windows."""
    core, config = student.core, student.config
    rounding = prepare_fake_quant(core, MELS, config.time_axis, FakeQuantSettings(weight_bits=bits))
    core.train()
    statistics = {k: v.clone() for k, v in core.state_dict().items()}
    core(student.host.windows(torch.stack([ToyWindows(16)[i]["input_features"] for i in range(16)])))
    core.load_state_dict(statistics)
    student.eval()
    theirs = make_teacher().encode(features())

    def error() -> float:
        return float((student.host.states(core(student.host.windows(features()))) - theirs).square().mean())

    rounded = error()
    rounding.remove()
    return rounded - error()


def test_what_is_learnt_with_rounding_survives_it_better(tmp_path: Path) -> None:
    start = make_student()
    trainer_of(tmp_path / "start", start, max_steps=40, learning_rate=1e-2).train()
    start.save_pretrained(tmp_path / "start")
    costs = {}
    for aware in (False, True):
        student = HailoWhisperEncoder.from_pretrained(tmp_path / "start", encoder_backend="torch")
        trainer_of(
            tmp_path / str(aware),
            student,
            max_steps=40,
            learning_rate=5e-3,
            quantization_aware=aware,
            quantization_start=0.0,
            weight_bits=4,
        ).train()
        costs[aware] = cost_of_rounding(student, bits=4)
    assert costs[False] > 0
    assert costs[True] < 0.5 * costs[False], costs


def test_rounding_begins_in_time_and_is_gone_at_the_end(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=8, quantization_aware=True, quantization_start=0.5)
    rounding = trainer.model.rounding
    seen = []
    core = trainer.student.core
    handle = core.register_forward_hook(lambda *_: seen.append((rounding.enabled, rounding.observing)))
    trainer.train()
    handle.remove()
    assert [enabled for enabled, _ in seen] == [False] * 4 + [True] * 4
    assert all(observing for _, observing in seen)  # the last tenth of four steps is less than one
    assert int(rounding.trackers[0].batches) == 4
    student = trainer.student.eval()
    saved = tmp_path / "saved"
    trainer.save_model(str(saved))
    again = HailoWhisperEncoder.from_pretrained(saved, encoder_backend="torch")
    with torch.no_grad():
        assert torch.allclose(student(features())[0], again(features())[0], atol=1e-5)  # nothing is rounded any more


def test_evaluations_in_the_run_are_rounded(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 4, "weight_bits": 4}
    found = {}
    for aware in (False, True):
        trainer = trainer_of(
            tmp_path / str(aware), learning_rate=0.0, quantization_aware=aware, quantization_start=0.0, **settings
        )
        trainer.train()
        found[aware] = next(line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line)
    assert found[True] != found[False]


def test_resumed_in_the_middle_of_the_rounding(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "max_steps": 8,
        "quantization_aware": True,
        "quantization_start": 0.25,
        "sixteen_bit": ["residual_adds"],
        "save_strategy": "steps",
        "save_steps": 4,
        "ema_decay": 0.9,
    }
    straight = trainer_of(tmp_path / "straight", **settings)
    straight.train()
    resumed = trainer_of(tmp_path / "straight", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-4"))
    for (name, one), other in zip(
        straight.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.allclose(one.float(), other.float(), atol=1e-6), name


def test_requests_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no layer is named 'nowhere'"):
        trainer_of(tmp_path, quantization_aware=True, sixteen_bit=["nowhere"])
    with pytest.raises(RequestError, match="weight_bits is 8 or 4, not 3"):
        trainer_of(tmp_path, quantization_aware=True, weight_bits=3)
    with pytest.raises(RequestError, match=r"quantization_start is 1\.0: a share of the steps"):
        arguments(tmp_path, quantization_start=1.0)


def test_without_the_setting_nothing_is_rounded(tmp_path: Path) -> None:
    assert make_rounding(arguments(tmp_path), make_student()) is None
    assert make_student().config.max_source_positions == POSITIONS
