"""What lies beside the weights: files made from the encoder, their records in the config, and the checks before use.

A record holds `sha256`, `size` (bytes), `weights` (the fingerprint of the core it was made from) and who made it. A
file without a record, with another content, or made from other weights is never used.
"""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from whisper_hailo_hf.errors import RequestError

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
    digest = hashlib.sha256()
    for name, tensor in sorted(core.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


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
    """Copies into a model folder those files that still stand for weights of this fingerprint.

    Args:
        files: where each lies, by its name in a model folder.
        records: their records.
        weights: fingerprint of the weights.
        folder: the model folder.

    Returns:
        The records of the files that were copied.
    """
    kept = {name: path for name, path in files.items() if why_unfit(path, records.get(name), weights) is None}
    for name, path in kept.items():
        there = Path(folder) / name
        there.parent.mkdir(parents=True, exist_ok=True)
        if not there.exists() or not path.samefile(there):
            shutil.copyfile(path, there)
    return {name: records[name] for name in kept}
