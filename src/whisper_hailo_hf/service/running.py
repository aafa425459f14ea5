"""A server from its start to its end: signals, systemd, and one in a thread for programs that do other things too."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.service.encoder import ServedEncoder
from whisper_hailo_hf.service.server import EncoderServer
from whisper_hailo_hf.service.settings import ServerSettings
from whisper_hailo_hf.service.supervision import notify_systemd, watchdog_seconds

logger = logging.getLogger(__name__)


def serve(
    model: str | os.PathLike,
    settings: ServerSettings | None = None,
    backend: str = "auto",
    started: Callable[[EncoderServer], None] = lambda server: None,
) -> None:
    """Serves a model's encoder until SIGTERM or SIGINT, then finishes what is under way; a second signal ends it.

    Args:
        model: folder or Hub id.
        settings: of the server.
        backend: where the encoder runs; any but `remote`.
        started: called when the server listens.

    Raises:
        RequestError: settings, a model or a backend that will not do.
    """
    settings = settings or ServerSettings()
    asyncio.run(_serve(_opened(model, settings, backend), settings, started))


def _opened(model: Any, settings: ServerSettings, backend: str) -> ServedEncoder:
    return ServedEncoder(model, backend, settings.backend_options, queue_per_client=settings.queue_per_client)


async def _serve(served: ServedEncoder, settings: ServerSettings, started: Callable[[EncoderServer], None]) -> None:
    server = EncoderServer(served, settings)
    await server.start()
    stop, now = asyncio.Event(), asyncio.Event()

    def ask() -> None:
        (now if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    notify_systemd("READY=1", f"STATUS=serving on port {server.port}")
    beating = asyncio.create_task(_beat(server))
    started(server)
    await stop.wait()
    notify_systemd("STOPPING=1")
    logger.info("draining", extra={"seconds": settings.drain_timeout})
    draining = asyncio.create_task(server.stop())
    impatient = asyncio.create_task(now.wait())
    await asyncio.wait({draining, impatient}, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        await server.abort()
    await draining
    for task in (impatient, beating):
        task.cancel()


async def _beat(server: EncoderServer) -> None:
    """Tells systemd that the server lives, for as long as the device does not hang in one batch."""
    if (seconds := watchdog_seconds()) is None:
        return
    while True:
        if server.busy_seconds < seconds:
            notify_systemd("WATCHDOG=1")
        await asyncio.sleep(seconds / 2)


@contextmanager
def background_server(
    model: Any, settings: ServerSettings | None = None, backend: str = "auto"
) -> Iterator[EncoderServer]:
    """A server in a thread of this process, for as long as the context lasts.

    Args:
        model: a model in memory, or its folder or Hub id.
        settings: of the server; port 0 takes a free one, see the server's `port`.
        backend: where the encoder runs.

    Raises:
        RequestError: as of `serve`.
    """
    settings = settings or ServerSettings(port=0)
    served = _opened(model, settings, backend)
    ready = threading.Event()
    found: dict[str, Any] = {}

    async def run() -> None:
        nonlocal found
        try:
            server = EncoderServer(served, settings)
            await server.start()
            found |= {"server": server, "loop": asyncio.get_running_loop(), "stop": asyncio.Event()}
        except RequestError as error:
            found["error"] = error
            return
        finally:
            ready.set()
        await found["stop"].wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="encoder-server", daemon=True)
    thread.start()
    ready.wait()
    if "server" not in found:
        raise found.get("error") or RequestError("the server could not start: see the log")
    try:
        yield found["server"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join()
