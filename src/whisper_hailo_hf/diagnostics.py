"""What is installed, where an encoder can run here and why not elsewhere, and whether a model folder is sound."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_hailo_hf.errors import RequestError
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
    """Versions by name (None: not installed), the machine, backends by name, checks of a model if one was named."""

    versions: dict[str, str | None]
    machine: dict[str, str]
    backends: dict[str, BackendStatus]
    model: tuple[Check, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain JSON types."""
        data = asdict(self)
        data["backends"] = {
            name: {"available": status.available, "reason": status.reason} for name, status in self.backends.items()
        }
        data["model"] = [asdict(check) for check in self.model] or None
        return data


def diagnose(model: str | os.PathLike[str] | None = None) -> Diagnosis:
    """Look at this machine and, if a model folder is named, at that.

    Raises:
        RequestError: the model is not a folder.
    """
    from whisper_hailo_hf.backends import available_backends

    checks = tuple(check_model(model)) if model is not None else ()
    return Diagnosis(_versions(), _machine(), available_backends(), checks)


def check_model(model: str | os.PathLike[str]) -> list[Check]:
    """Whether a folder holds all that transcription needs, and its artefacts are those that its config recorded.

    The config is loaded, the header of the weights read, the artefacts' hashes compared; no model is built.

    Raises:
        RequestError: not a folder.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise RequestError(f"{model} is no model folder: name one that is on this machine")
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
