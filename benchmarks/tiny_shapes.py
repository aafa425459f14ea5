"""The bundled digits model in the shapes of whisper-tiny: what it says is the demo's, what it costs is tiny's.

The decoder is the demo's, widened so that its output stays the same: 128 channels become 384 in three copies, which
LayerNorm does not notice; its 4 heads of 32 become the first of 6 heads of 64; a fourth layer adds nothing; the
vocabulary is filled up to 51,865 rows that never win. An encoder of tiny's cost runs in front of it, and its states
are thrown away for the demo's own, whose computing time is counted apart as `overhead`.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_speed import features, random_encoder, session_of, stock_config
from torch import nn
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from whisper_hailo_hf import quantize_encoder
from whisper_hailo_hf.decoders.choice import DecoderChoice
from whisper_hailo_hf.transcription import SpeechModel

WIDTH, HEADS, LAYERS, FFN, VOCABULARY = 384, 6, 4, 1536, 51_865
_NEVER = -100.0


class ChoosingWhisper(DecoderChoice, WhisperForConditionalGeneration):
    """A stock Whisper with this package's decoder backends."""


class CostlyEncoder(nn.Module):
    """Runs an encoder for its cost and gives the states of another, widened. `overhead`: seconds of the latter."""

    main_input_name = "input_features"

    def __init__(self, demo: Any, cost: Any) -> None:
        super().__init__()
        self.demo, self.cost, self.overhead = demo, cost, 0.0
        self.conv1, self.conv2 = demo.conv1, demo.conv2  # generate() multiplies their strides

    def forward(self, input_features: torch.Tensor, **_: Any) -> BaseModelOutput:
        self.cost(input_features)
        began = time.perf_counter()
        states = self.demo(input_features).last_hidden_state
        self.overhead += time.perf_counter() - began
        return BaseModelOutput(last_hidden_state=nn.functional.pad(states, (0, WIDTH - states.shape[-1])))


@torch.no_grad()
def widened_decoder(demo: Any, cls: Any = WhisperForConditionalGeneration) -> WhisperForConditionalGeneration:
    """A stock Whisper of tiny's shapes that says what the demo says, given its states padded with zeros."""
    old = demo.config
    narrow, layers, head = old.d_model, old.decoder_layers, old.d_model // old.decoder_attention_heads
    config = stock_config("tiny")
    for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "max_target_positions"):
        setattr(config, name, getattr(old, name))
    config.vocab_size, config.tie_word_embeddings = VOCABULARY, False
    config.suppress_tokens = config.begin_suppress_tokens = None
    model = cls(config).eval()
    for parameter in model.model.decoder.parameters():
        parameter.zero_()
    ours, theirs = model.model.decoder, demo.model.decoder

    def thrice(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor] * 3)

    places = torch.cat([torch.arange(head) + 64 * index for index in range(old.decoder_attention_heads)])
    ours.embed_tokens.weight[: old.vocab_size] = thrice(theirs.embed_tokens.weight.T).T
    ours.embed_positions.weight.copy_(thrice(theirs.embed_positions.weight.T).T)
    for index, layer in enumerate(ours.layers):
        for module in layer.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
        if index >= layers:
            continue
        source = theirs.layers[index]
        for kind in ("self_attn", "encoder_attn"):
            new, given = getattr(layer, kind), getattr(source, kind)
            for name in ("q_proj", "k_proj", "v_proj"):
                # heads are twice as wide, and their products divided by the root of that
                gain = (64 / head) ** 0.5 if name == "q_proj" else 1.0
                one, other = getattr(new, name), getattr(given, name)
                one.weight[places, :narrow] = gain * other.weight
                if other.bias is not None:
                    one.bias[places] = gain * other.bias
            new.out_proj.weight[:, places] = thrice(given.out_proj.weight)
            new.out_proj.bias.copy_(thrice(given.out_proj.bias))
        layer.fc1.weight[: len(source.fc1.weight), :narrow] = source.fc1.weight
        layer.fc1.bias[: len(source.fc1.bias)] = source.fc1.bias
        layer.fc2.weight[:, : len(source.fc1.weight)] = thrice(source.fc2.weight)
        layer.fc2.bias.copy_(thrice(source.fc2.bias))
        for name in ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"):
            one, other = getattr(layer, name), getattr(source, name)
            one.weight.copy_(thrice(other.weight))
            one.bias.copy_(thrice(other.bias))
    # the last copy becomes one constant channel, by which the rows without a word lose
    ours.layer_norm.weight[:narrow] = theirs.layer_norm.weight
    ours.layer_norm.bias[:narrow] = theirs.layer_norm.bias
    ours.layer_norm.bias[-1] = 1.0
    model.proj_out.weight.zero_()
    model.proj_out.weight[: old.vocab_size, :narrow] = demo.proj_out.weight
    model.proj_out.weight[old.vocab_size :, -1] = _NEVER
    model.generation_config = copy.deepcopy(demo.generation_config)
    return model


def live_model(demo: SpeechModel, folder: Path, threads: int, decoder_backend: str = "torch") -> SpeechModel:
    """The conv encoder of the preset `tiny`, random weights, in 8 bits on ONNX Runtime, and the widened decoder.

    The encoder's file is kept in the folder and taken from there if it is there already.
    """
    path = folder / "conv_int8.onnx"
    if not path.exists():
        quantize_encoder(
            random_encoder("tiny", "conv", "width"),
            features(4).numpy(),
            output=path,
            method="minmax",
            windows=16,
            layer_windows=0,
            choices=False,
        )
    session = session_of(path, threads)
    entry = session.get_inputs()[0]

    def cost(given: torch.Tensor) -> None:
        session.run(None, {entry.name: np.ascontiguousarray(given.numpy()).reshape(entry.shape)})

    speech = _with_encoder(demo, cost, ChoosingWhisper)
    speech.model.set_decoder_backend(decoder_backend)
    return speech


def stock_model(demo: SpeechModel) -> SpeechModel:
    """Stock Whisper's own encoder in tiny's shapes, random weights, on torch, and the widened decoder."""
    torch.manual_seed(0)
    encoder = WhisperEncoder(stock_config("tiny")).eval()
    return _with_encoder(demo, lambda given: encoder(given))


def _with_encoder(demo: SpeechModel, cost: Any, cls: Any = WhisperForConditionalGeneration) -> SpeechModel:
    model = widened_decoder(demo.model, cls)
    model.model.encoder = CostlyEncoder(demo.model.get_encoder(), torch.no_grad()(cost))
    return SpeechModel("the digits demo in tiny's shapes", model, demo.tokenizer, demo.feature_extractor)
