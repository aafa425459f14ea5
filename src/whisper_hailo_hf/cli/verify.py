"""`whisper-hailo verify`: does each form of the encoder still say what the one before it said?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whisper_hailo_hf.cli import console
from whisper_hailo_hf.fidelity import GATE_COSINE, GATE_SNR_DB

if TYPE_CHECKING:
    from whisper_hailo_hf.evaluation import StageReport


def verify(
    model: Annotated[
        str, typer.Argument(help="Model or encoder with a pluggable encoder: folder or Hub id.", show_default=False)
    ],
    audio: Annotated[
        list[str],
        typer.Argument(help="Recordings, folders, .tsv tables (path, text), or features (.npy).", show_default=False),
    ],
    windows: Annotated[int, typer.Option("--windows", "-n", help="Most windows of 30 s to run.")] = 16,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", help="Stage to run, again for each, in order. [default: the whole ladder]"),
    ] = None,
    min_cosine: Annotated[float, typer.Option(help="Least mean cosine between neighbouring stages.")] = GATE_COSINE,
    min_snr: Annotated[float, typer.Option(help="Least SNR between neighbouring stages, dB.")] = GATE_SNR_DB,
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="Language of the speech, for word error rates.")
    ] = None,
    quantization_report: Annotated[
        Path | None, typer.Option(help="JSON of `quantize --report`: adds its layers to the page.")
    ] = None,
    dfc_python: Annotated[
        Path | None,
        typer.Option(help="Python of the Dataflow Compiler's environment: adds har-native and har-quantized."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Work folder of `compile`, which has the HARs. [default: beside the model's folder]"),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with plots here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Run real windows through every form of the encoder that is here, and name the first that broke.

    The ladder: torch, onnx, emulator (8 bits), har-native and har-quantized (in Hailo's compiler: as parsed, and in
    integers), hef. Exit status 1 if a stage broke.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.errors import RequestError
    from whisper_hailo_hf.evaluation import Gates, compare_stages

    if html is not None and not html.absolute().parent.is_dir():
        raise RequestError(f"no folder {html.absolute().parent} for the report: make it first")
    if work is not None and dfc_python is None:
        raise RequestError("--work is of no use without --dfc-python: only Hailo's compiler runs what is in it")
    with console.progress() as bars:
        tasks: dict[str, int] = {}

        def observe(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done)  # type: ignore[arg-type]

        openers = None
        if dfc_python is not None:
            from whisper_hailo_hf.compile import compiler_stages

            starting = bars.add_task("starting Hailo's compiler", total=None)
            openers = compiler_stages(model, dfc_python, work=work)
            bars.remove_task(starting)
        report = compare_stages(
            model,
            audio,
            stage or None,
            windows=windows,
            gates=Gates(min_cosine, min_snr),
            openers=openers,
            language=language,
            quantization_report=quantization_report,
            observe=observe,
        )
    if html is not None:
        report.save_html(html)
        console.note(f"wrote {html}")
    if as_json:
        console.print_json(report.to_dict())
    else:
        _show(report)
    if not report.ok:
        console.error(report.verdict())
    return 0 if report.ok else 1


def _show(report: "StageReport") -> None:
    rows = []
    for stage in report.stages:
        name = {"run": "", "absent": "not here: ", "failed": "failed: "}[stage.status]
        facts = [f"{1e3 * stage.seconds_per_window:.0f} ms a window"] if stage.seconds_per_window is not None else []
        if stage.wer is not None:
            facts.append(f"WER {stage.wer:.2%} of {stage.words} words")
        rows.append((stage.name, name + (stage.why or ", ".join(facts))))
    console.print_table(f"{report.model}, {len(report.windows)} windows", rows)
    if report.neighbours:
        head = ("", "SNR", "cosine mean", "min", "5 %", "mean drift", "scale", "over time", "")
        table: list[tuple[str, ...]] = [head]
        for pair in (*report.neighbours, *report.against_first):
            found = pair.metrics.get
            gated = any(pair is other for other in report.neighbours)
            scale = (found("channel_scale_min", float("nan")), found("channel_scale_max", float("nan")))
            table.append(
                (
                    f"{pair.stage} against {pair.reference}",
                    f"{found('snr_db', float('nan')):.1f} dB",
                    *(f"{found(name, float('nan')):.4f}" for name in ("cosine_mean", "cosine_min", "cosine_p5")),
                    f"{found('channel_mean_drift_max', float('nan')):.3f}",
                    f"{scale[0]:.3f} to {scale[1]:.3f}",
                    f"{found('drift_db', float('nan')):.1f} dB",
                    ("BROKEN" if pair.stage in report.broken else "ok") if gated else "(cumulated)",
                )
            )
        console.print_table("fidelity", table)
    if report.ok:
        console.note(report.verdict())
    if report.wer_note:
        console.note(report.wer_note)
