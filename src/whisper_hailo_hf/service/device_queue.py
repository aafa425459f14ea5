"""One owner of the device: a thread that takes windows from a bounded queue, client after client in turn."""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float32]


class QueueFull(Exception):
    """There is no room for another window of this client, or of anyone."""


class QueueClosed(Exception):
    """The device takes no more windows."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A window's states, and how long it waited for the device and the device took for its batch (s)."""

    states: FloatArray
    queue_seconds: float
    device_seconds: float


@dataclass(eq=False)
class _Waiting:
    features: FloatArray
    future: "Future[Encoded]" = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class DeviceQueue:
    """Runs windows on the device, in batches of what waits.

    Args:
        run: features (batch, mel bins, frames) to states (batch, ...); called in one thread only.
        limit: windows that may wait.
        limit_per_client: of them, those of one client.
        batch: most windows of one `run`.
        observe: called after each batch with its size and seconds; the seconds are None if it failed.
    """

    def __init__(
        self,
        run: Callable[[FloatArray], FloatArray],
        *,
        limit: int,
        limit_per_client: int,
        batch: int,
        observe: Callable[[int, float | None], None] = lambda size, seconds: None,
    ) -> None:
        self._run, self._observe = run, observe
        self._limit, self._limit_per_client, self._batch = limit, limit_per_client, batch
        self._waiting: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._count = 0
        self._changed = threading.Condition()
        self._closed = False
        self._since: float | None = None
        self._thread = threading.Thread(target=self._work, name="encoder-device", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Windows that wait."""
        return self._count

    @property
    def busy_seconds(self) -> float:
        """How long the device has been at the batch that it runs now; 0 if it runs none."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def submit(self, client: str, features: FloatArray) -> "Future[Encoded]":
        """Puts a window into the queue; cancelling what comes back takes it out.

        Raises:
            QueueFull: too many wait already.
            QueueClosed: after `close`.
        """
        with self._changed:
            if self._closed:
                raise QueueClosed
            own = self._waiting.get(client)
            if own is not None and len(own) >= self._limit_per_client:
                self._drop_cancelled()
                own = self._waiting.get(client)
                if own is not None and len(own) >= self._limit_per_client:
                    raise QueueFull
            if self._count >= self._limit:
                self._drop_cancelled()
                if self._count >= self._limit:
                    raise QueueFull
            waiting = _Waiting(features)
            self._waiting.setdefault(client, deque()).append(waiting)
            self._count += 1
            self._changed.notify()
            return waiting.future

    def close(self) -> None:
        """Runs what waits and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _drop_cancelled(self) -> None:
        for client in list(self._waiting):
            kept = deque(one for one in self._waiting[client] if not one.future.cancelled())
            self._count -= len(self._waiting[client]) - len(kept)
            if kept:
                self._waiting[client] = kept
            else:
                del self._waiting[client]

    def _take(self) -> list[_Waiting]:
        """The next batch, one window of each client in turn; empty at the end."""
        with self._changed:
            while True:
                taken: list[_Waiting] = []
                while self._waiting and len(taken) < self._batch:
                    client, own = self._waiting.popitem(last=False)
                    one = own.popleft()
                    self._count -= 1
                    if own:
                        self._waiting[client] = own  # to the end of the line
                    if one.future.set_running_or_notify_cancel():
                        taken.append(one)
                if taken or self._closed:
                    return taken
                self._changed.wait()

    def _work(self) -> None:
        while taken := self._take():
            start = time.monotonic()
            try:
                self._since = start
                first = taken[0].features[None]
                states = self._run(first if len(taken) == 1 else np.stack([one.features for one in taken]))
                if len(states) != len(taken):
                    raise RuntimeError(f"{len(states)} states for {len(taken)} windows")
            except Exception as error:
                logger.exception("the device failed")
                self._observe(len(taken), None)
                for one in taken:
                    one.future.set_exception(error)
                continue
            finally:
                self._since = None
            seconds = time.monotonic() - start
            self._observe(len(taken), seconds)
            for one, found in zip(taken, states, strict=True):
                one.future.set_result(Encoded(found, start - one.since, seconds))
