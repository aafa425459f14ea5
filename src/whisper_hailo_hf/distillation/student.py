"""The student as it is trained: throw-away adapters for hints beside it, and perhaps an average of its weights."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    WhisperForConditionalGeneration,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from whisper_hailo_hf.encoders import PositionMap
from whisper_hailo_hf.encoders.fake_quant import FakeQuantization
from whisper_hailo_hf.encoders.layers import Trace
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder, WhisperHailoForConditionalGeneration

Student = WhisperHailoForConditionalGeneration | HailoWhisperEncoder


def encoder_of(student: Student) -> HailoWhisperEncoder:
    """The encoder of a student, which may be the encoder itself."""
    return student if isinstance(student, HailoWhisperEncoder) else student.get_encoder()


def parse_hints(hints: list[str], teacher_layers: int, student_blocks: int) -> list[tuple[int, int]]:
    """`"2:6"` is: the teacher's residual stream after 2 layers teaches the student's after 6 blocks.

    Raises:
        RequestError: another form, or no such layer or block.
    """
    pairs = []
    for text in hints:
        layer, _, block = text.partition(":")
        if not (layer.isdecimal() and block.isdecimal()):
            raise RequestError(f"hint {text!r} is not of the form LAYER:BLOCK, such as 2:6")
        if int(layer) > teacher_layers or int(block) >= student_blocks:
            raise RequestError(
                f"hint {text}: the teacher has layers 0 to {teacher_layers}, the student blocks 0 to "
                f"{student_blocks - 1}"
            )
        pairs.append((int(layer), int(block)))
    return pairs


class DistillationStudent(nn.Module):
    """What the Trainer trains: the student and the adapters of the hints.

    Its forward runs the encoder's own modules, whatever backend is chosen for inference, and gives what the losses
    look at besides the states. The encoder is trained; a decoder only if asked, and else stays in eval mode.

    Args:
        student: the student.
        hints: pairs of (teacher layer, student block).
        train_decoder: whether the decoder of a whole model is trained too.
        rounding: of the core's numbers, if it is trained for 8 bits; here for its ranges to be saved and shared.
    """

    def __init__(
        self,
        student: Student,
        hints: list[tuple[int, int]],
        train_decoder: bool,
        rounding: FakeQuantization | None = None,
    ) -> None:
        super().__init__()
        if train_decoder and isinstance(student, HailoWhisperEncoder):
            raise RequestError("train_decoder needs a student with a decoder, not an encoder alone")
        self.student, self.hints, self.train_decoder = student, hints, train_decoder
        self._no_split_modules = student._no_split_modules
        student.requires_grad_(train_decoder)
        self.encoder.requires_grad_(True)
        for module in self.encoder.modules():
            if isinstance(module, PositionMap) and module.kind == "sinusoids":
                module.requires_grad_(False)
        self.adapters = nn.ModuleList(self._make_adapters())
        self.rounding = rounding

    @property
    def encoder(self) -> HailoWhisperEncoder:
        return encoder_of(self.student)

    def _make_adapters(self) -> Iterator[nn.Linear]:
        if not self.hints:
            return
        config, device = self.encoder.config, self.encoder.host.layer_norm.weight.device
        training = self.encoder.training
        self.encoder.eval()
        with torch.no_grad():
            silence = torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions, device=device)
            inner = self._run(silence)[2]
        self.encoder.train(training)
        for _, block in self.hints:
            yield nn.Linear(inner[block].shape[-1], config.d_model)

    def train(self, mode: bool = True) -> "DistillationStudent":
        super().train(mode)
        if not self.train_decoder:
            self.student.eval()
            self.encoder.train(mode)
        return self

    def _run(self, input_features: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        encoder = self.encoder
        trace = Trace(len(input_features), encoder.config.time_axis) if self.hints else None
        output = encoder.core(encoder.host.windows(input_features), trace)
        return encoder.host.states(output), output, [] if trace is None else trace.states

    def forward(self, input_features: Tensor, decoder_input_ids: Tensor | None = None) -> dict[str, Any]:
        """`states` (batch, positions, d_model); `core_output`, what the chip would give, rank 4; `hints`, for each the
        adapted stream (batch, frames, d_model); `logits` (batch, tokens, vocabulary) of a decoder that is trained."""
        states, core_output, inner = self._run(input_features)
        hints = tuple(adapter(inner[block]) for (_, block), adapter in zip(self.hints, self.adapters, strict=True))
        outputs: dict[str, Any] = {"states": states, "core_output": core_output, "hints": hints}
        if decoder_input_ids is not None:
            assert isinstance(self.student, WhisperHailoForConditionalGeneration)
            outputs["logits"] = token_logits(self.student, states, decoder_input_ids)
        return outputs

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Passes on to the encoder; the Trainer calls it."""
        self.encoder.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same, as older releases of Transformers call it."""
        self.encoder.gradient_checkpointing_enable(**kwargs)


def token_logits(model: WhisperForConditionalGeneration, states: Tensor, decoder_input_ids: Tensor) -> Tensor:
    """Logits (batch, tokens, vocabulary) of a model's decoder on encoder states, without its encoder."""
    decoded = model.model.decoder(input_ids=decoder_input_ids, encoder_hidden_states=states, use_cache=False)
    return model.proj_out(decoded.last_hidden_state)


class WeightAverage:
    """Exponential moving average of what is trained, with the running statistics of its normalisations.

    The decay grows from 0.1 to its final value, so that the start is forgotten.
    Source: Polyak & Juditsky 1992; the growing decay as TensorFlow's ExponentialMovingAverage has it.
    """

    def __init__(self, student: Student, decay: float) -> None:
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in _trained(student).items()}

    @torch.no_grad()
    def update(self, student: Student, steps: int) -> None:
        """Takes in the weights after so many steps."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        current = _trained(student)
        torch._foreach_lerp_([self.values[name] for name in current], list(current.values()), 1 - decay)

    def take(self, student: Student) -> None:
        """Starts anew from the student's weights."""
        self.values = {name: tensor.detach().clone() for name, tensor in _trained(student).items()}

    @torch.no_grad()
    def swap(self, student: Student) -> None:
        """Exchanges the average with the student's weights; a second call undoes it."""
        for name, tensor in _trained(student).items():
            kept = tensor.detach().clone()
            tensor.copy_(self.values[name])
            self.values[name] = kept

    @contextmanager
    def applied(self, student: Student) -> Iterator[None]:
        """The student has the averaged weights inside the `with`."""
        self.swap(student)
        try:
            yield
        finally:
            self.swap(student)


def training_weights(model: DistillationStudent, average: WeightAverage | None) -> dict[str, Tensor]:
    """What an exact resume needs beside the saved student: adapters, ranges of the rounding, and what is trained if
    that is saved averaged."""
    tensors = {f"adapters.{name}": tensor for name, tensor in model.adapters.state_dict().items()}
    if model.rounding is not None:
        tensors |= {f"rounding.{name}": tensor for name, tensor in model.rounding.state_dict().items()}
    if average is not None:
        state = model.student.state_dict()
        tensors |= {f"student.{name}": state[name] for name in average.values}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


class AverageWeights(TrainerCallback):
    """Updates an average after each step of the optimizer."""

    def __init__(self, average: WeightAverage, student: Student) -> None:
        self.average, self.student = average, student

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.average.update(self.student, state.global_step)


def _trained(student: Student) -> dict[str, Tensor]:
    tensors = {name: tensor for name, tensor in student.named_parameters() if tensor.requires_grad}
    return tensors | {name: tensor for name, tensor in student.named_buffers() if tensor.is_floating_point()}


def load_student_weights(student: Student, folder: str | os.PathLike) -> None:
    """Loads the weights of a folder that `save_pretrained` wrote into a student that is there already.

    Raises:
        RequestError: the folder holds no weights of this student.
    """
    folder = Path(folder)
    names = [SAFE_WEIGHTS_NAME]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    if not all((folder / name).is_file() for name in names):
        raise RequestError(f"{folder} holds no weights: name a checkpoint of this run")
    state: dict[str, Tensor] = {}
    for name in names:
        state |= load_file(folder / name)
    try:
        missing, unknown = student.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise RequestError(f"the weights in {folder} have other shapes than this student") from error
    # a tied output projection is stored once
    missing = [name for name in missing if name not in (student._tied_weights_keys or ())]
    if missing or unknown:
        raise RequestError(f"{folder} is not a checkpoint of this student: {(missing + unknown)[0]} does not fit")


def check_finite(student: Student) -> str | None:
    """The name of a weight that is not finite any more, or None."""
    return next((name for name, tensor in _trained(student).items() if not torch.isfinite(tensor).all()), None)
