"""Real windows for the ladder: recordings, tables of them, or features that are there already."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import WhisperFeatureExtractor

from whisper_hailo_hf.audio import SAMPLING_RATE, read_audio
from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig
from whisper_hailo_hf.errors import RequestError

SAMPLES_PER_POSITION = 320  # two log-mel frames of 10 ms become one encoder position
_SUFFIXES = frozenset({".aif", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".webm"})

Audio = str | os.PathLike | np.ndarray | Tensor


@dataclass(frozen=True)
class AudioWindows:
    """Windows that all stages run on.

    Attributes:
        features: float32 (windows, mel bins, 2 * positions), log-mel.
        heard: bool (windows, positions), True from the start of the window to the end of its recording; what is
            behind is padding.
        texts: what is said in each window, where that is known.
        names: where each comes from.
    """

    features: npt.NDArray[np.float32]
    heard: npt.NDArray[np.bool_]
    texts: tuple[str | None, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class _Recording:
    name: str
    audio: Path | np.ndarray
    text: str | None = None

    def load(self) -> np.ndarray:
        return read_audio(self.audio) if isinstance(self.audio, Path) else np.asarray(self.audio, np.float32)


def load_windows(
    audio: "Audio | AudioWindows | Sequence[Audio]", config: WhisperHailoConfig, limit: int = 16
) -> AudioWindows:
    """Windows of 30 s (or of what the config has positions for) for an encoder.

    Args:
        audio: features (windows, mel bins, 2 * positions), an array or a `.npy` file; or recordings, one or several:
            samples at 16 kHz (float32, (samples,)), audio files, folders of them, or `.tsv` tables with a column
            `path` and perhaps `text`.
        config: of the encoder.
        limit: most windows. Of more recordings than that, as many are taken, evenly spread; of fewer, each gives its
            first window, then each its second, and so on.

    Raises:
        RequestError: nothing there, a file that cannot be read, or features of another shape.
    """
    if limit < 1:
        raise RequestError(f"the number of windows is 1 or more, not {limit}")
    if isinstance(audio, AudioWindows):
        return audio
    entries: Sequence[Any] = audio if isinstance(audio, list | tuple) else [audio]
    ready = [array for entry in entries if (array := _features(entry)) is not None]
    if ready:
        if len(ready) < len(entries):
            raise RequestError("give either features or recordings, not both")
        return _of_features(np.concatenate(ready), config, limit)
    recordings = [recording for entry in entries for recording in _recordings(entry)]
    if not recordings:
        raise RequestError("no audio to compare the stages on: name recordings, a folder or a table of them")
    if len(recordings) > limit:
        recordings = [recordings[i] for i in np.linspace(0, len(recordings) - 1, limit).round().astype(int)]
    return _of_recordings(recordings, config, limit)


def _features(entry: Any) -> np.ndarray | None:
    if isinstance(entry, Tensor):
        entry = entry.detach().float().cpu().numpy()
    if isinstance(entry, str | os.PathLike) and Path(entry).suffix.lower() == ".npy":
        try:
            entry = np.load(entry, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RequestError(f"{os.fspath(entry)}: cannot be read as an array of features ({error})") from error
    if not isinstance(entry, np.ndarray) or entry.ndim == 1:
        return None
    return entry[None] if entry.ndim == 2 else entry


def _of_features(features: np.ndarray, config: WhisperHailoConfig, limit: int) -> AudioWindows:
    wanted = (config.num_mel_bins, 2 * config.max_source_positions)
    if features.shape[1:] != wanted or not len(features):
        raise RequestError(
            f"features are of shape (windows, {wanted[0]}, {wanted[1]}) for this encoder, not {features.shape}"
        )
    features = np.ascontiguousarray(features[:limit], np.float32)
    if not np.isfinite(features).all():
        raise RequestError("the features have values that are not finite numbers")
    heard = np.ones((len(features), config.max_source_positions), bool)
    names = tuple(f"window {i + 1}" for i in range(len(features)))
    return AudioWindows(features, heard, (None,) * len(features), names)


def _recordings(entry: Any) -> Iterator[_Recording]:
    if isinstance(entry, np.ndarray):
        yield _Recording("samples", entry)
        return
    path = Path(os.path.expanduser(entry))
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
        if not files:
            raise RequestError(f"{path}: no audio files in this folder")
        yield from (_Recording(str(file.relative_to(path)), file) for file in files)
    elif path.suffix.lower() == ".tsv":
        yield from _table(path)
    else:
        yield _Recording(path.name, path)


def _table(path: Path) -> Iterator[_Recording]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read as a table ({error})") from error
    if not rows or not all(row.get("path") for row in rows):
        raise RequestError(f"{path}: needs rows and a column 'path', tab-separated, with an audio file in each")
    for row in rows:
        yield _Recording(row["path"], path.parent / row["path"], row.get("text") or None)


def _of_recordings(recordings: list[_Recording], config: WhisperHailoConfig, limit: int) -> AudioWindows:
    samples = SAMPLES_PER_POSITION * config.max_source_positions
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    features, heard, texts, names = [], [], [], []
    for recording, begin, audio in _cut(recordings, samples, limit):
        part = audio[begin : begin + samples]
        features.append(
            extractor(
                part, sampling_rate=SAMPLING_RATE, padding="max_length", max_length=samples, return_tensors="np"
            ).input_features[0]
        )
        heard.append(np.arange(config.max_source_positions) * SAMPLES_PER_POSITION < part.size)
        texts.append(recording.text if audio.size <= samples else None)
        names.append(recording.name if not begin else f"{recording.name} from {begin / SAMPLING_RATE:g} s")
    return AudioWindows(np.stack(features).astype(np.float32), np.stack(heard), tuple(texts), tuple(names))


def _cut(recordings: list[_Recording], samples: int, limit: int) -> Iterator[tuple[_Recording, int, np.ndarray]]:
    """The first window of each recording, then the second of each, ..."""
    loaded = [recording.load() for recording in recordings]
    given, begin = 0, 0
    while given < limit and any(audio.size > begin for audio in loaded):
        for recording, audio in zip(recordings, loaded, strict=True):
            if audio.size > begin and given < limit:
                yield recording, begin, audio
                given += 1
        begin += samples
