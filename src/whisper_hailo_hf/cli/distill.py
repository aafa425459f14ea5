"""`whisper-hailo distill`: a student encoder learns a stock Whisper's states."""

from argparse import ArgumentError
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from whisper_hailo_hf.cli import console


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
    run, args = _parse({name: value for name, value in named.items() if value is not None}, setting or [])
    args.disable_tqdm = True  # its lines would go to stdout, among the result
    with console.progress() as bars:
        metrics = distill_encoder(run, args, callbacks=[_printer(bars)])
    if as_json:
        console.print_json({"student": str(output), "metrics": metrics})
    else:
        console.print_table(str(output), [(name, f"{value:.4g}") for name, value in metrics.items()])


def _printer(bars: Progress, what: str = "distilling") -> Any:
    """A bar on a terminal, a line for each log entry, all on stderr."""
    from transformers import TrainerCallback

    class Printer(TrainerCallback):
        bar: TaskID | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = bars.add_task(what, total=state.max_steps, completed=state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.bar is not None:
                bars.update(self.bar, completed=state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                values = [f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, int | float)]
                console.note(f"step {state.global_step}: {', '.join(values)}")

    return Printer()


def _parse(named: dict[str, Any], settings: list[str]) -> Any:
    from transformers import HfArgumentParser

    from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
    from whisper_hailo_hf.distillation.run import DistillationRun
    from whisper_hailo_hf.errors import RequestError

    words = [f"--{name}={value}" for name, value in named.items()]
    for text in settings:
        name, sign, value = text.partition("=")
        if not sign:
            raise RequestError(f"--set {text}: write it as name=value, such as learning_rate=5e-4")
        if name in named:
            raise RequestError(f"--set {name}: this verb has an option of its own for it")
        words += [f"--{name}", *value.split(",")]
    kinds: Any = (DistillationRun, EncoderDistillationArguments)
    parser: Any = HfArgumentParser(kinds, exit_on_error=False, allow_abbrev=False)
    parser.error = _refuse
    try:
        return parser.parse_args_into_dataclasses(words)
    except RequestError:
        raise
    except (ArgumentError, ValueError, ImportError) as error:
        raise RequestError(f"settings that do not fit: {str(error).splitlines()[0]}") from error


def _refuse(message: str) -> None:
    from whisper_hailo_hf.errors import RequestError

    raise RequestError(f"{message}: see --help of examples/distill_encoder.py for all settings")
