"""Items of a data set to one batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whisper_hailo_hf.errors import RequestError

IGNORED = -100  # a label that no loss counts


class DistillationCollator:
    """Stacks the items of a distillation data set.

    An item is a dict: `input_features`, float32 (n_mels, 2 * positions); `speech_mask`, bool (positions,); perhaps
    `teacher_states`, float16 (positions, d_model); perhaps `labels`, the decoder's tokens. Its other entries, such as
    `id`, stay behind: not every launcher can send text between processes.

    Args:
        decoder_start_token_id: a token that labels may begin with; the decoder is given it anyway, so it is dropped.
    """

    def __init__(self, decoder_start_token_id: int | None = None) -> None:
        self.decoder_start_token_id = decoder_start_token_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: the same names, stacked; `labels` (batch, tokens) padded with -100.

        Raises:
            RequestError: an entry is missing, or the items differ in shape.
        """
        if "input_features" not in items[0] or "speech_mask" not in items[0]:
            raise RequestError(
                f"an item of the data set has {sorted(items[0])}: it needs input_features and speech_mask"
            )
        batch = {"input_features": _stack(items, "input_features").float()}
        batch["speech_mask"] = _stack(items, "speech_mask").bool()
        if all("teacher_states" in item for item in items):
            batch["teacher_states"] = _stack(items, "teacher_states")
        if any(item.get("labels") is not None for item in items):
            batch["labels"] = self._pad([item.get("labels") for item in items])
        return batch

    def _pad(self, rows: list[Any]) -> Tensor:
        tokens = [[] if row is None else [int(token) for token in row] for row in rows]
        tokens = [row[1:] if row and row[0] == self.decoder_start_token_id else row for row in tokens]
        padded = torch.full((len(tokens), max(1, max(map(len, tokens)))), IGNORED)
        for target, row in zip(padded, tokens, strict=True):
            target[: len(row)] = torch.tensor(row, dtype=torch.long)
        return padded


def _stack(items: Sequence[dict[str, Any]], name: str) -> Tensor:
    values = [item[name] for item in items]
    tensors = [v if isinstance(v, Tensor) else torch.from_numpy(np.ascontiguousarray(v)) for v in values]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise RequestError(f"items of the data set differ in {name}: shapes {', '.join(map(str, sorted(shapes)))}")
    return torch.stack(tensors)
