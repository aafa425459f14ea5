"""Quantisation-aware training: the student's core computes as its integer graph will, and learns to live with it."""

from typing import TYPE_CHECKING

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whisper_hailo_hf.encoders.fake_quant import FakeQuantization, FakeQuantSettings, prepare_fake_quant

if TYPE_CHECKING:
    from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
    from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder

_SETTLED = 0.9  # share of the rounded steps after which the ranges stay as they are


def make_rounding(args: "EncoderDistillationArguments", encoder: "HailoWhisperEncoder") -> FakeQuantization | None:
    """The rounding of an encoder's core as the settings have it, or None.

    Raises:
        RequestError: `sixteen_bit` names a layer that the core does not have.
    """
    if not args.quantization_aware:
        return None
    settings = FakeQuantSettings(tuple(args.sixteen_bit), args.weight_bits)
    training = encoder.training
    encoder.eval()
    rounding = prepare_fake_quant(encoder.core, encoder.config.num_mel_bins, encoder.config.time_axis, settings)
    encoder.train(training)
    return rounding


class RoundInTime(TrainerCallback):
    """Switches the rounding on after a share of the steps, holds its ranges at the end, and then takes it away."""

    def __init__(self, rounding: FakeQuantization, start: float) -> None:
        self.rounding, self.start = rounding, start

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        done = state.global_step / max(state.max_steps, 1)
        self.rounding.enabled = done >= self.start
        self.rounding.observing = done < self.start + _SETTLED * (1 - self.start)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.rounding.remove()
