"""The command line as a whole: the verbs, the global options, and how failures end.

Exit status: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted.
"""

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from whisper_hailo_hf.cli import (
    adapt,
    bench,
    check,
    collect,
    compile,
    console,
    distill,
    doctor,
    eval,
    export,
    init,
    listen,
    push,
    quantize,
    serve,
    transcribe,
    verify,
)
from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.version import __version__

app = typer.Typer(
    name="whisper-hailo",
    help="Whisper with an encoder that can be exchanged, for Hailo chips, inside Transformers.",
    epilog="Exit status: 0 done, 1 the work failed, 2 the request was wrong.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="transcribe")(transcribe.transcribe)
app.command(name="listen")(listen.listen)
app.command(name="init")(init.init)
app.command(name="distill")(distill.distill)
app.command(name="export")(export.export)
app.command(name="check")(check.check)
app.command(name="quantize")(quantize.quantize)
app.command(name="compile")(compile.compile_)
app.command(name="verify")(verify.verify)
app.command(name="eval")(eval.eval_)
app.command(name="bench")(bench.bench)
app.command(name="serve")(serve.serve)
app.command(name="collect")(collect.collect)
app.command(name="adapt")(adapt.adapt)
app.command(name="push")(push.push)
app.command(name="doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"whisper-hailo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from (its traceback).")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]  # before or after the verb
    arguments = [argument for argument in arguments[:end] if argument != "--debug"] + arguments[end:]

    def run() -> Any:
        command: Any = typer.main.get_command(app)
        return command.main(arguments or ["--help"], prog_name="whisper-hailo", standalone_mode=False)

    end_with(run, debug)


def end_with(work: Callable[[], Any], debug: bool = False) -> NoReturn:
    """Do the work and exit with the status it returns (None is 0), or with that of its failure, told in a line."""
    # A name or a word that the terminal's encoding lacks is no reason to fail.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _status(work, debug)
        if status == 130:
            console.note("interrupted")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone, `| head` say. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _status(work: Callable[[], Any], debug: bool) -> int:
    try:
        return int(work() or 0)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except typer.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            console.notes.print_exception(show_locals=False)
        if isinstance(error, WhisperHailoError):
            console.error(str(error))
            return error.exit_status
        # What the parser raises: an unknown option, a value of the wrong type.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            console.error(f"{error.format_message().rstrip('.')} (see whisper-hailo --help)")
            return 2
        text = " ".join(str(error).split())
        hint = "" if debug else " (--debug shows where)"
        console.error(f"{type(error).__name__}: {text[:500]}{hint}" if text else f"{type(error).__name__}{hint}")
        return 1
