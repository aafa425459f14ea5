"""The collected data set on disk: Parquet shards, a manifest, and a card that `datasets.load_dataset` reads.

    folder/
      README.md               names the shards for `datasets`
      manifest.json           what was asked for, what the states are, and each file's sha256
      data/train-00000.parquet, ...

A shard is written beside its place, synced, and renamed; then the manifest, likewise. What the manifest does not name
is not part of the data set: a shard that a killed run left behind is removed by the next one.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from whisper_hailo_hf.errors import RequestError, WhisperHailoError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise RequestError("collected states are Parquet files: pip install 'whisper-hailo-hf[serve,train]'") from error

FORMAT = 1
MANIFEST = "manifest.json"
_DATA = "data"
# Rows are read one by one, in any order: so much is read for each.
_ROW_GROUP_BYTES = 2**20
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("audio", pa.string()),  # path, or sha256:... of the 16-bit samples
        ("seconds", pa.float64()),
        ("text", pa.string()),
        ("language", pa.string()),
        ("states", pa.large_binary()),  # C order, little-endian
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int32())),  # (positions kept, d_model)
        ("scale", pa.float64()),  # an integer q stands for (q - zero_point) * scale; 0 for floats
        ("zero_point", pa.int32()),
        ("core", pa.bool_()),  # whether the host's epilogue is still to come
        ("core_sha256", pa.string()),
        ("artefact_sha256", pa.string()),
        ("server", pa.string()),
        ("backend", pa.string()),  # where the server ran the encoder
        ("collected_at", pa.string()),  # UTC, ISO 8601
    ]
)
_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---

# Encoder states of Whisper speech

Collected with `whisper-hailo collect`. Each row is one window: `states` are the bytes of an array of `dtype` and
`shape` in C order, little-endian; an integer q stands for (q - zero_point) * scale. Where `core` is true, they are
what the network gave before the host's epilogue. `manifest.json` has the checksums.
"""


@dataclass(frozen=True)
class Shard:
    """One file of a data set."""

    name: str
    rows: int
    size: int
    sha256: str


class Collection:
    """A data set on disk, new or begun before.

    Args:
        folder: where.
        facts: what all its rows have in common; a folder that was begun with others is refused.

    Raises:
        RequestError: another data set, or something else, is in the folder.
    """

    def __init__(self, folder: str | os.PathLike, facts: dict[str, Any]) -> None:
        self.folder = Path(folder).expanduser()
        self.facts = facts
        self.shards: list[Shard] = []
        self.files: dict[str, str] = {}
        (self.folder / _DATA).mkdir(parents=True, exist_ok=True)
        if (self.folder / MANIFEST).exists():
            manifest = read_manifest(self.folder)
            if different := sorted(name for name in facts if manifest["facts"].get(name) != facts[name]):
                name = different[0]
                raise RequestError(
                    f"{self.folder} was begun with another {name} ({manifest['facts'].get(name)!r}, now "
                    f"{facts[name]!r}): go on as it was begun, or name another folder"
                )
            self.shards = [Shard(**shard) for shard in manifest["shards"]]
            self.files = dict(manifest["files"])
        self._sweep()
        if not (self.folder / "README.md").exists():
            _write(self.folder / "README.md", _CARD.encode())
        self._write_manifest()

    def _sweep(self) -> None:
        """Removes what a killed run left behind; it is an error if what the manifest names is not there."""
        known = {shard.name: shard for shard in self.shards}
        for path in (self.folder / _DATA).iterdir():
            if path.name not in known and (path.suffix in (".parquet", ".part")):
                path.unlink()
        for shard in self.shards:
            path = self.folder / _DATA / shard.name
            if not path.is_file() or path.stat().st_size != shard.size:
                raise WhisperHailoError(f"{path} is missing or damaged: collect into a new folder")

    def ids(self) -> set[str]:
        """The ids of all rows."""
        return {name for shard in self.shards for name in _column(self.folder / _DATA / shard.name, "id")}

    def keep(self, name: str, content: bytes) -> None:
        """Writes another file, which belongs to all rows."""
        _write(self.folder / name, content)
        self.files[name] = hashlib.sha256(content).hexdigest()
        self._write_manifest()

    def add(self, rows: Sequence[dict[str, Any]]) -> Shard:
        """Writes rows as a shard; when this returns they survive a loss of power.

        Raises:
            WhisperHailoError: they cannot be written; what was added before is kept.
        """
        try:
            return self._add(rows)
        except OSError as error:
            raise WhisperHailoError(
                f"{self.folder}: cannot be written to ({error.strerror or error}); what was written before is kept: "
                "run it again to go on"
            ) from error

    def _add(self, rows: Sequence[dict[str, Any]]) -> Shard:
        table = pa.Table.from_pylist(list(rows), SCHEMA)
        per_row = max(1, sum(len(row["states"]) for row in rows) // len(rows))
        path = self.folder / _DATA / f"train-{len(self.shards):05d}.parquet"
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            pq.write_table(
                table,
                file,
                row_group_size=max(1, _ROW_GROUP_BYTES // per_row),
                compression={name: "zstd" if name == "states" else "snappy" for name in SCHEMA.names},
                compression_level={"states": 1},
                use_dictionary=["language", "dtype", "core_sha256", "artefact_sha256", "server", "backend"],
                write_statistics=False,
            )
            file.flush()
            os.fsync(file.fileno())
        with partial.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        shard = Shard(path.name, len(rows), partial.stat().st_size, sha256)
        os.replace(partial, path)
        _sync_folder(path.parent)
        self.shards.append(shard)
        self._write_manifest()
        return shard

    def _write_manifest(self) -> None:
        shards = [asdict(shard) for shard in self.shards]
        manifest = {"format": FORMAT, "rows": sum(shard.rows for shard in self.shards), "facts": self.facts}
        manifest |= {"files": self.files, "shards": shards}
        _write(self.folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a collected data set; a `RequestError` where there is none of a format that is known."""
    path = Path(folder).expanduser() / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise RequestError(f"{path} is of format {manifest['format']}, and this version reads {FORMAT}")
        return dict(manifest)
    except OSError as error:
        raise RequestError(f"{os.fspath(folder)} is no collected data set: it has no {MANIFEST}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is no manifest of a collected data set") from error


def check_collection(folder: str | os.PathLike) -> dict[str, int]:
    """Reads all of a data set: checksums, rows, and that no id is there twice.

    Returns:
        `rows`, `shards` and `bytes`.

    Raises:
        WhisperHailoError: what is not as the manifest says.
    """
    manifest, data = read_manifest(folder), Path(folder).expanduser() / _DATA
    seen: set[str] = set()
    for name, sha256 in manifest["files"].items():
        check_file(data.parent / name, sha256)
    for entry in manifest["shards"]:
        path = data / entry["name"]
        check_file(path, entry["sha256"])
        ids = _column(path, "id")
        if len(ids) != entry["rows"]:
            raise WhisperHailoError(f"{path} has {len(ids)} rows, and {MANIFEST} says {entry['rows']}")
        if seen.intersection(ids) or len(set(ids)) < len(ids):
            raise WhisperHailoError(f"{path} has an id for a second time")
        seen.update(ids)
    size = sum(entry["size"] for entry in manifest["shards"])
    return {"rows": len(seen), "shards": len(manifest["shards"]), "bytes": size}


def check_file(path: Path, sha256: str) -> None:
    """A `WhisperHailoError` where a file is not what was written."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WhisperHailoError(f"{path}: cannot be read ({error.strerror})") from error
    if found != sha256:
        raise WhisperHailoError(f"{path} is damaged: its content is not what {MANIFEST} recorded")


@contextmanager
def only_one(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps other runs away from a folder; a run that was killed leaves no lock behind."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise RequestError(f"{path}: cannot be written to ({error.strerror})") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RequestError(f"{path}: another run collects into this folder") from error
        yield


def _column(path: Path, name: str) -> list[Any]:
    return pq.read_table(path, columns=[name]).column(name).to_pylist()


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
