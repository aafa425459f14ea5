"""Word error rates of a stage: what the decoder reads from its states."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from whisper_hailo_hf.errors import RequestError


class Transcriber:
    """Reads states with a model's own decoder and counts word errors, lower-case and without punctuation, as
    Whisper's basic normaliser has them.

    Args:
        model: the whole model.
        tokenizer: its tokenizer or processor.
        texts: what is said in each window, None where nobody knows; windows without a word do not count.
        language: of the speech; None lets a multilingual model detect it from the states.

    Raises:
        RequestError: `jiwer` is not installed.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        tokenizer: Any,
        texts: Sequence[str | None],
        language: str | None = None,
    ) -> None:
        try:
            import jiwer
        except ImportError as error:
            raise RequestError("word error rates need jiwer: pip install 'whisper-hailo-hf[eval]'") from error
        self._jiwer, self._normalize = jiwer, BasicTextNormalizer()
        self.model, self.tokenizer = model, getattr(tokenizer, "tokenizer", tokenizer)
        self.settings: dict[str, Any] = {"num_beams": 1, "return_timestamps": False}
        if language is not None:
            self.settings["language"] = language
        wanted = [self._words(text) if text is not None else "" for text in texts]
        self.wanted = {index: words for index, words in enumerate(wanted) if words}

    def _words(self, text: str) -> str:
        return self._normalize(text).strip()

    @torch.no_grad()
    def read(self, states: np.ndarray, batch_size: int = 8) -> dict[str, Any]:
        """Word error rate from states (windows, positions, d_model): `wer`, `word_errors`, `words`, `transcripts`."""
        said: dict[int, str] = {}
        indices = list(self.wanted)
        for first in range(0, len(indices), batch_size):
            some = indices[first : first + batch_size]
            given = torch.from_numpy(states[some]).to(self.model.device, self.model.dtype)
            tokens = self.model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=given), **self.settings)
            said |= dict(zip(some, self.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True))
        found = self._jiwer.process_words(list(self.wanted.values()), [self._words(said[i]) for i in indices])
        errors = found.substitutions + found.deletions + found.insertions
        words = found.substitutions + found.deletions + found.hits
        return {"wer": errors / words, "word_errors": errors, "words": words, "transcripts": list(said.values())}
