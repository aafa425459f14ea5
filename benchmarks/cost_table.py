"""The tables of docs/cost-model.md: how far off the model is, and what it says of the presets and of stock Whisper.

    python benchmarks/cost_table.py --write docs/cost-model.md

Encoders are built with random weights, for weights change nothing here: the presets of the `conv` family for a Whisper
of that size, and stock Whisper's own encoder in the `attention` family with its whole window of 30 s. Without --write
the tables go to the terminal, as Markdown. Every time in them is modelled.
"""

import argparse
import re
import tempfile
from pathlib import Path

from transformers import WhisperConfig

from whisper_hailo_hf.compile.cost import PCIE_BYTES_PER_SECOND, CostReport, estimate_cost
from whisper_hailo_hf.compile.cost_model import coefficients, devices
from whisper_hailo_hf.compile.graph import view_graph
from whisper_hailo_hf.encoders import build_encoder
from whisper_hailo_hf.encoders.export import export_core
from whisper_hailo_hf.stock import config_from_stock

# d_model, layers, heads (openai/whisper, model dimensions)
WHISPER = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}
REPORTED = ("leave_one_out", "leave_one_family_out")


def whisper(size: str) -> WhisperConfig:
    d_model, layers, heads = WHISPER[size]
    return WhisperConfig(
        d_model=d_model, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * d_model
    )


def reports(size: str, family: str, time_axis: str) -> dict[tuple[str, str], CostReport]:
    """What the encoder of a Whisper of that size costs, by device and link."""
    preset = size if family == "conv" else None
    config = config_from_stock(whisper(size), family, preset, time_axis, None, None)
    core, _ = build_encoder(config)
    with tempfile.TemporaryDirectory() as folder:
        path = export_core(core, config.num_mel_bins, time_axis, Path(folder) / "encoder.onnx")
        view = view_graph(path)
    return {
        (device, link): estimate_cost(view, device, link) for device in devices() for link in PCIE_BYTES_PER_SECOND
    }


def short(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 20 else f"{milliseconds:.1f}"


def cost_tables(presets: list[str], stock: list[str], time_axis: str) -> str:
    counted = [
        "| encoder, 30 s | parameters | tables | G MAC | attention's share | largest activation | input | output |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    modelled = [
        "| encoder, 30 s | device | single context | chip ms | Pi 5 Gen3 ms | Pi 5 Gen2 ms |",
        "| --- " * 6 + "|",
    ]
    for kind, family, sizes in (("conv", "conv", presets), ("stock", "attention", stock)):
        for size in sizes:
            found = reports(size, family, time_axis)
            one = next(iter(found.values()))
            shape = "×".join(map(str, one.largest_shape[1:]))
            cells = (
                f"{kind} {size}",
                f"{one.parameters / 1e6:.2f} M",
                f"{one.table_elements / 1e6:.2f} M",
                f"{one.macs / 1e9:.2f}",
                f"{one.macs_by_kind.get('attention', 0):.0%}",
                f"{shape} ({one.largest_bytes / 2**20:.2f} MiB)",
                f"{one.input_bytes / 1e6:.2f} MB",
                f"{one.output_bytes / 1e6:.2f} MB",
            )
            counted.append(f"| {' | '.join(cells)} |")
            for device in devices():
                links = [found[device, link].total_ms for link in ("gen3", "gen2")]
                chip = found[device, "gen3"].chip_ms
                cells = (
                    f"{kind} {size}",
                    device,
                    f"{found[device, 'gen3'].single_context:.0%}",
                    f"{short(chip.low)} – **{short(chip.middle)}** – {short(chip.high)}",
                    *(f"{short(low)} – {short(high)}" for low, high in links),
                )
                modelled.append(f"| {' | '.join(cells)} |")
    return "\n".join([*counted, "", *modelled])


def error_tables() -> str:
    data = coefficients()
    heads = ("device", "networks", "in one context", "left out", "context guessed right")
    heads += ("factor, one context", "factor, several", "inside the interval", "high / low")
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for device, entry in data["devices"].items():
        errors = entry["errors"]
        for kind in REPORTED:
            one = errors[kind]
            cells = (
                device,
                str(errors["networks"]),
                str(errors["single_context"]),
                "one network" if kind == "leave_one_out" else f"one of {errors['families']} families",
                f"{one['context_right']:.0%}",
                f"{one['factor_single']:.2f}",
                f"{one['factor_multi']:.2f}",
                f"{one['inside_band']:.0%}",
                f"{one['band_ratio']:.1f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| device | network, never fitted | published ms | modelled ms |", "| --- " * 4 + "|"]
    for device, network, _, _, fps, low, middle, high in data["checks"]:
        lines.append(f"| {device} | {network} | {1000 / fps:.1f} | {low} – **{middle}** – {high} |")
    return "\n".join(lines)


def put(path: Path, name: str, table: str) -> None:
    """Replaces what stands between the marks of that name."""
    text = path.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not marks.search(text):
        raise SystemExit(f"{path} has no place for the table {name!r}")
    path.write_text(marks.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--presets", nargs="*", choices=WHISPER, default=list(WHISPER), help="presets of the conv family"
    )
    parser.add_argument("--stock", nargs="*", choices=WHISPER, default=list(WHISPER), help="sizes of stock Whisper")
    parser.add_argument("--time-axis", choices=("width", "height"), default="width")
    parser.add_argument("--write", type=Path, help="a Markdown file with places for the tables")
    arguments = parser.parse_args()
    tables = {
        "errors": error_tables(),
        "costs": cost_tables(arguments.presets, arguments.stock, arguments.time_axis),
    }
    for name, table in tables.items():
        if arguments.write:
            put(arguments.write, name, table)
        else:
            print(f"{table}\n")


if __name__ == "__main__":
    main()
