"""`whisper-hailo quantize`: an encoder in integers, and what that cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, TaskID

from whisper_hailo_hf.cli import console

if TYPE_CHECKING:
    from whisper_hailo_hf.compile.quantize_report import QuantizationReport

_WORST_SHOWN = 12


def quantize(
    model: Annotated[str, typer.Argument(help="Model's folder, or a float .onnx file.", show_default=False)],
    audio: Annotated[
        str, typer.Option("--audio", "-a", help="Speech to calibrate with: a file, a folder, or a .tsv table.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="ONNX file. [default: its place in the model's folder]")
    ] = None,
    windows: Annotated[int, typer.Option(help="Windows of 30 s to calibrate with, at most.")] = 256,
    method: Annotated[str, typer.Option(help="How ranges are chosen: minmax, percentile, mse or kl.")] = "mse",
    percentile: Annotated[float, typer.Option(help="Of the method of that name.")] = 99.999,
    sixteen_bit: Annotated[
        list[str] | None,
        typer.Option(
            "--sixteen-bit", help="What stays in 16 bits: residual_adds, output, or a layer's name or pattern."
        ),
    ] = None,
    weight_bits: Annotated[
        list[str] | None,
        typer.Option("--weight-bits", help="Bits of a layer's weights, 4, 8 or 16, as '/blocks.3/*=4'."),
    ] = None,
    equalize: Annotated[bool, typer.Option(help="Even out channels of different ranges.")] = True,
    bias_correction: Annotated[bool, typer.Option(help="Take each layer's mean error into its bias.")] = True,
    finetune_steps: Annotated[int, typer.Option(help="Steps of training through the rounding.")] = 0,
    finetune_learning_rate: Annotated[float, typer.Option(help="Of that training.")] = 1e-5,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out what each layer and choice costs.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also write the whole report here, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
) -> None:
    """Make an encoder's integer graph, with Hailo-like arithmetic, and report what it costs in fidelity.

    The graph is what the emulator backend runs.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.compile.quantize import quantize_encoder

    with console.progress() as bars:
        result = quantize_encoder(
            model,
            audio,
            output=output,
            method=method,
            percentile=percentile,
            sixteen_bit=tuple(sixteen_bit or ()),
            weight_bits=_weight_bits(weight_bits or []),
            windows=windows,
            equalize=equalize,
            bias_correction=bias_correction,
            finetune_steps=finetune_steps,
            finetune_learning_rate=finetune_learning_rate,
            layer_windows=0 if quick else 1,
            choices=not quick,
            progress=Shower(bars),
        )
    if report is not None:
        _write(report, result)
    if as_json:
        console.print_json(result.to_dict())
    else:
        console.print_table(result.path, result.summary())
        title = "Layers" if quick else f"Layers, the {_WORST_SHOWN} that cost most"
        console.print_table(title, result.layer_rows(None if quick else _WORST_SHOWN))


class Shower:
    """One bar for each kind of work."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)


def _weight_bits(pairs: list[str]) -> dict[str, int]:
    from whisper_hailo_hf.errors import RequestError

    found = {}
    for pair in pairs:
        name, sign, text = pair.rpartition("=")
        if not sign or not text.isdecimal():
            raise RequestError(f"--weight-bits {pair}: write it as name=bits, such as '/blocks.3/*=4'")
        found[name] = int(text)
    return found


def _write(path: Path, report: "QuantizationReport") -> None:
    import json

    from whisper_hailo_hf.errors import WhisperHailoError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise WhisperHailoError(f"the report cannot be written to {path}: {error.strerror}") from error
