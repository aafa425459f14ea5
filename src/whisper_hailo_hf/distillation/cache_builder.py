"""Building a teacher cache: shard after shard, so that a build killed at any moment goes on where it stopped."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from whisper_hailo_hf.artefacts import sha256_of
from whisper_hailo_hf.distillation.audio_store import progress_bar
from whisper_hailo_hf.distillation.cache import (
    FORMAT,
    MANIFEST,
    CacheError,
    TeacherCache,
    WindowsOfEpochs,
    agrees,
    check_teacher,
    check_windows,
    metadata_of,
    probe_of,
    read_manifest,
    read_metadata,
    record_of,
    replacing,
    shard_count,
    shard_key,
    shard_name,
    write_manifest,
)
from whisper_hailo_hf.distillation.dataset import DistillationDataset
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

LARGEST_FLOAT16 = 65_504.0
_LOCK = ".lock"
_MAY_BE_THERE = {_LOCK, f"{MANIFEST}.tmp"}  # of a build that died before it could write its manifest

logger = logging.getLogger(__name__)


class TeacherLike(Protocol):
    """What the cache needs of a teacher."""

    fingerprint: str

    @property
    def d_model(self) -> int: ...
    @property
    def n_mels(self) -> int: ...
    @property
    def positions(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def encode(self, input_features: Tensor) -> Tensor: ...


def estimate_bytes(
    windows: int, positions: int, d_model: int, n_mels: int, *, store_features: bool
) -> tuple[int, str]:
    """Bytes that a cache takes on disk, and the arithmetic in words."""
    size = windows * positions * d_model * 2
    words = f"{windows} windows × {positions} positions × {d_model} channels × 2 bytes"
    if store_features:
        size += windows * n_mels * 2 * positions * 2
        words += f" + {windows} × {n_mels} mel bins × {2 * positions} frames × 2 bytes"
    return size, f"{words} = {_amount(size)}"


def build_teacher_cache(
    dataset: DistillationDataset,
    teacher: TeacherLike,
    folder: str | os.PathLike[str],
    *,
    epochs: Sequence[int] = (0,),
    store_features: bool = False,
    batch_size: int = 8,
    windows_per_shard: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> TeacherCache:
    """Compute what is not there yet of a cache, and open it. A finished cache is only opened.

    Args:
        dataset: the windows.
        teacher: gives the states, and keeps its own device.
        folder: the cache's own folder, made if need be.
        epochs: of the data set, whose windows are cached.
        store_features: also keep the features, so that the audio is not needed any more.
        batch_size: windows that the teacher takes at once.
        windows_per_shard: windows in a file, whose work is lost at most when the process dies.
        num_workers: processes that make windows beside the teacher.
        progress: show a bar on a terminal.

    Raises:
        RequestError: teacher and data do not fit each other, the folder holds something else or a cache of another
            teacher or of other windows, the disk is too small, or another process is building there.
        CacheError: the teacher's states are not finite numbers, or the disk is full after all.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    settings = _settings(dataset, teacher, epochs, store_features, windows_per_shard)
    if not (folder / MANIFEST).exists() and folder.is_dir() and {p.name for p in folder.iterdir()} - _MAY_BE_THERE:
        raise RequestError(f"{folder}: is not empty and no teacher cache, name another folder for it")
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(folder / _LOCK).acquire(timeout=0)
        except Timeout as error:
            raise RequestError(f"{folder}: another process is building this cache, wait for it or stop it") from error
    with held:
        _Builder(dataset, teacher, folder, settings).build(batch_size, num_workers, progress)
    return TeacherCache(folder, teacher_fingerprint=teacher.fingerprint)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """What the disk refuses becomes one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise CacheError(f"{folder}: cannot be written ({reason}): build again to go on where it stopped") from error


class _Builder:
    def __init__(
        self, dataset: DistillationDataset, teacher: TeacherLike, folder: Path, settings: dict[str, Any]
    ) -> None:
        self.windows = WindowsOfEpochs(dataset, settings["epochs"])
        self.dataset, self.teacher, self.folder, self.settings = dataset, teacher, folder, settings
        self.shards: dict[str, dict[str, Any]] = {}

    def build(self, batch_size: int, num_workers: int, progress: bool) -> None:
        self._resume()
        each = int(self.settings["windows_per_shard"])
        todo = [n for n in range(shard_count(self.settings)) if shard_name(n) not in self.shards]
        indices = [list(range(n * each, min((n + 1) * each, len(self.windows)))) for n in todo]
        if not todo:
            return
        missing = sum(map(len, indices))
        self._check_disk(missing)
        with _writing(self.folder):
            write_manifest(self.folder, self.settings, self.shards)
        # One loader for all shards, so that its workers run on from one to the next. No batch spans two shards.
        batches = [shard[i : i + batch_size] for shard in indices for i in range(0, len(shard), batch_size)]
        loader = DataLoader(self.windows, batch_sampler=batches, num_workers=num_workers, collate_fn=list)
        items = iter(loader)
        with progress_bar("caching the teacher's states", missing, progress) as advance:
            for number, shard in zip(todo, indices, strict=True):
                part: list[dict[str, Any]] = []
                while len(part) < len(shard):
                    batch = self._next(items)
                    part += self._encode(batch)
                    advance(len(batch))
                self._write(number, part)

    def _next(self, items: Iterator[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        try:
            return next(items)
        except WhisperHailoError as error:
            # A worker's error comes with its traceback, the message last.
            message = str(error).strip().splitlines()[-1]
            name = f"{type(error).__module__}.{type(error).__qualname__}: "
            raise type(error)(message.removeprefix(name)) from error

    def _resume(self) -> None:
        """Take over what an earlier build finished, and clear away what it did not."""
        manifest = read_manifest(self.folder)
        if manifest is None:
            return
        check_teacher(self.folder, manifest["settings"], self.teacher.fingerprint)
        check_windows(self.folder, manifest["settings"], self.dataset, self.settings["epochs"])
        for name, words in (("store_features", "features stored"), ("windows_per_shard", "windows per shard")):
            ours, theirs = self.settings[name], manifest["settings"].get(name)
            if ours != theirs:
                raise RequestError(
                    f"{self.folder}: was begun with {words} {theirs}, not {ours}: keep that, or name another folder"
                )
        self.shards = dict(manifest["shards"])
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        for name, record in list(self.shards.items()):
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != record["size"] or sha256_of(path) != record["sha256"]:
                logger.warning("%s is damaged and will be computed again", path)
                path.unlink(missing_ok=True)
                del self.shards[name]
        for number in range(shard_count(self.settings)):
            # Renamed, but the process died before it could record it: whole, since it was flushed before.
            path = self.folder / shard_name(number)
            if path.name not in self.shards and path.is_file():
                if self._is_ours(path, number):
                    self.shards[path.name] = record_of(path)
                else:
                    path.unlink()
        self._check_audio()

    def _check_audio(self) -> None:
        """Settings cannot tell whether the files still hold the same audio: make some windows again and compare."""
        if not self.shards:
            return
        number = min(n for n in range(shard_count(self.settings)) if shard_name(n) in self.shards)
        with safe_open(self.folder / shard_name(number), "pt") as file:
            probes = file.get_slice("probe")[:4]
        for row, probe in enumerate(probes):
            item = self.windows[number * int(self.settings["windows_per_shard"]) + row]
            if not agrees(item["input_features"], probe):
                raise RequestError(
                    f"{self.folder}: was begun with other audio of the same names, or with other versions of the "
                    "libraries: name another folder"
                )

    def _is_ours(self, path: Path, number: int) -> bool:
        each = int(self.settings["windows_per_shard"])
        count = min(each, len(self.windows) - number * each)
        shape = [count, int(self.settings["positions"]), int(self.settings["d_model"])]
        try:
            with safe_open(path, "pt") as file:
                of_these_settings = read_metadata(file).get("key") == shard_key(self.settings)
                return of_these_settings and file.get_slice("states").get_shape() == shape
        except (SafetensorError, OSError):
            return False

    def _check_disk(self, missing: int) -> None:
        shape = (int(self.settings[name]) for name in ("positions", "d_model", "n_mels"))
        size, words = estimate_bytes(missing, *shape, store_features=bool(self.settings["store_features"]))
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise RequestError(
                f"{self.folder}: the disk has {_amount(free)} free and the teacher cache needs more ({words}): "
                "name another disk, or fewer windows or epochs"
            )
        logger.info("the teacher cache takes %s of %s free", words, _amount(free))

    @torch.no_grad()
    def _encode(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        features = torch.stack([item["input_features"] for item in batch])
        states = self.teacher.encode(features.to(self.teacher.device)).float().cpu()
        expected = (len(batch), int(self.settings["positions"]), int(self.settings["d_model"]))
        if tuple(states.shape) != expected:
            raise RequestError(f"the teacher gives states of shape {tuple(states.shape)}, not {expected}")
        if not bool(torch.isfinite(states).all()) or float(states.abs().max()) > LARGEST_FLOAT16:
            worst = next(i for i, s in zip(batch, states, strict=True) if not float(s.abs().max()) <= LARGEST_FLOAT16)
            raise CacheError(f"the teacher's states of window {worst['id']} are not finite numbers within float16")
        return [item | {"states": s.half()} for item, s in zip(batch, states, strict=True)]

    def _write(self, number: int, items: list[dict[str, Any]]) -> None:
        tensors = {
            "states": torch.stack([item["states"] for item in items]),
            "mask": torch.stack([item["speech_mask"] for item in items]).to(torch.uint8),
            "probe": torch.stack([probe_of(item["input_features"]) for item in items]),
        }
        if self.settings["store_features"]:
            tensors["features"] = torch.stack([item["input_features"].half() for item in items])
        known: list[dict[str, Any]] = [{k: item[k] for k in ("id", "labels") if k in item} for item in items]
        path = self.folder / shard_name(number)
        with _writing(self.folder):
            with replacing(path) as temporary:
                save_file(tensors, temporary, metadata_of(shard_key(self.settings), known))
            self.shards[path.name] = record_of(path)
            write_manifest(self.folder, self.settings, self.shards)


def _settings(
    dataset: DistillationDataset, teacher: TeacherLike, epochs: Sequence[int], store_features: bool, each: int
) -> dict[str, Any]:
    if not epochs or each < 1:
        raise RequestError("a teacher cache needs at least one epoch, and shards of at least one window")
    for name, words in (("n_mels", "mel bins"), ("positions", "positions")):
        ours, theirs = getattr(dataset, name), getattr(teacher, name)
        if ours != theirs:
            raise RequestError(f"the data set gives {ours} {words} and the teacher takes {theirs}: make them agree")
    return {
        "format": FORMAT,
        "teacher": teacher.fingerprint,
        "d_model": teacher.d_model,
        "n_mels": teacher.n_mels,
        "positions": teacher.positions,
        "windows": len(epochs) * len(dataset),
        "epochs": [int(epoch) for epoch in epochs],
        "windows_fingerprint": dataset.fingerprint(),
        "dataset": dataset.settings(),
        "windows_per_shard": each,
        "store_features": store_features,
    }


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
