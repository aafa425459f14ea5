"""The teacher cache: the teacher's states of a fixed list of windows, computed once and read ever after.

A folder holds `manifest.json` and shards, `states-00000.safetensors` and so on, of some windows each::

    states    float16 (windows, positions, d_model)
    mask      uint8   (windows, positions), the speech mask
    probe     float32 (windows, n_mels), each mel bin's mean over the window
    features  float16 (windows, n_mels, 2 * positions), only where they are stored

and ids and labels as JSON in the shard's metadata. What was said about the windows and the teacher, and each finished
shard's size and SHA-256, is in the manifest. Shard and manifest are written to a file beside them, flushed to the disk
and renamed, so that a process killed at any moment leaves nothing half written; the next build goes on after the last
finished shard.

Features are computed anew from the audio at each use unless they are stored; the probe tells whether they are still
those that the teacher heard.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from whisper_hailo_hf.artefacts import sha256_of
from whisper_hailo_hf.distillation.audio_store import progress_bar
from whisper_hailo_hf.distillation.dataset import DistillationDataset
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

FORMAT = 1
MANIFEST = "manifest.json"
LARGEST_FLOAT16 = 65_504.0
# Two ways to the same log-mel features differ by 1e-5, other audio in most mel bins by far more than this.
_PROBE_TOLERANCE = 0.01

logger = logging.getLogger(__name__)


class CacheError(WhisperHailoError):
    """A cache that is damaged or could not be written."""


class WindowsOfEpochs(Dataset[dict[str, Any]]):
    """The windows of several epochs of a data set, one epoch after the other."""

    def __init__(self, dataset: DistillationDataset, epochs: Sequence[int]) -> None:
        self.dataset, self.epochs = dataset, list(epochs)

    def __len__(self) -> int:
        return len(self.epochs) * len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        turn, place = divmod(index, len(self.dataset))
        return self.dataset.window_item(self.epochs[turn], place)


class TeacherCache:
    """A finished cache, open for reading; any window, in any order, by memory map.

    On opening, the manifest is checked against itself and the sizes of all shards against it; the SHA-256 of a shard
    when it is first read in a process, or all at once by `verify`.

    Args:
        folder: of the cache.
        teacher_fingerprint: that the states must come from; None takes any.

    Raises:
        RequestError: no cache there, one of another teacher, or one that is not finished.
        CacheError: it is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], teacher_fingerprint: str | None = None) -> None:
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise RequestError(f"{self.folder}: holds no teacher cache (no {MANIFEST})")
        self.settings: dict[str, Any] = manifest["settings"]
        self.records: dict[str, dict[str, Any]] = manifest["shards"]
        if teacher_fingerprint is not None:
            check_teacher(self.folder, self.settings, teacher_fingerprint)
        shards = shard_count(self.settings)
        if len(self.records) < shards:
            raise RequestError(
                f"{self.folder}: is not finished, {len(self.records)} of {shards} shards are there: build the rest"
            )
        for name, record in self.records.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != record["size"]:
                raise _damaged(path, "missing" if not path.is_file() else "of another size than recorded")
        self._open: dict[str, Any] = {}

    def __len__(self) -> int:
        return int(self.settings["windows"])

    @property
    def has_features(self) -> bool:
        return bool(self.settings["store_features"])

    def verify(self, progress: bool = True) -> None:
        """Check the SHA-256 of every shard. Raises `CacheError` for the first that differs."""
        with progress_bar("checking the teacher cache", len(self.records), progress) as advance:
            for name in self.records:
                self._check(name)
                advance(1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`teacher_states` float16 (positions, d_model), `speech_mask`, `id`, `probe`; perhaps `labels` and
        `input_features` float32 (n_mels, 2 * positions)."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        shard, row = divmod(index, int(self.settings["windows_per_shard"]))
        file, known = self._shard(shard_name(shard))
        entry: dict[str, Any] = {
            "teacher_states": file.get_slice("states")[row],
            "speech_mask": file.get_slice("mask")[row].bool(),
            "probe": file.get_slice("probe")[row],
        }
        if self.has_features:
            entry["input_features"] = file.get_slice("features")[row].float()
        return entry | known[row]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # maps are not carried to another process

    def _shard(self, name: str) -> tuple[Any, list[dict[str, Any]]]:
        if name not in self._open:
            self._check(name)
            file = safe_open(self.folder / name, "pt")
            self._open[name] = file, read_metadata(file)["items"]
        return self._open[name]

    def _check(self, name: str) -> None:
        if sha256_of(self.folder / name) != self.records[name]["sha256"]:
            raise _damaged(self.folder / name, "not what was recorded (SHA-256 differs)")


class CachedDistillationDataset(Dataset[dict[str, Any]]):
    """The windows of a finished cache with their `teacher_states`: float16, (positions, d_model).

    Its length is that of all cached epochs together, and every epoch of training is the same.

    Args:
        cache: open, or its folder.
        dataset: that the cache was built from, to make the features; not needed where they are stored.
        teacher_fingerprint: that the states must come from; None takes any.

    Raises:
        RequestError: the cache is of other windows or another teacher, or has no features and no data set is given.
        CacheError: when a window is read, if its features are not those that the teacher heard.
    """

    def __init__(
        self,
        cache: TeacherCache | str | os.PathLike[str],
        dataset: DistillationDataset | None = None,
        teacher_fingerprint: str | None = None,
    ) -> None:
        if isinstance(cache, TeacherCache):
            self.cache = cache
            if teacher_fingerprint is not None:
                check_teacher(cache.folder, cache.settings, teacher_fingerprint)
        else:
            self.cache = TeacherCache(cache, teacher_fingerprint)
        if dataset is not None:
            check_windows(self.cache.folder, self.cache.settings, dataset)
        elif not self.cache.has_features:
            raise RequestError(
                f"{self.cache.folder}: has no features stored, the data set that it was built from is needed"
            )
        self.source = None if dataset is None or self.cache.has_features else WindowsOfEpochs(dataset, self._epochs)

    @property
    def _epochs(self) -> list[int]:
        return list(self.cache.settings["epochs"])

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, index: int) -> dict[str, Any]:
        entry = self.cache[index]
        probe = entry.pop("probe")
        if self.source is None:
            return entry
        item = self.source[index]
        if not agrees(item["input_features"], probe):
            raise CacheError(
                f"{self.cache.folder}: window {index} is not the audio that the teacher heard; files or libraries "
                "have changed since: build the cache anew, or with its features stored"
            )
        return item | {"teacher_states": entry["teacher_states"]}


def check_teacher(folder: Path, settings: dict[str, Any], fingerprint: str) -> None:
    theirs = str(settings["teacher"])
    if theirs != fingerprint:
        raise RequestError(
            f"{folder}: is the cache of another teacher ({theirs[:12]}, not {fingerprint[:12]}): name another folder"
        )


def check_windows(
    folder: Path, settings: dict[str, Any], dataset: DistillationDataset, epochs: Sequence[int] | None = None
) -> None:
    """Raises a `RequestError` that names the first setting that differs."""
    ours: dict[str, Any] = {**dataset.settings(), "epochs": list(settings["epochs"] if epochs is None else epochs)}
    theirs: dict[str, Any] = {**settings["dataset"], "epochs": list(settings["epochs"])}
    for name in sorted({*ours, *theirs}):
        mine, other = (json.loads(json.dumps(known.get(name))) for known in (ours, theirs))
        if mine != other:
            raise RequestError(
                f"{folder}: is the cache of other windows ({name} was {_short(other)}, is {_short(mine)}): "
                "name another folder, or the same data and settings"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        stated = manifest.pop("sha256")
        intact = stated == _digest(manifest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{path}: is no manifest of a teacher cache: remove {folder} and build anew") from error
    if not intact:
        raise CacheError(f"{path}: has changed since it was written (SHA-256 differs): remove {folder} and build anew")
    if manifest["settings"]["format"] != FORMAT:
        raise RequestError(
            f"{folder}: is a cache in format {manifest['settings']['format']}, this version reads {FORMAT}"
        )
    return dict(manifest)


def write_manifest(folder: Path, settings: dict[str, Any], shards: dict[str, dict[str, Any]]) -> None:
    manifest = {"settings": settings, "shards": dict(sorted(shards.items()))}
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest | {"sha256": _digest(manifest)}, indent=1), encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to a file beside, flush it to the disk, rename it into place, flush the folder."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def record_of(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(path), "size": path.stat().st_size}


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def probe_of(features: Tensor) -> Tensor:
    """A fingerprint of features (n_mels, frames) that bears rounding: each mel bin's mean, (n_mels,)."""
    return features.mean(1)


def agrees(features: Tensor, probe: Tensor) -> bool:
    """Whether features are those that a probe was taken of."""
    return torch.allclose(probe_of(features), probe, rtol=0, atol=_PROBE_TOLERANCE)


def metadata_of(key: str, items: list[dict[str, Any]]) -> dict[str, str]:
    """A shard's metadata. One entry, as safetensors writes several in any order, and equal shards shall be equal."""
    return {"teacher_cache": json.dumps({"key": key, "items": items})}


def read_metadata(shard: Any) -> dict[str, Any]:
    """`key` and `items` of an open shard; empty if it is something else."""
    return dict(json.loads((shard.metadata() or {}).get("teacher_cache", "{}")))


def shard_key(settings: dict[str, Any]) -> str:
    """What every shard of a cache says of itself."""
    return _digest(settings)


def shard_name(number: int) -> str:
    return f"states-{number:05d}.safetensors"


def shard_count(settings: dict[str, Any]) -> int:
    return -(-int(settings["windows"]) // int(settings["windows_per_shard"]))


def _damaged(path: Path, reason: str) -> CacheError:
    return CacheError(f"{path}: is damaged, {reason}: build the cache again, which keeps what is intact")
