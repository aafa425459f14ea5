"""The gRPC server: calls in, states out, and limits on everything that a client can ask for.

Each call is handled as a stream of raw messages, even the unary ones: a call is then refused before its message is
read, and a client that never sends one does not hold its place for long. On the wire there is no difference.
"""

import asyncio
import hmac
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import grpc

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.service import health
from whisper_hailo_hf.service.device_queue import DeviceQueue, Encoded, QueueClosed, QueueFull
from whisper_hailo_hf.service.encoder import Rejected, ServedEncoder, Work
from whisper_hailo_hf.service.metrics import Metrics
from whisper_hailo_hf.service.places import Places
from whisper_hailo_hf.service.settings import ServerSettings
from whisper_hailo_hf.wire import SERVICE
from whisper_hailo_hf.wire.client import read_pem
from whisper_hailo_hf.wire.messages import DecodeError, DescribeRequest, EncodeResponse

logger = logging.getLogger(__name__)

_Code = grpc.StatusCode
_PACKERS = 2  # threads that check requests and make responses while the device works
_WATCHERS = 16  # clients that may watch the server's health


class EncoderServer:
    """A gRPC server of one encoder; belongs to the event loop that starts it.

    Args:
        served: the encoder.
        settings: of the server.

    Raises:
        RequestError: files that cannot be read, or an address that cannot be had (from `start`).
    """

    def __init__(self, served: ServedEncoder, settings: ServerSettings) -> None:
        self.served, self.settings, self.metrics = served, settings, Metrics()
        self.port = settings.port
        self.metrics_port: int | None = None
        self._pool = ThreadPoolExecutor(_PACKERS, thread_name_prefix="encoder-messages")
        self._draining = asyncio.Event()
        self._places = Places(settings.calls)
        self._health = health.Health(_WATCHERS)
        self._queue = DeviceQueue(
            served.run,
            limit=settings.queue,
            limit_per_client=settings.queue_per_client,
            batch=1 if served.one_by_one else settings.batch,
            observe=self.metrics.observe_batch,
        )
        self.metrics.queue.set_function(lambda: self._queue.depth)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", served.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", 16 * 1024),
                ("grpc.max_concurrent_streams", settings.calls_per_client),
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.max_connection_idle_ms", int(1000 * settings.idle_timeout)),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_ping_strikes", 3),
                ("grpc.so_reuseport", 0),
            ],
            # what is beyond `calls` can be refused with a reason, or given the place of a silent call
            maximum_concurrent_rpcs=4 * settings.calls + _WATCHERS,
            interceptors=[_Guard(settings.secret)],
        )
        methods = {"Describe": self._describe, "Encode": self._encode, "EncodeStream": self._encode_stream}
        for service, its in ((SERVICE, methods), (health.SERVICE_NAME, {"Check": self._check, "Watch": self._watch})):
            handlers = {
                name: grpc.stream_stream_rpc_method_handler(self._counted(name, method))
                for name, method in its.items()
            }
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        if settings.reflection:
            self._add_reflection()

    async def start(self) -> None:
        """Listens, and says so to health checks."""
        self.loop = asyncio.get_running_loop()
        settings, address = self.settings, self.settings.address
        credentials = None if settings.certificate is None else _credentials(settings)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            reason = "the port is taken, or the address is not this machine's"
            if credentials is not None:
                reason += ", or the certificate and key do not fit"
            raise RequestError(f"cannot listen on {address}: {reason}") from error
        self._health.set(True)
        await self._server.start()
        if settings.metrics_port is not None:
            try:
                self.metrics_port = self.metrics.serve(settings.metrics_host, settings.metrics_port)
            except OSError as error:
                await self.stop(0)
                raise RequestError(
                    f"cannot serve metrics on {settings.metrics_host}:{settings.metrics_port}: {error.strerror}"
                ) from error
        logger.info(
            "serving", extra={"address": address, "port": self.port, "backend": self.served.description.backend}
        )

    async def stop(self, grace: float | None = None) -> None:
        """Refuses new work, finishes what is under way, for at most `grace` seconds, and lets go of everything."""
        self._draining.set()
        self._health.set(False, ended=True)
        await self._server.stop(self.settings.drain_timeout if grace is None else grace)
        await asyncio.to_thread(self._queue.close)
        self._pool.shutdown()
        self.metrics.close()
        self.served.close()
        logger.info("stopped")

    async def abort(self) -> None:
        """Ends what is under way at once; for one who does not wait for `stop`."""
        await self._server.stop(0)

    @property
    def busy_seconds(self) -> float:
        """How long the device has been at the batch that it runs now."""
        return self._queue.busy_seconds

    # ---- the calls: messages as bytes, one after the other ----

    async def _describe(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        try:
            DescribeRequest.FromString(await self._first(messages, context))
        except DecodeError:
            raise Rejected(_Code.INVALID_ARGUMENT, "the message is no DescribeRequest") from None
        yield self.served.description.SerializeToString()

    async def _encode(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        raw = await self._first(messages, context)
        if self._draining.is_set():
            raise Rejected(_Code.UNAVAILABLE, "the server is shutting down")
        try:
            response = await self._answer(raw, context.peer(), None)
        except Rejected as error:
            self.metrics.rejected.labels(error.code.name).inc()
            raise
        yield response.SerializeToString()

    async def _check(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield self._health.check(await self._first(messages, context))

    async def _watch(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for status in self._health.watch(await self._first(messages, context)):
            yield status

    async def _encode_stream(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        peer, window = context.peer(), self.settings.queue_per_client
        under_way: deque[asyncio.Task[Any]] = deque()
        free = asyncio.Semaphore(window)
        arrived = asyncio.Event()
        end: Exception | None = None

        async def read() -> None:
            nonlocal end
            timeout = self.settings.message_timeout
            try:
                while not self._draining.is_set():
                    await free.acquire()
                    line = f"nothing was sent for {timeout:g} s"
                    raw = await self._places.message(messages, peer, timeout, line, lambda: not under_way)
                    timeout = self.settings.idle_timeout
                    under_way.append(asyncio.create_task(self._answer_in_band(raw, peer, free)))
                    arrived.set()
                end = Rejected(_Code.UNAVAILABLE, "the server is shutting down")
            except Exception as error:
                end = error
            finally:
                arrived.set()

        reader = asyncio.create_task(read())
        stop = asyncio.create_task(self._draining.wait())
        stop.add_done_callback(lambda _: reader.cancel() if self._draining.is_set() else None)
        reader.add_done_callback(lambda _: arrived.set())
        try:
            while True:
                while under_way:
                    yield (await under_way[0]).SerializeToString()
                    under_way.popleft()
                    free.release()
                if reader.done():
                    break
                arrived.clear()
                await arrived.wait()
            while under_way:
                yield (await under_way.popleft()).SerializeToString()
        finally:
            for task in (reader, stop, *under_way):
                task.cancel()
            await asyncio.gather(reader, stop, *under_way, return_exceptions=True)
        if isinstance(end, StopAsyncIteration):  # the client has said all
            return
        raise end or Rejected(_Code.UNAVAILABLE, "the server is shutting down")

    # ---- one window ----

    async def _answer_in_band(self, raw: bytes, peer: str, free: asyncio.Semaphore) -> Any:
        try:
            return await self._answer(raw, peer, free)
        except Rejected as error:
            self.metrics.rejected.labels(error.code.name).inc()
            response = EncodeResponse(sample_id=_id_of(raw))
            response.status.code, response.status.message = error.code.value[0], error.line
            return response

    async def _answer(self, raw: bytes, peer: str, free: asyncio.Semaphore | None) -> Any:
        loop = asyncio.get_running_loop()
        work: Work = await loop.run_in_executor(self._pool, self.served.check, raw)
        try:
            async with asyncio.timeout(work.timeout):
                encoded = await self._encoded(work, peer, patient=free is not None)
        except TimeoutError:
            raise Rejected(_Code.DEADLINE_EXCEEDED, f"not encoded within {work.timeout:g} s") from None
        return await loop.run_in_executor(self._pool, self.served.respond, work, encoded)

    async def _encoded(self, work: Work, peer: str, patient: bool) -> Encoded:
        """A stream waits for room in the queue, since it reads no further ahead; a single call is refused."""
        while True:
            try:
                future = self._queue.submit(peer, work.features)
                break
            except QueueFull:
                if not patient:
                    raise Rejected(_Code.RESOURCE_EXHAUSTED, "the queue is full: try again later") from None
                await asyncio.sleep(0.005)
            except QueueClosed:
                raise Rejected(_Code.UNAVAILABLE, "the server is shutting down") from None
        try:
            encoded = await asyncio.wrap_future(future)
        except Exception:
            self._set_health(False)
            raise Rejected(_Code.UNAVAILABLE, "the device failed: try again, or ask the operator") from None
        if not self._health.serving:
            self._set_health(True)
        self.metrics.queue_seconds.observe(encoded.queue_seconds)
        return encoded

    def _set_health(self, healthy: bool) -> None:
        if not self._draining.is_set():
            self._health.set(healthy)

    # ---- around each call ----

    async def _first(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        seconds = self.settings.message_timeout
        line = f"no message arrived within {seconds:g} s"
        try:
            return await self._places.message(messages, context.peer(), seconds, line, lambda: True)
        except StopAsyncIteration:
            raise Rejected(_Code.INVALID_ARGUMENT, "the call ended without a message") from None

    def _counted(
        self, name: str, method: Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]
    ) -> Callable[[Any, Any], AsyncIterator[bytes]]:
        """A method with its failures as statuses, counted and logged."""

        async def call(messages: Any, context: Any) -> AsyncIterator[bytes]:
            start, code, line = time.monotonic(), _Code.OK, ""
            peer = context.peer()  # asked for when the call is over, it would be read from memory that is gone
            self.metrics.active.inc()
            try:
                try:
                    left = context.time_remaining()
                    if left is not None and left <= 0:
                        raise Rejected(_Code.DEADLINE_EXCEEDED, "the deadline had passed when the call arrived")
                    # who watches is counted apart: it would keep its place for good
                    with self._places.place() if name != "Watch" else nullcontext():
                        async for message in method(aiter(messages), context):
                            yield message
                except Rejected as error:
                    code, line = error.code, error.line
                except asyncio.CancelledError:
                    code = _Code.CANCELLED
                    raise
                except Exception:
                    code, line = _Code.INTERNAL, "the server failed"
                    logger.exception("a call failed", extra={"method": name})
                if code is not _Code.OK:
                    await context.abort(code, line)
            finally:
                self.metrics.active.dec()
                self.metrics.calls.labels(name, code.name).inc()
                level = logging.DEBUG if code is _Code.OK else logging.INFO
                seconds = round(time.monotonic() - start, 4)
                facts = {"method": name, "code": code.name, "peer": peer, "seconds": seconds, "reason": line}
                logger.log(level, "call", extra=facts)

        return call

    def _add_reflection(self) -> None:
        from grpc_reflection.v1alpha import reflection

        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)


class _Guard(grpc.aio.ServerInterceptor):
    """Refuses calls without the token; to ask for the server's health, none is needed."""

    def __init__(self, token: str | None) -> None:
        self._wanted = None if token is None else f"Bearer {token}".encode()

        async def refuse(messages: Any, context: Any) -> AsyncIterator[bytes]:
            await context.abort(_Code.UNAUTHENTICATED, "a token is needed, and this is not it")
            yield b""

        self._refusal = grpc.stream_stream_rpc_method_handler(refuse)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        if self._wanted is not None and handler_call_details.method != f"/{health.SERVICE_NAME}/Check":
            metadata = handler_call_details.invocation_metadata or ()
            given = [value for key, value in metadata if key == "authorization"]
            found = given[0] if len(given) == 1 else ""
            if not hmac.compare_digest(found.encode() if isinstance(found, str) else found, self._wanted):
                return self._refusal
        return await continuation(handler_call_details)


def _credentials(settings: ServerSettings) -> Any:
    assert settings.key is not None
    assert settings.certificate is not None
    roots = None if settings.client_ca is None else read_pem(settings.client_ca, "CERTIFICATE")
    pair = (read_pem(settings.key, "PRIVATE KEY"), read_pem(settings.certificate, "CERTIFICATE"))
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)


def _id_of(raw: bytes) -> str:
    from whisper_hailo_hf.wire.messages import EncodeRequest

    try:
        return str(EncodeRequest.FromString(raw).sample_id)[:1024]
    except DecodeError:
        return ""
