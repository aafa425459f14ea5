"""Word error rates from encoder states: the same decoder on the student's states and on the teacher's."""

from typing import Any, Self

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
from whisper_hailo_hf.distillation.collator import IGNORED
from whisper_hailo_hf.distillation.objective import DistillationObjective
from whisper_hailo_hf.errors import RequestError


class WordErrors:
    """Counts word errors of transcripts, lower-case and without punctuation, as Whisper's basic normaliser has them.

    Args:
        tokenizer: a Whisper tokenizer or processor.
        names: what is counted, each under its name.
        max_new_tokens: most tokens of a transcript.

    Raises:
        RequestError: `jiwer` is not installed.
    """

    def __init__(self, tokenizer: Any, names: tuple[str, ...], max_new_tokens: int) -> None:
        try:
            import jiwer
        except ImportError as error:
            raise RequestError("word error rates need jiwer: pip install 'whisper-hailo-hf[eval]'") from error
        self._jiwer, self._normalize = jiwer, BasicTextNormalizer()
        self.tokenizer, self.max_new_tokens = getattr(tokenizer, "tokenizer", tokenizer), max_new_tokens
        self.counts = {name: torch.zeros(2, dtype=torch.float64) for name in names}  # errors, words
        self.decoders: dict[str, WhisperForConditionalGeneration] = {}

    @classmethod
    def of_trainer(
        cls, args: EncoderDistillationArguments, tokenizer: Any, objective: DistillationObjective
    ) -> Self | None:
        """Counts `wer` of the student's states and, where there is a decoder that does not learn, `teacher_wer`.

        Raises:
            RequestError: they are wanted, and there is no decoder or no tokenizer.
        """
        if not args.predict_with_generate:
            return None
        decoder, frozen = objective.decoder_for_text, objective.frozen_decoder
        if tokenizer is None or decoder is None:
            raise RequestError(
                "predict_with_generate needs a decoder with its token embedding and a processing_class: "
                "give both, or set it to false"
            )
        decoders = {"wer": decoder} | ({} if frozen is None else {"teacher_wer": frozen})
        words = cls(tokenizer, tuple(decoders), args.generation_max_new_tokens)
        words.decoders = decoders
        return words

    def update_all(self, ours: Tensor, theirs: Tensor, labels: Tensor) -> None:
        """Decodes the student's and the teacher's states of a batch."""
        for name, decoder in self.decoders.items():
            self.update(name, decoder, ours if name == "wer" else theirs, labels)

    @torch.no_grad()
    def update(self, name: str, model: WhisperForConditionalGeneration, states: Tensor, labels: Tensor) -> None:
        """Decodes states (batch, positions, d_model) greedily and compares with labels (batch, tokens)."""
        tokens = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states.to(model.dtype)),
            max_new_tokens=self.max_new_tokens,
            num_beams=1,
            return_timestamps=False,
        )
        said = self._words(tokens)
        wanted = self._words(labels.where(labels != IGNORED, self.tokenizer.pad_token_id))
        kept = [(ours, theirs) for ours, theirs in zip(said, wanted, strict=True) if theirs]
        if not kept:
            return
        found = self._jiwer.process_words([w for _, w in kept], [s for s, _ in kept])
        errors = found.substitutions + found.deletions + found.insertions
        words = found.substitutions + found.deletions + found.hits
        self.counts[name] += torch.tensor([errors, words])

    def _words(self, tokens: Tensor) -> list[str]:
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [self._normalize(text).strip() for text in texts]

    def rate(self, name: str) -> float | None:
        """Errors per word, or None if nothing was counted."""
        errors, words = self.counts[name].tolist()
        return errors / words if words else None
