"""Greedy decoding that knows what was said before, and what the last pass thought would come next.

A pass begins with the tokens that are committed, which are forced, and goes on with the tokens of the pass before as a
draft: one forward checks them all, and those that greedy decoding would have chosen itself are kept (blockwise
parallel decoding, Stern et al. 2018, arXiv:1811.03115; with a draft from elsewhere, Leviathan et al. 2023,
arXiv:2211.17192). The result is that of decoding token after token. Keys and values cannot be kept from pass to pass:
from the decoder's second layer on they depend on the audio, and the audio has grown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from whisper_hailo_hf.audio import FloatArray
from whisper_hailo_hf.decoders import SuppressTokens, SuppressTokensAtBegin
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.live.steps import Steps, decoder_steps


@dataclass
class Decoded:
    """One pass of the decoder.

    Attributes:
        tokens: what follows the forced tokens, without the end of the text.
        logprobs: of each of them.
        attention: float32 (forced text tokens + tokens + 1, positions): row i is where the alignment heads looked, on
            average, when text token i was predicted, the committed ones first; the last row predicts what follows.
        no_speech: probability that there is no speech, at the start of the transcript; 0 where the model has no
            such token.
        ended: whether the model has ended the text, rather than a limit.
        reused: how many of the tokens came from the draft.
        language: code, where the model knows several.
    """

    tokens: list[int]
    logprobs: list[float]
    attention: FloatArray
    no_speech: float
    ended: bool
    reused: int
    language: str | None = None


class GreedyDecoder:
    """Decodes one model's encoder states.

    Args:
        speech: model and tokenizer, with the generation config of the checkpoint.
        language: code; None detects it in each pass that is not told.
        task: `transcribe` or `translate`; None is the checkpoint's own, or `transcribe`.

    Raises:
        RequestError: a model that this cannot drive, in one line.
    """

    def __init__(self, speech: Any, language: str | None = None, task: str | None = None) -> None:
        self.model, self.tokenizer = speech.model, speech.tokenizer
        settings = self.model.generation_config
        self.start = settings.decoder_start_token_id
        self.end = int(settings.eos_token_id if isinstance(settings.eos_token_id, int) else settings.eos_token_id[0])
        self.no_timestamps: int | None = getattr(settings, "no_timestamps_token_id", None)
        if self.no_timestamps is None:
            raise RequestError(
                f"{speech.name} knows no timestamps, which live transcription needs: name another model"
            )
        heads = getattr(settings, "alignment_heads", None)
        if not heads:
            raise RequestError(
                f"the generation config of {speech.name} has no alignment_heads, which the times of words need"
            )
        self.timestamp_begin = self.no_timestamps + 1
        self.timestamps = bool(getattr(settings, "return_timestamps", False))
        self.previous: int | None = getattr(settings, "prev_sot_token_id", None)
        languages = getattr(settings, "lang_to_id", None) or {}
        self.codes = {token: text.strip("<|>") for text, token in languages.items()}
        self.multilingual = bool(getattr(settings, "is_multilingual", bool(languages)) and languages)
        self.language, self.task = _language_and_task(speech, self.codes if self.multilingual else {}, language, task)
        self.limit = int(self.model.config.max_target_positions)
        self._by_layer: dict[int, list[int]] = {}
        for layer, head in heads:
            self._by_layer.setdefault(int(layer), []).append(int(head))
        self._suppress: Any = LogitsProcessorList()
        if settings.suppress_tokens:
            self._suppress.append(SuppressTokens(settings.suppress_tokens))

    @torch.no_grad()
    def decode(
        self,
        states: torch.Tensor,
        *,
        prompt: Sequence[int] = (),
        forced: Sequence[int] = (),
        draft: Sequence[int] = (),
        budget: int = 224,
        language: str | None = None,
        stop: Callable[[FloatArray], bool] | None = None,
    ) -> Decoded:
        """Decode encoder states (1, positions, d_model).

        Args:
            prompt: tokens of the text before this window.
            forced: tokens that are committed; the new ones follow them.
            draft: tokens that may follow; they save time where they are right and change nothing else.
            budget: how many tokens may follow at most.
            language: code, in place of the decoder's own.
            stop: called after each text token with the row of attention that it was predicted with, (positions,);
                True ends the pass behind that token.
        """
        with decoder_steps(self.model, states, self._by_layer) as steps:
            return self._decode(steps, prompt, forced, draft, budget, language, stop)

    def _decode(
        self,
        steps: Steps,
        prompt: Sequence[int],
        forced: Sequence[int],
        draft: Sequence[int],
        budget: int,
        language: str | None,
        stop: Callable[[FloatArray], bool] | None,
    ) -> Decoded:
        head, language, beginning = self._head(steps, prompt, language)
        begin = len(head)  # where the text begins, the committed part of it first
        known = steps.length
        room = self.limit - begin - len(forced) - 1
        budget = max(0, min(budget, room))
        draft = list(draft)[:budget]
        ids = [*head, *forced, *draft]
        first = begin + len(forced)  # where the new tokens begin
        keep = range(first - 1, len(ids))
        if beginning is None:
            start = begin - 1 - list(reversed(head)).index(self.start)
            scores = steps.run(ids[known:], [start, *keep])
            beginning, scores = scores[0], scores[1:]
        else:
            scores = steps.run(ids[known:], keep)
        # as openai-whisper has it: the probability of <|nospeech|> right after the start, before any rule
        no_speech = float(torch.softmax(beginning, -1)[self.timestamp_begin - 2])
        accept = self._processors(begin)
        tokens: list[int] = []
        logprobs: list[float] = []
        reused, ended = 0, False
        while True:
            so_far: Any = torch.tensor([ids[: first + len(tokens)]], device=scores.device)
            row = accept(so_far, scores[:1])
            logprob, token = torch.log_softmax(row[0], -1).max(-1)
            ended = int(token) == self.end
            if ended or len(tokens) >= budget:
                break
            place = first + len(tokens)
            drafted = place < len(ids) and ids[place] == int(token)
            tokens.append(int(token))
            logprobs.append(float(logprob))
            if drafted:
                reused, scores = reused + 1, scores[1:]
            else:
                ids = [*ids[:place], int(token)]
                steps.crop(place)
                scores = steps.run(ids[place:], [place])
            is_text = int(token) < self.end
            # a query at one place predicts the token at the next
            if stop is not None and is_text and stop(steps.attention(place - 1, place)[0]):
                break
        attention = steps.attention(begin - 1, first + len(tokens))
        return Decoded(tokens, logprobs, attention, no_speech, ended, reused, language)

    def _head(
        self, steps: Steps, prompt: Sequence[int], language: str | None
    ) -> tuple[list[int], str | None, torch.Tensor | None]:
        """The tokens before the text, the language among them, and the logits at the start if they are known."""
        tail = [] if self.timestamps else [self.no_timestamps or 0]
        before = [self.previous, *prompt] if self.previous is not None and prompt else []
        if not self.multilingual:
            return [*before, self.start, *tail], None, None
        settings = self.model.generation_config
        code, beginning = language or self.language, None
        if code is None:
            before = []  # the language is what follows the start; this step is the beginning of the pass
            beginning = steps.run([self.start], [0])[0]
            choices = torch.tensor(sorted(self.codes), device=beginning.device)
            code = self.codes[int(choices[beginning[choices].argmax()])]
        token = settings.lang_to_id[f"<|{code}|>"]
        return [*before, self.start, token, settings.task_to_id[self.task or "transcribe"], *tail], code, beginning

    def _processors(self, begin: int) -> LogitsProcessorList:
        settings = self.model.generation_config
        rules = LogitsProcessorList(self._suppress)
        if settings.begin_suppress_tokens:
            rules.append(SuppressTokensAtBegin(settings.begin_suppress_tokens, begin))
        if self.timestamps:
            rules.append(WhisperTimeStampLogitsProcessor(settings, begin))
        return rules


def _language_and_task(
    speech: Any, codes: dict[int, str], language: str | None, task: str | None
) -> tuple[str | None, str | None]:
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    if task not in (None, "transcribe", "translate"):
        raise RequestError(f"unknown task {task!r}: choose transcribe, translate")
    if not codes:
        for option, value in (("--language", language), ("--task", task)):
            if value is not None:
                raise RequestError(f"{speech.name} knows one language only: leave out {option} {value}")
        return None, None
    settings = speech.model.generation_config
    name = language or getattr(settings, "language", None)
    if not isinstance(name, str):
        return None, task or getattr(settings, "task", None)
    code = TO_LANGUAGE_CODE.get(name.strip().lower().strip("<|>"), name.strip().lower().strip("<|>"))
    if code not in codes.values():
        raise RequestError(f"unknown language {name!r}: {speech.name} knows {', '.join(sorted(codes.values()))}")
    return code, task or getattr(settings, "task", None)
