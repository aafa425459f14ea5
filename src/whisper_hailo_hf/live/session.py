"""A source and a transcriber, joined: one thread takes the audio in, the caller's own does the work."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator

from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.live.engine import LiveTranscriber
from whisper_hailo_hf.live.events import Event
from whisper_hailo_hf.live.sources import Block, Source

# So much audio may wait; a source that cannot wait loses what comes on top, and the clock goes on.
QUEUE_S = 30.0


class LiveSession:
    """Runs a transcriber on a source until that ends or `stop` is called.

    How late the work is, is what waits in the queue, and never more than the time that has passed since the audio of
    that moment began less the audio done: a pipe that delivers a whole file at once is not late.

    Args:
        transcriber: a fresh one.
        source: where the audio comes from.
    """

    def __init__(self, transcriber: LiveTranscriber, source: Source) -> None:
        self.transcriber, self.source = transcriber, source
        self._blocks: deque[tuple[Block, float]] = deque()  # and the seconds lost before each
        self._waiting = self._lost = 0.0
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: WhisperHailoError | None = None

    def stop(self) -> None:
        """End it: what was heard so far is still worked on and committed. May be called from a signal handler."""
        self._stopped = True
        self.source.close()

    def run(self) -> Iterator[Event]:
        """The events, as they come.

        Raises:
            WhisperHailoError: the source or the encoder has failed; all that was heard before has been committed.
        """
        reader = threading.Thread(target=self._read, name="audio", daemon=True)
        reader.start()
        began, done = time.monotonic(), 0.0
        while True:
            batch = self._next()
            if not batch:
                break
            for block, lost in batch:
                if lost:
                    yield from self.transcriber.lost(lost)
                yield from self.transcriber.feed(block.samples, block.rate, block.at)
                done += block.seconds
            late = (time.monotonic() - began) * self.source.speed - done
            if self.source.speed:
                yield from self.transcriber.set_pace(max(0.0, min(self._waiting, late)))
        if self._lost:
            yield from self.transcriber.lost(self._lost)
        yield from self.transcriber.finish()
        self.transcriber.check()
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        try:
            for block in self.source:
                with self._changed:
                    while self.source.waits and self._waiting > QUEUE_S and not self._stopped:
                        self._changed.wait(0.1)
                    if self._waiting > QUEUE_S:
                        self._lost += block.seconds
                        continue
                    self._blocks.append((block, self._lost))
                    self._lost, self._waiting = 0.0, self._waiting + block.seconds
                    self._changed.notify_all()
                if self._stopped:
                    break
        except WhisperHailoError as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _next(self) -> list[tuple[Block, float]]:
        """Up to a second of what waits; nothing once the stream has ended."""
        with self._changed:
            while not self._blocks and not self._ended and not self._stopped:
                self._changed.wait(0.1)
            batch: list[tuple[Block, float]] = []
            taken = 0.0
            while self._blocks and taken < 1.0:
                entry = self._blocks.popleft()
                batch.append(entry)
                taken += entry[0].seconds
            self._waiting -= taken
            self._changed.notify_all()
        return batch
