"""Where speech comes from: a table, a folder of audio or, in `sources.hub`, `datasets`.

A source gives utterances: the audio, by reference where it lies on disk, and what is known about it. Text is optional,
since an encoder learns from audio alone. Long recordings become several utterances of at most one window each.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, AudioError, FloatArray, read_audio
from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from whisper_hailo_hf.sources.hub import DatasetStream

AUDIO_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "aifc", "au", "caf", "w64", "rf64"),
        *("m4a", "mp4", "aac", "webm", "mka", "wma"),  # through PyAV, where it is installed
    )
)
MAX_SECONDS = 30.0  # one Whisper window
# Common Voice, MLS, FLEURS, VoxPopuli, LibriSpeech and People's Speech name it in one of these ways.
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription", "normalized_text", "raw_transcription")


@dataclass(frozen=True)
class Utterance:
    """One stretch of speech.

    `audio` is a file, samples at 16 kHz (float32, (samples,)), or what gives these when called. `start` and `seconds`
    name the part of a file that is meant; `start` None means all of it. `text` and `language` are None where they are
    not known; an empty `text` says that nothing is spoken.
    """

    id: str
    audio: Path | FloatArray | Callable[[], FloatArray]
    text: str | None = None
    language: str | None = None
    seconds: float | None = None
    start: float | None = None

    def load(self) -> FloatArray:
        """The samples: float32, (samples,), mono, 16 kHz. Raises `AudioError`, one line that names file or id."""
        if isinstance(self.audio, np.ndarray):
            return np.asarray(self.audio, np.float32)
        if isinstance(self.audio, Path):
            if self.start is None:
                return read_audio(self.audio)
            return read_part(self.audio, self.start, self.seconds if self.seconds is not None else MAX_SECONDS)
        return self.audio()

    def identity(self) -> str:
        """What tells this utterance from another without decoding it: its id, its part, the size of its file."""
        size: int | str = ""
        if isinstance(self.audio, Path):
            size = self.audio.stat().st_size
        elif isinstance(self.audio, np.ndarray):
            size = self.audio.size
        return f"{self.id}\t{self.start}\t{self.seconds}\t{size}"


def read_part(path: Path, start: float, seconds: float) -> FloatArray:
    """Read part of a file without decoding the rest, where libsndfile can seek in it; otherwise by reading it whole.

    Args:
        path: the file.
        start: s into the file.
        seconds: length of the part; less comes back where the file ends before.

    Returns:
        float32, (samples,), mono, 16 kHz.
    """
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            first = min(round(start * rate), file.frames)
            file.seek(first)
            # Both ends are rounded alike, so that parts join without a gap.
            block = file.read(round((start + seconds) * rate) - first, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, TypeError):
        part = read_audio(path)[round(start * SAMPLING_RATE) : round((start + seconds) * SAMPLING_RATE)]
    else:
        part = soxr.resample(block.mean(axis=1, dtype=np.float32), rate, SAMPLING_RATE, quality="HQ")
    if not part.size:
        raise AudioError(f"{path}: ends before {start:.2f} s")
    if not np.isfinite(part).all():
        raise AudioError(f"{path}: has samples that are not numbers after {start:.2f} s")
    return np.asarray(part, np.float32)


def read_tsv(
    path: str | os.PathLike[str],
    *,
    language: str | None = None,
    max_seconds: float | None = MAX_SECONDS,
    empty_is_silence: bool = False,
) -> list[Utterance]:
    """Utterances of a tab-separated table with a header.

    The column `path` is needed (relative to the table's folder); `id`, `seconds`, `text` and `language` are used where
    they exist, an empty cell is an unknown value. Other columns are left alone.

    Args:
        path: the table.
        language: of the utterances that name none.
        max_seconds: longer recordings are split, see `split_long`.
        empty_is_silence: an empty text says that nothing is spoken, not that nobody knows.

    Raises:
        RequestError: no such table, no `path` column, no rows, a number that is none, or audio that is not there.
    """
    path = Path(path)
    rows = _read_table(path, "\t")
    if "path" not in rows[0]:
        raise RequestError(f"{path}: has no column 'path' but {', '.join(rows[0])}")
    utterances = []
    for number, row in enumerate(rows, start=2):
        if not row["path"]:
            raise RequestError(f"{path}: line {number} names no audio file")
        utterances.append(
            Utterance(
                id=row.get("id") or row["path"],
                audio=path.parent / row["path"],
                text=known_text(row.get("text"), empty_is_silence),
                language=row.get("language") or language,
                seconds=_number(row.get("seconds"), path, number),
            )
        )
    _check_files(path, utterances)
    return split_long(utterances, max_seconds)


def read_audio_folder(
    folder: str | os.PathLike[str],
    *,
    language: str | None = None,
    max_seconds: float | None = MAX_SECONDS,
    empty_is_silence: bool = False,
) -> list[Utterance]:
    """All audio below a folder, sorted by path; text from `metadata.csv` or `metadata.tsv` where there is one.

    The metadata is that of an "audiofolder" of `datasets`: a column `file_name` (or `path`) relative to the folder and
    one with the text; files that it does not name have none. The settings are those of `read_tsv`.

    Raises:
        RequestError: no such folder, no audio in it, or metadata that names files that are not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RequestError(f"{folder}: no such folder of audio")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
    if not found:
        raise RequestError(f"{folder}: holds no audio file ({', '.join(sorted(AUDIO_SUFFIXES))})")
    known = _read_metadata(folder, empty_is_silence)
    with ThreadPoolExecutor() as pool:
        lengths = list(pool.map(_seconds_of, found))
    utterances = []
    for path, seconds in zip(found, lengths, strict=True):
        name = path.relative_to(folder).as_posix()
        text, spoken = known.pop(name, (None, None))
        utterances.append(Utterance(name, path, text=text, language=spoken or language, seconds=seconds))
    if known:
        first = next(iter(known))
        raise RequestError(f"{folder}: its metadata names {len(known)} files that are not there, first {first}")
    return split_long(utterances, max_seconds)


def open_source(
    source: str | os.PathLike[str], *, streaming: bool = False, **settings: Any
) -> list[Utterance] | DatasetStream:
    """Utterances of a .tsv table, a folder of audio, a folder that `datasets` saved, or a data set of the Hub.

    They are told apart by what is there. `settings` are those of `read_tsv`, `read_audio_folder`, `read_dataset` or
    `load_hub_dataset`.
    """
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() != ".tsv":
            raise RequestError(f"{path}: is neither a .tsv table, a folder of audio nor a data set of the Hub")
        return read_tsv(path, **settings)
    if is_saved_dataset(path):
        from whisper_hailo_hf.sources.hub import load_saved_dataset

        return load_saved_dataset(path, **settings)
    if path.is_dir():
        return read_audio_folder(path, **settings)
    if path.is_absolute() or path.suffix or len(path.parts) > 2:
        raise RequestError(f"{path}: no such table or folder of audio")
    from whisper_hailo_hf.sources.hub import load_hub_dataset

    return load_hub_dataset(os.fspath(source), streaming=streaming, **settings)


def is_saved_dataset(path: str | os.PathLike[str]) -> bool:
    """Whether `save_to_disk` of `datasets` has written this folder, a data set or one with splits."""
    return any((Path(path) / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))


def split_long(utterances: Sequence[Utterance], max_seconds: float | None = MAX_SECONDS) -> list[Utterance]:
    """Cut recordings longer than `max_seconds` into equal parts of at most that; None leaves all as they are.

    The parts have no text, since nobody says where in the recording it is spoken. Recordings whose length is not known
    stay whole (of such a one, a window takes a random part).
    """
    if max_seconds is None:
        return list(utterances)
    result = []
    for utterance in utterances:
        if utterance.seconds is None or utterance.seconds <= max_seconds or not isinstance(utterance.audio, Path):
            result.append(utterance)
            continue
        parts = math.ceil(utterance.seconds / max_seconds)
        length = utterance.seconds / parts
        for part in range(parts):
            name = f"{utterance.id}@{part * length:.2f}"
            result.append(replace(utterance, id=name, text=None, start=part * length, seconds=length))
    return result


def _read_table(path: Path, delimiter: str) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: is not a table in UTF-8") from error
    lines = io.StringIO(text, newline="")
    if delimiter == "\t":  # tabs need no quoting, and transcripts have quotation marks of their own
        reader = csv.DictReader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, restval="")
    else:
        reader = csv.DictReader(lines, delimiter=delimiter, restval="")
    rows = [{key: (value or "").strip() for key, value in row.items() if isinstance(key, str)} for row in reader]
    if not rows:
        raise RequestError(f"{path}: names no utterance, the data set is empty")
    return rows


def known_text(cell: str | None, empty_is_silence: bool) -> str | None:
    """What a cell says of what is spoken: None where nobody knows, "" where nothing is."""
    return cell or ("" if empty_is_silence and cell is not None else None)


def _read_metadata(folder: Path, empty_is_silence: bool) -> dict[str, tuple[str | None, str | None]]:
    """File name below the folder -> (text, language)."""
    for name, delimiter in (("metadata.csv", ","), ("metadata.tsv", "\t")):
        path = folder / name
        if not path.is_file():
            continue
        rows = _read_table(path, delimiter)
        file_column = next((column for column in ("file_name", "path") if column in rows[0]), None)
        if file_column is None:
            raise RequestError(f"{path}: has no column 'file_name' but {', '.join(rows[0])}")
        text_column = next((column for column in TEXT_COLUMNS if column in rows[0]), "")
        return {
            row[file_column]: (known_text(row.get(text_column), empty_is_silence), row.get("language") or None)
            for row in rows
        }
    return {}


def _number(cell: str | None, path: Path, line: int) -> float | None:
    if not cell:
        return None
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise RequestError(f"{path}: line {line} has {cell!r} for seconds, which is no positive number")
    return number


def _check_files(table: Path, utterances: Sequence[Utterance]) -> None:
    missing = [u.audio for u in utterances if isinstance(u.audio, Path) and not u.audio.is_file()]
    if missing:
        raise RequestError(
            f"{table}: {len(missing)} of its {len(utterances)} audio files are missing, first {missing[0]}"
        )


def _seconds_of(path: Path) -> float | None:
    """From the header; None where libsndfile cannot tell."""
    import soundfile

    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, TypeError):
        return None
    return float(info.duration) if 0 < info.frames < 2**62 else None
