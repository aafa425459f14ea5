"""`whisper-hailo init`: an untrained student of a stock Whisper, or a distilled one with that Whisper's decoder."""

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from whisper_hailo_hf.cli import console


def init(
    whisper: Annotated[str, typer.Argument(help="Stock Whisper: Hub id or folder.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Folder for the student.", show_default=False)],
    family: Annotated[str | None, typer.Option(help="Encoder family: conv or attention. [default: conv]")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Preset of the family. [default: the one that suits this Whisper]")
    ] = None,
    time_axis: Annotated[
        str | None, typer.Option(help="Where time lies in the encoder's tensors: width or height. [default: width]")
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Blocks of the encoder, instead of the preset's.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Option of the family over the preset's, as width=512.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(help="A distilled encoder that was saved alone, instead of a new one: Hub id or folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make a student of a stock Whisper: its decoder, and a new encoder that has yet to be distilled.

    Of family attention, the encoder has the stock weights and works at once; so does a student that is there already.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.distillation.run import init_student

    made = init_student(
        whisper,
        folder,
        family=family,
        preset=preset,
        student=student,
        time_axis=time_axis,
        encoder_layers=layers,
        encoder_options=_options(option or []),
    )
    config, total = made.config, sum(p.numel() for p in made.parameters())
    encoder = sum(p.numel() for p in made.get_encoder().parameters())
    facts = {
        "folder": str(folder),
        "family": config.encoder_family,
        "preset": config.encoder_preset,
        "encoder_layers": config.encoder_layers,
        "encoder_parameters": encoder,
        "parameters": total,
    }
    if as_json:
        console.print_json(facts)
    else:
        console.print_table(
            str(folder), [(name.replace("_", " "), _shown(value)) for name, value in facts.items()][1:]
        )


def _options(pairs: list[str]) -> dict[str, Any]:
    from whisper_hailo_hf.errors import RequestError

    options: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise RequestError(f"--option {pair}: write it as name=value, such as width=512")
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[name] = text  # a word
    return options


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
