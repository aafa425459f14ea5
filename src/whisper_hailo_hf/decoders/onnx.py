"""`onnx` and `onnx-int8`: the stock decoder in ONNX Runtime.

The graphs are built from the weights in memory at the first call, and again when these have changed, so that they can
be of no other weights. The cache stays Transformers' own, with torch's tensors in it: whatever `generate()` does with
it (beams reordered, candidates cropped) holds, and one call may run here and the next in torch.
"""

import os
import weakref
from importlib.util import find_spec
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import Seq2SeqLMOutput

from whisper_hailo_hf.backends.base import BackendStatus, weights_version
from whisper_hailo_hf.backends.onnx import runtime_version
from whisper_hailo_hf.decoders.graph import (
    attention_names,
    cross_graph,
    cross_names,
    new_names,
    past_names,
    step_graph,
    why_not_stock,
)
from whisper_hailo_hf.errors import RequestError

_NO_MASK = np.zeros((1, 1, 1, 1), dtype=np.float32)
_FAR = np.finfo(np.float32).min


class OnnxDecoder:
    """ONNX Runtime on the CPU.

    Args:
        decoder: the model's decoder, stock Whisper's; its weights are read when the graphs are built.
        proj_out: its output projection.
        int8: weights in 8 bits.
        threads: threads within an operator; None is torch's own number.

    Raises:
        RequestError: onnxruntime or onnx is not installed, or `threads` is no positive number.
    """

    def __init__(
        self, decoder: nn.Module, proj_out: nn.Module, *, int8: bool = False, threads: int | None = None
    ) -> None:
        if threads is not None and threads < 1:
            raise RequestError(f"threads is a positive number, not {threads!r}")
        self.name = "onnx-int8" if int8 else "onnx"
        if not (status := self.status(self.name)).available:
            raise RequestError(f"the decoder backend {self.name!r} cannot run here: {status.reason}")
        self.decoder: Any = decoder
        self.proj_out: Any = proj_out
        self.int8, self.threads = int8, threads
        self._lock = RLock()
        self._looked: Any = None  # a weak reference to the cache for which the weights were last looked at
        self._unfit: str | None = None
        self._forget()

    @staticmethod
    def status(name: str) -> BackendStatus:
        """Whether ONNX Runtime is there."""
        absent = [package for package in ("onnxruntime", "onnx") if find_spec(package) is None]
        if absent:
            reason = f"{' and '.join(absent)} not installed: pip install 'whisper-hailo-hf[onnx]'"
            return BackendStatus(name, False, reason)
        return BackendStatus(name, True, runtime_version())

    def info(self) -> dict[str, Any]:
        """What this backend is and how it is set."""
        return {"backend": self.name, "runtime": runtime_version(), "threads": self.threads or torch.get_num_threads()}

    def close(self) -> None:
        """Lets go of the sessions and of what they remember; the next call builds them anew."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._sessions: tuple[Any, Any] | None = None
        self._version: Any = None
        self._owner = 0
        self._last: tuple[Tensor, list[Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        forgotten = {"_sessions": None, "_version": None, "_owner": 0, "_last": None, "_looked": None}
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | forgotten

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = RLock()

    def why_not(self, cache: Any, states: Tensor, input_ids: Tensor, mask: Tensor | None) -> str | None:
        """None if `forward` can run these, otherwise what they have that the graphs do not know.

        To be asked before each `forward`: where weights have changed, the graphs are forgotten here.
        """
        weight = self.decoder.embed_tokens.weight
        if weight.dtype != torch.float32 or weight.device.type != "cpu" or states.dtype != torch.float32:
            return f"the model is in {str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
        if cache is not None and not _is_plain(cache):
            return f"the cache is a {type(cache).__name__} of another kind"
        if len(states) != len(input_ids):
            return "encoder states and tokens are not as many"
        past = 0 if cache is None else cache.get_seq_length()
        if mask is not None and mask.shape != (len(input_ids), past + input_ids.shape[1]):
            return f"the decoder's mask is of shape {tuple(mask.shape)}"
        return self._look(cache)

    def _look(self, cache: Any) -> str | None:
        """Once for each cache: for each token it would take longer than the token."""
        with self._lock:
            if cache is None or self._looked is None or self._looked() is not cache:
                self._unfit = why_not_stock(self.decoder, self.proj_out)
                if self._sessions is not None and self._version != self._weights():
                    self._forget()
                self._looked = None if cache is None else weakref.ref(cache)
            return self._unfit

    def _weights(self) -> Any:
        return weights_version(self.decoder), weights_version(self.proj_out)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        states: Tensor,
        cache: EncoderDecoderCache | None = None,
        mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool = False,
    ) -> Seq2SeqLMOutput:
        """One call of the decoder.

        Args:
            input_ids: (batch, tokens), those that the cache does not know.
            states: encoder states, (batch, positions, d_model).
            cache: takes up the keys and values of this call.
            mask: (batch, past + tokens), 0 where a token is padding.
            position_ids: (batch, tokens).
            logits_to_keep: the last so many positions, all for 0; or their indices.
            output_attentions: also give the weights of both attentions, as stock Whisper does.
        """
        layers, heads = len(self.decoder.layers), self.decoder.config.decoder_attention_heads
        batch, tokens = input_ids.shape
        past = 0 if cache is None else cache.get_seq_length()
        with self._lock:
            session, _ = self._opened()
        before = None if cache is None else cache.self_attention_cache
        empty = torch.zeros(batch, heads, 0, self.decoder.config.d_model // heads)
        known = [tensor for layer in range(layers) for tensor in _of_layer(before, layer, empty)]
        positions = torch.arange(past, past + tokens)[None] if position_ids is None else position_ids
        embedded = self.decoder.embed_tokens(input_ids) + self.decoder.embed_positions.weight[positions]
        kept = np.arange(tokens)
        kept = kept[-logits_to_keep:] if isinstance(logits_to_keep, int) else kept[logits_to_keep.numpy()]
        feed = {"embedded": embedded, **dict(zip(past_names(layers), known, strict=True))}
        feed |= dict(zip(cross_names(layers), self._cross(states, cache), strict=True))
        arrays = {name: tensor.contiguous().numpy() for name, tensor in feed.items()}
        arrays |= {"mask": _added(past, tokens, mask), "keep": kept.astype(np.int64)}
        names = ["logits", *new_names(layers), *(attention_names(layers) if output_attentions else ())]
        logits, *rest = (torch.from_numpy(array) for array in session.run(names, arrays))
        if before is not None:
            for layer in range(layers):
                before.update(rest[2 * layer], rest[2 * layer + 1], layer)
        weights = tuple(rest[2 * layers :])
        return Seq2SeqLMOutput(
            logits=logits,
            past_key_values=cache,
            decoder_attentions=weights[:layers] or None,
            cross_attentions=weights[layers:] or None,
            encoder_last_hidden_state=states,
        )

    def _cross(self, states: Tensor, cache: EncoderDecoderCache | None) -> list[Tensor]:
        """Keys and values of the encoder states: from the cache, where they stay after the first call."""
        layers = range(len(self.decoder.layers))
        if cache is not None and all(cache.is_updated.get(layer) for layer in layers):
            known: Any = cache.cross_attention_cache.layers
            return [tensor for layer in layers for tensor in (known[layer].keys, known[layer].values)]
        found = self._cross_of_window(states)
        if cache is not None:
            for layer in layers:
                key, value = found[2 * layer], found[2 * layer + 1]
                # `update` would copy them, which takes as long as computing them in 8 bits: it gets none of them
                cache.cross_attention_cache.update(key[:, :, :0], value[:, :, :0], layer)
                kept: Any = cache.cross_attention_cache.layers[layer]
                kept.keys, kept.values = key, value
                cache.is_updated[layer] = True
        return found

    def _cross_of_window(self, states: Tensor) -> list[Tensor]:
        """Computed once for a window: beams repeat its states, language detection and fallbacks ask for them again."""
        first = [0] + [row for row in range(1, len(states)) if not torch.equal(states[row], states[row - 1])]
        distinct = states if len(first) == len(states) else states[first]
        with self._lock:
            if self._last is not None and torch.equal(self._last[0], distinct):
                found = self._last[1]
            else:
                _, session = self._opened()
                arrays = session.run(None, {"states": distinct.contiguous().numpy()})
                found = [torch.from_numpy(array) for array in arrays]
                self._last = distinct.clone(), found
        if len(first) == len(states):
            return found
        rows = torch.bincount(torch.tensor(first), minlength=len(states)).cumsum(0) - 1
        return [tensor[rows] for tensor in found]

    def _opened(self) -> tuple[Any, Any]:
        """The sessions of the step and of the cross-attention."""
        if self._sessions is None or self._owner != os.getpid():  # not one carried over a fork
            self._forget()
            self._version = self._weights()
            # as bytes: while a session takes its weights out of them, they are not in memory as a graph too
            step = self._session(step_graph(self.decoder, self.proj_out, self.int8).SerializeToString())
            self._sessions = step, self._session(cross_graph(self.decoder, self.int8).SerializeToString())
            self._owner = os.getpid()
        return self._sessions

    def _session(self, graph: bytes) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # threads that wait for work by spinning keep torch's, which run between two calls, from the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.intra_op_num_threads = self.threads or torch.get_num_threads()
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _is_plain(cache: Any) -> bool:
    """Whether it is the cache that `generate()` makes by default."""
    if not isinstance(cache, EncoderDecoderCache):
        return False
    both = cache.self_attention_cache, cache.cross_attention_cache
    return all(type(one) is DynamicCache and all(type(layer) is DynamicLayer for layer in one.layers) for one in both)


def _of_layer(cache: Any, layer: int, empty: Tensor) -> tuple[Tensor, Tensor]:
    if cache is None or layer >= len(cache.layers) or not cache.layers[layer].get_seq_length():
        return empty, empty
    return cache.layers[layer].keys, cache.layers[layer].values


def _added(past: int, tokens: int, mask: Tensor | None) -> np.ndarray:
    """What is added to the scores: far below zero where a token lies ahead or is padding."""
    padding = None if mask is None or bool(mask.all()) else mask.numpy() == 0
    if tokens == 1 and padding is None:
        return _NO_MASK
    hidden = np.triu(np.ones((1, 1, tokens, past + tokens), dtype=bool), k=past + 1)
    if padding is not None:
        hidden = hidden | padding[:, None, None, :]
    return np.where(hidden, _FAR, np.float32(0))
