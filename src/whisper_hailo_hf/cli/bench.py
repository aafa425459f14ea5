"""`whisper-hailo bench`: how fast models hear on this machine."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whisper_hailo_hf.cli import console

if TYPE_CHECKING:
    from whisper_hailo_hf.evaluation.bench_report import BenchmarkReport, Change


def bench(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Model of ours or stock Whisper. [default: the bundled demo]"),
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="No checkpoint at hand: random weights of shape tiny, base or small.")
    ] = None,
    stock: Annotated[
        str | None, typer.Option(help="Stock Whisper to compare with. [default: one of the decoder's shape]")
    ] = None,
    encoder_backend: Annotated[
        list[str] | None, typer.Option(help="Where our encoder runs, again for each. [default: all that can]")
    ] = None,
    decoder_backend: Annotated[
        list[str] | None,
        typer.Option(help="Where our decoder runs, again for each. [default: torch and ONNX Runtime]"),
    ] = None,
    faster_whisper: Annotated[
        bool | None, typer.Option(help="Measure faster-whisper too. [default: if it is installed]", show_default=False)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of each system. [default: all cores]")] = None,
    turns: Annotated[int, typer.Option(help="Timed.")] = 10,
    warm_up: Annotated[int, typer.Option(help="Turns before them that do not count.")] = 2,
    tokens: Annotated[int, typer.Option(help="That each system says of a window; 2 to 200.")] = 64,
    audio: Annotated[Path | None, typer.Option(help="Recording to hear, in place of noise.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Folder for benchmark.json, .png and .html.")
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="JSON of an earlier run: what has changed?")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Encoder, first token, each token and end to end, of all that can run here, in turns, beside stock Transformers.

    Every definition is in docs/evaluate.md.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.evaluation.bench_report import BenchmarkReport, compare_reports
    from whisper_hailo_hf.evaluation.benchmark import choose_systems, prepare_folders, run_benchmark

    earlier = None if compare is None else BenchmarkReport.load(compare)
    if output_dir is not None:
        _prepare(output_dir)
    with tempfile.TemporaryDirectory(prefix="whisper-hailo-bench-") as work, console.progress() as bars:
        bar = bars.add_task("making models", total=None)
        folders = prepare_folders(work, shape=shape, model=model, stock=stock)
        if folders.untrained and (encoder_backend is None or "emulator" in encoder_backend):
            bars.update(bar, description="quantizing the random encoder")
            _quantize(folders.ours)
        specs, notes = choose_systems(
            folders, work, backends=encoder_backend, decoders=decoder_backend, faster_whisper=faster_whisper
        )

        def observe(what: str, done: int, total: int) -> None:
            bars.update(bar, description=what, completed=done, total=total)

        report = run_benchmark(
            specs,
            name=folders.name,
            threads=threads,
            turns=turns,
            warm_up=warm_up,
            tokens=tokens,
            audio=audio,
            notes=notes,
            observe=observe,
        )
    changes, doubts = compare_reports(earlier, report) if earlier is not None else ([], [])
    if output_dir is not None:
        _write(report, changes, output_dir)
    if as_json:
        fields = [
            {"system": one.system, "measure": one.measure, "ratio": one.ratio, "verdict": one.verdict}
            for one in changes
        ]
        compared = {} if earlier is None else {"changes": fields, "doubts": doubts}
        console.print_json(report.to_dict() | compared)
    else:
        _show(report, changes)
    for line in (*report.notes, *doubts):
        console.note(line)


def _quantize(folder: Path) -> None:
    """8 bits of random weights are as fast as of trained ones: the smallest calibration will do."""
    from whisper_hailo_hf.backends import backend_class
    from whisper_hailo_hf.compile import quantize_encoder
    from whisper_hailo_hf.evaluation.stand_in import random_features

    if backend_class("emulator").status().available:
        features = random_features(2).numpy()
        settings = {"method": "minmax", "report_windows": 1, "layer_windows": 0, "bias_correction": False}
        quantize_encoder(folder, features, choices=False, equalize=False, **settings)  # type: ignore[arg-type]


def _prepare(folder: Path) -> None:
    """Before minutes of work whose result could not be kept."""
    import os

    from whisper_hailo_hf.errors import RequestError
    from whisper_hailo_hf.evaluation.page import new_figure

    with new_figure(1):  # matplotlib is there
        pass
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"cannot write to the folder {folder} ({os.strerror(error.errno or 0)})") from error


def _write(report: "BenchmarkReport", changes: "list[Change]", folder: Path) -> None:
    from whisper_hailo_hf.evaluation.bench_plot import save_html, save_png

    report.save(folder / "benchmark.json")
    save_png(report, folder / "benchmark.png")
    save_html(report, folder / "benchmark.html", changes)
    console.note(f"wrote benchmark.json, benchmark.png and benchmark.html into {folder}")


def _show(report: "BenchmarkReport", changes: "list[Change]") -> None:
    from whisper_hailo_hf.evaluation import bench_plot

    half = 1 + (len(bench_plot.HEAD) - 1) // 2
    rows = [list(bench_plot.HEAD), *bench_plot.rows(report)]
    console.print_table(bench_plot.describe(report), [row[:half] for row in rows])
    if len(report.systems) > 1:
        faster = [[row[0], *row[half:]] for row in rows]
        console.print_table(f"times faster than {report.systems[0].name}", [faster[0], *faster[2:]])
    head, memory = bench_plot.resources(report)
    console.print_table("one process each", [head, *memory])
    if changes:
        console.print_table("now and then", [bench_plot.CHANGES_HEAD, *bench_plot.change_rows(changes)])
