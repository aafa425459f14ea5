"""Collected states as training data: any row in any order, read from disk when it is wanted."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.backends.base import states_of_core
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder
from whisper_hailo_hf.service.collection import SILENCE
from whisper_hailo_hf.service.shards import check_file, read_manifest

IGNORED = -100


class CollectedStates(Dataset):
    """The rows of a collected data set; nothing but the one in use is in memory.

    An item is `id`, `text`, `language`, and `states`: float32, (positions, d_model), after the host's epilogue. The
    positions that were left out of a data set of speech only have the states of silence.

    Args:
        folder: of the data set.
        encoder: whose states they are: its epilogue makes states of what the network gave.
        limit: the first so many rows.

    Raises:
        RequestError: no data set, an empty one, or states of another encoder.
    """

    def __init__(self, folder: str | os.PathLike, encoder: HailoWhisperEncoder, limit: int | None = None) -> None:
        self.folder = Path(folder).expanduser()
        manifest = read_manifest(self.folder)
        self.facts: dict[str, Any] = manifest["facts"]
        self._host = encoder.host
        self._check(encoder)
        self._files = [self.folder / "data" / shard["name"] for shard in manifest["shards"]]
        self.index: list[tuple[int, int, int]] = []  # shard, row group, row in it
        self.ids: list[str] = []
        self.texts: list[str | None] = []
        self.languages: list[str | None] = []
        for number, path in enumerate(self._files):
            try:
                with pq.ParquetFile(path) as file:
                    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
                    table = file.read(columns=["id", "text", "language"]).to_pydict()
            except (OSError, ValueError) as error:
                raise WhisperHailoError(f"{path} is missing or damaged: {error}") from error
            self.index += [(number, group, row) for group, rows in enumerate(groups) for row in range(rows)]
            self.ids += table["id"]
            self.texts += table["text"]
            self.languages += table["language"]
        if not self.ids:
            raise RequestError(f"{self.folder} has no rows yet: collect first")
        self._places = {name: place for place, name in enumerate(self.ids)}
        self.rows = list(range(len(self.ids)))[:limit]
        self._silence = None
        if SILENCE in manifest["files"]:
            check_file(self.folder / SILENCE, manifest["files"][SILENCE])
            self._silence = np.load(self.folder / SILENCE)
        self._open: tuple[int, int, pq.ParquetFile] | None = None  # process, shard, file

    def _check(self, encoder: HailoWhisperEncoder) -> None:
        config, facts = encoder.config, self.facts
        if (facts["positions"], facts["d_model"]) != (config.max_source_positions, config.d_model):
            raise RequestError(
                f"{self.folder} has states of {facts['positions']} x {facts['d_model']}, and this model's are of "
                f"{config.max_source_positions} x {config.d_model}"
            )
        if facts["core"] and facts["host_sha256"] != artefacts.fingerprint(encoder.host):
            raise RequestError(
                f"{self.folder} has integers of the network {facts['model']!r}, and this model has another epilogue "
                "to them: adapt the model that was served"
            )

    def select(self, wanted: Sequence[str]) -> "CollectedStates":
        """Lets only these ids count, in this order; a `RequestError` if one is not there."""
        if absent := [name for name in wanted if name not in self._places]:
            raise RequestError(f"{self.folder} lacks {len(absent)} of {len(wanted)} samples, the first {absent[0]!r}")
        self.rows = [self._places[name] for name in wanted]
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self.rows[index]
        return {
            "id": self.ids[place],
            "text": self.texts[place],
            "language": self.languages[place],
            "states": self._states(place),
        }

    def _states(self, place: int) -> Tensor:
        shard, group, row = self.index[place]
        table = self._file(shard).read_row_group(group, columns=["states", "dtype", "shape", "scale", "zero_point"])
        stored = table.slice(row, 1).to_pylist()[0]
        dtype = np.dtype(stored["dtype"]).newbyteorder("<")
        values = np.frombuffer(stored["states"], dtype).reshape(stored["shape"])
        whole = self.facts["core_positions"] if self.facts["core"] else self.facts["positions"]
        if len(values) < whole:
            if self._silence is None:
                raise WhisperHailoError(
                    f"{self.folder} has rows cut short, and no {SILENCE} to fill them: collect anew"
                )
            values = np.concatenate([values, self._silence[len(values) :]])
        real = values.astype(np.float32)
        if dtype.kind == "u":
            real = (real - np.float32(stored["zero_point"])) * np.float32(stored["scale"])
        states = torch.from_numpy(real)
        return states_of_core(self._host, states[None])[0] if self.facts["core"] else states

    def _file(self, shard: int) -> pq.ParquetFile:
        here = os.getpid()
        if self._open is None or self._open[:2] != (here, shard):
            self._open = (here, shard, pq.ParquetFile(self._files[shard], memory_map=True))
        return self._open[2]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}


class Pairs(Dataset):
    """Items with `labels`, and with `reference_states` where there is a reference.

    Args:
        collected: the rows.
        labels: token ids of each row, without the token that the decoder starts with.
        reference: the same ids from another encoder.
    """

    def __init__(
        self, collected: CollectedStates, labels: Sequence[list[int]], reference: CollectedStates | None
    ) -> None:
        self.collected, self.labels, self.reference = collected, labels, reference

    def __len__(self) -> int:
        return len(self.collected)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"states": self.collected[index]["states"], "labels": self.labels[index]}
        return item if self.reference is None else item | {"reference_states": self.reference[index]["states"]}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch: states stacked, `labels` (batch, tokens) padded with -100."""
    labels = torch.full((len(items), max(len(item["labels"]) for item in items)), IGNORED)
    for row, item in zip(labels, items, strict=True):
        row[: len(item["labels"])] = torch.tensor(item["labels"])
    batch = {"labels": labels}
    for name in ("states", "reference_states"):
        if name in items[0]:
            batch[name] = torch.stack([item[name] for item in items])
    return batch
