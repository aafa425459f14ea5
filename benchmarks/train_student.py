# /// script
# dependencies = ["whisper-hailo-hf[train]"]
# ///
"""Train a student on one or two CPU cores, by the clock, from teacher caches that may still grow while it trains.

First the teacher's states, in folders of 1024 windows each; several processes can share the work by `--first`:

    OMP_NUM_THREADS=1 python benchmarks/train_student.py cache --teacher whisper-tiny.en --train train.tsv \\
        --caches cache --first 0 --count 4

Then the student. An interrupted run goes on from its last checkpoint when it is started again:

    OMP_NUM_THREADS=1 python benchmarks/train_student.py train --teacher whisper-tiny.en --caches cache \\
        --eval dev.tsv --out student --minutes 100 --bf16

and what it is worth, on one table or several:

    python benchmarks/train_student.py measure --teacher tiny.en --student student --eval dev.tsv --full 32
    python benchmarks/train_student.py publish --student student --out tiny.en-hailo --name openai/whisper-tiny.en

The learning curve is in OUT/curve.jsonl. On glibc, MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=1000000000000 spare a
CPU training the page faults of its large tensors.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from student_ablation import with_states
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import TrainerCallback

from whisper_hailo_hf import EncoderDistillationArguments, EncoderDistillationTrainer
from whisper_hailo_hf.distillation.audio_store import AudioStore
from whisper_hailo_hf.distillation.augmentation import Augmenter
from whisper_hailo_hf.distillation.cache import CachedDistillationDataset
from whisper_hailo_hf.distillation.cache_builder import build_teacher_cache
from whisper_hailo_hf.distillation.dataset import DistillationDataset, EvaluationDataset, LogMel
from whisper_hailo_hf.distillation.metrics import encoder_fidelity
from whisper_hailo_hf.distillation.run import new_student, open_student
from whisper_hailo_hf.distillation.statistics import TeacherStatistics
from whisper_hailo_hf.distillation.student import encoder_of
from whisper_hailo_hf.distillation.teacher import Teacher, load_teacher
from whisper_hailo_hf.distillation.windows import SAMPLES_PER_POSITION, WindowMix, speech_extent
from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.sources.utterances import open_source

WINDOWS = 1024  # of a cache folder
MIX = WindowMix(single=0.38, sequence=0.42, shifted=0.07, overlapped=0.06, noise=0.04, silent=0.03)
STATISTICS = "teacher_statistics.safetensors"


def build(options: argparse.Namespace) -> None:
    teacher = load_teacher(options.teacher)
    encode = teacher.encode

    def in_bfloat16(features: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return encode(features).float()

    if options.bf16:  # 35 dB from float32 on tiny.en, far above what a student reaches, in 60 % of the time
        teacher.encode = in_bfloat16  # type: ignore[method-assign]
    store = AudioStore(open_source(options.train), 4.0)
    for number in range(options.first, options.first + options.count):
        dataset = DistillationDataset(
            store, augmenter=Augmenter(), mix=MIX, seed=1000 + number, windows_per_epoch=WINDOWS
        )
        folder = options.caches / f"{number:03d}"
        build_teacher_cache(dataset, teacher, folder, store_features=True, batch_size=4)


class GrowingCaches(Dataset):
    """Random windows of all caches in a folder that are finished by now; it looks again every few minutes."""

    def __init__(self, folder: Path, teacher: Teacher) -> None:
        self.folder, self.teacher = folder, teacher
        self.found: dict[Path, CachedDistillationDataset] = {}
        self.look()

    def look(self) -> None:
        self.looked = time.monotonic()
        for path in sorted(self.folder.iterdir()):
            if path not in self.found:
                try:
                    self.found[path] = CachedDistillationDataset(path, teacher_fingerprint=self.teacher.fingerprint)
                except WhisperHailoError as error:  # not finished
                    print(f"not yet: {error}", flush=True)
        self.places = [(cache, i) for cache in self.found.values() for i in range(len(cache))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if time.monotonic() - self.looked > 240:
            self.look()
        cache, place = self.places[int(torch.randint(len(self.places), ()))]
        return cache[place]


class Clock(TrainerCallback):
    """Ends the run when its minutes are over, spent over all its starts, and writes the learning curve."""

    def __init__(self, out: Path, minutes: float, every: int, flat: float) -> None:
        self.out, self.seconds, self.every, self.flat = out, 60 * minutes, every, flat
        self.file = out / "clock.json"
        self.before = json.loads(self.file.read_text())["spent"] if self.file.exists() else 0.0
        self.began = time.monotonic()

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return min(1.0, (self.before + time.monotonic() - self.began) / self.seconds)

    def learning_rate(self, step: int) -> float:
        """Its share of the peak: warm-up, a part of the time at the peak, then down along a cosine to 1 %."""
        falling = max(0.0, (self.progress - self.flat) / (1 - self.flat))
        return min(1.0, (step + 1) / 100) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * falling)))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        due = state.global_step % self.every == 0
        control.should_training_stop = self.progress >= 1.0
        control.should_evaluate = control.should_save = due or control.should_training_stop
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.file.write_text(json.dumps({"spent": self.progress * self.seconds}))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        windows = state.global_step * args.per_device_train_batch_size
        with open(self.out / "curve.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"windows": windows, "minutes": self.progress * self.seconds / 60, **logs}) + "\n")


def train(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = load_teacher(options.teacher)
    clock = Clock(options.out, options.minutes, options.every, options.flat)

    class Trainer(EncoderDistillationTrainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, clock.learning_rate)
            return self.lr_scheduler

    torch.manual_seed(0)
    student = open_student(options.student) if options.student else new_student(teacher, preset=options.preset)
    args = EncoderDistillationArguments(
        output_dir=str(options.out),
        max_steps=10_000_000,
        per_device_train_batch_size=options.batch,
        learning_rate=options.learning_rate,
        ema_decay=0.998,
        bf16=options.bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        ignore_data_skip=True,
        statistics_path=str(options.out / STATISTICS),
    )
    trainer = Trainer(
        student,
        teacher,
        args,
        train_dataset=GrowingCaches(options.caches, teacher),
        eval_dataset=with_states(teacher, options.eval),
        callbacks=[clock],
    )
    trainer.train(resume_from_checkpoint=True if clock.before else None)
    trainer.save_model(str(options.out / "student"))


class FullWindows(Dataset):
    """Windows full of speech: utterances drawn at random, without the silence around them, one right after another.

    Each drawing of windows begins anew with `seed`; nothing else is done to the audio.
    """

    def __init__(self, table: str, number: int, teacher: Teacher, seed: int) -> None:
        self.store, self.number, self.seed = AudioStore(open_source(table), 4.0), number, seed
        self.features = LogMel(teacher.n_mels, teacher.positions)

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng, parts, missing = np.random.default_rng([self.seed, index]), [], self.features.samples
        while missing > 0:
            audio = self.store[int(rng.integers(len(self.store)))]
            first, last = speech_extent(audio)
            parts.append(audio[first:last][:missing])
            missing -= parts[-1].size
        mask = np.ones(self.features.samples // SAMPLES_PER_POSITION, bool)
        return {"input_features": self.features(np.concatenate(parts)), "speech_mask": torch.from_numpy(mask)}


def measure(options: argparse.Namespace) -> None:
    teacher, student = load_teacher(options.teacher), open_student(options.student)
    statistics = TeacherStatistics.load(options.statistics, teacher) if options.statistics else None
    for table in options.eval:
        datasets: dict[str, Any] = {
            "alone": EvaluationDataset(open_source(table), n_mels=teacher.n_mels, positions=teacher.positions)
        }
        if options.full:
            for seed in range(options.draws):
                datasets[f"full, draw {seed}"] = FullWindows(table, options.full, teacher, seed)
        for layout, dataset in datasets.items():
            found = encoder_fidelity(student, teacher, dataset, statistics=statistics)
            print(json.dumps({"eval": str(table), "layout": layout} | found.metrics, indent=2), flush=True)


def publish(options: argparse.Namespace) -> None:
    """The encoder alone, in float16, with its teacher on record: what `from_whisper(..., student=)` takes."""
    encoder = encoder_of(open_student(options.student)).eval()
    encoder.config.distilled_from = {**encoder.config.distilled_from, "name": options.name}
    encoder.config.artefacts = {}
    encoder.half().save_pretrained(options.out)
    print(options.out, sum(file.stat().st_size for file in options.out.iterdir()), "bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--teacher", required=True, help="stock Whisper, or its encoder")
    shared.add_argument("--bf16", action="store_true", help="mixed precision")

    verb = verbs.add_parser("cache", parents=[shared], help="the teacher's states")
    verb.add_argument("--train", required=True, help="table of utterances")
    verb.add_argument("--caches", type=Path, required=True, help="folder of the cache folders")
    verb.add_argument("--first", type=int, default=0, help="number of the first one")
    verb.add_argument("--count", type=int, default=4, help="how many")
    verb.set_defaults(run=build)

    verb = verbs.add_parser("train", parents=[shared], help="the student")
    verb.add_argument("--caches", type=Path, required=True)
    verb.add_argument("--eval", required=True, help="table of utterances for the learning curve")
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--preset", default="tiny", help="of a student from random weights")
    verb.add_argument("--student", help="folder of a student to go on from, in place of random weights")
    verb.add_argument("--minutes", type=float, default=100.0)
    verb.add_argument("--batch", type=int, default=12)
    verb.add_argument("--learning-rate", type=float, default=2e-3)
    verb.add_argument("--flat", type=float, default=0.3, help="part of the time at that rate, before it falls")
    verb.add_argument("--every", type=int, default=300, help="steps between evaluations and checkpoints")
    verb.set_defaults(run=train)

    verb = verbs.add_parser("measure", parents=[shared], help="fidelity of a student")
    verb.add_argument("--student", required=True)
    verb.add_argument("--eval", nargs="+", required=True, help="tables of utterances")
    verb.add_argument("--full", type=int, default=0, help="also so many windows that are full of speech")
    verb.add_argument("--draws", type=int, default=3, help="how often these are drawn anew")
    verb.add_argument("--statistics", help="of the teacher; measured on the table itself by default")
    verb.set_defaults(run=measure)

    verb = verbs.add_parser("publish", help="the student's encoder, to be given away")
    verb.add_argument("--student", required=True)
    verb.add_argument("--out", type=Path, required=True)
    verb.add_argument("--name", required=True, help="of its teacher on the Hub")
    verb.set_defaults(run=publish)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
