"""Windows of log-mel features to calibrate with: from audio, as they come in use, or from features at hand.

Whisper hears windows of 30 s: full ones of long recordings, and short utterances with silence behind them. Of short
recordings, every second window holds one alone, and the others as many as fit.
"""

import csv
import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from whisper_hailo_hf.audio import SAMPLING_RATE, iter_audio, read_audio
from whisper_hailo_hf.errors import RequestError

SAMPLES_PER_FRAME = 160  # of log-mel features, at 16 kHz
_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aiff", ".webm"}

FloatArray = npt.NDArray[np.float32]
Audio = str | os.PathLike[str] | FloatArray


class FeatureWindows:
    """Features at hand.

    Args:
        features: (windows, mel bins, frames), or a sequence of (mel bins, frames); a memory map is read as it is used.
        mel_bins, frames: what each must have.
    """

    def __init__(self, features: Any, mel_bins: int, frames: int) -> None:
        self._features, self._shape = features, (mel_bins, frames)

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: int) -> FloatArray:
        window = np.asarray(self._features[index], np.float32)
        if window.shape != self._shape:
            wanted = " x ".join(map(str, self._shape))
            raise RequestError(f"calibration window {index + 1} has the shape {window.shape}: {wanted} is needed")
        return window


class AudioWindows:
    """Windows made from audio, computed whenever they are read.

    Args:
        audio: recordings: paths, or float32 samples at 16 kHz.
        mel_bins, frames: of a window.
        limit: at most so many windows, taken evenly from all.
        seed: of the order in which short recordings are joined.
    """

    def __init__(self, audio: Sequence[Audio], mel_bins: int, frames: int, limit: int, seed: int = 0) -> None:
        from transformers import WhisperFeatureExtractor

        self._audio, self._samples = list(audio), frames * SAMPLES_PER_FRAME
        self._extract = WhisperFeatureExtractor(feature_size=mel_bins)
        self._windows = self._plan(limit, np.random.default_rng(seed))

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def recordings(self) -> list[Audio]:
        """What they are made from."""
        return self._audio

    def __getitem__(self, index: int) -> FloatArray:
        parts = [self._read(recording, part) for recording, part in self._windows[index]]
        samples = np.concatenate(parts)[: self._samples]
        features = self._extract(
            samples, sampling_rate=SAMPLING_RATE, max_length=self._samples, return_tensors="np"
        ).input_features
        return np.asarray(features[0], np.float32)

    def _plan(self, limit: int, rng: np.random.Generator) -> list[list[tuple[int, int]]]:
        """For each window, pairs of a recording and which of its windows' lengths."""
        lengths = [self._length(one) for one in self._audio]
        order = rng.permutation(len(lengths))
        short = [int(index) for index in order if lengths[index] < self._samples]
        windows = [
            [(int(index), part)] for index in order for part in range(lengths[index] // self._samples)
        ]  # of long recordings, the rest behind the last full window is left out
        while short:
            alone = len(windows) % 2 == 0
            window = [(short.pop(), 0)]
            filled = lengths[window[0][0]]
            while short and not alone and filled + lengths[short[-1]] <= self._samples:
                filled += lengths[short[-1]]
                window.append((short.pop(), 0))
            windows.append(window)
        if len(windows) > limit:
            windows = [windows[i] for i in np.linspace(0, len(windows) - 1, limit).round().astype(int)]
        return windows

    def _length(self, one: Audio) -> int:
        if isinstance(one, np.ndarray):
            return len(one)
        import soundfile

        try:
            info = soundfile.info(os.fspath(one))
            return int(info.frames * SAMPLING_RATE / info.samplerate)
        except (soundfile.SoundFileError, OSError):
            return len(read_audio(one))  # another container; or the error that says what is wrong with it

    def _read(self, recording: int, part: int) -> FloatArray:
        one = self._audio[recording]
        if isinstance(one, np.ndarray):
            return np.asarray(one[part * self._samples : (part + 1) * self._samples], np.float32)
        found, missing = [np.zeros(0, np.float32)], self._samples
        seconds = 1 + self._samples / SAMPLING_RATE  # one block for all, the lead of a place that is sought included
        with closing(iter_audio(one, block_seconds=seconds, start=part * self._samples)) as blocks:
            for block in blocks:
                found.append(block[:missing])
                missing -= len(found[-1])
                if not missing:
                    break
        return np.concatenate(found)


def calibration_windows(
    calibration: Any, mel_bins: int, frames: int, limit: int, seed: int = 0
) -> FeatureWindows | AudioWindows:
    """Windows from whatever was given to calibrate with.

    Args:
        calibration: features, an array (windows, mel bins, frames) or a sequence of (mel bins, frames); or audio: a
            file, a folder, a `.tsv` table with a column `path` (relative to it), or a sequence of files or of samples
            at 16 kHz.
        mel_bins, frames: of a window.
        limit: at most so many windows.
        seed: of the choice.

    Raises:
        RequestError: no such file, no audio in it, or features of another shape.
    """
    if limit < 1:
        raise RequestError(f"windows is a positive number, not {limit}")
    if isinstance(calibration, str | os.PathLike):
        return AudioWindows(_find(Path(calibration).expanduser()), mel_bins, frames, limit, seed)
    if isinstance(calibration, torch.Tensor):
        calibration = calibration.detach().cpu().float().numpy()
    if not isinstance(calibration, Sequence | np.ndarray) and not hasattr(calibration, "__getitem__"):
        if not isinstance(calibration, Iterable):
            raise RequestError(f"a {type(calibration).__name__} is nothing to calibrate with: give audio or features")
        calibration = list(islice(calibration, limit))
    if len(calibration) == 0:
        return FeatureWindows([], mel_bins, frames)
    first = calibration[0]
    if isinstance(first, str | os.PathLike) or np.ndim(first) == 1:
        return AudioWindows(list(calibration), mel_bins, frames, limit, seed)
    return FeatureWindows(calibration[:limit], mel_bins, frames)


def _find(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not found:
            raise RequestError(f"{path}: holds no audio file ({', '.join(sorted(_SUFFIXES))})")
        return found
    if not path.is_file():
        raise RequestError(f"{path}: no such file or folder of audio to calibrate with")
    if path.suffix.lower() != ".tsv":
        return [path]
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path}: is no table of tab-separated text ({error})") from None
    if rows and "path" not in rows[0]:
        raise RequestError(f"{path}: has no column 'path' but {', '.join(rows[0])}")
    found = [path.parent / row["path"] for row in rows if row["path"]]
    for one in found:
        if not one.is_file():
            raise RequestError(f"{path}: names {one}, which is not there")
    return found
