"""Small things around a run: which checkpoints are whole, what several processes must agree on, the epoch."""

import json
import os
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The latest checkpoint of a run that was written to its end, or None.

    The Trainer writes its state last, so a run that was killed meanwhile leaves a folder without it.
    """
    steps = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = folder.name.rpartition("-")[2]
        if number.isdecimal():
            steps[int(number)] = folder
    for step in sorted(steps, reverse=True):
        try:
            state = json.loads((steps[step] / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if state.get("global_step") == step:
            return str(steps[step])
    return None


@torch.no_grad()
def sync_buffers(module: nn.Module) -> None:
    """Gives every process the first one's buffers: the running statistics of its normalisations."""
    for buffer in module.buffers():
        torch.distributed.broadcast(buffer, 0)


def place_tensorboard(callbacks: list[TrainerCallback], output_dir: str | os.PathLike) -> None:
    """Has TensorBoard write below the output folder also when a run begins with an evaluation: Transformers would then
    write to `runs` in the working directory."""
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            name = f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}"  # as TensorBoard's own writer names it
            callback.logging_dir = os.path.join(output_dir, "runs", name)


class TellEpoch(TrainerCallback):
    """Tells a data set that has `set_epoch` when an epoch begins."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch or 0))
