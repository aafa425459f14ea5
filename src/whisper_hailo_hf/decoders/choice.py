"""The choice of a decoder backend, as a part of the model class."""

import logging
import os
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from whisper_hailo_hf.decoders.onnx import OnnxDecoder
from whisper_hailo_hf.errors import RequestError

logger = logging.getLogger(__name__)

_NAMES = ("torch", "onnx", "onnx-int8")


def decoder_backend_names() -> list[str]:
    """What `decoder_backend` may be."""
    return list(_NAMES)


class DecoderChoice:
    """Gives a Whisper with a head a decoder that runs on torch, the default, or in ONNX Runtime.

    Goes before the model's class among the bases. What the graphs do not know runs on torch, call by call, with the
    same cache: training and whatever needs gradients, `labels`, `output_hidden_states`, static and quantized caches,
    half precision, layers that are not stock.
    """

    _decoder_backend: OnnxDecoder | None = None

    @property
    def decoder_backend(self) -> str:
        """Name of the decoder backend in use."""
        return "torch" if self._decoder_backend is None else self._decoder_backend.name

    def outside_decoder(self: Any, states: Tensor, cache: Any = None) -> OnnxDecoder | None:
        """The backend outside torch for who calls the decoder himself, a window at a time.

        Args:
            states: encoder states of one window, (1, positions, d_model).
            cache: what it is to go on with.

        Returns:
            None where the decoder runs on torch: chosen so, or, said once, because the backend cannot take the call.
        """
        backend: OnnxDecoder | None = self._decoder_backend
        if backend is None or not self._may_leave():
            return None
        if reason := backend.why_not(cache, states, torch.zeros(len(states), 1, dtype=torch.long), None):
            _say(f"the decoder runs on torch, not {backend.name}, where {reason}")
            return None
        return backend

    def set_decoder_backend(self: Any, name: str, **options: Any) -> None:
        """Chooses where the decoder runs. Never saved.

        Args:
            name: `"torch"`, `"onnx"` (float32, the same text) or `"onnx-int8"` (weights in 8 bits).
            options: for ONNX Runtime: `threads`.

        Raises:
            RequestError: no such backend or option, or it cannot run here.
        """
        _check(name, options)
        chosen = None
        if name != "torch":
            chosen = OnnxDecoder(self.model.decoder, self.proj_out, int8=name == "onnx-int8", **options)
        if self._decoder_backend is not None:
            self._decoder_backend.close()
        self._decoder_backend = chosen

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        decoder_backend: str = "torch",
        decoder_backend_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a checkpoint of ours: see [`WhisperHailoPreTrainedModel.from_pretrained`].

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            decoder_backend: where the decoder runs: `"torch"`, `"onnx"` or `"onnx-int8"`. Never saved.
            decoder_backend_options: settings of that backend.
            args, kwargs: as there.
        """
        options = decoder_backend_options or {}
        _check(decoder_backend, options)  # a wrong name shall not cost a load
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        model.set_decoder_backend(decoder_backend, **options)
        return loaded

    @can_return_tuple
    def forward(
        self: Any,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """As stock Whisper's `forward`, on the chosen decoder backend.

        Args:
            logits_to_keep: of so many last positions are the logits wanted, 0 for all of them; or their indices.
        """
        given = {
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "past_key_values": past_key_values,
            "decoder_position_ids": decoder_position_ids,
            "use_cache": use_cache,
        }
        if labels is None and decoder_inputs_embeds is None and decoder_input_ids is not None and self._may_leave():
            if encoder_outputs is None and not _asked(self, kwargs, "output_hidden_states"):
                encoder_outputs = self.model.encoder(input_features, attention_mask=attention_mask)
            outputs = self._outside(encoder_outputs, **given, logits_to_keep=logits_to_keep, **kwargs)
            if outputs is not None:
                return outputs
        given |= {
            "input_features": input_features,
            "attention_mask": attention_mask,
            "encoder_outputs": encoder_outputs,
            "decoder_inputs_embeds": decoder_inputs_embeds,
        }
        if labels is not None or (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            return super().forward(labels=labels, **given, **kwargs)  # type: ignore[misc]  # of the model's class
        # of a long prompt, only the last token's logits matter, and each costs a product with the whole vocabulary
        outputs = self.model(**given, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        rest = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return Seq2SeqLMOutput(logits=self.proj_out(outputs.last_hidden_state[:, kept]), **rest)

    def _may_leave(self: Any) -> bool:
        if self._decoder_backend is None:
            return False
        return not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())

    def _outside(
        self: Any,
        encoder_outputs: Any,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None,
        past_key_values: Any,
        decoder_position_ids: Tensor | None,
        use_cache: bool | None,
        logits_to_keep: int | Tensor,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput | None:
        """The call on the decoder's backend; None, said once, where that cannot take it."""
        backend: OnnxDecoder = self._decoder_backend
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        others = [name for name, value in kwargs.items() if value is not None and value is not False]
        if _asked(self, kwargs, "output_hidden_states"):
            reason: str | None = "output_hidden_states is asked for"
        elif unknown := [name for name in others if name not in ("output_attentions", "output_hidden_states")]:
            reason = f"{', '.join(unknown)} is asked for"
        else:
            reason = backend.why_not(past_key_values, encoder_outputs[0], decoder_input_ids, decoder_attention_mask)
        if reason is not None:
            _say(f"the decoder runs on torch, not {backend.name}, where {reason}")
            return None
        return backend.forward(
            decoder_input_ids,
            encoder_outputs[0],
            past_key_values,
            decoder_attention_mask,
            decoder_position_ids,
            logits_to_keep,
            _asked(self, kwargs, "output_attentions"),
        )


def _asked(model: Any, kwargs: dict[str, Any], name: str) -> bool:
    value = kwargs.get(name)
    return bool(getattr(model.config, name, False) if value is None else value)


def _check(name: str, options: dict[str, Any]) -> None:
    if name not in _NAMES:
        raise RequestError(f"unknown decoder backend {name!r}: choose {', '.join(_NAMES)}")
    known = () if name == "torch" else ("threads",)
    if unknown := [option for option in options if option not in known]:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise RequestError(f"the decoder backend {name!r} has no option {', '.join(unknown)}: {has}")


@cache
def _say(line: str) -> None:
    logger.warning(line)
