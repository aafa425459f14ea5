"""Speech from Hugging Face `datasets`: whole or streaming, from the Hub or the disk.

`datasets` is imported only where it is used. Its own audio decoding is switched off (it would need torchcodec); the
bytes or paths that it stores are read by `whisper_hailo_hf.audio`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, AudioError, FloatArray, read_audio
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.sources.utterances import TEXT_COLUMNS, Utterance, known_text


@dataclass(frozen=True)
class DatasetRow:
    """The audio of one row of a map-style `datasets.Dataset`, fetched and decoded when it is called for."""

    dataset: Any
    index: int
    column: str
    name: str

    def __call__(self) -> FloatArray:
        return read_cell(self.name, self.dataset[self.index][self.column])


@dataclass(frozen=True)
class StreamedCell:
    """The audio of one row of a stream, decoded when it is called for."""

    cell: Any
    name: str

    def __call__(self) -> FloatArray:
        return read_cell(self.name, self.cell)


def read_dataset(
    dataset: Any,
    *,
    audio_column: str = "audio",
    text_column: str | None = None,
    language_column: str | None = None,
    id_column: str | None = None,
    seconds_column: str | None = None,
    language: str | None = None,
    empty_is_silence: bool = False,
) -> list[Utterance] | DatasetStream:
    """Utterances of a `datasets.Dataset` (a list; audio is fetched when used) or `IterableDataset` (a stream).

    Args:
        dataset: one split.
        audio_column: holds an `Audio` feature, or dicts of `array` and `sampling_rate`, or paths.
        text_column: None takes the first of the usual names that is there, if any.
        language_column, id_column, seconds_column: further columns, if there are any.
        language: of the utterances that name none.
        empty_is_silence: an empty text says that nothing is spoken, not that nobody knows.

    Raises:
        RequestError: a column that is not there, or no rows.
    """
    from datasets import Audio, Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        raise RequestError(f"the data set has splits, name one: {', '.join(dataset)}")
    names = dataset.column_names
    wanted = [audio_column, text_column, language_column, id_column, seconds_column]
    for column in wanted:
        if column is not None and names is not None and column not in names:
            raise RequestError(f"the data set has no column {column!r} but {', '.join(names)}")
    if text_column is None and names is not None:
        text_column = next((column for column in TEXT_COLUMNS if column in names), None)
    if dataset.features is None or isinstance(dataset.features[audio_column], Audio):
        dataset = dataset.cast_column(audio_column, Audio(decode=False))
    columns = _Columns(
        audio_column, text_column, language_column, id_column, seconds_column, language, empty_is_silence
    )
    if isinstance(dataset, IterableDataset):
        return DatasetStream(dataset, columns)
    assert isinstance(dataset, Dataset)
    if not len(dataset):
        raise RequestError("the data set is empty: it has no rows")
    # Without the audio column the table is small and quick to walk through.
    small = dataset.select_columns([c for c in columns.beside_audio() if c is not None])
    rows: Iterable[dict[str, Any]] = small if small.column_names else ({} for _ in range(len(dataset)))
    return [
        columns.utterance(name := columns.id_of(i, row), row, DatasetRow(dataset, i, audio_column, name))
        for i, row in enumerate(rows)
    ]


def load_hub_dataset(
    name: str, config: str | None = None, *, split: str = "train", streaming: bool = False, **columns: Any
) -> list[Utterance] | DatasetStream:
    """`datasets.load_dataset` and then `read_dataset`, whose `columns` are passed on. Errors are one line."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise RequestError("data sets of the Hub need `pip install whisper-hailo-hf[train]`") from error
    try:
        dataset = load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(f"the data set {name!r} cannot be loaded: {reason}") from error
    return read_dataset(dataset, **columns)


def load_saved_dataset(
    folder: str | os.PathLike[str], *, split: str | None = None, **columns: Any
) -> list[Utterance] | DatasetStream:
    """What `save_to_disk` of `datasets` has written; of one with splits, `split`. See `read_dataset` for `columns`."""
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise RequestError("data sets need `pip install whisper-hailo-hf[train]`") from error
    try:
        dataset = load_from_disk(os.fspath(folder))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RequestError(f"the data set in {folder} cannot be loaded: {reason}") from error
    if isinstance(dataset, DatasetDict) and split in dataset:
        dataset = dataset[split]
    return read_dataset(dataset, **columns)


@dataclass(frozen=True)
class _Columns:
    audio: str
    text: str | None
    language: str | None
    id: str | None
    seconds: str | None
    default_language: str | None
    empty_is_silence: bool

    def beside_audio(self) -> list[str | None]:
        return [self.text, self.language, self.id, self.seconds]

    def id_of(self, index: int, row: dict[str, Any]) -> str:
        return str(row[self.id]) if self.id else str(index)

    def utterance(self, name: str, row: dict[str, Any], audio: Callable[[], FloatArray]) -> Utterance:
        return Utterance(
            id=name,
            audio=audio,
            text=known_text(row.get(self.text), self.empty_is_silence) if self.text else None,
            language=(row.get(self.language) if self.language else None) or self.default_language,
            seconds=float(row[self.seconds]) if self.seconds and row.get(self.seconds) is not None else None,
        )


@dataclass(frozen=True)
class DatasetStream:
    """The utterances of a streaming `datasets.IterableDataset`, in its order; iterate as often as you like.

    In a worker of a `DataLoader`, `datasets` gives each worker its own shards.
    """

    dataset: Any
    columns: _Columns

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, another order, if the data set was shuffled."""
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Utterance]:
        for index, row in enumerate(self.dataset):
            if self.columns.audio not in row:
                raise RequestError(f"the data set has no column {self.columns.audio!r} but {', '.join(row)}")
            name = self.columns.id_of(index, row)
            yield self.columns.utterance(name, row, StreamedCell(row[self.columns.audio], name))


def read_cell(name: str, stored: Any) -> FloatArray:
    """What `datasets` holds in a cell: a path, {bytes, path} of an undecoded `Audio`, or {array, sampling_rate}.

    Returns:
        float32, (samples,), mono, 16 kHz.

    Raises:
        AudioError: it cannot be read; `name` tells which it was.
    """
    import soxr

    if isinstance(stored, str | os.PathLike):
        return read_audio(stored)
    if isinstance(stored, dict) and stored.get("array") is not None and stored.get("sampling_rate"):
        samples = np.asarray(stored["array"], np.float32)
        samples = samples.mean(axis=int(np.argmin(samples.shape))) if samples.ndim == 2 else samples
        if not samples.size or not np.isfinite(samples).all():
            raise AudioError(f"utterance {name}: is empty or has samples that are not numbers")
        return np.asarray(soxr.resample(samples, stored["sampling_rate"], SAMPLING_RATE, quality="HQ"), np.float32)
    if isinstance(stored, dict) and stored.get("bytes") is not None:
        # Through a file, so that all of the reader's checks and formats hold for it too.
        suffix = Path(stored.get("path") or "").suffix
        with tempfile.NamedTemporaryFile(suffix=suffix) as file:
            file.write(stored["bytes"])
            file.flush()
            try:
                return read_audio(file.name)
            except AudioError as error:
                raise AudioError(str(error).replace(file.name, f"utterance {name}")) from error
    if isinstance(stored, dict) and stored.get("path"):
        return read_audio(stored["path"])
    raise AudioError(f"utterance {name}: its audio column holds {type(stored).__name__}, not audio")
