"""One pass's calls of the decoder: logits where they are wanted, and where the alignment heads looked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import EncoderDecoderCache
from transformers.cache_utils import DynamicCache

from whisper_hailo_hf.audio import FloatArray

Heads = dict[int, list[int]]  # the alignment heads by layer


class Steps:
    """The decoder over one window, with the keys and values of the tokens so far.

    Args:
        model: a Whisper with a head.
        states: encoder states, (1, positions, d_model).
        heads: whose attention is recorded.
    """

    def __init__(self, model: Any, states: torch.Tensor, heads: Heads) -> None:
        self.model, self.states, self.heads = model, states, heads
        self.cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())

    @property
    def length(self) -> int:
        """Tokens so far."""
        return int(self.cache.get_seq_length())

    def run(self, ids: Sequence[int], keep: Sequence[int]) -> torch.Tensor:
        """Go on with tokens.

        Args:
            ids: that follow the tokens so far.
            keep: places in the whole text, of these tokens; the logits at each predict the token behind it.

        Returns:
            float32, (len(keep), vocabulary).
        """
        raise NotImplementedError

    def attention(self, first: int, stop: int) -> FloatArray:
        """(stop - first, positions): the alignment heads' mean weights of the places from `first` to before `stop`."""
        raise NotImplementedError

    def crop(self, length: int) -> None:
        """Forget all tokens behind the first ones."""
        for layer in self.cache.self_attention_cache.layers:  # `cache.crop` counts differently in different versions
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


class TorchSteps(Steps):
    """In torch. Fast kernels give no weights of attention: they are computed of the queries when asked for."""

    def __init__(self, model: Any, states: torch.Tensor, heads: Heads) -> None:
        super().__init__(model, states, heads)
        self._queries: dict[int, list[torch.Tensor]] = {layer: [] for layer in heads}

    def record(self, layer: int) -> Callable[..., None]:
        """A hook on the query projection of a layer's cross-attention."""

        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            self._queries[layer].append(output[0])

        return hook

    def run(self, ids: Sequence[int], keep: Sequence[int]) -> torch.Tensor:
        known, given = self.length, torch.tensor([list(ids)], device=self.states.device)
        decoder = self.model.get_decoder()
        output = decoder(
            input_ids=given, encoder_hidden_states=self.states, past_key_values=self.cache, use_cache=True
        )
        return self.model.proj_out(output.last_hidden_state[0, [place - known for place in keep]]).float()

    def attention(self, first: int, stop: int) -> FloatArray:
        found = []
        for layer, chosen in self.heads.items():
            attention = self.model.get_decoder().layers[layer].encoder_attn
            queries = torch.cat(self._queries[layer])[first:stop].float() * attention.scaling
            queries = queries.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(0, 1)[chosen]
            keys = self.cache.cross_attention_cache.layers[layer].keys[0, chosen].float()
            found.append(torch.softmax(queries @ keys.transpose(1, 2), -1))
        return np.asarray(torch.cat(found).mean(0).cpu().numpy(), np.float32)

    def crop(self, length: int) -> None:
        super().crop(length)
        self._queries = {layer: [torch.cat(parts)[:length]] for layer, parts in self._queries.items()}


class BackendSteps(Steps):
    """On a decoder backend outside torch, which gives the weights of attention itself."""

    def __init__(self, model: Any, states: torch.Tensor, heads: Heads, backend: Any) -> None:
        super().__init__(model, states, heads)
        self._backend = backend
        self._rows: list[torch.Tensor] = []

    def run(self, ids: Sequence[int], keep: Sequence[int]) -> torch.Tensor:
        places = torch.tensor([place - self.length for place in keep])
        output = self._backend.forward(
            torch.tensor([list(ids)]), self.states, self.cache, logits_to_keep=places, output_attentions=True
        )
        weights = [output.cross_attentions[layer][0, chosen] for layer, chosen in self.heads.items()]
        self._rows.append(torch.cat(weights).mean(0))
        return output.logits[0].float()

    def attention(self, first: int, stop: int) -> FloatArray:
        return np.asarray(torch.cat(self._rows)[first:stop].numpy(), np.float32)

    def crop(self, length: int) -> None:
        super().crop(length)
        self._rows = [torch.cat(self._rows)[:length]]


@contextmanager
def decoder_steps(model: Any, states: torch.Tensor, heads: Heads) -> Iterator[Steps]:
    """Steps where the model's decoder runs."""
    outside = getattr(model, "outside_decoder", None)  # a stock Whisper has no backends
    backend = None if outside is None else outside(states)
    if backend is not None:
        yield BackendSteps(model, states, heads, backend)
        return
    steps = TorchSteps(model, states, heads)
    layers = model.get_decoder().layers
    hooks = [layers[layer].encoder_attn.q_proj.register_forward_hook(steps.record(layer)) for layer in heads]
    try:
        yield steps
    finally:
        for hook in hooks:
            hook.remove()
