"""Which losses apply to a student, a teacher and a batch, and what each amounts to."""

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from whisper_hailo_hf.distillation import losses
from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
from whisper_hailo_hf.distillation.statistics import TeacherStatistics
from whisper_hailo_hf.distillation.student import DistillationStudent, token_logits
from whisper_hailo_hf.distillation.teacher import Teacher, cross_attention_maps
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.modeling_whisper_hailo import WhisperHailoForConditionalGeneration

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Targets:
    """What the teacher says about a batch: its states, and its residual stream where hints need it."""

    states: Tensor
    stream: tuple[Tensor, ...] = ()


class DistillationObjective:
    """The weighted sum of the losses.

    Args:
        args: the weights.
        model: the student as it is trained.
        teacher: the teacher.
        statistics: its statistics, on the device of the training.
        autocast: the mixed precision of the run.

    Attributes:
        weights: by term, the weights of those terms that can apply.
        frozen_decoder: a stock model whose decoder is not trained, for logits and the teacher's transcripts, or None.
        decoder_for_text: the model whose decoder reads the student's states, or None.
        projections: the decoder's cross-attention maps; may be empty.
    """

    def __init__(
        self,
        args: EncoderDistillationArguments,
        model: DistillationStudent,
        teacher: Teacher,
        statistics: TeacherStatistics,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.args, self.model, self.teacher = args, model, teacher
        self.statistics, self.autocast = statistics, autocast
        student = model.student
        own = student if isinstance(student, WhisperHailoForConditionalGeneration) else None
        self.frozen_decoder: WhisperForConditionalGeneration | None = teacher.model
        if self.frozen_decoder is None and not model.train_decoder:
            self.frozen_decoder = own
        self.decoder_for_text = own or teacher.model
        maps = teacher.projections or (cross_attention_maps(own.model.decoder) if own is not None else ())
        self.projections = maps
        self.form = losses.decoder_metric(maps, statistics.covariance) if maps else None
        # some terms lack what they need, which is no mistake: a teacher may be an encoder alone
        can = {
            "whitened_mse": True,
            "cosine": True,
            "decoder_view": self.form is not None,
            "hint": bool(model.hints),
            "outlier": True,
            "kl": self.frozen_decoder is not None,
            "ce": self.frozen_decoder is not None or model.train_decoder,
        }
        wanted = {name: float(getattr(args, f"{name}_weight")) for name in can}
        self.weights = {name: weight for name, weight in wanted.items() if weight and can[name]}
        if model.train_decoder and "kl" not in self.weights and "ce" not in self.weights:
            raise RequestError("train_decoder needs a kl_weight or a ce_weight, by which the decoder learns")
        if not self.weights:
            raise RequestError("no loss has a weight and what it needs: give one of the losses a weight above 0")
        idle = [name for name, weight in wanted.items() if weight and not can[name]]
        logger.info("losses: %s%s", self.weights, f"; no decoder for {', '.join(idle)}" if idle else "")

    @property
    def needs_stream(self) -> bool:
        """Whether the teacher's inner layers are looked at."""
        return "hint" in self.weights

    def decoder_input_ids(self, labels: Tensor | None) -> Tensor | None:
        """Tokens that the decoder is given, (batch, tokens), if the batch has labels and a loss looks at them."""
        if labels is None or not {"kl", "ce"} & set(self.weights):
            return None
        config: Any = self.teacher.config
        return shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)

    def __call__(
        self,
        outputs: dict[str, Any],
        targets: Targets,
        speech_mask: Tensor,
        labels: Tensor | None = None,
        share: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, a scalar, and its terms, unweighted.

        Args:
            outputs: of `DistillationStudent.forward`.
            targets: of the teacher.
            speech_mask: (batch, positions), bool.
            labels: (batch, tokens), -100 where there is none.
            share: makes the sum of a batch's frame weights the mean over all processes, so that their averaged
                gradient is that of the whole batch.
        """
        args, stats = self.args, self.statistics
        weights = losses.frame_weights(speech_mask, args.non_speech_weight)
        total = weights.sum() if share is None else share(weights.sum())
        ours, theirs = outputs["states"].float(), targets.states.float()
        terms: dict[str, Tensor] = {}
        if "whitened_mse" in self.weights:
            terms["whitened_mse"] = losses.whitened_mse(ours, theirs, stats.scale, weights, total)
        if "cosine" in self.weights:
            terms["cosine"] = losses.cosine_distance(stats.whiten(ours), stats.whiten(theirs), weights, total)
        if self.form is not None and "decoder_view" in self.weights:
            terms["decoder_view"] = losses.decoder_view(ours, theirs, self.form, weights, total)
        if "hint" in self.weights:
            terms["hint"] = torch.stack(
                [
                    losses.hint(
                        adapted.float(),
                        targets.stream[layer],
                        stats.hidden_mean[layer],
                        stats.hidden_scale[layer],
                        weights,
                    )
                    for (layer, _), adapted in zip(self.model.hints, outputs["hints"], strict=True)
                ]
            ).sum()
        if "outlier" in self.weights:
            terms["outlier"] = losses.outliers(outputs["core_output"], args.outlier_limit)
        if (decoder_input_ids := self.decoder_input_ids(labels)) is not None and labels is not None:
            terms |= self._text_terms(outputs, ours, theirs, decoder_input_ids, labels)
        loss = torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()
        return loss, {name: value.detach() for name, value in terms.items()}

    def _text_terms(
        self, outputs: dict[str, Any], ours: Tensor, theirs: Tensor, decoder_input_ids: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        logits = outputs.get("logits")
        with self.autocast():
            if logits is None:
                assert self.frozen_decoder is not None
                logits = token_logits(self.frozen_decoder, ours, decoder_input_ids)
        if "ce" in self.weights:
            terms["ce"] = losses.token_cross_entropy(logits, labels)
        if "kl" in self.weights and self.frozen_decoder is not None:
            with torch.no_grad(), self.autocast():
                reference = token_logits(self.frozen_decoder, theirs, decoder_input_ids)
            terms["kl"] = losses.token_divergence(logits, reference, labels, self.args.temperature)
        return terms


class LossTerms:
    """Sums up the terms of the loss between two log lines, on their device, and remembers whether all were finite.

    Args:
        names: of the terms; a batch may lack some, such as those of the text.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = list(names)
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts = dict.fromkeys(self._names, 0)
        self._finite: Tensor | None = None

    def add(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Takes in a batch."""
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] += 1
        finite = torch.isfinite(loss)
        self._finite = finite if self._finite is None else self._finite & finite

    def broken(self) -> list[str]:
        """The terms that are not finite any more."""
        if self._finite is None or bool(self._finite):
            return []
        return [name for name, value in self._sums.items() if not torch.isfinite(value)] or ["their sum"]

    def drain(self, device: torch.device, share: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """The mean of each term that occurred, `loss_<name>`, and a new start; `share` takes the mean of a tensor over
        all processes, which all have to call this."""
        nothing = torch.zeros((), device=device)
        sums = torch.stack([self._sums.get(name, nothing) for name in self._names])
        both = torch.stack([sums, torch.tensor(list(self._counts.values()), dtype=sums.dtype, device=device)])
        totals, counts = (both if share is None else share(both)).tolist()
        self._clear()
        found = zip(self._names, totals, counts, strict=True)
        return {f"loss_{name}": total / count for name, total, count in found if count}
