"""The model script (.alls) that tells Hailo's compiler how to make integers of a network: written, and read.

Commands and arguments as in DFC 3.33, in hailo_model_zoo 2.18 (cfg/alls) and in hailocs/hailo-whisper. A script that
is written here holds no comment, since no public script shows one.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from whisper_hailo_hf.compile.hn_diff import HnDiff
from whisper_hailo_hf.encoders.placement import OUTPUT
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.hailo.har import Har

ENOUGH_WINDOWS = 1024  # fewer, and the compiler lowers its optimization level
CHECKER = "model_optimization_config(checker_cfg, policy=enabled)"
COMMANDS = frozenset(
    [
        "allocator_param",
        "change_output_activation",
        "compression_param",
        "context_switch_param",
        "model_optimization_config",
        "model_optimization_flavor",
        "normalization",
        "performance_param",
        "platform_param",
        "post_quantization_optimization",
        "pre_quantization_optimization",
        "quantization_param",
        "remove_node",
        "resources_param",
        "set_seed",
    ]
)
_COMMAND = re.compile(r"(?:(?P<targets>[\w/]+(?:\s*,\s*[\w/]+)*)\s*=\s*)?(?P<name>\w+)\s*\((?P<arguments>.*)\)", re.S)


@dataclass(frozen=True)
class Command:
    """One command of a script: `name(arguments)`, perhaps with `targets =` before it, and the line it begins in."""

    name: str
    arguments: tuple[str, ...]
    targets: str | None
    line: int

    def value(self, key: str) -> str | None:
        """The value of a named argument."""
        pairs = (one.partition("=") for one in self.arguments)
        return next((value.strip() for name, sign, value in pairs if sign and name.strip() == key), None)


@dataclass(frozen=True)
class ScriptLine:
    """A command that was generated, and why it is there."""

    command: str
    why: str


def generate(
    har: Har,
    diff: HnDiff,
    entries: int,
    *,
    report: Mapping[str, Any] | None = None,
    finetune_epochs: int = 4,
    noise_check: bool = True,
) -> list[ScriptLine]:
    """A script for a parsed encoder.

    Args:
        har: the parsed network, whose layers' names the script uses.
        diff: which node of the ONNX graph became which layer.
        entries: windows in the calibration set.
        report: of `quantize_encoder`, as JSON: its 16-bit places and its 4-bit weights are asked for. Without one,
            the sums of the residual stream and the output are kept in 16 bits, as Hailo does for its own Whisper.
        finetune_epochs: passes over the calibration set in the compiler's own fine-tuning; 0 leaves it out.
        noise_check: whether the compiler shall look for the layers that the noise comes from.
    """
    enough, size = entries >= ENOUGH_WINDOWS, min(entries, ENOUGH_WINDOWS)
    level = 2 if enough and finetune_epochs else 1
    lines = [
        ScriptLine(
            f"model_optimization_flavor(optimization_level={level}, compression_level=0)",
            "fine-tuning of all layers, no 4-bit weights"
            if level == 2
            else "bias correction, no fine-tuning by itself, no 4-bit weights",
        ),
        ScriptLine(
            f"model_optimization_config(calibration, batch_size=8, calibset_size={size})",
            f"all {size} windows are used" if size == entries else f"{size} of {entries} windows are used",
        ),
    ]
    lines += _precisions(har, diff, report)
    if finetune_epochs:
        lines.append(
            ScriptLine(
                f"post_quantization_optimization(finetune, policy=enabled, dataset_size={size}, "
                f"epochs={finetune_epochs}, batch_size=8, learning_rate=1e-05)",
                "trains the integers towards the float network; hours on a CPU",
            )
        )
    else:
        lines.append(ScriptLine("post_quantization_optimization(finetune, policy=disabled)", "as asked"))
    policy = f"enabled, dataset_size={min(16, entries)}, analyze_mode=simple" if noise_check else "disabled"
    lines.append(
        ScriptLine(
            f"model_optimization_config(checker_cfg, policy={policy})",
            "the noise of each layer is measured" if noise_check else "the noise check is left out, as asked",
        )
    )
    lines.append(ScriptLine("performance_param(optimize_for_batch=1)", "one window at a time"))
    return lines


def _precisions(har: Har, diff: HnDiff, report: Mapping[str, Any] | None) -> list[ScriptLine]:
    """Commands for what does not have 8 bits."""
    names = [layer.short_name for layer in har.layers.values()]
    if report is None:
        adds = [layer.short_name for layer in har.layers.values() if layer.type == "ew_add"]
        found = [("a16_w16", adds, "sums of the residual stream")] if adds else []
        output = True
    else:
        modes: dict[str, list[str]] = {}
        became = {match.node: match.layers for match in diff.matches}
        for layer in report["layers"]:
            mode = _mode(layer)
            if mode is None or layer["kind"] == "input":
                continue
            if not became.get(layer["name"]):
                raise RequestError(
                    f"the quantizer's report names the layer {layer['name']}, which this graph does not have: make "
                    "the report anew with whisper-hailo quantize --report"
                )
            wanted = [name.rpartition("/")[2] for name in became[layer["name"]]]
            modes.setdefault(mode, []).extend(name for name in wanted if har_type(har, name) not in _CARRIERS)
        found = [(mode, list(dict.fromkeys(layers)), "as in the quantizer's report") for mode, layers in modes.items()]
        output = OUTPUT in report["settings"]["sixteen_bit"]
    lines = [
        ScriptLine(f"quantization_param({_group(layers, names)}, precision_mode={mode})", why)
        for mode, layers, why in found
    ]
    if output:
        ends = [layer.short_name for layer in har.layers.values() if layer.type == "output_layer"]
        lines.append(
            ScriptLine(
                f"quantization_param({_group(ends, names)}, precision_mode=a16_w16)",
                "the encoder's states leave the chip in 16 bits",
            )
        )
    return lines


_CARRIERS = ("const_input", "shortcut", "external_pad", "resize", "format_conversion")


def har_type(har: Har, short_name: str) -> str:
    """Type of a layer by its name without scope."""
    return next((layer.type for layer in har.layers.values() if layer.short_name == short_name), "")


def _mode(layer: Mapping[str, Any]) -> str | None:
    if 16 in (layer["input_bits"], layer["weight_bits"]):
        return "a16_w16"
    return "a8_w4" if layer["weight_bits"] == 4 else None


def _group(layers: Sequence[str], names: Sequence[str]) -> str:
    """One name, a pattern if it means just these, or a list."""
    if len(layers) == 1:
        return layers[0]
    stem = layers[0].rstrip("0123456789")
    if set(layers) == {name for name in names if fnmatchcase(name, f"{stem}*")}:
        return f"{{{stem}*}}"
    return f"[{', '.join(layers)}]"


def script_text(lines: Iterable[ScriptLine]) -> str:
    """The script as a file holds it."""
    return "".join(f"{line.command}\n" for line in lines)


def read_script(path: Path) -> str:
    """The text of a user's script.

    Raises:
        RequestError: there is no such file, or it is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RequestError(f"{path}: no such model script") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read as a model script: {error}") from None


def parse_script(text: str, name: str) -> list[Command]:
    """The commands of a script.

    Args:
        text: the script.
        name: of its file, for messages.

    Raises:
        RequestError: something that is no command; the line says where.
    """
    commands: list[Command] = []
    pending, begun = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        code = line.partition("#")[0].strip()
        if not code:
            continue
        if not pending:
            begun = number
        pending = f"{pending} {code}".strip()
        depth = sum(pending.count(one) for one in "([{") - sum(pending.count(one) for one in ")]}")
        if depth > 0:
            continue
        match = _COMMAND.fullmatch(pending) if depth == 0 else None
        if match is None:
            raise RequestError(f"{name}, line {begun}: {pending[:80]!r} is no command of the form name(arguments)")
        arguments = tuple(part for part in _split(match["arguments"]) if part)
        commands.append(Command(match["name"], arguments, match["targets"], begun))
        pending = ""
    if pending:
        raise RequestError(f"{name}, line {begun}: {pending[:80]!r} lacks a closing bracket")
    return commands


def _split(arguments: str) -> list[str]:
    """Arguments at the commas that stand in no bracket."""
    parts, depth, current = [], 0, ""
    for char in arguments:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    return [*parts, current.strip()]


def check_script(text: str, name: str, har: Har, entries: int, noise_check: bool) -> list[str]:
    """Holds a script to what is known of the compiler, before hours are spent on it.

    Returns:
        Warnings.

    Raises:
        RequestError: what the compiler would refuse, or a noise check that is left out without being asked to.
    """
    commands, warnings = parse_script(text, name), []
    names = {layer.short_name for layer in har.layers.values()} | set(har.layers)
    checker = None
    for command in commands:
        where = f"{name}, line {command.line}"
        if command.name not in COMMANDS:
            close = difflib.get_close_matches(command.name, COMMANDS, 1, 0.8)
            if close:
                raise RequestError(f"{where}: no command {command.name!r}; {close[0]!r} is meant")
            warnings.append(f"{where}: {command.name!r} is in no public script; it is left to the compiler to judge")
        if command.name == "normalization" and command.targets is None:
            raise RequestError(
                f"{where}: the compiler's parser wants an assignment: write normalization1 = normalization(...)"
            )
        if command.name == "quantization_param":
            warnings += _unknown_layers(command, where, names)
        first = command.arguments[0] if command.arguments else ""
        if command.name == "model_optimization_config" and first == "checker_cfg":
            checker = command.value("policy")
        if command.name == "model_optimization_config" and first == "calibration":
            size = command.value("calibset_size")
            if size is not None and size.isdecimal() and int(size) > entries:
                raise RequestError(f"{where}: calibset_size={size}, but the calibration set has {entries} windows")
    used = {command.name: command for command in commands}
    highest = used.get("performance_param")
    if "resources_param" in used and highest and highest.value("compiler_optimization_level") == "max":
        raise RequestError(f"{name}: compiler_optimization_level=max and resources_param exclude each other")
    if noise_check and checker != "enabled":
        raise RequestError(
            f"{name} {'turns the noise check off' if checker else 'does not turn the noise check on'}: add "
            f"{CHECKER}, or say that it shall be left out with --skip-noise-check"
        )
    return warnings


def _unknown_layers(command: Command, where: str, names: set[str]) -> list[str]:
    first = command.arguments[0] if command.arguments else ""
    wanted = [part.strip() for part in first.strip("[]").split(",")] if first.startswith("[") else [first]
    warnings = []
    for one in wanted:
        if one.startswith("{") and one.endswith("}"):
            if not any(fnmatchcase(name, one[1:-1].strip()) for name in names):
                warnings.append(f"{where}: no layer of this network is meant by {one}")
        elif one not in names:
            close = difflib.get_close_matches(one, names, 3)
            raise RequestError(
                f"{where}: this network has no layer {one!r}" + (f"; {', '.join(close)}?" if close else "")
            )
    return warnings
