# /// script
# dependencies = ["whisper-hailo-hf[train]"]
# ///
"""A training step of the student against the teacher's forward on the same batch, in turn, in one process.

    python benchmarks/distillation_step.py --preset tiny --batch 8 --steps 12 --threads 1 --bf16

The teacher has the published shape of that size and random weights, which change no time. Its states are at hand, as
from a cache: a step is forward, losses, backward and optimizer. The teacher's forward is timed in float32 and, with
`--bf16`, in mixed precision too. Ratios of medians, with the spread of the single steps.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_speed import SIZES, features, stock_config
from transformers import TrainerCallback, WhisperForConditionalGeneration

from whisper_hailo_hf import EncoderDistillationArguments, EncoderDistillationTrainer
from whisper_hailo_hf.distillation.run import new_student
from whisper_hailo_hf.distillation.teacher import Teacher, load_teacher


class InTurn(TrainerCallback):
    """After each step, the teacher's forward on the batch."""

    def __init__(self, teacher: Teacher, batch: torch.Tensor, bf16: bool) -> None:
        self.teacher, self.batch = teacher, batch
        self.times: dict[str, list[float]] = {"student step": [], "teacher float32": []}
        if bf16:
            self.times["teacher bfloat16"] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.times["student step"].append(time.perf_counter() - self.began)
        for name, mixed in (("teacher float32", False), ("teacher bfloat16", True)):
            if name in self.times:
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    self.teacher.encode(self.batch)
                self.times[name].append(time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=list(SIZES), default="tiny", help="of the student, and the teacher's size")
    parser.add_argument("--batch", type=int, default=8, help="windows")
    parser.add_argument("--steps", type=int, default=12, help="the first two are left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        stock = Path(folder) / "teacher"
        WhisperForConditionalGeneration(stock_config(options.preset)).save_pretrained(stock)
        teacher = load_teacher(stock)
        batch = features(options.batch)
        speech = torch.ones(1500, dtype=torch.bool)
        states = teacher.encode(batch).half()
        items = [
            {"input_features": batch[i], "speech_mask": speech, "teacher_states": states[i]}
            for i in range(options.batch)
        ] * options.steps
        args = EncoderDistillationArguments(
            output_dir=str(Path(folder) / "student"),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            kl_weight=0.0,
            ce_weight=0.0,
            bf16=options.bf16,
            use_cpu=True,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            report_to="none",
            disable_tqdm=True,
        )
        turns = InTurn(teacher, batch, options.bf16)
        student = new_student(teacher, preset=options.preset)
        EncoderDistillationTrainer(student, teacher, args, train_dataset=items, callbacks=[turns]).train()
    times = {name: np.array(values[2:]) for name, values in turns.times.items()}
    step = np.median(times["student step"])
    result = {
        "preset": options.preset,
        "batch": options.batch,
        "steps": len(times["student step"]),
        "threads": options.threads,
        "bf16": options.bf16,
        "torch": torch.__version__,
        "median_seconds": {name: float(np.median(values)) for name, values in times.items()},
        "p10_p90_seconds": {
            name: [float(x) for x in np.percentile(values, (10, 90))] for name, values in times.items()
        },
        "step_over_teacher": {
            name: float(step / np.median(values)) for name, values in times.items() if name != "student step"
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
