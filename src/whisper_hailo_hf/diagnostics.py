"""What is installed, where an encoder can run here and why not elsewhere, what there is of Hailo, and whether a model
folder or a HEF is sound."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.hailo.advice import WRONG, Finding, advise
from whisper_hailo_hf.hailo.device import HailoRuntime, look_at_runtime
from whisper_hailo_hf.hailo.hef import Hef, read_hef
from whisper_hailo_hf.hailo.system import HailoSystem, look_at_system
from whisper_hailo_hf.version import __version__

if TYPE_CHECKING:
    from whisper_hailo_hf.backends import BackendStatus

# Distributions whose versions decide how the package behaves; the last ones are extras.
_DISTRIBUTIONS = (
    "torch", "transformers", "tokenizers", "huggingface_hub", "safetensors", "numpy", "soundfile", "soxr",
    "onnxruntime", "onnx", "av",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is as it must be, and what was found, in one line."""

    name: str
    passed: bool
    finding: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        versions: by name; None: not installed.
        machine: this machine.
        backends: by name, whether each can run here.
        hailo: what there is of Hailo, judged.
        system, runtime: the same as it was found.
        model: checks of a model folder, if one was named.
        hef: what a HEF says of itself, if one was named.
    """

    versions: dict[str, str | None]
    machine: dict[str, str]
    backends: dict[str, BackendStatus]
    hailo: tuple[Finding, ...] = ()
    system: HailoSystem = field(default_factory=HailoSystem)
    runtime: HailoRuntime = field(default_factory=HailoRuntime)
    model: tuple[Check, ...] = ()
    hef: Hef | None = None

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong with the model or HEF that was named."""
        judged = [finding for finding in self.hailo if finding.name.startswith("HEF")]
        return all(check.passed for check in self.model) and all(finding.level != WRONG for finding in judged)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain JSON types."""
        data = asdict(self)
        data["backends"] = {
            name: {"available": status.available, "reason": status.reason} for name, status in self.backends.items()
        }
        data["model"] = [asdict(check) for check in self.model] or None
        data["hef"] = self.hef.to_dict() if self.hef is not None else None
        return data


def diagnose(model: str | os.PathLike[str] | None = None, *, root: str | os.PathLike[str] = "/") -> Diagnosis:
    """Look at this machine and, if a model folder or a HEF is named, at that.

    Args:
        model: a model folder, or a file: a HEF.
        root: where the system's files lie.

    Raises:
        RequestError: neither a folder nor a HEF, or a damaged one.
    """
    from whisper_hailo_hf.backends import available_backends

    hef = read_hef(model) if model is not None and Path(model).is_file() else None
    system, runtime, versions = look_at_system(root), look_at_runtime(), _versions()
    checks = check_model(model) if model is not None and hef is None else []
    checks += [check for found in _hefs(model) for check in _check_hef(*found, runtime)] if hef is None else []
    return Diagnosis(
        versions=versions,
        machine=_machine(),
        backends=available_backends(),
        hailo=tuple(advise(system, runtime, versions["numpy"], hef)),
        system=system,
        runtime=runtime,
        model=tuple(checks),
        hef=hef,
    )


def _hefs(model: str | os.PathLike[str] | None) -> list[tuple[str, Path]]:
    """The HEFs in a model folder."""
    if model is None:
        return []
    folder = Path(model).expanduser()
    return [(str(path.relative_to(folder)), path) for path in sorted(folder.glob("*/encoder.hef"))]


def _check_hef(name: str, path: Path, runtime: HailoRuntime) -> list[Check]:
    """Whether a HEF can be read, by us and by the HailoRT that is here; one for another chip than this is no fault."""
    try:
        hef = read_hef(path)
    except RequestError as error:
        return [Check(f"{name}, content", False, _first_line(error))]
    contexts = max(network.contexts for network in hef.networks)
    said = f"for {hef.architecture}, DFC {hef.compiler}, {contexts} context{'s' * (contexts != 1)}"
    reason = hef.why_not_read_by(runtime.version) if runtime.version else None
    unfit = [why for device in runtime.devices if (why := hef.why_not_run_on(device.architecture))]
    if reason is None and unfit:
        return [Check(f"{name}, content", True, f"{said}; not for the device here")]
    return [Check(f"{name}, content", reason is None, said if reason is None else f"{said}; {reason}")]


def check_model(model: str | os.PathLike[str]) -> list[Check]:
    """Whether a folder holds all that transcription needs, and its artefacts are those that its config recorded.

    The config is loaded, the header of the weights read, the artefacts' hashes compared; no model is built.

    Raises:
        RequestError: not a folder.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise RequestError(f"{model} is no model folder: name one that is on this machine, or a HEF")
    return [
        _check_config(folder),
        _check_weights(folder),
        _check_files(folder, "tokenizer", "tokenizer.json", "vocab.json"),
        _check_files(folder, "feature extractor", "preprocessor_config.json", "processor_config.json"),
        _check_files(folder, "generation config", "generation_config.json"),
        *_check_artefacts(folder),
    ]


def _check_config(folder: Path) -> Check:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Check("config", False, _first_line(error))
    kind = type(config).model_type
    if kind == "whisper":
        return Check("config", True, "a stock Whisper: runs on torch; from_whisper() makes its encoder exchangeable")
    if kind != "whisper_hailo":
        return Check("config", False, f"a model of type {kind!r}, not a Whisper")
    preset = f", preset {config.encoder_preset}" if config.encoder_preset else ""
    return Check("config", True, f"a whisper_hailo with an encoder of the family {config.encoder_family}{preset}")


def _check_weights(folder: Path) -> Check:
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        elif (folder / "model.safetensors").is_file():
            names = ["model.safetensors"]
        elif (folder / "pytorch_model.bin").is_file():
            return Check("weights", True, "pytorch_model.bin (not opened: the format can run code)")
        else:
            return Check("weights", False, "no model.safetensors in the folder")
        tensors = size = 0
        for name in names:
            with safe_open(folder / name, framework="numpy") as file:
                tensors += len(list(file.keys()))
            size += (folder / name).stat().st_size
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return Check("weights", False, _first_line(error))
    return Check("weights", True, f"{tensors} tensors, {size / 1e6:.1f} MB")


def _check_files(folder: Path, name: str, *choices: str) -> Check:
    for choice in choices:
        if (folder / choice).is_file():
            return Check(name, True, choice)
    return Check(name, False, f"no {' or '.join(choices)}: save the processor of the original Whisper here")


def _check_artefacts(folder: Path) -> list[Check]:
    from whisper_hailo_hf.artefacts import sha256_of

    try:
        records = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("artefacts") or {}
    except (OSError, ValueError, AttributeError):
        return []
    checks = []
    for name, record in records.items():
        path = folder / name
        if not path.is_file():
            checks.append(Check(name, False, "is recorded in config.json but not there"))
        elif path.stat().st_size != record.get("size") or sha256_of(path) != record.get("sha256"):
            checks.append(Check(name, False, "is not the file that config.json recorded"))
        else:
            checks.append(Check(name, True, f"as recorded, {path.stat().st_size / 1e6:.1f} MB"))
    return checks


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"whisper_hailo_hf": __version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    try:
        versions["libsndfile"] = importlib.import_module("soundfile").__libsndfile_version__
    except (ImportError, OSError):  # OSError: the package is there, the library is not
        versions["libsndfile"] = None
    return versions


def _machine() -> dict[str, str]:
    machine = {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    board = Path("/proc/device-tree/model")  # a Raspberry Pi says here which one it is
    if board.is_file():
        machine["board"] = board.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    return machine


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
