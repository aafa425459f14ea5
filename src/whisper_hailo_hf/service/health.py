"""The standard health service, grpc.health.v1, of a server with one thing to say about all that it serves.

Not the servicer of grpcio-health-checking: that one holds a lock while it writes to who watches, so that one client
that reads nothing would stop the server. Protocol: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from whisper_hailo_hf.service.encoder import Rejected
from whisper_hailo_hf.wire import SERVICE
from whisper_hailo_hf.wire.messages import DecodeError

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_KINDS: Any = health_pb2.HealthCheckResponse
_Code = grpc.StatusCode


class Health:
    """Whether the server serves, for who asks and who watches.

    Args:
        watchers: clients that may watch at a time.
    """

    def __init__(self, watchers: int) -> None:
        self._watchers, self._watching = watchers, 0
        self.serving = False
        self._ended = False
        self._changed = asyncio.Event()

    def set(self, serving: bool, ended: bool = False) -> None:
        """Says it; after `ended`, who watches is told once more and then let go."""
        self.serving, self._ended = serving and not self._ended, self._ended or ended
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def check(self, raw: bytes) -> bytes:
        """The answer to a `Check`."""
        if not _known(raw):
            raise Rejected(_Code.NOT_FOUND, "this server has no such service")
        return self._status(True)

    async def watch(self, raw: bytes) -> AsyncIterator[bytes]:
        """The answers to a `Watch`: now, and at each change."""
        if self._watching >= self._watchers:
            raise Rejected(_Code.RESOURCE_EXHAUSTED, f"{self._watchers} clients watch already")
        self._watching += 1
        try:
            known, said = _known(raw), b""
            while True:
                changed = self._changed
                if (now := self._status(known)) != said:
                    yield now
                    said = now
                if self._ended:
                    raise Rejected(_Code.UNAVAILABLE, "the server is shutting down")
                await changed.wait()
        finally:
            self._watching -= 1

    def _status(self, known: bool) -> bytes:
        kind = _KINDS.SERVICE_UNKNOWN if not known else _KINDS.SERVING if self.serving else _KINDS.NOT_SERVING
        return bytes(_KINDS(status=kind).SerializeToString())


def _known(raw: bytes) -> bool:
    try:
        return health_pb2.HealthCheckRequest.FromString(raw).service in ("", SERVICE)
    except DecodeError:
        raise Rejected(_Code.INVALID_ARGUMENT, "the message is no HealthCheckRequest") from None
