"""What lies beside the weights: files made from the encoder, their records in the config, and the checks before use.

A record holds `sha256`, `size` (bytes), `weights` (the fingerprint of the core it was made from), `source` (the
checkpoint that the model was built from), and who made it with which `versions` of their tools. A file without a
record, with another content, or made from other weights is never used.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.version import __version__

logger = logging.getLogger(__name__)

ONNX_PATH = "onnx/encoder.onnx"
ONNX_INT8_PATH = "onnx/encoder_int8.onnx"
HEF_PATH = "hailo8l/encoder.hef"  # and those for other chips beside it, as hailo8/encoder.hef


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@torch.no_grad()
def fingerprint(core: nn.Module) -> str:
    """SHA-256 over the names, shapes and float32 values of a core's parameters and buffers, as hex.

    The same whatever the device and, for weights that were stored in half precision, the dtype.
    """
    return _digest(sorted(core.state_dict().items()))


def stored_fingerprint(folder: str | os.PathLike) -> str:
    """The same of the weights in a model folder, which are not loaded into a model for it.

    Raises:
        RequestError: no weights of ours in safetensors files there, or damaged ones.
    """
    places: dict[str, tuple[Path, str]] = {}  # by name within the core: the file, and the name there
    for path, name, _ in _stored(folder):
        # of a whole model, of one without a head, or of an encoder alone
        inner = name.removeprefix("model.").removeprefix("encoder.")
        if inner.startswith("core."):
            places[inner.removeprefix("core.")] = path, name
    if not places:
        raise RequestError(f"{folder} has no encoder's weights in safetensors files: save the model into it")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for inner, (path, name) in sorted(places.items()):
            with safe_open(path, "pt") as file:
                yield inner, file.get_tensor(name)

    return _digest(tensors())


def stored_parameters(folder: str | os.PathLike) -> int:
    """How many parameters the weights in a model folder have, without statistics of normalisations."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(shape) for _, name, shape in _stored(folder) if not name.endswith(statistics))


def _stored(folder: str | os.PathLike) -> Iterator[tuple[Path, str, list[int]]]:
    for path in weight_files(folder):
        try:
            with safe_open(path, "pt") as file:
                found = [(path, name, file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RequestError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        yield from found


def weight_files(folder: str | os.PathLike) -> list[Path]:
    """The safetensors files of a model folder, one or as many as its index names; none if there are none."""
    index = Path(folder) / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [Path(folder) / name for name in names]
    single = Path(folder) / "model.safetensors"
    return [single] if single.is_file() else []


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def tool_versions(*packages: str) -> dict[str, str]:
    """Versions of this package and of those of these that are installed, for a record."""
    found = {"whisper_hailo_hf": __version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def checked_names(records: dict[str, Any]) -> list[str]:
    """The files that the records name; a `RequestError` for one that lies outside the model folder."""
    for name in records:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise RequestError(
                f"config.json names an artefact outside the model folder ({name!r}): do not use this model"
            )
    return list(records)


def record(path: str | os.PathLike, weights: str, **facts: Any) -> dict[str, Any]:
    """The record of a file that was made from the weights of this fingerprint."""
    return {"sha256": sha256_of(path), "size": os.path.getsize(path), "weights": weights, **facts}


def why_unfit(path: str | os.PathLike, entry: dict[str, Any] | None, weights: str, **facts: Any) -> str | None:
    """None if the file may be used, otherwise what is wrong with it.

    Args:
        path: the file.
        entry: its record, from the config.
        weights: fingerprint of the weights it shall stand for.
        facts: further facts that its record must agree with (`time_axis`, say).
    """
    name = Path(path).name
    if entry is None:
        return f"{name} has no record in config.json"
    if entry.get("weights") != weights:
        return f"{name} was made from other weights than those loaded"
    for fact, value in facts.items():
        if entry.get(fact) != value:
            return f"{name} was made for {fact} {entry.get(fact)!r}, not {value!r}"
    if entry.get("size") != os.path.getsize(path) or entry.get("sha256") != sha256_of(path):
        return f"{name} is damaged: its content is not what config.json recorded"
    return None


def write_records(folder: str | os.PathLike, records: dict[str, Any]) -> None:
    """Adds records to `config.json` in a model folder."""
    config = Path(folder) / "config.json"
    data = json.loads(config.read_text(encoding="utf-8"))
    data["artefacts"] = (data.get("artefacts") or {}) | records
    partial = config.with_name(f"{config.name}.{uuid.uuid4().hex}.part")
    try:
        partial.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, config)
    finally:
        partial.unlink(missing_ok=True)


def copy_fitting(
    files: dict[str, Path], records: dict[str, Any], weights: str, folder: str | os.PathLike
) -> dict[str, Any]:
    """Copies into a model folder those files that still stand for weights of this fingerprint; says of the others in
    a line why they stay behind.

    Args:
        files: where each lies, by its name in a model folder.
        records: their records.
        weights: fingerprint of the weights.
        folder: the model folder.

    Returns:
        The records of the files that were copied.
    """
    kept: dict[str, Path] = {}
    for name, path in files.items():
        if (reason := why_unfit(path, records.get(name), weights)) is None:
            kept[name] = path
        else:
            logger.warning("%s stays behind: %s", name, reason)
    for name, path in kept.items():
        there = Path(folder) / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if not there.exists() or not path.samefile(there):
            shutil.copyfile(path, there)
    return {name: records[name] for name in kept}
