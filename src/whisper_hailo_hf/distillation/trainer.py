"""The distillation Trainer: Transformers' own, with the teacher's states as the target."""

import copy
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, set_seed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import IntervalStrategy, TrainOutput, speed_metrics

from whisper_hailo_hf.distillation import checkpoints
from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
from whisper_hailo_hf.distillation.collator import IGNORED, DistillationCollator
from whisper_hailo_hf.distillation.metrics import Fidelity, FidelityMeter, check_not_empty
from whisper_hailo_hf.distillation.objective import DistillationObjective, LossTerms, Targets
from whisper_hailo_hf.distillation.optimizer import muon_with_adamw
from whisper_hailo_hf.distillation.quantization import RoundInTime, make_rounding
from whisper_hailo_hf.distillation.statistics import TeacherStatistics, obtain_statistics, start_positional_map
from whisper_hailo_hf.distillation.student import (
    AverageWeights,
    DistillationStudent,
    Student,
    WeightAverage,
    check_finite,
    encoder_of,
    load_student_weights,
    parse_hints,
    training_weights,
)
from whisper_hailo_hf.distillation.teacher import Teacher, check_student, load_teacher
from whisper_hailo_hf.distillation.words import WordErrors
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

logger = logging.getLogger(__name__)

# Beside the student in a checkpoint: adapters of the hints, and what is trained where the student is its average.
TRAINING_WEIGHTS = "training_weights.safetensors"
STATISTICS = "teacher_statistics.safetensors"


class EncoderDistillationTrainer(Trainer):
    """Trains a student encoder to give a teacher's states.

    Only the encoder learns, unless `train_decoder` says otherwise. A checkpoint is a student that `from_pretrained`
    loads, and what an exact resume needs; it holds nothing of the teacher. Runs under `accelerate launch` as any
    Trainer does. Each process normalises its own batch: give each 8 windows or more, or convert the student with
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` before (GPUs only).

    Args:
        model: the student, or its encoder alone. Trained in float32, in mixed precision if `bf16` or `fp16` is set.
        teacher: the teacher, its Hub id or its folder.
        args: the settings.
        train_dataset, eval_dataset: map-style or iterable; items as in [`DistillationCollator`]. An item with
            `teacher_states` spares the teacher's run.
        processing_class: processor or tokenizer, for transcripts; saved with the student.
        statistics: of the teacher; see `args.statistics_path` for where they come from otherwise.
        data_collator, callbacks, optimizers: as for any Trainer.

    Attributes:
        student: the student.
        fidelity: the full result of the last evaluation, with its curve by position.

    Raises:
        RequestError: student and teacher do not fit each other, a data set is empty, or a setting does not fit.
    """

    loss_is_scaled_for_ga = False  # each batch's loss is a mean
    args: EncoderDistillationArguments
    model: nn.Module
    objective: DistillationObjective

    def __init__(
        self,
        model: Student,
        teacher: Teacher | str | os.PathLike,
        args: EncoderDistillationArguments | None = None,
        data_collator: Callable[..., dict[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        statistics: TeacherStatistics | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = copy.copy(args) if args is not None else EncoderDistillationArguments()
        self.teacher = teacher if isinstance(teacher, Teacher) else load_teacher(teacher)
        encoder = encoder_of(model)
        check_student(self.teacher, encoder)
        check_not_empty(train_dataset, "training")
        for dataset in eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]:
            check_not_empty(dataset, "evaluation")
        if eval_dataset is None:
            args.eval_strategy, args.load_best_model_at_end, args.do_eval = IntervalStrategy.NO, False, False
        self.student, encoder.config.distilled_from = model.float(), self.teacher.record()
        set_seed(args.seed)
        hints = args.hints if args.hint_weight else []
        pairs = parse_hints(hints, self.teacher.config.encoder_layers, encoder.config.encoder_layers)
        rounding = make_rounding(args, encoder)
        wrapped = DistillationStudent(self.student, pairs, args.train_decoder, rounding)
        if args.channels_last:
            encoder.core.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(
            model=wrapped,
            args=args,
            data_collator=data_collator or DistillationCollator(self.teacher.config.decoder_start_token_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.teacher.to(self.args.device)
        if statistics is None:
            path = Path(args.statistics_path or Path(args.output_dir or ".") / STATISTICS)
            measured_on = train_dataset if train_dataset is not None else eval_dataset
            statistics = obtain_statistics(self.teacher, path, measured_on, self.data_collator, args)
            set_seed(args.seed)  # whether they were measured or read makes no difference to what follows
        elif statistics.teacher != self.teacher.fingerprint:
            raise RequestError("the statistics were measured on another teacher: measure them on this one")
        self.statistics = statistics.to(self.args.device)
        table = encoder.host.positional_map
        if args.start_positional_map and table is not None and not table.weight.any():
            start_positional_map(encoder, self.statistics)
        self.objective = DistillationObjective(
            args, wrapped, self.teacher, self.statistics, lambda: self.accelerator.autocast()
        )
        # in several processes accelerate tells a map-style data set nothing of the epoch
        self.add_callback(checkpoints.TellEpoch(train_dataset))
        if rounding is not None:
            self.add_callback(RoundInTime(rounding, args.quantization_start))
        checkpoints.place_tensorboard(self.callback_handler.callbacks, self.args.output_dir or ".")
        self.fidelity: Fidelity | None = None
        self._terms = LossTerms(self.objective.weights)
        self._average: WeightAverage | None = None
        if args.ema_decay:
            if self._is_sharded:
                raise RequestError("ema_decay works on whole weights, not on sharded ones: set it to 0, or use DDP")
            self._average = WeightAverage(self.student, args.ema_decay)
            self.add_callback(AverageWeights(self._average, self.student))

    # ---- loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of the losses of a batch; its terms are logged."""
        loss, terms, outputs, _ = self._forward(model, inputs)
        if model.training:
            self._terms.add(loss.detach(), terms)
            if loss.device.type == "cpu":  # elsewhere it would make the host wait at each step
                self._check_loss()
        return (loss, outputs) if return_outputs else loss

    def _forward(
        self, model: nn.Module, inputs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Any], Targets]:
        labels = inputs.get("labels")
        decoder_input_ids = None
        if self.args.train_decoder:
            if labels is None:  # every parameter must have its gradient, if of nothing, where processes share them
                labels = inputs["speech_mask"].new_full((len(inputs["speech_mask"]), 1), IGNORED, dtype=torch.long)
            decoder_input_ids = self.objective.decoder_input_ids(labels)
        targets = self._targets(inputs)
        outputs = model(input_features=inputs["input_features"], decoder_input_ids=decoder_input_ids)
        share = self._share if model.training and self.args.world_size > 1 else None
        loss, terms = self.objective(outputs, targets, inputs["speech_mask"], labels, share)
        return loss, terms, outputs, targets

    def _targets(self, inputs: dict[str, Any]) -> Targets:
        with self.accelerator.autocast():
            if self.objective.needs_stream:
                return Targets(*self.teacher.encode_deep(inputs["input_features"]))
            if "teacher_states" in inputs:
                return Targets(inputs["teacher_states"].float())
            return Targets(self.teacher.encode(inputs["input_features"]))

    def _share(self, total: Tensor) -> Tensor:
        return self.accelerator.reduce(total, reduction="mean")

    def _check_loss(self) -> None:
        if broken := self._terms.broken():
            self._stop(f"the loss is not finite near step {self.state.global_step + 1} ({', '.join(broken)})")

    def _stop(self, what: str) -> None:
        last = checkpoints.last_complete_checkpoint(self.args.output_dir or ".")
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint had been saved"
        raise WhisperHailoError(f"{what}: training stops, {kept}; try a lower learning rate")

    def _check_weights(self) -> None:
        self._check_loss()
        if (name := check_finite(self.student)) is not None:
            self._stop(f"{name} is not finite after step {self.state.global_step}")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss term since the last time."""
        if "loss" in logs:
            self._check_loss()
            logs |= self._terms.drain(self.args.device, self._share if self.args.world_size > 1 else None)
        super().log(logs, start_time)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Those of the Trainer but for the positional map, which has no reason to be small."""
        return [name for name in super().get_decay_parameter_names(model) if "positional_map" not in name]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Muon with AdamW where `args.muon` says so, else as the Trainer does."""
        if self.optimizer is None and self.args.muon:
            core, decayed = encoder_of(self.student).core, self.get_decay_parameter_names(self.model)
            sharded, rates = self._is_sharded, (self.args.learning_rate, self.args.weight_decay)
            self.optimizer = muon_with_adamw(self.model, core, decayed, *rates, sharded=sharded)
        return super().create_optimizer(*args, **kwargs)

    @property
    def _is_sharded(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    # ---- training and checkpoints ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains, as [`~transformers.Trainer.train`] does.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the last complete one in the output folder: one that was
                being written when the run was killed is passed over.

        Raises:
            RequestError: no data, or no checkpoint to resume from.
            WhisperHailoError: the loss is not finite any more.
        """
        if self.train_dataset is None:
            raise RequestError("no train_dataset: give the trainer one, or call evaluate()")
        if resume_from_checkpoint is True:
            resume_from_checkpoint = checkpoints.last_complete_checkpoint(self.args.output_dir or ".")
            if resume_from_checkpoint is None:
                raise RequestError(f"{self.args.output_dir} holds no complete checkpoint: start without resuming")
        nothing = RequestError("the training data set gave no batch: check its path and its filters")
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        except ValueError as error:
            if "does not contain any data" in str(error):  # accelerate, of an iterable without items
                raise nothing from error
            raise
        if self.state.global_step == 0:
            raise nothing
        if self._average is not None:
            self._average.swap(self.student)
            self._average.take(self.student)
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the student, by its averaged weights if there are such: no adapters, nothing of the teacher."""
        self._sync_buffers()
        with self._averaged():
            super().save_model(output_dir, _internal_call)
        extra = training_weights(self.accelerator.unwrap_model(self.model), self._average)
        if _internal_call and extra and self.args.should_save:
            save_file(extra, Path(output_dir or self.args.output_dir or ".") / TRAINING_WEIGHTS)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir or "."
        if state_dict is not None:
            prefix = "student."
            state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        self.student.save_pretrained(folder, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        torch.save(self.args, Path(folder) / TRAINING_ARGS_NAME)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._check_weights()
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_student_weights(self.student, resume_from_checkpoint)
        if self._average is not None:
            self._average.take(self.student)
        whole = self.accelerator.unwrap_model(self.model)
        expected, path = training_weights(whole, self._average), Path(resume_from_checkpoint) / TRAINING_WEIGHTS
        if not expected:
            return
        stored = load_file(path) if path.is_file() else {}
        if {k: v.shape for k, v in stored.items()} != {k: v.shape for k, v in expected.items()}:
            raise RequestError(
                f"{resume_from_checkpoint} was trained with other hints, rounding or ema_decay: resume with the same"
            )
        whole.load_state_dict(stored, strict=False)

    def _load_best_model(self) -> None:
        if self._is_sharded:
            super()._load_best_model()
            return
        logger.info("the best checkpoint is %s", self.state.best_model_checkpoint)
        load_student_weights(self.student, str(self.state.best_model_checkpoint))
        if self._average is not None:
            self._average.take(self.student)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the student's card is its own, not one about hyperparameters."""

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.applied(self.student)

    def _sync_buffers(self) -> None:
        # each process has counted its own batches; the first one's are what is saved
        if self.args.world_size > 1 and not self._is_sharded:
            checkpoints.sync_buffers(self.student)

    # ---- evaluation ----

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Fidelity on frames of speech, the loss, and word error rates if asked for; see [`Fidelity`].

        Args:
            eval_dataset: a data set, or several by name, instead of those of the trainer.
            metric_key_prefix: what each name of a metric begins with.
        """
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if chosen is None:
            raise RequestError("no eval_dataset: give the trainer one, or evaluate() itself")
        if isinstance(chosen, dict):
            metrics: dict[str, float] = {}
            for name, dataset in chosen.items():
                metrics |= self.evaluate(dataset, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        check_not_empty(chosen, "evaluation")
        if self.is_in_train:
            self._check_weights()
        self._sync_buffers()
        start = time.time()
        with self._averaged():
            found = self._measure(self.get_eval_dataloader(chosen))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        metrics |= speed_metrics(metric_key_prefix, start, num_samples=int(found["windows"]))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _measure(self, loader: Any) -> dict[str, float]:
        model = self.model.eval()
        meter = FidelityMeter(self.statistics, self.objective.projections)
        words = WordErrors.of_trainer(self.args, self.processing_class, self.objective)
        losses: list[Tensor] = []
        self.callback_handler.eval_dataloader = loader
        for batch in loader:
            inputs = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                loss, _, outputs, targets = self._forward(model, inputs)
            losses.append(loss)
            kept = self._kept(len(inputs["speech_mask"]))
            ours, theirs = outputs["states"][:kept], targets.states[:kept]
            meter.update(ours, theirs, inputs["speech_mask"][:kept])
            if words is not None and "labels" in inputs:
                words.update_all(ours, theirs, inputs["labels"][:kept])
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if not losses:
            raise RequestError("the evaluation data set gave no batch: check its path and its filters")
        mean_loss = torch.stack(losses).mean()
        if self.args.world_size > 1:
            mean_loss = self._share(mean_loss)
            meter.merge(self._add_up)
            if words is not None:
                words.counts = {name: self._add_up(count).cpu() for name, count in words.counts.items()}
        self.fidelity = meter.result()
        rates = {} if words is None else {name: words.rate(name) for name in words.counts}
        return {"loss": float(mean_loss)} | self.fidelity.metrics | {k: v for k, v in rates.items() if v is not None}

    def _add_up(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor.to(self.args.device), reduction="sum")

    def _kept(self, batch: int) -> int:
        """How many of this process's windows count: the last batch is filled up with windows from the beginning."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return batch
        return max(0, min(batch, state.remainder - batch * self.args.process_index))
