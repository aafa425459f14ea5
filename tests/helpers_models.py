"""Small models of either encoder family, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from whisper_hailo_hf import WhisperHailoConfig, WhisperHailoForConditionalGeneration

FAMILIES = ["conv", "attention"]
CONV_OPTIONS = {"width": 24, "inner": 12}
SHAPES: dict[str, Any] = {
    "vocab_size": 120,
    "num_mel_bins": 8,
    "max_source_positions": 30,
    "max_target_positions": 24,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_start_token_id": 101,
    "bos_token_id": 100,
    "eos_token_id": 100,
    "pad_token_id": 100,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


def small_config(family: str = "conv", **changes: Any) -> WhisperHailoConfig:
    """d_model 16, 30 source positions, two layers a side."""
    options = CONV_OPTIONS if family == "conv" else {}
    return WhisperHailoConfig(**SHAPES | {"encoder_family": family, "encoder_options": options} | changes)


def small_model(
    family: str = "conv",
    seed: int = 0,
    cls: type[PreTrainedModel] = WhisperHailoForConditionalGeneration,
    **changes: Any,
) -> Any:
    """A model with random weights and random statistics in its normalisations, ready for inference."""
    torch.manual_seed(seed)
    model = cls(small_config(family, **changes)).eval()
    randomise(model)
    return model


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Statistics, scales, biases and positions away from the values that they start with."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2.0)
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            part.weight.uniform_(0.5, 1.5)
            part.bias.normal_(0, 0.3)
        if isinstance(part, nn.Conv2d):
            part.weight.normal_(0, part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                part.bias.normal_(0, 0.1)
    for name, parameter in module.named_parameters():
        if name.endswith("positional_map.weight"):
            parameter.normal_(0, 0.3)


def features_for(config: WhisperHailoConfig, batch: int = 2, seed: int = 0) -> Tensor:
    """Random log-mel features: (batch, mel bins, 2 * positions)."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, config.num_mel_bins, 2 * config.max_source_positions, generator=random)


def inputs_for(config: WhisperHailoConfig, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of a forward without a loss."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 100, (batch, 5), generator=random)
    return {"input_features": features_for(config, batch, seed), "decoder_input_ids": ids}


def loss_inputs_for(config: WhisperHailoConfig, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of a forward with a loss."""
    inputs = inputs_for(config, batch, seed)
    return {"input_features": inputs["input_features"], "labels": inputs["decoder_input_ids"]}


def same_states(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    """Whether two models hold the same tensors under the same names."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
