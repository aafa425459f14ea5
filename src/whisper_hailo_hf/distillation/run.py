"""A whole distillation run from names and folders: what the verbs `init` and `distill` and the example script call."""

import logging
import os
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, WhisperProcessor

from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig
from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
from whisper_hailo_hf.distillation.student import Student
from whisper_hailo_hf.distillation.teacher import Teacher, load_teacher
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.stock import config_from_stock

logger = logging.getLogger(__name__)


@dataclass
class DistillationRun:
    """What is distilled, into what, on what.

    Args:
        teacher: Hub id or folder of a stock Whisper, or of its encoder alone.
        student: folder or Hub id of a student to go on with; without it a new one is made.
        preset: preset of a new student.
        train_data: a .tsv table, a folder of audio, or a data set of the Hub.
        eval_data: the same, for the evaluation; each of its utterances has a window of its own.
        data_config: configuration of a data set of the Hub.
        train_split, eval_split: splits of a data set of the Hub.
        streaming: read a data set of the Hub as a stream, without storing it; needs `max_steps`.
        eval_windows: most windows of an evaluation.
        text_column: column of the transcripts in a data set of the Hub.
        language: of the speech, for a multilingual Whisper, as `fr`.
        text: also use the transcripts, for the losses through the decoder and for word error rates.
        augment: change the audio before both teacher and student hear it.
        noise_folder, room_folder: recordings of noise, impulse responses of rooms.
        windows_per_epoch: length of an epoch; one window for each utterance by default.
        cache: folder for the teacher's states: it then runs once. Not for streams.
        cache_epochs: epochs of different windows in the cache.
        resume: go on from the last complete checkpoint in the output folder.
    """

    teacher: str = field(metadata={"help": "Hub id or folder of a stock Whisper, or of its encoder alone."})
    train_data: str = field(metadata={"help": "A .tsv table, a folder of audio, or a data set of the Hub."})
    student: str | None = field(default=None, metadata={"help": "A student to go on with. Default: a new one."})
    preset: str | None = field(default=None, metadata={"help": "Preset of a new student."})
    eval_data: str | None = field(default=None, metadata={"help": "The same kinds, for the evaluation."})
    data_config: str | None = field(default=None, metadata={"help": "Configuration of a data set of the Hub."})
    train_split: str = field(default="train", metadata={"help": "Split of a data set of the Hub."})
    eval_split: str = field(default="validation", metadata={"help": "Split of a data set of the Hub."})
    streaming: bool = field(default=False, metadata={"help": "Stream a data set of the Hub."})
    eval_windows: int = field(default=200, metadata={"help": "Most windows of an evaluation."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the transcripts."})
    language: str | None = field(default=None, metadata={"help": "Language of the speech, as fr."})
    text: bool = field(default=False, metadata={"help": "Also use the transcripts."})
    augment: bool = field(default=True, metadata={"help": "Change the audio that both hear."})
    noise_folder: str | None = field(default=None, metadata={"help": "Recordings of noise."})
    room_folder: str | None = field(default=None, metadata={"help": "Impulse responses of rooms."})
    windows_per_epoch: int | None = field(default=None, metadata={"help": "Length of an epoch."})
    cache: str | None = field(default=None, metadata={"help": "Folder for the teacher's states."})
    cache_epochs: int = field(default=1, metadata={"help": "Epochs of different windows in the cache."})
    resume: bool = field(default=False, metadata={"help": "Go on from the last complete checkpoint."})

    def __post_init__(self) -> None:
        if self.streaming and self.cache:
            raise RequestError("a stream cannot be cached: leave out cache or streaming")
        if self.cache_epochs < 1 or self.eval_windows < 1:
            raise RequestError("cache_epochs and eval_windows are 1 or more")


def init_student(
    name_or_path: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    family: str | None = None,
    preset: str | None = None,
    student: str | os.PathLike | None = None,
    time_axis: str | None = None,
    encoder_layers: int | None = None,
    encoder_options: dict[str, Any] | None = None,
) -> Student:
    """Makes an untrained student of a stock Whisper and saves it, with the processor where there is one.

    Args:
        name_or_path: stock Whisper; of an encoder alone, the student is an encoder alone.
        folder: where the student is saved.
        student: a distilled encoder that was saved alone: with the Whisper's decoder it becomes a whole model.
        family, preset, time_axis, encoder_layers, encoder_options: see
            [`WhisperHailoForConditionalGeneration.from_whisper`].

    Raises:
        RequestError: no stock Whisper, no such preset or option, no such student, or the folder is in use.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} is there already and not empty: name a new folder")
    if student is not None:
        made: Student = WhisperHailoForConditionalGeneration.from_whisper(
            name_or_path,
            family,
            preset,
            student=student,
            time_axis=time_axis,
            encoder_layers=encoder_layers,
            encoder_options=encoder_options,
        )
    else:
        teacher = load_teacher(name_or_path)
        made = new_student(teacher, family, preset, time_axis, encoder_layers, encoder_options)
    made.save_pretrained(folder)
    if (processor := load_processor(name_or_path)) is not None:
        processor.save_pretrained(folder)
    return made


def new_student(
    teacher: Teacher,
    family: str | None = None,
    preset: str | None = None,
    time_axis: str | None = None,
    encoder_layers: int | None = None,
    encoder_options: dict[str, Any] | None = None,
) -> Student:
    """An untrained student of a teacher: a whole model if the teacher is one, else an encoder."""
    if teacher.model is not None:
        return WhisperHailoForConditionalGeneration.from_whisper(
            teacher.name,
            family,
            preset,
            time_axis=time_axis,
            encoder_layers=encoder_layers,
            encoder_options=encoder_options,
        )
    config = config_from_stock(teacher.config, family, preset, time_axis, encoder_layers, encoder_options)
    encoder = HailoWhisperEncoder(config)
    encoder.load_stock_encoder(teacher.encoder)
    return encoder.eval()


def open_student(name_or_path: str | os.PathLike) -> Student:
    """A saved student: a whole model, or an encoder, as its config says."""
    try:
        config = WhisperHailoConfig.from_pretrained(name_or_path)
    except OSError as error:
        raise RequestError(f"no student at {name_or_path}: {str(error).splitlines()[0]}") from error
    alone = HailoWhisperEncoder.__name__ in (config.architectures or ())
    cls = HailoWhisperEncoder if alone else WhisperHailoForConditionalGeneration
    return cls.from_pretrained(name_or_path, encoder_backend="torch")


def load_processor(name_or_path: str | os.PathLike) -> WhisperProcessor | None:
    """The processor beside a checkpoint, or None."""
    try:
        return WhisperProcessor.from_pretrained(name_or_path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.info("no processor at %s: %s", name_or_path, str(error).splitlines()[0])
        return None


def distill(
    run: DistillationRun, args: EncoderDistillationArguments, callbacks: list[TrainerCallback] | None = None
) -> dict[str, float]:
    """Distils as the settings say and saves the student in `args.output_dir`.

    Args:
        run: teacher, student and data.
        args: the training.
        callbacks: told what goes on, instead of lines on stdout.

    Returns:
        the metrics of the last evaluation, or of the training where there is no evaluation data.

    Raises:
        RequestError: something about the request is wrong; see the trainer and the data sets.
        WhisperHailoError: the loss is not finite any more.
    """
    from whisper_hailo_hf.distillation.trainer import EncoderDistillationTrainer

    if run.streaming and args.max_steps <= 0:
        raise RequestError("a stream has no end: say with max_steps when to stop")
    teacher = load_teacher(run.teacher)
    processor = load_processor(run.teacher)
    if run.text and processor is None:
        raise RequestError(f"{run.teacher} has no tokenizer, which the transcripts need: leave out text")
    student = open_student(run.student) if run.student else new_student(teacher, preset=run.preset)
    tokenizer = getattr(processor, "tokenizer", None) if run.text else None
    trainer = EncoderDistillationTrainer(
        student,
        teacher,
        args,
        train_dataset=_training_data(run, args, teacher, tokenizer),
        eval_dataset=_evaluation_data(run, teacher, tokenizer),
        processing_class=processor,
        callbacks=callbacks,
    )
    if callbacks:
        trainer.remove_callback(PrinterCallback)
    metrics = trainer.train(resume_from_checkpoint=run.resume).metrics
    trainer.save_model()
    return metrics if trainer.eval_dataset is None else trainer.evaluate()


def _open(run: DistillationRun, source: str, split: str, streaming: bool) -> Any:
    from whisper_hailo_hf.sources.utterances import open_source

    settings: dict[str, Any] = {"language": run.language}
    if not Path(source).exists():  # a name of the Hub
        settings |= {"config": run.data_config, "split": split, "text_column": run.text_column}
    return open_source(source, streaming=streaming, **settings)


def _training_data(
    run: DistillationRun, args: EncoderDistillationArguments, teacher: Teacher, tokenizer: Any
) -> Dataset:
    from whisper_hailo_hf.distillation.augmentation import AugmentationConfig, Augmenter
    from whisper_hailo_hf.distillation.cache import CachedDistillationDataset
    from whisper_hailo_hf.distillation.cache_builder import build_teacher_cache
    from whisper_hailo_hf.distillation.dataset import DistillationDataset, StreamingDistillationDataset

    settings: dict[str, Any] = {
        "n_mels": teacher.n_mels,
        "positions": teacher.positions,
        "seed": args.seed,
        "tokenizer": tokenizer,
    }
    if run.augment:
        folders = AugmentationConfig(noise_folder=run.noise_folder, room_folder=run.room_folder)
        settings["augmenter"] = Augmenter(folders)
    utterances = _open(run, run.train_data, run.train_split, run.streaming)
    if not isinstance(utterances, list):
        return StreamingDistillationDataset(utterances, **settings)
    dataset = DistillationDataset(utterances, windows_per_epoch=run.windows_per_epoch, **settings)
    if run.cache is None:
        return dataset
    teacher.to(args.device)
    with args.main_process_first(local=False, desc="teacher cache"):
        cache = build_teacher_cache(
            dataset,
            teacher,
            run.cache,
            epochs=range(run.cache_epochs),
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
            progress=not args.disable_tqdm,
        )
    return CachedDistillationDataset(cache, dataset, teacher.fingerprint)


def _evaluation_data(run: DistillationRun, teacher: Teacher, tokenizer: Any) -> Dataset | None:
    from whisper_hailo_hf.distillation.dataset import EvaluationDataset

    if run.eval_data is None:
        return None
    utterances = list(islice(_open(run, run.eval_data, run.eval_split, run.streaming), run.eval_windows))
    return EvaluationDataset(utterances, n_mels=teacher.n_mels, positions=teacher.positions, tokenizer=tokenizer)
