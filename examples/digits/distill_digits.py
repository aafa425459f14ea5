# /// script
# dependencies = [
#     "whisper-hailo-hf[train,eval]",
#     "torch",
#     "transformers>=5.16,<6",
#     "numpy",
#     "scipy",
#     "soundfile",
#     "soxr",
#     "python-stretch",
# ]
# ///
"""Distil the digits Whisper's encoder into a student for the Hailo chip: how the bundled demo model was made.

The teacher is what `train_digits.py` writes, a stock Whisper. Its decoder goes into the student's model as it is and
stays frozen; only the new encoder learns, from the teacher's states and from what the frozen decoder makes of them.
The windows are those of `train_digits.py`, whole ones of 30 s; their texts lead the decoder and are no target.

Usage:

    python examples/digits/distill_digits.py --teacher digits/stock --speech recordings --held-out theo yweweler \
        --output-dir digits_student --espeak --hailo-dir digits_student/demo

A run that was cut off goes on with `--resume`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from augmentation import Augmenter
from digit_clips import SAMPLE_RATE, digit_files, espeak_clips, load_digits
from digit_windows import FRAMES, Ids, Target, Utterance, WindowMaker, load_utterances
from train_digits import make_voices, save_small
from transformers import WhisperProcessor

from whisper_hailo_hf import WhisperHailoForConditionalGeneration
from whisper_hailo_hf.distillation import EncoderDistillationArguments, EncoderDistillationTrainer

SECONDS = 30.0
UTTERANCE_SHARE = 0.2  # of the windows: whole recordings of speakers who are not in the dataset of single digits

# 1.6 million parameters before the epilogue: eight blocks, from 750 frames down to 188 and up again
STUDENT = {
    "encoder_layers": 8,
    "encoder_options": {
        "width": 160,
        "inner": 160,
        "stem": 96,
        "levels": (0, 1, 1, 2, 2, 2, 1, 0),
        "dilations": (1, 1, 2, 1, 2, 4, 2, 1),
        "gate_every": 2,
        "refine_taps": 5,
        "refine_depthwise": True,
        "positions": True,
    },
}


def item(ids: Ids, features: torch.Tensor, target: Target) -> dict[str, Any]:
    """A window as the collator wants it: features (80, 3000), frames of speech (1500,), tokens after the first."""
    positions = features.shape[1] // 2
    speech = np.zeros(positions, dtype=bool)
    for start, end, _ in target.speech:
        speech[round(max(0.0, start) * FRAMES) : round(end * FRAMES)] = True
    tokens = target.tokens[target.tokens.index(ids.sot) :]  # without the text that came before
    return {"input_features": features, "speech_mask": speech, "labels": [*tokens[1:], ids.eot]}


class Windows(torch.utils.data.Dataset):
    """Window i is drawn with random numbers of its own, so that a run that goes on sees what it would have seen."""

    def __init__(self, maker: WindowMaker, number: int, seed: int) -> None:
        self.maker, self.number, self.seed = maker, number, seed

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict[str, Any]:
        features, target = self.maker.window(np.random.default_rng([self.seed, index]), SECONDS, 0.0)
        return item(self.maker.ids, features, target)


def utterance_window(ids: Ids, augmenter: Augmenter, utterance: Utterance) -> dict[str, Any]:
    """A recording without times in a window of its own, unaltered."""
    samples = np.zeros(round(SECONDS * SAMPLE_RATE), dtype=np.float32)
    heard = utterance.samples[: len(samples)]
    samples[: len(heard)] = heard
    tokens = [ids.sot, ids.en, ids.transcribe, ids.plain, *(ids.words[word] for word in utterance.words)]
    target = Target(tokens, [], [], [(0.0, len(heard) / SAMPLE_RATE, 0)])
    return item(ids, augmenter.features(samples), target)


def build_data(options: argparse.Namespace, ids: Ids, number: int) -> tuple[Windows, list[dict[str, Any]]]:
    """Windows for the training, and fixed ones of other recordings for the validation; none of a held-out speaker."""
    began = time.monotonic()
    files = [f for f in digit_files(options.speech) if f[2] not in options.held_out]
    clips = load_digits(f for f in files if f[3] >= options.validation_below)
    voices, shares = [make_voices(clips, (-4.0, -2.0, 2.0, 4.0), options.seed)], [0.65]
    if options.espeak:
        synthetic: dict[str, list[Any]] = {}
        for clip in espeak_clips(seed=options.seed):
            synthetic.setdefault(clip.speaker, []).append(clip)
        voices, shares = [*voices, synthetic], [*shares, 0.35]
    utterances = load_utterances(options.extra_tsv) if options.extra_tsv else []
    augmenter = Augmenter(clips, options.seed)
    maker = WindowMaker(ids, voices, shares, utterances, augmenter, UTTERANCE_SHARE)

    held = load_digits(f for f in files if f[3] < options.validation_below)
    check = WindowMaker(ids, [make_voices(held, (), 0)], [1.0], [], augmenter) if held else None
    rng, windows = np.random.default_rng(1), []
    while check is not None and len(windows) < options.validation_windows:
        windows.append(item(ids, *check.window(rng, SECONDS, 0.0)))
    others = load_utterances(options.validation_tsv) if options.validation_tsv else []
    windows += [utterance_window(ids, augmenter, utterance) for utterance in others]
    print(f"{len(clips)} clips, {sum(len(v) for group in voices for v in group.values())} with other voices, "
          f"{len(utterances)} utterances; {len(windows)} windows for the validation; "
          f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    return Windows(maker, number, options.seed), windows


def settings(options: argparse.Namespace) -> EncoderDistillationArguments:
    """Losses on the states, and the divergence of the frozen decoder's next-token distributions."""
    return EncoderDistillationArguments(
        output_dir=str(options.output_dir),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=16,
        learning_rate=options.learning_rate,
        warmup_steps=min(150, options.steps // 5),
        ema_decay=options.ema_decay,
        bf16=options.bf16,
        use_cpu=options.cpu or not torch.cuda.is_available(),
        kl_weight=options.kl_weight,
        ce_weight=0.0,
        statistics_windows=256,
        eval_steps=options.eval_steps,
        save_steps=options.eval_steps,
        logging_steps=25,
        metric_for_best_model="loss",
        greater_is_better=False,
        predict_with_generate=True,
        generation_max_new_tokens=120,
        dataloader_num_workers=1,
        dataloader_persistent_workers=True,
        dataloader_prefetch_factor=4,
        report_to="none",
        seed=options.seed,
        disable_tqdm=True,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Distil the digits Whisper's encoder into a student.")
    parser.add_argument("--teacher", type=Path, required=True, help="stock digits Whisper, as train_digits.py writes")
    parser.add_argument("--student", type=Path, help="go on with this student, on another schedule")
    parser.add_argument("--speech", type=Path, required=True, help="folder of {digit}_{speaker}_{n}.flac or .wav")
    parser.add_argument("--held-out", nargs="*", default=[], help="speakers never used here")
    parser.add_argument("--validation-below", type=int, default=5, help="recordings n < this are for validation only")
    parser.add_argument("--validation-windows", type=int, default=32, help="windows made of these recordings")
    parser.add_argument("--validation-tsv", type=Path, help="further recordings for the validation, if digits")
    parser.add_argument("--espeak", action="store_true", help="add synthetic voices of espeak-ng")
    parser.add_argument("--extra-tsv", type=Path, help="table of recordings; those whose text is digits are added")
    parser.add_argument("--output-dir", type=Path, required=True, help="checkpoints, and the student at the end")
    parser.add_argument("--hailo-dir", type=Path, help="also write the whole model there, in float16, to be bundled")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=8, help="windows of 30 s in a step")
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--ema-decay", type=float, default=0.995)
    parser.add_argument("--kl-weight", type=float, default=1.0)
    parser.add_argument("--eval-steps", type=int, default=250)
    parser.add_argument("--bf16", action="store_true", help="mixed precision, faster where the processor has it")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse()
    processor = WhisperProcessor.from_pretrained(options.teacher)
    train, validation = build_data(options, Ids(processor.tokenizer), options.steps * options.batch_size)
    torch.manual_seed(options.seed)
    if options.student:
        student = WhisperHailoForConditionalGeneration.from_pretrained(options.student, encoder_backend="torch")
    else:
        student = WhisperHailoForConditionalGeneration.from_whisper(options.teacher, **STUDENT)
    encoder = sum(p.numel() for p in student.model.encoder.parameters())
    print(f"{sum(p.numel() for p in student.parameters()):,} parameters, {encoder:,} in the encoder", flush=True)
    trainer = EncoderDistillationTrainer(
        student,
        options.teacher,
        settings(options),
        train_dataset=train,
        eval_dataset=validation or None,
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=True if options.resume else None)
    trainer.save_model()
    if options.hailo_dir:
        save_small(student, options.hailo_dir)
        processor.save_pretrained(options.hailo_dir)


if __name__ == "__main__":
    main()
