# /// script
# dependencies = ["whisper-hailo-hf[train]"]
# ///
"""Designs of the conv family against each other: the same teacher, windows, order of windows and number of steps.

The teacher's states come from caches that `build_teacher_cache` wrote with `store_features=True`, so that only the
student costs time:

    python benchmarks/student_ablation.py --teacher whisper-tiny.en --caches cache/* --eval dev.tsv --out ablation \\
        --steps 512 --batch 8

Each design that is not in OUT yet is trained and written there as JSON; `--only NAME ...` picks some, so that several
processes can share the work. `--table` prints what is there.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset

from whisper_hailo_hf import EncoderDistillationArguments, EncoderDistillationTrainer
from whisper_hailo_hf.distillation.cache import CachedDistillationDataset
from whisper_hailo_hf.distillation.dataset import EvaluationDataset
from whisper_hailo_hf.distillation.run import new_student
from whisper_hailo_hf.distillation.teacher import Teacher, load_teacher
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder
from whisper_hailo_hf.sources.utterances import open_source

# Levels of the twelve blocks: 0 is 750 frames, 1 is 375, 2 is 188.
PRESET: dict[str, Any] = {
    "levels": (1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1),
    "stem": 192,
    "refine_taps": 5,
    "refine_depthwise": True,
    "positions": True,
}
FULL_STEM = PRESET | {"stem": 384, "refine_taps": 3, "refine_depthwise": False}
# name: (what differs from the preset, encoder_layers, options)
DESIGNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "preset": ("4 blocks at 375 frames, 8 at 188", 12, PRESET),
    "flat": ("all blocks at 750 frames", 12, PRESET | {"levels": (0,)}),
    "pyramid": ("2 blocks at 750 frames, 4 at 375, 6 at 188", 12, PRESET | {"levels": (0, 1, 1, *[2] * 6, 1, 1, 0)}),
    "all-188": ("all blocks at 188 frames", 12, PRESET | {"levels": (2,)}),
    "depthwise": ("9-tap depthwise blocks, inner 768", 12, PRESET | {"depthwise": True, "taps": 9, "inner": 768}),
    "no-gates": ("no gates", 12, PRESET | {"gate_every": 0}),
    "no-positions": ("no table of positions behind the stem", 12, PRESET | {"positions": False}),
    "narrow-view": ("no dilation", 12, PRESET | {"dilations": (1,)}),
    "silu": ("SiLU", 12, PRESET | {"activation": "silu"}),
    "no-norm": ("no normalisation", 12, PRESET | {"norm": "none"}),
    "deep": ("24 blocks, inner 224", 24, PRESET | {"inner": 224}),
    "shallow": ("6 blocks, inner 576", 6, PRESET | {"inner": 576}),
    "adamw": ("AdamW in place of Muon, half the learning rate", 12, PRESET),
    "linear-attention": ("the linear_attention family, which the chip cannot hold", 6, {}),
    "full-stem": ("stem of 384 from the teacher, dense refinement of 3 taps", 12, FULL_STEM),
    "random-stem": ("the same, but the stem starts from random weights", 12, FULL_STEM),
    "5-taps": ("5 taps, inner 288", 12, PRESET | {"taps": 5, "inner": 288}),
    "wide-view": ("dilations up to 16", 12, PRESET | {"dilations": (1, 4, 16)}),
    "all-gates": ("a gate in every block", 12, PRESET | {"gate_every": 1}),
    "no-map": ("the epilogue's positional map is learned from nothing", 12, PRESET),
    "375": ("all blocks at 375 frames", 12, PRESET | {"levels": (1,)}),
}


def multiply_adds(encoder: HailoWhisperEncoder) -> int:
    """MACs of the core's convolutions for one window."""
    total = 0

    def count(module: torch.nn.Conv2d, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * output.shape[2] * output.shape[3]

    hooks = [m.register_forward_hook(count) for m in encoder.core.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        encoder.core.eval()(encoder.host.windows(torch.zeros(1, encoder.config.num_mel_bins, encoder.core.frames)))
    for hook in hooks:
        hook.remove()
    return total


def with_states(teacher: Teacher, table: str) -> list[dict[str, Any]]:
    """The evaluation's items, with the teacher's states."""
    items = []
    for item in iter(EvaluationDataset(open_source(table), n_mels=teacher.n_mels, positions=teacher.positions)):
        items.append(item | {"teacher_states": teacher.encode(item["input_features"][None])[0].half()})
    return items


def train(name: str, teacher: Teacher, evaluation: list[Any], options: argparse.Namespace) -> dict[str, Any]:
    what, layers, design = DESIGNS[name]
    torch.manual_seed(options.seed)
    family = "linear_attention" if name == "linear-attention" else "conv"
    student = new_student(teacher, family, encoder_layers=layers, encoder_options=design)
    assert isinstance(student, HailoWhisperEncoder)
    if name == "random-stem":
        for unit in (student.core.conv1, student.core.conv2):
            unit.conv.reset_parameters()  # type: ignore[union-attr]
    folder = options.out / name
    settings = {"per_device_eval_batch_size": 8, "eval_strategy": "no", "save_strategy": "no"}
    args = EncoderDistillationArguments(
        output_dir=str(folder),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        learning_rate=options.learning_rate / (2 if name == "adamw" else 1),
        muon=name != "adamw",
        ema_decay=0.99,
        seed=options.seed,
        bf16=options.bf16,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        statistics_path=str(options.out / "teacher_statistics.safetensors"),
        start_positional_map=name != "no-map",
        load_best_model_at_end=False,
        **settings,
    )
    trainer = EncoderDistillationTrainer(
        student,
        teacher,
        args,
        train_dataset=ConcatDataset([CachedDistillationDataset(f) for f in options.caches]),
        eval_dataset=evaluation,
    )
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    metrics = trainer.evaluate()
    trainer.save_model()
    core = student.core
    return {
        "name": name,
        "what": what,
        "parameters": sum(p.numel() for p in core.parameters()),
        "gmac": multiply_adds(student) / 1e9,
        "training_windows": options.steps * options.batch,
        "cpu_seconds": seconds,
        "seed": options.seed,
        **{k.removeprefix("eval_"): v for k, v in metrics.items()},
    }


def table(folder: Path) -> str:
    """What is there, best first, as Markdown."""
    found = sorted((json.loads(p.read_text()) for p in folder.glob("*.json")), key=lambda r: -r["whitened_cosine"])
    lines = [
        "| design | what | M parameters | GMAC | whitened cosine | 5th percentile | content SNR, dB | SNR, dB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in found:
        lines.append(
            f"| {r['name']} | {r['what']} | {r['parameters'] / 1e6:.1f} | {r['gmac']:.2f} "
            f"| {r['whitened_cosine']:.3f} | {r['whitened_cosine_p5']:.3f} "
            f"| {r['content_snr_db']:.2f} | {r['snr_db']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--table", action="store_true", help="print what is there and stop")
    parser.add_argument("--teacher", help="stock Whisper, or its encoder")
    parser.add_argument("--caches", nargs="+", help="teacher caches with features, for training")
    parser.add_argument("--eval", help="table of utterances for the figures, each in a window of its own")
    parser.add_argument("--only", nargs="+", choices=list(DESIGNS), default=list(DESIGNS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="mixed precision")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        if not (options.teacher and options.caches and options.eval):
            parser.error("--teacher, --caches and --eval are needed to train")
        teacher = load_teacher(options.teacher)
        evaluation = with_states(teacher, options.eval)
        for name in options.only:
            result = options.out / f"{name}.json"
            if not result.exists():
                result.write_text(json.dumps(train(name, teacher, evaluation, options), indent=2) + "\n")
                print(name, "done", flush=True)
    print(table(options.out))


if __name__ == "__main__":
    main()
