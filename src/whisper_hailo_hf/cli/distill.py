"""`whisper-hailo distill`: a student encoder learns a stock Whisper's states."""

from pathlib import Path
from typing import Annotated, Any

import typer

from whisper_hailo_hf.cli import console
from whisper_hailo_hf.cli.training import parse_settings, training_progress


def distill(
    teacher: Annotated[
        str, typer.Option("--teacher", "-t", help="Stock Whisper, or its encoder alone: Hub id or folder.")
    ],
    train: Annotated[str, typer.Option(help="Speech: a .tsv table, a folder of audio, or a data set of the Hub.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for checkpoints and the student.")],
    student: Annotated[
        str | None, typer.Option("--student", "-s", help="Student to train, from `init`. [default: a new one]")
    ] = None,
    evaluate: Annotated[str | None, typer.Option("--eval", help="Speech for the evaluation, as for --train.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the training. [default: 3 epochs]")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Windows of 30 s in a step.")] = 8,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for the teacher's states, so that it runs only once.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other setting as name=value: of DistillationRun, EncoderDistillationArguments or "
            "Transformers' TrainingArguments, such as learning_rate=5e-4 or bf16=true.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON document.")] = False,
) -> None:
    """Train a student encoder on speech without transcripts: its target is what the teacher makes of the same audio.

    On several GPUs, `accelerate launch` examples/distill_encoder.py, which takes the same settings.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
    from whisper_hailo_hf.distillation.run import DistillationRun
    from whisper_hailo_hf.distillation.run import distill as distill_encoder

    named: dict[str, Any] = {
        "teacher": teacher,
        "train_data": train,
        "output_dir": str(output),
        "student": student,
        "eval_data": evaluate,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "cache": cache,
        "resume": resume,
    }
    run, args = parse_settings(
        (DistillationRun, EncoderDistillationArguments),
        {name: value for name, value in named.items() if value is not None},
        setting or [],
        "examples/distill_encoder.py",
    )
    args.disable_tqdm = True  # its lines would go to stdout, among the result
    with console.progress() as bars:
        metrics = distill_encoder(run, args, callbacks=[training_progress(bars, "distilling")])
    if as_json:
        console.print_json({"student": str(output), "metrics": metrics})
    else:
        console.print_table(str(output), [(name, f"{value:.4g}") for name, value in metrics.items()])
