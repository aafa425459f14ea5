"""The HEF that came out, held to the network that went in, as far as that can be seen without a chip."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from whisper_hailo_hf.compile.model_script import parse_script
from whisper_hailo_hf.hailo.har import Har
from whisper_hailo_hf.hailo.hef import Hef, HefStream, read_hef

_RANGES_APART = 4.0  # the integers' range and the emulator's: an 8-bit output with a 16-bit scale is 257 times off


def check_hef(
    path: Path,
    *,
    hw_arch: str,
    dfc: str,
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    output_range: Sequence[float] | None,
    script: str,
    har: Har,
) -> dict[str, Any]:
    """What the file says of itself, and where that is not as it should be.

    Args:
        path: the HEF.
        hw_arch: what it was compiled for.
        dfc: version of the compiler.
        input_shape, output_shape: of the parsed network, (height, width, channels).
        output_range: least and greatest value that the quantized emulation gave; None if it gave none.
        script: the model script.
        har: the parsed network.

    Returns:
        The facts; `problems` are lines for what must not be used, `warnings` for what is odd.
    """
    hef = read_hef(path)
    problems, warnings = [], []
    if hef.architecture != hw_arch:
        problems.append(f"the HEF is for {hef.architecture}, not for {hw_arch}")
    if hef.compiler != dfc:
        warnings.append(f"the HEF says that DFC {hef.compiler} made it, the compiler's environment has {dfc}")
    if len(hef.networks) != 1:
        problems.append(f"the HEF holds {len(hef.networks)} networks")
    network = hef.networks[0]
    ends = {"input": (network.inputs, input_shape), "output": (network.outputs, output_shape)}
    for what, (streams, shape) in ends.items():
        if len(streams) != 1:
            problems.append(f"the HEF has {len(streams)} {what}s where the network has one")
        elif tuple(streams[0].shape) != tuple(shape):
            problems.append(f"the HEF's {what} has the shape {list(streams[0].shape)}, the network's {list(shape)}")
    if len(network.outputs) == 1:
        problems += _output(network.outputs[0], output_range, asks_for_16_bits(script, har))
    return {"hef": describe(hef), "problems": problems, "warnings": warnings}


def _output(output: HefStream, wanted: Sequence[float] | None, sixteen_bit: bool) -> list[str]:
    """The output's integers must span the values that the emulation gave; DFC 3.33 has been seen to compile an output
    that was asked for in 16 bits with 8, and to leave the scale of 16 (community.hailo.ai, post 19705)."""
    problems, bits = [], 8 * output.data_bytes
    if sixteen_bit and bits == 8:
        problems.append("the output was asked for in 16 bits and has 8: take it out of the model script, or report it")
    low, high = ((level - output.zero_point) * output.scale for level in (0, 2**bits - 1))
    if wanted is not None and high > low:
        span = max(wanted[1], 0.0) - min(wanted[0], 0.0)
        if span > _RANGES_APART * (high - low) or (high - low) > 64 * _RANGES_APART * span:
            problems.append(
                f"the output's integers span {low:.3g} to {high:.3g} where the emulation gave {wanted[0]:.3g} to "
                f"{wanted[1]:.3g}: its scale does not belong to its {bits} bits"
            )
    return problems


def asks_for_16_bits(script: str, har: Har) -> bool:
    """Whether a model script wants the network's output in 16 bits."""
    outputs = {layer.short_name for layer in har.layers.values() if layer.type == "output_layer"}
    for command in parse_script(script, "model script"):
        first = command.arguments[0] if command.arguments else ""
        if (
            command.name == "model_optimization_config"
            and first == "globals"
            and command.value("output_16bit") == "enabled"
        ):
            return True
        if command.name == "quantization_param" and command.value("precision_mode") == "a16_w16":
            names = [name.strip().rpartition("/")[2] for name in first.strip("[]{}").split(",")]
            if any(fnmatchcase(output, name) for output in outputs for name in names):
                return True
    return False


def describe(hef: Hef) -> dict[str, Any]:
    """What a record keeps of a HEF."""
    network = hef.networks[0]
    return {
        "hw_arch": hef.architecture,
        "dfc": hef.compiler,
        "header_version": hef.header_version,
        "runtime_since": ".".join(map(str, hef.runtime_since)),
        "contexts": network.contexts,
        "inputs": [_stream(one) for one in network.inputs],
        "outputs": [_stream(one) for one in network.outputs],
    }


def _stream(stream: HefStream) -> dict[str, Any]:
    return {
        "name": stream.name,
        "shape": list(stream.shape),
        "format": stream.format,
        "dtype": f"uint{8 * stream.data_bytes}",
        "scale": stream.scale,
        "zero_point": stream.zero_point,
    }
