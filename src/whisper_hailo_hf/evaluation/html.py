"""The ladder's report as one HTML file: tables, and plots as inline SVG."""

from collections.abc import Mapping
from functools import partial
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from whisper_hailo_hf.evaluation.comparison import Comparison
from whisper_hailo_hf.evaluation.page import figure, page, table
from whisper_hailo_hf.evaluation.report import StageReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TOP = 60  # dB: what lies above is rounding in float32


def render(report: StageReport) -> str:
    """The page.

    Raises:
        RequestError: matplotlib is not installed.
    """
    gated = (
        f"Gates between neighbours: cosine at least {report.gates.cosine:g}, SNR at least {report.gates.snr_db:g} dB, "
        f"over all frames and over those that are no padding (in brackets); {len(report.windows)} windows."
    )
    pairs = [*report.neighbours, *report.against_first]
    body = [
        "<h2>Stages</h2>",
        table(("stage", "", "ms a window", "word error rate", "what it is"), _stage_rows(report), numbers=(2, 3)),
        f"<p>{escape(report.wer_note)}</p>" if report.wer_note else "",
        "<h2>Fidelity</h2>",
        f"<p>{escape(gated)}</p>",
        table(
            (
                "stage",
                "against",
                "",
                "SNR dB",
                "cosine mean",
                "min",
                "5th percentile",
                "mean drift",
                "scale",
                "drift dB",
            ),
            [_pair_row(report, pair, pair in report.neighbours) for pair in pairs],
            numbers=range(3, 10),
        ),
    ]
    if report.neighbours:
        body += [
            figure(lambda axes: _time(axes, report.neighbours), "SNR along the window, each stage against the last"),
            figure(lambda axes: _channels(axes, report.neighbours), "SNR of the channels, from worst to best"),
            figure(
                lambda axes: _drift(axes, report.neighbours), "Shift of a channel's mean, and change of its spread"
            ),
        ]
    for stage in report.stages:
        if stage.layer_snr:
            body.append(
                figure(
                    partial(_layers, layer_snr=stage.layer_snr),
                    f"{stage.name}: SNR of its layers",
                    height=max(2.5, 0.22 * len(stage.layer_snr)),
                )
            )
    spoken = [stage for stage in report.stages if stage.transcripts]
    if spoken:
        rows = zip(*(stage.transcripts for stage in spoken), strict=True)
        body += ["<h2>Transcripts</h2>", table([stage.name for stage in spoken], [list(row) for row in rows])]
    return page(f"Fidelity of {report.model}", report.verdict(), body, "ok" if report.ok else "broken")


def _stage_rows(report: StageReport) -> list[list[str]]:
    rows = []
    for stage in report.stages:
        what = stage.why or ", ".join(f"{key} {value}" for key, value in stage.info.items() if key != "backend")
        state = "broken" if stage.name in report.broken else stage.status
        took = "" if stage.seconds_per_window is None else f"{1e3 * stage.seconds_per_window:.0f}"
        wer = "" if stage.wer is None else f"{stage.wer:.2%} of {stage.words}"
        rows.append([stage.name, state, took, wer, what])
    return rows


def _pair_row(report: StageReport, pair: Comparison, gated: bool) -> list[str]:
    found = pair.metrics

    def number(name: str, form: str = ".4f") -> str:
        values = [f"{found[key]:{form}}" for key in (name, f"{name}_heard") if key in found]
        return values[0] + "".join(f" ({value})" for value in values[1:]) if values else ""

    verdict = ("broken" if pair.stage in report.broken else "ok") if gated else "cumulated"
    scale = (
        f"{found['channel_scale_min']:.3f} to {found['channel_scale_max']:.3f}" if "channel_scale_min" in found else ""
    )
    return [
        pair.stage,
        pair.reference,
        verdict,
        number("snr_db", ".1f"),
        number("cosine_mean"),
        number("cosine_min"),
        number("cosine_p5"),
        number("channel_mean_drift_max", ".3f"),
        scale,
        number("drift_db", ".1f"),
    ]


def _label(pair: Comparison) -> str:
    return f"{pair.stage} against {pair.reference}"


def _time(axes: "Axes", pairs: list[Comparison]) -> None:
    for pair in pairs:
        snr = np.minimum(pair.snr_by_time, _TOP)
        axes.plot(np.linspace(0, 100, len(snr)), snr, label=_label(pair))
    axes.set(xlabel="position in the window, %", ylabel=f"SNR, dB ({_TOP} and above as {_TOP})")
    _finish(axes)


def _channels(axes: "Axes", pairs: list[Comparison]) -> None:
    for pair in pairs:
        axes.plot(np.sort(np.minimum(pair.snr_by_channel, _TOP)), label=_label(pair))
    axes.set(xlabel="channels, sorted by SNR", ylabel=f"SNR, dB ({_TOP} and above as {_TOP})")
    _finish(axes)


def _drift(axes: "Axes", pairs: list[Comparison]) -> None:
    for pair in pairs:
        axes.plot(pair.mean_drift, pair.scale, ".", alpha=0.6, label=_label(pair))
    axes.set(xlabel="shift of the mean, in deviations of the reference", ylabel="deviation / reference's")
    _finish(axes)


def _layers(axes: "Axes", layer_snr: Mapping[str, float]) -> None:
    names = list(layer_snr)
    axes.barh(range(len(names)), [layer_snr[name] for name in names])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="SNR, dB")


def _finish(axes: "Axes") -> None:
    axes.grid(alpha=0.3)
    axes.legend()
