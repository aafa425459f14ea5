"""The decoder learns to read a quantised encoder, from its collected states: the encoder itself does not run.

The loss of a batch is

    cross-entropy(adapted(collected), labels), with label smoothing
    + distillation_weight * KL(original(reference) || adapted(collected))
    + retention_weight * KL(original(reference) || adapted(reference))

where `reference` are states of the same speech from the float encoder, collected from a server on the `torch` backend,
and `original` is the decoder as it was. The second term says what a good encoder would have made it say (Hinton et al.
2015, arXiv:1503.02531); the third keeps what it knew (Li & Hoiem 2016, arXiv:1606.09282).
"""

import copy
import logging
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import AutoProcessor, PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.model_loading import open_model
from whisper_hailo_hf.modeling_whisper_hailo import WhisperHailoForConditionalGeneration
from whisper_hailo_hf.service.states import IGNORED, CollectedStates, Pairs, collate

logger = logging.getLogger(__name__)

PARTS = ("full", "cross_attention", "lora")
LABELS = ("text", "original")
_PROMPT = 4  # start, language, task, and whether there are timestamps
_LORA_TARGETS = r".*decoder\.layers\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


@dataclass
class DecoderAdaptationArguments(Seq2SeqTrainingArguments):
    """Transformers' `Seq2SeqTrainingArguments`, and what is said here."""

    part: str = field(default="full", metadata={"help": "What learns of the decoder: full, cross_attention or lora."})
    labels: str = field(
        default="text",
        metadata={"help": "text: the transcripts. original: what the original decoder says of the reference states."},
    )
    label_weight: float = field(default=1.0, metadata={"help": "Weight of the cross-entropy with the labels."})
    distillation_weight: float = field(
        default=1.0, metadata={"help": "Weight of the KL from the original decoder on reference states, on collected."}
    )
    retention_weight: float = field(
        default=1.0, metadata={"help": "Weight of the KL from the original decoder, both on reference states."}
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the LoRA adapters."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "Label smoothing."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Highest learning rate."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up, or their share of all."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false."})
    eval_batch_size: int = field(default=8, metadata={"help": "Windows at a time when word error rates are measured."})
    max_new_tokens: int = field(default=225, metadata={"help": "Most tokens of a transcript."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part not in PARTS:
            raise RequestError(f"part is one of {', '.join(PARTS)}, not {self.part!r}")
        if self.labels not in LABELS:
            raise RequestError(f"labels is one of {', '.join(LABELS)}, not {self.labels!r}")
        for name in ("label_weight", "distillation_weight", "retention_weight"):
            if not getattr(self, name) >= 0:
                raise RequestError(f"{name} is 0 or more, not {getattr(self, name)}")
        for name in ("lora_rank", "eval_batch_size", "max_new_tokens", "per_device_train_batch_size"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is a positive number, not {getattr(self, name)}")
        if not (self.num_train_epochs > 0 or self.max_steps > 0):
            raise RequestError(f"num_train_epochs is a positive number, not {self.num_train_epochs}")


class DecoderAdaptationTrainer(Seq2SeqTrainer):
    """Trains the decoder on items of `Pairs`.

    Args:
        model: what learns; its encoder is frozen.
        original: the model as it was, on whose decoder the reference terms rest; None leaves them out.
        args: the settings.
        kwargs: as of `Seq2SeqTrainer`.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self, model: nn.Module, original: nn.Module | None, args: DecoderAdaptationArguments, **kwargs: Any
    ) -> None:
        super().__init__(model=model, args=args, data_collator=collate, **kwargs)
        self.original = None if original is None else original.to(args.device).eval().requires_grad_(False)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of the terms above, a mean over the labels' tokens."""
        args: Any = self.args
        labels, states, reference = inputs["labels"], inputs["states"], inputs.get("reference_states")
        config: Any = self.accelerator.unwrap_model(model).config
        tokens = torch.cat([labels.new_full((len(labels), 1), config.decoder_start_token_id), labels[:, :-1]], dim=1)
        tokens = tokens.where(tokens != IGNORED, config.pad_token_id)
        wanted = labels != IGNORED
        heard, said, both = states, tokens, False
        if self.original is not None and reference is not None and args.retention_weight > 0:
            heard, said, both = torch.cat([states, reference]), tokens.repeat(2, 1), True
        logits = _logits(model, heard, said).float()
        ours = logits[: len(labels)]
        loss = args.label_weight * nn.functional.cross_entropy(
            ours.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=args.label_smoothing_factor
        )
        if self.original is not None and reference is not None:
            with torch.no_grad(), self.accelerator.autocast():
                target = _logits(self.original, reference, tokens).float()[wanted].log_softmax(-1)
            loss = loss + args.distillation_weight * _kl(target, ours[wanted])
            if both:
                loss = loss + args.retention_weight * _kl(target, logits[len(labels) :][wanted])
        return (loss, {"logits": ours}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[Any, None, None]:
        """The loss alone; word error rates are `word_error_rate`'s."""
        with torch.no_grad(), self.accelerator.autocast():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the model's card is its own."""


def _logits(model: nn.Module, states: Tensor, tokens: Tensor) -> Tensor:
    outputs = BaseModelOutput(last_hidden_state=states)
    return model(encoder_outputs=outputs, decoder_input_ids=tokens, use_cache=False).logits


def _kl(target: Tensor, logits: Tensor) -> Tensor:
    return nn.functional.kl_div(logits.log_softmax(-1), target, reduction="batchmean", log_target=True)


def adapt(
    model: str | os.PathLike,
    data: str | os.PathLike,
    args: DecoderAdaptationArguments,
    *,
    reference: str | os.PathLike | None = None,
    eval_data: str | os.PathLike | None = None,
    eval_reference: str | os.PathLike | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> dict[str, float]:
    """Adapts a model's decoder to collected states and saves the model, an ordinary one, to `args.output_dir`.

    Args:
        model: folder or Hub id; its encoder is the one that was served.
        data: collected data set to learn from.
        args: the settings.
        reference: the same speech, collected from the float encoder: the terms with the original decoder need it.
        eval_data: collected data set, of other speakers, to measure word error rates on.
        eval_reference: the same speech, collected from the float encoder: what the adaptation costs there.
        callbacks: of the trainer.

    Returns:
        `loss`, and `wer_before`, `wer_after` (and `reference_wer_before`, `reference_wer_after`) where there is
        evaluation data.

    Raises:
        RequestError: data that is not the model's or lacks texts or samples, or settings that need a reference.
    """
    if args.output_dir:
        try:
            os.makedirs(args.output_dir, exist_ok=True)
        except OSError as error:
            raise RequestError(f"{args.output_dir}: cannot be written to ({error.strerror})") from error
    loaded = open_model(model)
    if not isinstance(loaded, WhisperHailoForConditionalGeneration):
        raise RequestError(f"{model} is a {type(loaded).__name__}, which has no decoder with a head to adapt")
    processor = _processor(model)
    original: Any = copy.deepcopy(loaded)
    encoder = loaded.get_encoder()
    collected, floats = CollectedStates(data, encoder), None
    if reference is not None:
        floats = CollectedStates(reference, encoder).select(collected.ids)
    elif args.labels == "original":
        raise RequestError("labels=original needs the states of the float encoder: give reference")
    evaluations = _evaluations(encoder, eval_data, eval_reference)
    original.to(args.device)
    labels = _labels(collected, floats, original, processor.tokenizer, args)
    pairs = Pairs(collected, labels, floats)
    metrics: dict[str, float] = {}
    for name, states in evaluations.items():
        metrics[f"{name}_before"] = word_error_rate(original, states, processor, args)
    loaded.get_encoder().requires_grad_(False)
    learner = _learner(loaded, args)
    trainer = DecoderAdaptationTrainer(
        learner,
        None if floats is None else original,
        args,
        train_dataset=pairs,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    output = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    metrics["loss"] = float(output.training_loss)
    adapted: Any = trainer.accelerator.unwrap_model(trainer.model)
    if args.part == "lora":
        adapted = adapted.merge_and_unload()
    adapted.requires_grad_(True)
    adapted.eval()
    if not all(torch.isfinite(parameter).all() for parameter in adapted.parameters()):
        raise WhisperHailoError("the weights are not finite any more: try a lower learning_rate")
    for name, states in evaluations.items():
        metrics[f"{name}_after"] = word_error_rate(adapted, states, processor, args)
    if args.should_save and args.output_dir:
        adapted.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
    return metrics


def _processor(model: str | os.PathLike) -> Any:
    try:
        return AutoProcessor.from_pretrained(os.fspath(model))
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{model} has no processor: save that of the original Whisper into it") from error


def _evaluations(encoder: Any, data: Any, reference: Any) -> dict[str, CollectedStates]:
    found = {}
    for name, folder in (("wer", data), ("reference_wer", reference)):
        if folder is not None:
            states = CollectedStates(folder, encoder)
            found[name] = states.select(
                [one for one, text in zip(states.ids, states.texts, strict=True) if text is not None]
            )
            if not len(states):
                raise RequestError(f"{folder} has no row with a text: nothing to count word errors of")
    return found


def _learner(model: Any, args: DecoderAdaptationArguments) -> Any:
    """The model with what shall learn requiring gradients."""
    if args.part == "cross_attention":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("encoder_attn" in name)
    elif args.part == "lora":
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise RequestError("LoRA needs peft: pip install 'whisper-hailo-hf[train]'") from error
        rank = args.lora_rank
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks Transformers by a name that goes in its v6
            return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_LORA_TARGETS))
    return model


def _labels(
    collected: CollectedStates,
    reference: CollectedStates | None,
    original: WhisperHailoForConditionalGeneration,
    tokenizer: Any,
    args: DecoderAdaptationArguments,
) -> list[list[int]]:
    if args.labels == "original":
        assert reference is not None
        return _said(original, reference, tokenizer, args)
    if (absent := sum(text is None for text in collected.texts)) > 0:
        raise RequestError(
            f"{absent} of {len(collected)} samples have no text: collect with a table that has it, or let the "
            "original decoder say it with labels=original"
        )
    tokenizer, usual = copy.deepcopy(tokenizer), getattr(original.generation_config, "language", None)
    multilingual = getattr(original.generation_config, "is_multilingual", False)
    if multilingual and usual is None and None in collected.languages:
        raise RequestError(f"{collected.folder} names no language for some samples: collect with --language")
    prefixes: dict[str | None, list[int]] = {}
    found = []
    for text, language in zip(collected.texts, collected.languages, strict=True):
        if language not in prefixes:
            if multilingual:
                meant = str(language or usual).removeprefix("<|").removesuffix("|>")
                try:
                    tokenizer.set_prefix_tokens(language=meant, task="transcribe", predict_timestamps=False)
                except ValueError as error:
                    raise RequestError(f"{collected.folder} names the language {meant!r}, unknown here") from error
            else:
                tokenizer.set_prefix_tokens(predict_timestamps=False)
            prefixes[language] = list(tokenizer.prefix_tokens)[1:]  # the model puts its start token before labels
        words = str(text).strip()
        ids = tokenizer(" " + words if words else "", add_special_tokens=False).input_ids
        found.append([*prefixes[language], *ids, tokenizer.eos_token_id])
    most = original.config.max_target_positions
    if too_long := sum(len(one) > most for one in found):
        raise RequestError(f"{too_long} texts have more than {most} tokens: leave them out of the data set")
    return found


@torch.no_grad()
def _tokens(model: Any, states: Tensor, args: DecoderAdaptationArguments) -> Tensor:
    """One decoding of each window: where Whisper would go on behind its last time stamp, there is no audio to."""
    return model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states.to(model.device, model.dtype)),
        max_length=min(args.max_new_tokens + _PROMPT, model.config.max_target_positions),
        num_beams=1,
        force_unique_generate_call=True,
        return_dict_in_generate=True,  # all tokens, and not only those of segments that are closed
    ).sequences


def _said(model: Any, states: CollectedStates, tokenizer: Any, args: DecoderAdaptationArguments) -> list[list[int]]:
    """What a decoder says of states, as labels: in the mode that its generation config names."""
    found = []
    end, start = tokenizer.eos_token_id, model.config.decoder_start_token_id
    prefix = _prompt(model)
    for row in _heard(model, states, args):
        said = row[: row.index(end)] if end in row else row
        said = said[1:] if said[:1] == [start] else said
        said = said if said[: len(prefix)] == prefix else [*prefix, *said]
        found.append([*said, end])
    return found


def _prompt(model: Any) -> list[int]:
    """The tokens between the start token and what is said, as the generation config sets them."""
    config = model.generation_config
    found: list[int] = []
    if getattr(config, "is_multilingual", False) and getattr(config, "language", None):
        code = config.language if config.language.startswith("<|") else f"<|{config.language}|>"
        if code not in config.lang_to_id:
            raise RequestError(f"labels=original needs the language as a code in the generation config, not {code!r}")
        found = [config.lang_to_id[code], config.task_to_id[getattr(config, "task", None) or "transcribe"]]
    without = getattr(config, "no_timestamps_token_id", None)
    if without is not None and not getattr(config, "return_timestamps", False):
        found.append(without)
    return found


def _heard(model: Any, states: CollectedStates, args: DecoderAdaptationArguments) -> list[list[int]]:
    """The tokens that a decoder makes of each row; where there are several processes, each does its share."""
    model = model.eval()
    found: list[tuple[int, list[int]]] = []
    mine = range(args.process_index, len(states), args.world_size)
    for first in range(0, len(mine), args.eval_batch_size):
        rows = mine[first : first + args.eval_batch_size]
        tokens = _tokens(model, torch.stack([states[row]["states"] for row in rows]), args)
        found += zip(rows, tokens.tolist(), strict=True)
    return [tokens for _, tokens in sorted(gather_object(found))]


def word_error_rate(model: Any, states: CollectedStates, processor: Any, args: DecoderAdaptationArguments) -> float:
    """Errors per word of what a model's decoder says of states, in the mode that its generation config names.

    Lower-case and without punctuation, as Whisper's basic normaliser has them.

    Raises:
        RequestError: `jiwer` is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise RequestError("word error rates need jiwer: pip install 'whisper-hailo-hf[eval]'") from error
    normalize = BasicTextNormalizer()
    heard = _heard(model, states, args)
    said = [normalize(text).strip() for text in processor.tokenizer.batch_decode(heard, skip_special_tokens=True)]
    wanted = [normalize(states.texts[row] or "").strip() for row in states.rows]
    errors = words = 0
    for ours, theirs in zip(said, wanted, strict=True):
        if not theirs:
            errors += len(ours.split())
            continue
        found = jiwer.process_words(theirs, ours)
        errors += found.substitutions + found.deletions + found.insertions
        words += found.substitutions + found.deletions + found.hits
    if not words:
        raise RequestError(f"{states.folder} has no words to count errors of")
    return errors / words
