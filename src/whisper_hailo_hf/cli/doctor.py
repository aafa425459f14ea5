"""`whisper-hailo doctor`: what is installed, where an encoder can run, and whether a model folder is sound."""

from typing import TYPE_CHECKING, Annotated

import typer

from whisper_hailo_hf.cli import console

if TYPE_CHECKING:
    from whisper_hailo_hf.diagnostics import Diagnosis


def doctor(
    model: Annotated[str | None, typer.Argument(help="A model folder to check as well.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Report versions, this machine, and each backend with why it can or cannot run here.

    The exit status is 1 if a model was named and something is wrong with it.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.diagnostics import diagnose

    diagnosis = diagnose(model)
    if as_json:
        console.print_json(diagnosis.to_dict())
    else:
        _show(diagnosis, model)
    return 0 if all(check.passed for check in diagnosis.model) else 1


def _show(diagnosis: "Diagnosis", model: str | None) -> None:
    console.print_table(
        "Versions", [(name, version or "not installed") for name, version in diagnosis.versions.items()]
    )
    console.print_table("Machine", list(diagnosis.machine.items()))
    backends = [
        (name, "available" if status.available else "not available", status.reason)
        for name, status in diagnosis.backends.items()
    ]
    console.print_table("Encoder backends", backends)
    if diagnosis.model:
        checks = [(check.name, "ok" if check.passed else "WRONG", check.finding) for check in diagnosis.model]
        console.print_table(f"Model {model}", checks)
