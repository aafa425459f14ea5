"""Samples on their way to the servers: made ready ahead, handed out, taken back if nobody answered, never lost."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.errors import WhisperHailoError

_PREPARERS = 2
WAIT: Any = object()  # what `get` gives when there is nothing yet


class Speech(Protocol):
    """One stretch of speech of at most a window, as `sources.Utterance` is."""

    @property
    def id(self) -> str: ...
    @property
    def audio(self) -> Any: ...
    @property
    def text(self) -> str | None: ...
    @property
    def language(self) -> str | None: ...
    @property
    def seconds(self) -> float | None: ...

    def load(self) -> npt.NDArray[np.float32]:
        """Float32, (samples,), mono, 16 kHz."""


@dataclass(eq=False)
class Sample:
    """A stretch of speech, ready to be sent."""

    speech: Speech
    request: Any
    audio: str
    seconds: float
    attempts: int = 0


class Feed:
    """Hands each sample to one server at a time, until it is done.

    Args:
        speech: what is to be collected, with no id twice.
        prepare: makes it ready; what it raises as a `WhisperHailoError` is why the sample is skipped.
        ahead: samples that are made ready before they are asked for.
    """

    def __init__(self, speech: Iterator[Speech], prepare: Callable[[Speech], Sample], ahead: int) -> None:
        self._speech, self._prepare, self._ahead = speech, prepare, ahead
        self._ready: deque[Sample] = deque()
        self._outstanding = 0
        self._exhausted = self._closed = False
        self._changed = threading.Condition()
        self.skipped: dict[str, str] = {}
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._produce, name="collection-feed", daemon=True)
        self._thread.start()

    def get(self, timeout: float) -> Any:
        """The next sample; None when all are done, `WAIT` if there is none within `timeout` seconds."""
        with self._changed:
            while not self._ready:
                if self._closed or self.error or (self._exhausted and not self._outstanding):
                    return None
                if not self._changed.wait(timeout):
                    return WAIT
            self._outstanding += 1
            sample = self._ready.popleft()
            self._changed.notify_all()
            return sample

    @property
    def finished(self) -> bool:
        """Whether every sample is done, or there will be no more for another reason."""
        with self._changed:
            return bool(self.error) or (self._exhausted and not self._ready and not self._outstanding)

    def done(self, sample: Sample, skipped: str | None = None) -> None:
        """The sample was answered, or will never be."""
        with self._changed:
            self._outstanding -= 1
            if skipped is not None:
                self.skipped[sample.speech.id] = skipped
            self._changed.notify_all()

    def back(self, sample: Sample) -> None:
        """The sample was not answered: whoever asks next gets it."""
        with self._changed:
            self._outstanding -= 1
            self._ready.appendleft(sample)
            self._changed.notify_all()

    def close(self) -> None:
        """Hands out no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _produce(self) -> None:
        preparing: deque[tuple[Speech, Future[Sample]]] = deque()
        with ThreadPoolExecutor(_PREPARERS, thread_name_prefix="collection-prepare") as pool:
            try:
                more = True
                while (more or preparing) and not self._closed:
                    while more and len(preparing) < 2 * _PREPARERS:
                        one = next(self._speech, None)
                        if one is None:
                            more = False
                        else:
                            preparing.append((one, pool.submit(self._prepare, one)))
                    if preparing:
                        self._put(*preparing.popleft())
            except BaseException as error:
                self.error = error
            finally:
                with self._changed:
                    self._exhausted = True
                    self._changed.notify_all()

    def _put(self, speech: Speech, future: "Future[Sample]") -> None:
        try:
            sample = future.result()
        except WhisperHailoError as error:
            self.skipped[speech.id] = str(error)
            return
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._ahead or self._closed)
            self._ready.append(sample)
            self._changed.notify_all()
