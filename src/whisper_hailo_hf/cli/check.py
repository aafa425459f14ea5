"""`whisper-hailo check`: what Hailo's compiler would do with an ONNX file, before and after."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whisper_hailo_hf.cli import console

if TYPE_CHECKING:
    from whisper_hailo_hf.compile import CostReport, GraphReport, HnDiff


def check(
    file: Annotated[Path, typer.Argument(help="ONNX file, from `export` or from anywhere.", show_default=False)],
    device: Annotated[str, typer.Option(help="Chip: hailo8l, hailo8 or hailo10h.")] = "hailo8l",
    cost: Annotated[bool, typer.Option("--cost", help="Also count the work and model the time on the chip.")] = False,
    har: Annotated[
        Path | None, typer.Option(help="Also compare with what the compiler made of it: a HAR.", show_default=False)
    ] = None,
    nodes: Annotated[bool, typer.Option("--nodes", help="Also list every node.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Judge every node of an ONNX file by what is publicly known of Hailo's compiler. Nothing of Hailo's is needed.

    Exit status 1 if anything is rewritten or rejected, or if the HAR is not the same network.
    """
    from whisper_hailo_hf.compile import check_graph, diff_har, estimate_cost

    report = check_graph(file, device)
    costs = estimate_cost(file, device) if cost else None
    diff = diff_har(file, har) if har is not None else None
    if as_json:
        document: dict[str, Any] = report.to_dict()
        document |= {"cost": costs.to_dict()} if costs is not None else {}
        document |= {"har": diff.to_dict()} if diff is not None else {}
        console.print_json(document)
    else:
        _print_report(report, nodes)
        if costs is not None:
            _print_cost(costs)
        if diff is not None:
            _print_diff(diff, nodes)
    if not report.passed or (diff is not None and not diff.ok):
        raise typer.Exit(1)


def _print_report(report: "GraphReport", nodes: bool) -> None:
    summary = ", ".join(f"{count} {status}" for status, count in report.counts.items() if count)
    wide = sum(one.bits == 16 for one in report.nodes)
    rows = [
        ("result", "passed" if report.passed else "failed: the compiler would not keep this network as it is"),
        ("nodes", f"{len(report.nodes)}: {summary}"),
        ("16 bit", f"{wide} nodes" if wide else "none needs it"),
    ]
    console.print_table(f"{report.path} for {report.device}", rows)
    for rule, found in report.by_rule():
        if rule.severity in ("allowed", "fused"):
            continue
        first = found[0].name + (f" ({found[0].detail})" if found[0].detail else "")
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        lines = [
            ("where", first + more),
            ("what", rule.match),
            ("compiler", rule.compiler),
            ("instead", rule.instead),
            ("seen in", f"{rule.source} (DFC {rule.dfc})"),
        ]
        console.print_table(f"{rule.severity}: {rule.id}", lines)
    if nodes:
        console.print_table(
            "nodes",
            [
                (one.status, one.operator, one.name, " x ".join(map(str, one.shape or ())), ", ".join(one.rules))
                for one in report.nodes
            ],
        )


def _print_cost(costs: "CostReport") -> None:
    console.print_table("cost", costs.rows())


def _print_diff(diff: "HnDiff", nodes: bool) -> None:
    console.print_table(f"{diff.har}, {diff.stage}", [("result", diff.summary()), *diff.finding_rows()])
    if nodes:
        console.print_table("nodes and layers", diff.rows())
