"""What all verbs share: results on stdout, everything else on stderr, and JSON for machines."""

import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# Rich colours and folds for a terminal only.
notes = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


class _ToNotes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def note(line: str) -> None:
    """A line for the user beside the result."""
    notes.print(line)


def error(line: str) -> None:
    """One line that says what is wrong; a line break in it, from a file's name say, is made visible."""
    notes.print("error: " + line.replace("\r", "\\r").replace("\n", "\\n"), style="red" if notes.is_terminal else None)


def progress() -> Progress:
    """Progress bars on stderr, where that is a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    # Rich would otherwise catch stdout too, which may go elsewhere.
    return Progress(
        *columns,
        console=notes,
        transient=True,
        disable=not notes.is_terminal,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def print_result(text: str, bars: Progress) -> None:
    """Write to stdout as it stands; the bars, perhaps on the same terminal, step aside."""
    bars.stop()
    sys.stdout.write(text)
    sys.stdout.flush()
    bars.start()


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: folded to a terminal's width, in whole lines where there is none."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 500
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(Text, row))
    with console.capture() as capture:
        console.print(Text(title, style="bold"))
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()) + "\n")


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def quiet_libraries() -> None:
    """Keep other libraries' advice and progress bars off the terminal; what this package logs is shown as it is."""
    import warnings

    from huggingface_hub.utils import enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if notes.is_terminal:
        enable_progress_bars()  # a download may take minutes
    warnings.filterwarnings("ignore", module=r"(torch|transformers|huggingface_hub|soundfile)(\.|$)")
    own = logging.getLogger("whisper_hailo_hf")
    own.handlers = [_ToNotes()]
    own.propagate = False
