"""One server as the collection sees it: a stream of samples, taken up again after each failure."""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc

from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.service.feed import WAIT, Feed, Sample
from whisper_hailo_hf.wire.client import Client, Connection, RemoteError, backoff, explain

logger = logging.getLogger(__name__)

_MOST_ATTEMPTS = 20  # of one sample, before it is skipped
_PROBES = 4
_FIRST_PATIENCE = 60.0  # seconds: a server may be starting, but an address may be wrong
_FINAL = (grpc.StatusCode.INVALID_ARGUMENT.value[0],)  # in an answer: this sample will never do


class Station:
    """A server, reached again and again.

    Args:
        connection: how.
        timeout: seconds that one window may take.
        patience: seconds that the server may be away.

    Attributes:
        error: why it works no more, if that is so.
        window: samples that it takes at a time.
        backend: where its encoder runs.
    """

    def __init__(self, connection: Connection, timeout: float, patience: float) -> None:
        self.connection, self.timeout, self.patience = connection, timeout, patience
        self.address = connection.target
        self.error: WhisperHailoError | None = None
        self.window, self.backend = 1, ""
        self._met = False
        self._client: Client = connection.open()
        self._closed = threading.Event()

    def describe(self) -> Any:
        """The server's `Description`, waiting for a server that is away: not so long before it was ever there."""
        deadline = time.monotonic() + (self.patience if self._met else min(self.patience, _FIRST_PATIENCE))
        attempt = 0
        while True:
            try:
                description = self._client.describe(min(10.0, self.timeout), attempts=1)
                self.window = max(1, int(description.stream_window))
                self.backend = f"{description.backend} ({description.backend_version})"
                self._met = True
                return description
            except RemoteError as error:
                attempt += 1
                if not (error.again or error.late) or time.monotonic() > deadline or self._closed.is_set():
                    raise
                if attempt == 1:
                    logger.warning("waiting for %s: %s", self.address, error)
                self._closed.wait(backoff(attempt))

    def must_serve(self, model: Any) -> None:
        """A `RequestError` unless the server's states are those of this description."""
        found = self.describe()
        for name in ("core_sha256", "host_sha256", "artefact_sha256", "input", "output"):
            if getattr(found, name) != getattr(model, name):
                raise RequestError(
                    f"{self.address} serves another model than the other servers, or than before ({name} differs): "
                    "collect from each into a folder of its own"
                )

    def encode(self, request: Any) -> Any:
        """The response to one request, asked for again where that may help."""
        return self._client.answer(request, self._client.encode(request, self.timeout), self.timeout, attempts=8)

    def rate(self, request: Any) -> float:
        """Windows a second, from a few that are under way together."""
        self.encode(request)
        start = time.monotonic()
        for call in [self._client.encode(request, self.timeout) for _ in range(min(_PROBES, self.window))]:
            self._client.answer(request, call, self.timeout)
        return min(_PROBES, self.window) / max(time.monotonic() - start, 1e-6)

    def work(self, feed: Feed, answers: "queue.Queue[Any]", model: Any) -> None:
        """Sends what the feed has, until it is at its end; puts (station, sample, response) to the answers."""
        failures = 0
        try:
            while not self._closed.is_set():
                arrived, over = self._stream(feed, answers)
                if over:
                    return
                failures = 0 if arrived else failures + 1
                self._closed.wait(backoff(failures + 1))
                if not self._closed.is_set():
                    self.must_serve(model)  # it may have come back as another
        except WhisperHailoError as error:
            self.error = error
        except Exception as error:
            self.error = WhisperHailoError(f"{self.address}: {type(error).__name__}: {error}")
        if self.error is not None and not self._closed.is_set():
            logger.warning("nothing more is collected from %s: %s", self.address, self.error)

    def _stream(self, feed: Feed, answers: "queue.Queue[Any]") -> tuple[int, bool]:
        """One stream to its end: how many samples were answered, and whether there are no more."""
        pending: deque[Sample] = deque()
        lock, room = threading.Lock(), threading.Semaphore(self.window)
        alive, over, arrived, trouble = threading.Event(), False, 0, False
        alive.set()

        def requests() -> Iterator[Any]:
            # runs in a thread of gRPC's, which may still be here when the stream has long broken
            nonlocal over
            while room.acquire() and alive.is_set():
                sample = WAIT
                while sample is WAIT:
                    if not alive.is_set():
                        return
                    sample = feed.get(0.2)
                if sample is None:
                    over = True
                    return
                with lock:
                    if not alive.is_set():
                        feed.back(sample)
                        return
                    sample.attempts += 1
                    pending.append(sample)
                yield sample.request

        stream = self._client.stream(requests())
        try:
            for response in stream:
                with lock:
                    sample = pending.popleft()
                room.release()
                code = response.status.code
                if response.sample_id != sample.request.sample_id:
                    feed.back(sample)
                    raise WhisperHailoError(f"{self.address} answers other samples than it was asked for")
                if code == 0:
                    arrived += 1
                    answers.put((self, sample, response))
                elif code in _FINAL or sample.attempts >= _MOST_ATTEMPTS:
                    feed.done(sample, skipped=response.status.message)
                else:
                    feed.back(sample)
                    trouble = True
                    break
        except grpc.RpcError as error:
            found = explain(error, self.address)
            gone = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED)
            if error.code() in gone and not self._closed.is_set():
                raise found from error
            trouble = True
        finally:
            with lock:
                alive.clear()
                left = list(pending)
                pending.clear()
            room.release()
            stream.cancel()
            for sample in reversed(left):
                feed.back(sample)
        return arrived, over and not trouble and not left

    def close(self) -> None:
        """Ends the stream and what waits for it."""
        self._closed.set()
        self._client.close()
