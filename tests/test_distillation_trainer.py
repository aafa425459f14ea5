"""The trainer learns, keeps the teacher out of its files, survives kill -9, and is the same in two processes."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_distillation import (
    POSITIONS,
    WIDTH,
    ToyWindows,
    arguments,
    distributed,
    make_stock,
    make_student,
    make_teacher,
    make_whole_student,
    resumable,
)
from safetensors.torch import load_file
from torch.utils.data import IterableDataset
from transformers import WhisperProcessor

from whisper_hailo_hf import HailoWhisperEncoder, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.distillation import (
    DistillationCollator,
    EncoderDistillationArguments,
    EncoderDistillationTrainer,
    encoder_fidelity,
    load_teacher,
)
from whisper_hailo_hf.distillation.checkpoints import last_complete_checkpoint
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

HELPERS = Path(__file__).with_name("helpers_distillation.py")


def _trainer(folder: Path, student: Any = None, teacher: Any = None, **settings: Any) -> EncoderDistillationTrainer:
    data = {name: settings.pop(name, None) for name in ("train_dataset", "eval_dataset", "processing_class")}
    data["train_dataset"] = data["train_dataset"] if data["train_dataset"] is not None else ToyWindows(256)
    return EncoderDistillationTrainer(
        student or make_student(), teacher or make_teacher(), arguments(folder, **settings), **data
    )


def _weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


# ---- learning ----


def test_a_student_learns_and_the_best_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    trainer = _trainer(
        tmp_path,
        eval_dataset=ToyWindows(16, seed=7),
        max_steps=60,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=20,
        save_strategy="steps",
        save_steps=20,
        save_total_limit=1,
        load_best_model_at_end=True,
        report_to="tensorboard",
    )
    before = trainer.evaluate()
    assert before["eval_whitened_cosine"] < 0.5
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.7 * before["eval_loss"]
    assert after["eval_whitened_cosine"] > before["eval_whitened_cosine"] + 0.2
    assert after["eval_content_snr_db"] > before["eval_content_snr_db"] + 2
    assert after["eval_kv_snr_db"] > before["eval_kv_snr_db"] + 2
    history = [entry for entry in trainer.state.log_history if "loss_whitened_mse" in entry]
    assert len(history) == 6
    assert history[-1]["loss_whitened_mse"] < 0.8 * history[0]["loss_whitened_mse"]
    total = trainer.objective.weights
    for entry in history:  # each component is there, and the loss is their sum
        assert entry["loss"] == pytest.approx(
            sum(w * entry[f"loss_{name}"] for name, w in total.items() if name not in ("kl", "ce")), rel=1e-4
        )
    evaluations = [entry for entry in trainer.state.log_history if "eval_whitened_cosine" in entry]
    best = max(entry["eval_whitened_cosine"] for entry in evaluations)
    assert trainer.state.best_metric == best
    assert after["eval_whitened_cosine"] == pytest.approx(best, abs=1e-6)
    assert list(tmp_path.glob("runs/*/events.out.tfevents.*"))
    assert not Path("runs").exists()
    # the saved folder is the student that was measured
    trainer.save_model(str(tmp_path / "final"))
    again = HailoWhisperEncoder.from_pretrained(tmp_path / "final")
    found = encoder_fidelity(again, trainer.teacher, ToyWindows(16, seed=7), statistics=trainer.statistics)
    assert found.metrics["whitened_cosine"] == pytest.approx(best, abs=1e-5)
    assert trainer.fidelity is not None
    assert trainer.fidelity.content_snr_by_position.shape == (POSITIONS,)


def test_the_decoder_of_a_whole_student_stays_as_it_is(tmp_path: Path) -> None:
    teacher = make_teacher()
    student = make_whole_student(teacher)
    before = _weights(student)
    trainer = _trainer(tmp_path, student, teacher, max_steps=3, save_strategy="steps", save_steps=3)
    trainer.train()
    after = _weights(student)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("model.encoder.") for name in moved)
    assert "model.encoder.host.positional_map.weight" in moved
    assert not student.model.decoder.training
    loaded = WhisperHailoForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-3")
    for name, tensor in _weights(loaded).items():
        assert torch.equal(tensor, after[name]), name


def test_text_losses_are_used_where_there_are_labels(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, train_dataset=ToyWindows(32, labels=True), max_steps=2)
    trainer.train()
    entry = trainer.state.log_history[0]
    weights = trainer.objective.weights
    assert entry["loss"] == pytest.approx(sum(w * entry[f"loss_{name}"] for name, w in weights.items()), rel=1e-4)
    assert weights["kl"] == 1.0
    assert weights["ce"] == 0.8


def test_a_whole_student_with_its_decoder_trained(tmp_path: Path) -> None:
    teacher = make_teacher()
    student = make_whole_student(teacher)
    before = _weights(student.model.decoder)
    _trainer(
        tmp_path, student, teacher, max_steps=2, train_decoder=True, train_dataset=ToyWindows(32, labels=True)
    ).train()
    after = _weights(student.model.decoder)
    assert not torch.equal(before["layers.0.fc1.weight"], after["layers.0.fc1.weight"])
    still = _weights(student.model.decoder)
    _trainer(tmp_path, student, teacher, max_steps=1, weight_decay=0.0, train_decoder=True).train()
    assert torch.equal(still["layers.0.fc1.weight"], student.model.decoder.layers[0].fc1.weight)  # no text, no step
    with pytest.raises(RequestError, match="by which the decoder learns"):
        _trainer(tmp_path, student, teacher, train_decoder=True, kl_weight=0.0, ce_weight=0.0)
    with pytest.raises(RequestError, match="encoder alone"):
        _trainer(tmp_path, train_decoder=True)


def test_accumulated_gradients_are_those_of_one_batch(tmp_path: Path) -> None:
    """Frames of speech are equally many in each window here, so the mean of means is the mean."""
    found = []
    for steps, batch in ((1, 16), (4, 4)):
        student = make_student()
        student.eval()
        trainer = _trainer(
            tmp_path / str(steps),
            student,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
            max_grad_norm=0.0,
            outlier_weight=0.0,
            logging_steps=1,
        )
        # batch statistics would differ by the size of the batch
        trainer.model.train = lambda mode=True: trainer.model.eval()  # type: ignore[method-assign]  # noqa: B023
        trainer.model.eval = lambda: trainer.model  # type: ignore[method-assign]  # noqa: B023
        torch.nn.Module.train(trainer.model, False)
        trainer.train()
        found.append(trainer.state.log_history[0])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-4)


def test_bfloat16_on_the_cpu(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, max_steps=20, bf16=True, learning_rate=1e-2, eval_dataset=ToyWindows(16, seed=7))
    core = trainer.student.core
    assert core.blocks[0].mix.conv.weight.is_contiguous(memory_format=torch.channels_last)
    seen: list[torch.dtype] = []
    hook = core.blocks[0].reduce.conv.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    before = trainer.evaluate()
    trainer.train()
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.student.parameters())
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"]


def test_cached_states_spare_the_teacher(tmp_path: Path) -> None:
    teacher = make_teacher()
    items = [ToyWindows(32)[index] for index in range(32)]
    trainer = _trainer(tmp_path, teacher=teacher, train_dataset=items, max_steps=3, outlier_weight=0.0)
    trainer.train()
    cached = [item | {"teacher_states": teacher.encode(item["input_features"][None])[0].half()} for item in items]
    again = _trainer(tmp_path, teacher=teacher, train_dataset=cached, max_steps=3, outlier_weight=0.0)
    calls: list[int] = []
    hook = teacher.encoder.register_forward_hook(lambda *_: calls.append(1))
    again.train()
    assert not calls
    hook.remove()
    for one, other in zip(trainer.state.log_history[:3], again.state.log_history[:3], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)
    hinted = _trainer(tmp_path, teacher=teacher, train_dataset=cached, max_steps=1, hint_weight=1.0, hints=["1:1"])
    hook = teacher.encoder.register_forward_hook(lambda *_: calls.append(1))
    hinted.train()
    hook.remove()
    assert calls  # a cache has no inner layers


def test_averaged_weights_are_what_is_measured_and_saved(tmp_path: Path) -> None:
    trainer = _trainer(
        tmp_path,
        max_steps=10,
        ema_decay=0.9,
        save_strategy="steps",
        save_steps=10,
        eval_dataset=ToyWindows(8, seed=3),
    )
    raw: dict[str, torch.Tensor] = {}
    save = trainer.save_model

    def record(*args: Any, **kwargs: Any) -> None:
        raw.update(_weights(trainer.student))
        save(*args, **kwargs)

    trainer.save_model = record  # type: ignore[method-assign]
    trainer.train()
    stored = load_file(tmp_path / "checkpoint-10" / "model.safetensors")
    kept = load_file(tmp_path / "checkpoint-10" / "training_weights.safetensors")
    name = "core.conv1.conv.weight"
    assert not torch.equal(stored[name], raw[name])
    assert torch.equal(kept[f"student.{name}"], raw[name])
    assert torch.equal(_weights(trainer.student)[name], stored[name])  # the result of the run, too
    loss = trainer.evaluate()["eval_loss"]
    assert loss == trainer.evaluate()["eval_loss"]


def test_word_error_rates_of_student_and_teacher(
    tmp_path: Path, stock_whisper: str, multilingual_processor: WhisperProcessor, make_speech: Any
) -> None:
    teacher = load_teacher(stock_whisper)
    assert teacher.model is not None
    student = WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention")
    audio = [make_speech(30, seed) for seed in range(2)]
    features = multilingual_processor.feature_extractor(
        audio, sampling_rate=16_000, return_tensors="pt"
    ).input_features
    said = teacher.model.generate(input_features=features, max_new_tokens=10, num_beams=1)
    items = [
        {"input_features": x, "speech_mask": np.ones(1500, dtype=bool), "labels": labels.tolist()}
        for x, labels in zip(features, said, strict=True)
    ]
    trainer = _trainer(
        tmp_path,
        student,
        teacher,
        train_dataset=items,
        eval_dataset=items,
        processing_class=multilingual_processor,
        predict_with_generate=True,
        generation_max_new_tokens=10,
        per_device_eval_batch_size=2,
    )
    found = trainer.evaluate()
    assert found["eval_wer"] == 0  # the stock weights
    assert found["eval_teacher_wer"] == 0
    with torch.no_grad():
        student.model.encoder.core.layers[0].fc1.weight.zero_()
        student.model.encoder.core.conv1.weight.mul_(-1)
    found = trainer.evaluate()
    assert found["eval_wer"] > 0
    assert found["eval_teacher_wer"] == 0
    trainer.processing_class = None
    with pytest.raises(RequestError, match="processing_class"):
        trainer.evaluate()


# ---- checkpoints ----


def test_checkpoints_hold_nothing_of_the_teacher_and_the_result_no_adapters(tmp_path: Path) -> None:
    teacher = make_teacher()
    trainer = _trainer(
        tmp_path, teacher=teacher, max_steps=2, save_strategy="steps", save_steps=2, hint_weight=1.0, hints=["2:1"]
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    names = set(load_file(checkpoint / "model.safetensors"))
    assert names == set(make_student().state_dict())
    assert set(load_file(checkpoint / "training_weights.safetensors")) == {"adapters.0.weight", "adapters.0.bias"}
    # no tensor of the teacher in any file, its final LayerNorm and decoder included
    theirs = {tuple(p.flatten().tolist()) for p in teacher.encoder.parameters() if p.numel() > WIDTH}
    for tensors in (
        load_file(checkpoint / "model.safetensors"),
        load_file(checkpoint / "training_weights.safetensors"),
    ):
        assert not theirs & {tuple(t.flatten().tolist()) for t in tensors.values()}
    stored = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    optimized = [*stored["muon"]["state"], *stored["adamw"]["state"]]
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert len(optimized) == len(trained)
    trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / "training_weights.safetensors").exists()
    assert set(load_file(tmp_path / "final" / "model.safetensors")) == names
    HailoWhisperEncoder.from_pretrained(checkpoint)


def test_killed_and_resumed_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    command = [sys.executable, str(HELPERS), "killed", str(tmp_path / "killed")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    died = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    # it died while it wrote its second checkpoint: that one is there and must be passed over
    assert (tmp_path / "killed" / "checkpoint-8" / "model.safetensors").is_file()
    assert last_complete_checkpoint(tmp_path / "killed") == str(tmp_path / "killed" / "checkpoint-4")
    resumed, straight = resumable(tmp_path / "killed"), resumable(tmp_path / "straight")
    resumed.train(resume_from_checkpoint=True)
    straight.train()
    assert resumed.state.global_step == straight.state.global_step == 12
    for one, other in zip(_weights(straight.model).items(), _weights(resumed.model).items(), strict=True):
        assert one[0] == other[0]
        torch.testing.assert_close(one[1], other[1], rtol=0, atol=1e-6)
    assert straight.state.log_history[-2]["loss"] == pytest.approx(resumed.state.log_history[-2]["loss"], abs=1e-6)


def test_resuming_from_what_is_not_there_or_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no complete checkpoint"):
        _trainer(tmp_path, max_steps=1).train(resume_from_checkpoint=True)
    _trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    with pytest.raises(RequestError, match="hints"):
        _trainer(tmp_path, max_steps=2, hint_weight=1.0, hints=["1:1"]).train(resume_from_checkpoint=True)
    other = make_student(encoder_options={"width": 16, "inner": 16})
    with pytest.raises(RequestError, match="other shapes"):
        _trainer(tmp_path, other, max_steps=2).train(resume_from_checkpoint=True)
    with pytest.raises(RequestError, match="does not fit"):
        _trainer(tmp_path, make_student(encoder_layers=3), max_steps=2).train(resume_from_checkpoint=True)


def test_statistics_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _trainer(tmp_path)
    assert (tmp_path / "teacher_statistics.safetensors").is_file()
    assert first.statistics.windows == 32
    monkeypatch.setattr("whisper_hailo_hf.distillation.statistics.measure_statistics", None)
    again = _trainer(tmp_path)
    assert torch.equal(first.statistics.mean, again.statistics.mean)
    assert torch.equal(again.student.host.positional_map.weight, first.statistics.position_mean_before_norm)
    given = EncoderDistillationTrainer(
        make_student(),
        make_teacher(),
        arguments(tmp_path / "none"),
        train_dataset=ToyWindows(2),
        statistics=first.statistics,
    )
    assert given.statistics.windows == 32
    with pytest.raises(RequestError, match="another teacher"):
        _trainer(tmp_path, teacher=make_teacher(seed=4))


def test_the_positional_map_is_not_started_twice_nor_decayed(tmp_path: Path) -> None:
    student = make_student()
    with torch.no_grad():
        student.host.positional_map.weight.fill_(0.5)
    trainer = _trainer(tmp_path, student)
    assert (student.host.positional_map.weight == 0.5).all()
    decayed = trainer.get_decay_parameter_names(trainer.model)
    assert any("conv.weight" in name for name in decayed)
    assert not [name for name in decayed if "positional_map" in name or ".norm." in name]
    fresh = make_student()
    _trainer(tmp_path, fresh, start_positional_map=False)
    assert not fresh.host.positional_map.weight.any()


# ---- failures ----


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    data = [ToyWindows(64)[index] for index in range(64)]
    trainer = _trainer(tmp_path, train_dataset=data, max_steps=20, save_strategy="steps", save_steps=2)
    taken = 0
    step = trainer.training_step

    def spoil(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 6:
            inputs["input_features"][0, 0, 0] = math.nan
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = spoil  # type: ignore[method-assign]
    with pytest.raises(WhisperHailoError, match=r"not finite near step 6 \(.*whitened_mse.*checkpoint-4") as stopped:
        trainer.train()
    assert "\n" not in str(stopped.value)
    assert taken == 6
    for name, tensor in load_file(tmp_path / "checkpoint-4" / "model.safetensors").items():
        assert torch.isfinite(tensor).all(), name


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    trainer.train()
    with torch.no_grad():
        trainer.student.core.head.weight[0, 0] = math.inf
    with pytest.raises(WhisperHailoError, match=r"core\.head\.weight is not finite"):
        trainer._save_checkpoint(trainer.model, None)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


class _Stream(IterableDataset):
    def __init__(self, count: int) -> None:
        self.data = ToyWindows(count)

    def __iter__(self) -> Any:
        return (self.data[index] for index in range(len(self.data)))


def test_iterable_data(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, train_dataset=_Stream(40), eval_dataset=_Stream(5), max_steps=4)
    trainer.train()
    assert trainer.state.global_step == 4
    assert trainer.evaluate()["eval_windows"] == 5


def test_several_evaluation_sets_by_name(tmp_path: Path) -> None:
    found = _trainer(tmp_path, eval_dataset={"near": ToyWindows(3), "far": ToyWindows(4, seed=2)}).evaluate()
    assert found["eval_near_windows"] == 3
    assert found["eval_far_windows"] == 4


def test_requests_that_cannot_be(tmp_path: Path) -> None:
    for shape, words in (
        ({"d_model": 32}, "d_model"),
        ({"num_mel_bins": 10}, "mel bins"),
        ({"max_source_positions": 40}, "positions"),
    ):
        with pytest.raises(RequestError, match=words):
            _trainer(tmp_path, make_student(**shape))
    with pytest.raises(RequestError, match="training data set is empty"):
        _trainer(tmp_path, train_dataset=ToyWindows(0))
    with pytest.raises(RequestError, match="evaluation data set is empty"):
        _trainer(tmp_path, eval_dataset=ToyWindows(0))
    trainer = _trainer(tmp_path)
    trainer.train_dataset = None
    with pytest.raises(RequestError, match="train_dataset"):
        trainer.train()
    with pytest.raises(RequestError, match="eval_dataset"):
        trainer.evaluate()
    nothing = EncoderDistillationTrainer(
        make_student(),
        make_teacher(),
        arguments(tmp_path, max_steps=1),
        train_dataset=_Stream(0),
        statistics=trainer.statistics,
    )
    with pytest.raises(RequestError, match="no batch"):
        nothing.train()
    for hint, words in (("1-2", "form LAYER:BLOCK"), ("3:0", "layers 0 to 2"), ("1:2", "blocks 0 to 1")):
        with pytest.raises(RequestError, match=words):
            _trainer(tmp_path, hint_weight=1.0, hints=[hint])


def test_the_defaults_stand() -> None:
    args = EncoderDistillationArguments(output_dir="unused", use_cpu=True, report_to="none")
    assert (args.kl_weight, args.ce_weight, args.temperature) == (1.0, 0.8, 2.0)  # Distil-Whisper's
    assert args.remove_unused_columns is False
    assert args.metric_for_best_model == "whitened_cosine"


def test_the_collator() -> None:
    collate = DistillationCollator(decoder_start_token_id=101)
    items = [ToyWindows(2, labels=True)[index] for index in range(2)]
    items[0]["labels"], items[1]["labels"] = [101, 5, 6, 100], None
    items[1]["input_features"] = items[1]["input_features"].numpy()
    batch = collate(items)
    assert batch["labels"].tolist() == [[5, 6, 100], [-100, -100, -100]]
    assert batch["input_features"].shape == (2, 8, 2 * POSITIONS)
    assert batch["speech_mask"].dtype == torch.bool
    assert "id" not in batch
    with pytest.raises(RequestError, match="speech_mask"):
        collate([{"input_features": items[0]["input_features"]}])
    items[1]["speech_mask"] = torch.ones(7, dtype=torch.bool)
    with pytest.raises(RequestError, match="differ in speech_mask"):
        collate(items)


# ---- several processes ----


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Only the normalisation's batch statistics differ: each process has its own half."""
    folder = tmp_path / "two"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*launcher, str(HELPERS), "distributed", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    history, metrics = torch.load(folder / "result.pt", weights_only=False)
    one = distributed(tmp_path / "one", 16)
    one.train()
    expected = one.evaluate()
    ours = np.array([entry["loss"] for entry in one.state.log_history if "loss" in entry])
    theirs = np.array([entry["loss"] for entry in history if "loss" in entry])
    assert len(ours) == len(theirs) == 30
    assert ours[-5:].mean() < 0.8 * ours[0]
    assert np.abs(theirs / ours - 1).max() < 0.06
    assert np.abs(theirs - ours).mean() < 0.02 * ours.mean()
    assert metrics["eval_windows"] == 13  # none counted twice, though 13 does not divide by two batches of 5
    assert metrics["eval_speech_frames"] == expected["eval_speech_frames"]
    assert metrics["eval_whitened_cosine"] == pytest.approx(expected["eval_whitened_cosine"], abs=0.02)


def test_a_stock_folder_is_a_teacher_by_name(tmp_path: Path) -> None:
    make_stock().save_pretrained(tmp_path / "stock")
    trainer = _trainer(tmp_path, teacher=str(tmp_path / "stock"))
    assert trainer.teacher.fingerprint == make_teacher().fingerprint
