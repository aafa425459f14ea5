"""Toy teachers, students and windows for the tests of distillation; run as a script, it trains in its own process."""

import argparse
import gc
import os
import signal
from pathlib import Path
from typing import Any

import torch
from helpers_models import SHAPES
from torch.utils.data import Dataset
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisper_hailo_hf import HailoWhisperEncoder, WhisperHailoConfig, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.distillation import EncoderDistillationArguments, EncoderDistillationTrainer
from whisper_hailo_hf.distillation.teacher import Teacher, cross_attention_maps

POSITIONS, MELS, WIDTH = (SHAPES[name] for name in ("max_source_positions", "num_mel_bins", "d_model"))


def make_stock(seed: int = 0, **settings: Any) -> WhisperForConditionalGeneration:
    """A random Whisper whose states depend on the sound nearby, so that convolutions can learn them."""
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(WhisperConfig(**SHAPES | settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                gain = 0.1 if "encoder.layers" in name and "self_attn" in name else 1.5
                parameter.normal_(0, gain / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def make_teacher(seed: int = 0, decoder: bool = True, **settings: Any) -> Teacher:
    model = make_stock(seed, **settings)
    if not decoder:
        return Teacher(model.model.encoder, model.config, "toy")
    return Teacher(model.model.encoder, model.config, "toy", model, cross_attention_maps(model.model.decoder))


def student_config(**settings: Any) -> WhisperHailoConfig:
    options = {"encoder_family": "conv", "encoder_options": {"width": 32, "inner": 16, "gate_every": 0}}
    return WhisperHailoConfig(**SHAPES | options | settings)


def make_student(seed: int = 1, **settings: Any) -> HailoWhisperEncoder:
    torch.manual_seed(seed)
    return HailoWhisperEncoder(student_config(**settings))


def make_whole_student(teacher: Teacher, seed: int = 1) -> WhisperHailoForConditionalGeneration:
    """A student with the teacher's own decoder."""
    torch.manual_seed(seed)
    model = WhisperHailoForConditionalGeneration(student_config())
    assert teacher.model is not None
    model.model.decoder.load_state_dict(teacher.model.model.decoder.state_dict())
    model.tie_weights()
    return model


class ToyWindows(Dataset):
    """Random features, speech in 20 of 30 frames; other features in each epoch if asked for."""

    def __init__(self, count: int, seed: int = 0, by_epoch: bool = False, labels: bool = False) -> None:
        self.count, self.seed, self.by_epoch, self.labels, self.epoch = count, seed, by_epoch, labels, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch = self.epoch if self.by_epoch else 0
        random = torch.Generator().manual_seed(self.seed * 1_000_000 + epoch * 1000 + index)
        first = int(torch.randint(POSITIONS - 20, (1,), generator=random))
        mask = torch.zeros(POSITIONS, dtype=torch.bool)
        mask[first : first + 20] = True
        features = torch.randn(MELS, 2 * POSITIONS, generator=random)
        item: dict[str, Any] = {"input_features": features, "speech_mask": mask, "id": str(index)}
        if self.labels:
            item["labels"] = [101, *torch.randint(90, (3 + index % 3,), generator=random).tolist(), 100]
        return item


def arguments(folder: str | os.PathLike, **settings: Any) -> EncoderDistillationArguments:
    """Quiet settings for one CPU: no evaluation, no checkpoints, unless asked for."""
    quiet: dict[str, Any] = {
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "per_device_train_batch_size": 8,
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "statistics_windows": 32,
    }
    return EncoderDistillationArguments(output_dir=str(folder), **quiet | settings)


# ---- runs that a test compares, in this process or in others ----


def resumable(folder: str | os.PathLike) -> EncoderDistillationTrainer:
    """12 steps over three epochs, with all that must survive: adapters, averages, windows that change by epoch."""
    settings = arguments(
        folder, max_steps=12, save_strategy="steps", save_steps=4, hint_weight=0.5, hints=["1:1"], ema_decay=0.9
    )
    return EncoderDistillationTrainer(
        make_student(), make_teacher(), settings, train_dataset=ToyWindows(32, by_epoch=True)
    )


class KilledWhileSaving(EncoderDistillationTrainer):
    """Gets SIGKILL in the middle of its second checkpoint, when the weights are written and the rest is not."""

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.state.global_step == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_optimizer_and_scheduler(output_dir)


def distributed(folder: str | os.PathLike, batch: int) -> EncoderDistillationTrainer:
    settings = arguments(folder, max_steps=30, per_device_train_batch_size=batch, per_device_eval_batch_size=5)
    return EncoderDistillationTrainer(
        make_student(), make_teacher(), settings, train_dataset=ToyWindows(256), eval_dataset=ToyWindows(13, seed=5)
    )


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", choices=["killed", "distributed"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.run == "killed":
        trainer = resumable(options.folder)
        trainer.__class__ = KilledWhileSaving
        trainer.train()
    else:
        trainer = distributed(options.folder, 8)
        trainer.train()
        metrics = trainer.evaluate()
        if trainer.is_world_process_zero():
            torch.save((trainer.state.log_history, metrics), options.folder / "result.pt")
        del trainer  # and with it all that holds the group, whose threads must end before the process does
        gc.collect()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _main()
