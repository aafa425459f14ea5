"""What the verbs that train share: `--set name=value` for all that they have no option for, and a bar."""

from argparse import ArgumentError
from typing import Any

from rich.progress import Progress, TaskID

from whisper_hailo_hf.cli import console
from whisper_hailo_hf.errors import RequestError


def parse_settings(
    kinds: tuple[type, ...], named: dict[str, Any], settings: list[str], script: str
) -> tuple[Any, ...]:
    """Dataclasses of arguments from a verb's own options and its `--set` texts.

    Args:
        kinds: the dataclasses.
        named: the verb's options, by the name of their field.
        settings: texts of the form name=value; several values with commas between them.
        script: the example whose `--help` lists all settings.

    Raises:
        RequestError: no such setting, one that the verb has an option for, or a value that will not do.
    """
    from transformers import HfArgumentParser

    words = [f"--{name}={value}" for name, value in named.items()]
    for text in settings:
        name, sign, value = text.partition("=")
        if not sign:
            raise RequestError(f"--set {text}: write it as name=value, such as learning_rate=5e-4")
        if name in named:
            raise RequestError(f"--set {name}: this verb has an option of its own for it")
        words += [f"--{name}", *value.split(",")]

    def refuse(message: str) -> None:
        raise RequestError(f"{message}: see --help of {script} for all settings")

    parser: Any = HfArgumentParser(kinds, exit_on_error=False, allow_abbrev=False)  # type: ignore[arg-type]
    parser.error = refuse
    try:
        return parser.parse_args_into_dataclasses(words)
    except RequestError:
        raise
    except (ArgumentError, ValueError, ImportError) as error:
        raise RequestError(f"settings that do not fit: {str(error).splitlines()[0]}") from error


def training_progress(bars: Progress, what: str) -> Any:
    """A callback of the Trainer: a bar on a terminal, a line for each log entry, all on stderr."""
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
