"""A plain Trainer on our model: accumulating gradients changes neither the loss nor the gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from whisper_hailo_hf import WhisperHailoConfig, WhisperHailoForConditionalGeneration

pytest.importorskip("accelerate")


class Collected(TrainerCallback):
    """Loss and gradient norm of each step, as the Trainer reports them."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "grad_norm" in logs:
            self.steps.append((float(logs["loss"]), float(logs["grad_norm"])))


def examples(config: WhisperHailoConfig) -> list[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(3)
    frames = 2 * config.max_source_positions
    # labels of one length: the loss is a mean over the tokens of each batch
    return [
        {
            "input_features": torch.randn(config.num_mel_bins, frames, generator=random),
            "labels": torch.randint(1, 100, (6,), generator=random),
        }
        for _ in range(16)
    ]


def train(kwargs: dict[str, Any], family: str, batch: int, accumulate: int, folder: Any) -> list[tuple[float, float]]:
    config = WhisperHailoConfig(**kwargs, encoder_family=family, dropout=0.0)
    torch.manual_seed(0)
    model = WhisperHailoForConditionalGeneration(config)
    if family == "conv":  # the statistics of a batch are not those of its quarters
        model.freeze_encoder()
    collected = Collected()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        max_steps=3,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        max_grad_norm=1e9,
    )
    Trainer(model=model, args=arguments, train_dataset=examples(config), callbacks=[collected]).train()
    return collected.steps


@pytest.mark.parametrize("family", ["attention", "conv"])
def test_gradient_accumulation_changes_nothing(family, tiny_config_kwargs, tmp_path):
    whole = train(tiny_config_kwargs, family, 8, 1, tmp_path / "whole")
    parts = train(tiny_config_kwargs, family, 2, 4, tmp_path / "parts")
    assert len(whole) == len(parts) == 3
    assert whole[0][0] > 1.0
    assert whole[-1] != whole[0]  # it learns
    for (loss, norm), (other_loss, other_norm) in zip(whole, parts, strict=True):
        assert other_loss == pytest.approx(loss, rel=1e-3)
        assert other_norm == pytest.approx(norm, rel=1e-3)
