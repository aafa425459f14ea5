"""Stock Whisper's rules on tokens that are never said: the same scores, the mask of the vocabulary made only once.

Transformers' own make it anew for every token. With the 88 tokens that a published Whisper never says, that takes
nearly as long as a token of tiny's decoder in 8 bits.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor


class _MaskMadeOnce:
    _mask: Tensor | None = None

    def _without(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """The scores, those of these tokens -inf; numbers outside the vocabulary mean nothing, as in Transformers."""
        if self._mask is None or len(self._mask) != scores.shape[-1] or self._mask.device != scores.device:
            vocabulary = torch.arange(scores.shape[-1], device=scores.device)
            self._mask = torch.isin(vocabulary, tokens.to(scores.device))
        return scores.masked_fill(self._mask, -float("inf"))


class SuppressTokens(_MaskMadeOnce, SuppressTokensLogitsProcessor):
    """Some tokens are never said."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._without(self.suppress_tokens, scores)


class SuppressTokensAtBegin(_MaskMadeOnce, SuppressTokensAtBeginLogitsProcessor):
    """Some tokens are not the first one said."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[-1] != self.begin_index:
            return scores
        return self._without(self.begin_suppress_tokens, scores)


def with_masks_made_once(processors: Iterable[LogitsProcessor] | None) -> list[Any] | None:
    """The same processors in the same order, Transformers' two in the form that they have here."""
    return None if processors is None else [_made(processor) for processor in processors]


def _made(processor: Any) -> Any:
    if type(processor) is SuppressTokensLogitsProcessor:
        tokens = processor.suppress_tokens
        return SuppressTokens(tokens.tolist(), device=str(tokens.device))
    if type(processor) is SuppressTokensAtBeginLogitsProcessor:
        tokens = processor.begin_suppress_tokens
        return SuppressTokensAtBegin(tokens.tolist(), processor.begin_index, device=str(tokens.device))
    return processor
