"""Places for calls: so many at a time, and who says nothing gives up its own to who has something to say."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc

from whisper_hailo_hf.service.encoder import Rejected

_Code = grpc.StatusCode


class Places:
    """The calls under way on one event loop.

    A client that opens calls and sends nothing (slow loris) costs others nothing: when all places are taken, the call
    that has been silent longest ends, of the connection that has most such calls.

    Args:
        calls: that may be under way.
    """

    def __init__(self, calls: int) -> None:
        self._calls, self._taken = calls, 0
        self._silent: dict[asyncio.Timeout, tuple[str, Callable[[], bool]]] = {}
        self._ended: set[asyncio.Timeout] = set()

    @contextmanager
    def place(self) -> Any:
        """A place for a call.

        Raises:
            Rejected: RESOURCE_EXHAUSTED, where all calls under way are at work.
        """
        if self._taken - len(self._ended) >= self._calls and not self._make_room():
            raise Rejected(_Code.RESOURCE_EXHAUSTED, "too many calls are under way: try again later")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    async def message(
        self, messages: AsyncIterator[bytes], peer: str, seconds: float, line: str, idle: Callable[[], bool]
    ) -> bytes:
        """The next message of a call.

        Args:
            messages: of the call.
            peer: the connection.
            seconds: that it may take.
            line: what to say if it takes longer.
            idle: whether nothing else is under way in this call.

        Raises:
            Rejected: DEADLINE_EXCEEDED, or RESOURCE_EXHAUSTED if another call needed the place.
            StopAsyncIteration: there is none.
        """
        async with self._listening(peer, seconds, line, idle):
            return await anext(messages)

    @asynccontextmanager
    async def _listening(self, peer: str, seconds: float, line: str, idle: Callable[[], bool]) -> Any:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                self._silent[limit] = (peer, idle)
                yield
        except TimeoutError:
            if limit in self._ended:
                reason = "nothing was sent, and other clients need the place"
                raise Rejected(_Code.RESOURCE_EXHAUSTED, reason) from None
            raise Rejected(_Code.DEADLINE_EXCEEDED, line) from None
        finally:
            self._silent.pop(limit, None)
            self._ended.discard(limit)

    def _make_room(self) -> bool:
        silent = [(limit, peer) for limit, (peer, idle) in self._silent.items() if idle()]
        if not silent:
            return False
        most = Counter(peer for _, peer in silent)
        limit, _ = max(silent, key=lambda one: most[one[1]])  # the first such one is the oldest
        del self._silent[limit]
        self._ended.add(limit)
        limit.reschedule(asyncio.get_running_loop().time())
        return True
