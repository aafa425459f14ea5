"""A model that turns utterances into text, with the time it takes: `generate()` of Transformers and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.speech_model import SpeechModel


class Recogniser:
    """Decodes batches of utterances.

    Args:
        speech: model, tokenizer and feature extractor.
        language: code or English name, for all; None takes each utterance's own, and detects it where there is none.
        task: `transcribe` or `translate`; None is the model's own default.
        num_beams: width of the beam search; 1 is greedy.
        max_new_tokens: most tokens of a window; None is the model's own limit.

    Raises:
        RequestError: a language or a task that this model does not know.
    """

    def __init__(
        self,
        speech: SpeechModel,
        language: str | None = None,
        task: str | None = None,
        num_beams: int = 1,
        max_new_tokens: int | None = None,
    ) -> None:
        self.speech = speech
        settings = speech.model.generation_config
        languages = getattr(settings, "lang_to_id", None) or {}
        multilingual = getattr(settings, "is_multilingual", bool(languages))
        self._languages = {token.strip("<|>") for token in languages} if multilingual else set()
        self.language = None if language is None else self._code(language)
        if task is not None and not self._languages:
            raise RequestError(f"{speech.name} knows one language only: leave out the task {task}")
        self._settings: dict[str, Any] = {"num_beams": num_beams}
        self._settings |= {} if task is None else {"task": task}
        self._settings |= {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        extractor = speech.feature_extractor
        self._window = 2 * speech.model.config.max_source_positions * extractor.hop_length

    def _code(self, language: str) -> str:
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        name = language.strip().lower()
        code = TO_LANGUAGE_CODE.get(name, name)
        if self._languages and code not in self._languages:
            known = ", ".join(sorted(self._languages))
            raise RequestError(f"unknown language {language!r}: {self.speech.name} knows {known}")
        return code

    def warm_up(self) -> None:
        """Opens what the encoder runs on, and runs all once: it shall not count as the first utterance's time."""
        self._generate([np.zeros(SAMPLING_RATE, np.float32)], [None], max_new_tokens=1)

    def batches(self, lengths: Sequence[int], batch_size: int) -> Iterator[range]:
        """Indices in batches, in order; an utterance longer than a window is alone in its own.

        Args:
            lengths: samples of each utterance, as far as they are known, else 0.
            batch_size: most utterances of a batch.
        """
        first = 0
        while first < len(lengths):
            last = first + 1
            while (
                last < min(first + batch_size, len(lengths))
                and max(lengths[first : last + 1], default=0) <= self._window
            ):
                last += 1
            yield range(first, last)
            first = last

    def __call__(self, samples: Sequence[FloatArray], languages: Sequence[str | None]) -> list[tuple[str, float]]:
        """Texts of float32 samples (samples,) at 16 kHz, and the seconds that each took.

        The time of a batch is shared out by the length of the audio; it has features, encoder, decoder and text in it.
        """
        began = time.perf_counter()
        long = any(one.size > self._window for one in samples)  # of some, nobody knew the length before
        mixed = self.language is None and len({language is None for language in languages}) > 1
        if len(samples) > 1 and (long or mixed):  # generate() detects the languages of all or of none
            return [self([one], [language])[0] for one, language in zip(samples, languages, strict=True)]
        texts = self._generate(samples, languages)
        seconds, total = time.perf_counter() - began, sum(one.size for one in samples)
        return [(text, seconds * one.size / total) for text, one in zip(texts, samples, strict=True)]

    @torch.no_grad()
    def _generate(self, samples: Sequence[FloatArray], languages: Sequence[str | None], **settings: Any) -> list[str]:
        model, tokenizer = self.speech.model, self.speech.tokenizer
        settings = self._settings | settings
        long = max(one.size for one in samples) > self._window
        features = self.speech.feature_extractor(
            list(samples),
            sampling_rate=SAMPLING_RATE,
            return_attention_mask=True,
            return_tensors="pt",
            **({"truncation": False, "padding": "longest"} if long else {"max_length": self._window}),
        ).to(model.device)
        if long:
            settings["return_timestamps"] = True
        if self._languages:
            wanted = [self.language or (None if one is None else self._code(one)) for one in languages]
            if any(wanted):
                settings["language"] = wanted[0] if len(set(wanted)) == 1 else wanted
        try:
            tokens = model.generate(
                features.input_features.to(model.dtype), attention_mask=features.attention_mask, **settings
            )
        except WhisperHailoError:
            raise
        except (ValueError, RuntimeError) as error:
            first = str(error).strip().split("\n")[0]
            raise WhisperHailoError(f"{self.speech.name} cannot decode: {first}") from error
        return [" ".join(text.split()) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
