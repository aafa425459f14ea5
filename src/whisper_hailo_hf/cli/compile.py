"""`whisper-hailo compile`: an encoder to a file for the chip, through Hailo's compiler."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from whisper_hailo_hf.cli import console
from whisper_hailo_hf.fidelity import GATE_COSINE, GATE_SNR_DB

if TYPE_CHECKING:
    from whisper_hailo_hf.compile import CompileReport


def compile_(
    model: Annotated[str, typer.Argument(help="Model's folder or Hub id, or a float .onnx file.", show_default=False)],
    audio: Annotated[
        str, typer.Option("--audio", "-a", help="Speech to calibrate with: a file, a folder, or a .tsv table.")
    ],
    dfc_python: Annotated[
        Path,
        typer.Option(help="Python of the environment that Hailo's Dataflow Compiler is installed in."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the HEF. [default: hailo8l/ in the model's folder]"),
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder for what lies between. [default: beside the model's folder]")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Target: hailo8l (runs on Hailo-8L and Hailo-8), hailo8 or hailo8r.")
    ] = "hailo8l",
    time_axis: Annotated[
        str | None, typer.Option(help="Where time lies: width or height. [default: as in the model]")
    ] = None,
    windows: Annotated[int, typer.Option(help="Windows to calibrate with, at most.")] = 1024,
    compare_windows: Annotated[int, typer.Option(help="Windows of 30 s that each stage is judged on.")] = 16,
    quantization_report: Annotated[
        Path | None, typer.Option(help="JSON of `quantize --report`: its 16-bit places go into the model script.")
    ] = None,
    model_script: Annotated[
        Path | None, typer.Option(help="Model script (.alls) to take instead of a generated one.")
    ] = None,
    finetune_epochs: Annotated[int, typer.Option(help="Of the compiler's fine-tuning; 0 leaves it out.")] = 4,
    skip_noise_check: Annotated[
        bool, typer.Option("--skip-noise-check", help="Leave out the noise check; the artefact's record will say so.")
    ] = False,
    min_cosine: Annotated[
        float, typer.Option(help="Least mean cosine of an emulation with ONNX Runtime.")
    ] = GATE_COSINE,
    min_snr: Annotated[float, typer.Option(help="Least SNR of an emulation against ONNX Runtime, dB.")] = GATE_SNR_DB,
    memory_ceiling: Annotated[
        str, typer.Option(help="Memory at which the compiler is stopped: a share of the RAM, or a size as 24G.")
    ] = "80%",
    hours: Annotated[float | None, typer.Option(help="Most hours of one stage. [default: no limit]")] = None,
    stop_after: Annotated[
        str | None, typer.Option(help="Stage to end after, such as parse or model-script. [default: go to the end]")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do again what earlier runs have finished.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")] = False,
) -> None:
    """Compile an encoder for a Hailo chip, stage by stage, each held to the one before it.

    What a run has finished, the next one keeps: after a failure, a crash or Ctrl-C, give the same command again.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.compile import compile_encoder
    from whisper_hailo_hf.fidelity import Gates

    with console.progress() as bars:
        report = compile_encoder(
            model,
            audio,
            dfc_python=dfc_python,
            output=output,
            work=work,
            hw_arch=device,
            time_axis=time_axis,
            windows=windows,
            compare_windows=compare_windows,
            quantization_report=quantization_report,
            model_script=model_script,
            finetune_epochs=finetune_epochs,
            noise_check=not skip_noise_check,
            gates=Gates(min_cosine, min_snr),
            memory_ceiling=memory_ceiling,
            timeout=None if hours is None else 3600 * hours,
            stop_after=stop_after,
            fresh=fresh,
            observe=Shower(bars),
        )
    if as_json:
        console.print_json(report.to_dict())
    else:
        _show(report)


class Shower:
    """A line for each stage that ends, and a bar with the time and memory of the one that runs."""

    def __init__(self, bars: Progress) -> None:
        from whisper_hailo_hf.compile.compile_stages import STAGES

        self._bars, self._stages = bars, STAGES
        self._task = bars.add_task("starting", total=len(STAGES))

    def __call__(self, event: dict[str, Any]) -> None:
        from whisper_hailo_hf.compile.compile_report import duration, finding
        from whisper_hailo_hf.compile.memory_guard import gib

        kind, stage = event["event"], event.get("stage", "")
        done = self._stages.index(stage) if stage in self._stages else None
        if kind == "warning":
            console.note(f"warning: {event['message']}")
        elif kind == "kept":
            console.note(f"{stage}: kept from an earlier run")
        elif kind == "finished":
            console.note(f"{stage}: done in {duration(event['seconds'])}; {finding(event)}".rstrip("; "))
            if stage == "model-script":
                for line in event["text"].splitlines():
                    console.note(f"    {line}")
        if kind == "started":
            self._bars.update(self._task, description=stage, completed=done)
        elif kind == "tick":
            text = f"{stage}, {duration(event['seconds'])}, {gib(event['memory'])}"
            self._bars.update(self._task, description=text)
        elif kind == "progress":
            self._bars.update(self._task, description=f"{stage}, {event['done']} of {event['total']}")


def _show(report: "CompileReport") -> None:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items() if version)
    noise = {True: "done", False: "skipped, as asked", None: "not reached"}[report.noise_check]
    rows = [
        ("made", report.hef or "no HEF: it was to stop before"),
        ("for", report.hw_arch),
        ("with", versions),
        ("noise check", noise),
        ("work folder", report.work),
    ]
    if report.size is not None:
        rows.insert(1, ("size", f"{report.size / 1e6:.1f} MB"))
    console.print_table("encoder", rows)
    console.print_table("stages", report.rows())
    if report.script_reasons:
        console.print_table("model script", report.script_reasons)
