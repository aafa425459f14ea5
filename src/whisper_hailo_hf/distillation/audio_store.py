"""The decoded audio of a data set, in memory where it fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.sources.utterances import Utterance

_INT16 = 32_767

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples16:
    """Audio in 16 bits a sample, with the full scale that decoders of lossy files may go beyond."""

    samples: npt.NDArray[np.int16]
    scale: np.float32

    @classmethod
    def of(cls, audio: FloatArray) -> Samples16:
        """From float32, (samples,)."""
        scale = np.float32(max(1.0, float(np.abs(audio).max(initial=0.0))))
        return cls(np.rint(audio * (_INT16 / scale)).astype(np.int16), scale)

    def audio(self) -> FloatArray:
        """Back to float32."""
        return self.samples.astype(np.float32) * np.float32(self.scale / _INT16)


class AudioStore:
    """The samples of a list of utterances, in 16 bits; decoded once and kept if they fit, else decoded at each use.

    Either way the same samples come out.

    Args:
        utterances: at least one.
        memory_gb: what may be kept, in 10^9 bytes; 7.6 h of speech take 0.9. Data set workers share it by fork.
        progress: whether to show a bar on a terminal while decoding.

    Raises:
        RequestError: no utterances; `AudioError`, one of them, if one cannot be read.
    """

    def __init__(self, utterances: Sequence[Utterance], memory_gb: float = 4.0, progress: bool = True) -> None:
        if not len(utterances):
            raise RequestError("the data set is empty: it has no utterances")
        self.utterances = utterances
        limit = memory_gb * 1e9
        known = 2 * SAMPLING_RATE * sum(utterance.seconds or 0.0 for utterance in utterances)
        self.kept = self._decode_all(limit, progress) if known <= limit else None
        if self.kept is None:
            logger.info("audio of more than %.1f GB is decoded as it is needed", memory_gb)

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> FloatArray:
        """Float32, (samples,), mono, 16 kHz."""
        stored = self.kept[index] if self.kept is not None else Samples16.of(self.utterances[index].load())
        return stored.audio()

    def _decode_all(self, limit: float, progress: bool) -> list[Samples16] | None:
        kept: list[Samples16] = []
        used = 0
        with progress_bar("decoding audio", len(self.utterances), progress) as advance, ThreadPoolExecutor(4) as pool:
            # A block at a time: what is decoded ahead of the check stays small.
            for start in range(0, len(self.utterances), 64):
                block = self.utterances[start : start + 64]
                for stored in pool.map(lambda utterance: Samples16.of(utterance.load()), block):
                    used += stored.samples.nbytes
                    kept.append(stored)
                    advance(1)
                if used > limit:
                    return None
        return kept


@contextmanager
def progress_bar(words: str, total: int, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal, nothing elsewhere; gives what advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    quiet = not (shown and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=quiet, redirect_stdout=False) as bars:
        task = bars.add_task(words, total=total)
        yield lambda steps: bars.advance(task, steps)
