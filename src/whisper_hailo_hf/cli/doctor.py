"""`whisper-hailo doctor`: what is installed, where an encoder can run, and whether a model or HEF is sound."""

from typing import TYPE_CHECKING, Annotated

import typer

from whisper_hailo_hf.cli import console

if TYPE_CHECKING:
    from whisper_hailo_hf.diagnostics import Diagnosis
    from whisper_hailo_hf.hailo.hef import Hef, HefStream


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A model folder or a .hef file to check as well.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Report versions, this machine, each backend with why it can or cannot run here, and all there is of Hailo.

    The exit status is 1 if a model or a HEF was named and something is wrong with it.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.diagnostics import diagnose

    diagnosis = diagnose(model)
    if as_json:
        console.print_json(diagnosis.to_dict())
    else:
        _show(diagnosis, model)
    return 0 if diagnosis.sound else 1


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
    rows = []
    for finding in diagnosis.hailo:
        rows.append((finding.name, finding.level, finding.text))
        if finding.remedy:
            rows.append(("", "", f"do: {finding.remedy}"))
    console.print_table("Hailo", rows)
    if diagnosis.model:
        checks = [(check.name, "ok" if check.passed else "WRONG", check.finding) for check in diagnosis.model]
        console.print_table(f"Model {model}", checks)
    if diagnosis.hef is not None:
        _show_hef(diagnosis.hef)


def _show_hef(hef: "Hef") -> None:
    since = ".".join(map(str, hef.runtime_since))
    console.print_table(
        f"HEF {hef.path}",
        [
            ("compiled for", hef.architecture),
            ("compiler", f"DFC {hef.compiler}" + f", {hef.created}" * bool(hef.created)),
            ("readable by", f"HailoRT {since} or later 4.x"),
            ("header", f"version {hef.header_version}, checksum {hef.checksum}, {hef.size:,} bytes"),
            ("extensions", ", ".join(name or str(kind) for kind, name in hef.extensions) or "none"),
        ],
    )
    for network in hef.networks:
        single = network.contexts == 1
        facts = [
            ("contexts", "1" if single else f"{network.contexts}: weights are loaded anew for each frame"),
            ("layouts", str(network.layouts) if network.layouts else "one for all clusters"),
        ]
        if network.fps:
            facts.append(("compiler's estimate", f"{network.fps:.1f} frames a second"))
        facts += [("input", _line(stream)) for stream in network.inputs]
        facts += [("output", _line(stream)) for stream in network.outputs]
        console.print_table(f"Network {network.name}", facts)


def _line(stream: "HefStream") -> str:
    shape = "x".join(map(str, stream.shape))
    scale = f"{len(stream.scales)} scales" if stream.scales else f"scale {stream.scale:.6g}"
    low, high = stream.limits
    return (
        f"{stream.name}: {shape} {stream.format}, {8 * stream.data_bytes} bits, {scale}, zero at "
        f"{stream.zero_point:g}, calibrated for {low:.4g} to {high:.4g}"
    )
