"""A benchmark's table, picture and page."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.evaluation.bench_report import SHOWN, BenchmarkReport, Change, Spread, SystemTimes
from whisper_hailo_hf.evaluation.page import embed, new_figure, page, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAD = ("", *(f"{words}, ms" for words in SHOWN.values()), *(f"{words}, times faster" for words in SHOWN.values()))
CHANGES_HEAD = ("", "", "before, ms", "now, ms", "now / before", "")


def rows(report: BenchmarkReport) -> list[list[str]]:
    """Times and ratios of each system: median and, in brackets, 10th to 90th percentile over the turns."""
    found = []
    for system in report.systems:
        times = [_spread(system.spread(measure), 1e3, 1 if measure == "per_token" else 0) for measure in SHOWN]
        faster = [report.speed_up(system, measure) for measure in SHOWN]
        ratios = ["too noisy" if one is None else _spread(one, 1, 2) for one in faster]
        found.append([system.name, *times, *(ratios if system is not report.systems[0] else [""] * len(SHOWN))])
    return found


def resources(report: BenchmarkReport) -> tuple[list[str], list[list[str]]]:
    """Head and rows: loading, memory and, where the system tells, energy."""
    head = ["", "loading, s", "peak memory, MiB", "of it before loading", "real-time factor"]
    found = []
    for one in report.systems:
        factor = one.spread("end_to_end").median / report.settings["window_seconds"]
        row = [one.name, f"{one.loading_seconds:.1f}", _mib(one.peak_mib), _mib(one.before_mib), f"{factor:.4f}"]
        found.append(
            row + ([_spread(Spread.of(one.joules), 1, 2) if one.joules else ""] if report.energy_source else [])
        )
    return head + (["energy of a window, J"] if report.energy_source else []), found


def change_rows(changes: Sequence[Change]) -> list[list[str]]:
    """What has changed, a line each."""
    return [
        [
            one.system,
            SHOWN[one.measure],
            _spread(one.before, 1e3, 1),
            _spread(one.after, 1e3, 1),
            f"{one.ratio:.2f}",
            one.verdict,
        ]
        for one in changes
    ]


def describe(report: BenchmarkReport) -> str:
    """What it was measured on, in a line."""
    known, settings = report.provenance, report.settings
    machine = known["machine"]
    return (
        f"{report.name}: {settings['turns']} turns, {settings['tokens']} tokens of a window of "
        f"{settings['window_seconds']} s; {known['threads']} threads of {machine['board'] or machine['cpu']}, "
        f"load {known['load_average']} before, {known['load_average_after']} after"
    )


def draw(report: BenchmarkReport) -> "Figure":
    """Bars of the medians, with the 10th to 90th percentile.

    Raises:
        RequestError: matplotlib is not installed.
    """
    names = [system.name for system in report.systems]
    with new_figure(1.2 + 0.32 * len(names)) as figure:
        for axes, (measure, words) in zip(figure.subplots(1, len(SHOWN), sharey=True), SHOWN.items(), strict=True):
            spreads = [system.spread(measure) for system in report.systems]
            medians = [1e3 * one.median for one in spreads]
            ends = [
                [1e3 * (one.median - one.p10) for one in spreads],
                [1e3 * (one.p90 - one.median) for one in spreads],
            ]
            axes.barh(range(len(names)), medians, xerr=ends, color=[_colour(system) for system in report.systems])
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.set_title(f"{words}, ms", fontsize=9)
            axes.tick_params(axis="x", labelsize=7)
            axes.grid(axis="x", alpha=0.3)
        axes.invert_yaxis()  # shared: the first system on top
    return figure


def save_png(report: BenchmarkReport, path: str | os.PathLike[str]) -> None:
    """Writes `draw` as a picture."""
    try:
        draw(report).savefig(path, dpi=150)
    except OSError as error:
        raise WhisperHailoError(f"cannot write {path} ({os.strerror(error.errno or 0)})") from error


def save_html(report: BenchmarkReport, path: str | os.PathLike[str], changes: Sequence[Change] = ()) -> None:
    """Writes tables and picture into one file that needs no other."""
    head, memory = resources(report)
    versions = ", ".join(f"{name} {version}" for name, version in report.provenance["versions"].items() if version)
    first = escape(report.systems[0].name)
    parts = [
        f"<p>Median and, in brackets, 10th to 90th percentile over the turns; ratios to {first}, turn by turn.</p>",
        table(HEAD, rows(report), range(1, len(HEAD))),
        embed(draw(report), "medians, with the 10th to 90th percentile over the turns"),
        table(head, memory, range(1, len(head))),
        f"<p>Energy: {escape(report.energy_source)}.</p>" if report.energy_source else "",
        "<h2>Against the earlier run</h2>" + table(CHANGES_HEAD, change_rows(changes), (2, 3, 4)) if changes else "",
        "".join(f"<p>{escape(note)}</p>" for note in report.notes),
        f"<p>{escape(versions)}; {escape(report.provenance['time'])}</p>",
    ]
    try:
        Path(path).write_text(page("Benchmark", describe(report), parts), encoding="utf-8")
    except OSError as error:
        raise WhisperHailoError(f"cannot write {path} ({os.strerror(error.errno or 0)})") from error


def _spread(spread: Spread, scale: float, digits: int) -> str:
    middle, low, high = (f"{scale * value:.{digits}f}" for value in (spread.median, spread.p10, spread.p90))
    return f"{middle} ({low}–{high})"


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _colour(system: SystemTimes) -> str:
    return {"stock": "#888888", "ours": "#2a7f62"}.get(system.kind, "#c58b2a")
