"""The client's end: a channel with the right security and limits, the three calls, and retries where they are safe.

`Encode` changes nothing on the server and its answer depends on the request alone: asking again is always safe.
"""

import ipaddress
import os
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.wire import DEFAULT_PORT, MAX_MESSAGE_BYTES, SERVICE
from whisper_hailo_hf.wire.messages import DescribeRequest, Description, EncodeRequest, EncodeResponse

try:
    import grpc
except ImportError as error:
    raise WhisperHailoError(
        "encoder states over the network need grpcio: pip install 'whisper-hailo-hf[serve]'"
    ) from error

TOKEN_VARIABLE = "WHISPER_HAILO_TOKEN"
CA_VARIABLE = "WHISPER_HAILO_CA"
CERTIFICATE_VARIABLE = "WHISPER_HAILO_CERT"
KEY_VARIABLE = "WHISPER_HAILO_KEY"


class RemoteError(WhisperHailoError):
    """The server refused or could not be reached.

    Attributes:
        again: whether asking again may help.
        late: whether the answer did not come in time: asking again may help, and take as long again.
    """

    def __init__(self, line: str, again: bool = False, late: bool = False) -> None:
        super().__init__(line)
        self.again, self.late = again, late


@dataclass(frozen=True)
class Connection:
    """How a server is reached.

    Attributes:
        address: `host`, `host:port`, `[IPv6]:port` or `unix:path`.
        token: what the server wants to hear; None takes the environment's WHISPER_HAILO_TOKEN, if it is set.
        ca: file of the authority that signed the server's certificate; the connection is then encrypted. `"system"`
            takes the authorities that this machine trusts; None the environment's WHISPER_HAILO_CA, if it is set.
        certificate, key: files of the client's own certificate, for a server that asks for one; None takes the
            environment's WHISPER_HAILO_CERT and WHISPER_HAILO_KEY, if the connection is encrypted.
        insecure: send the token over a network in the clear, whatever the environment says of authorities.

    Raises:
        RequestError: no address, half a certificate, files that cannot be read, or a token that all could read or that
            cannot be sent.
    """

    address: str
    token: str | None = None
    ca: str | os.PathLike | None = None
    certificate: str | os.PathLike | None = None
    key: str | os.PathLike | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if not self.address or "://" in self.address:
            raise RequestError(f"{self.address!r} is no address of an encoder service: give host:port")
        if self.ca is None and not self.insecure:
            self._take("ca", CA_VARIABLE)
        if self.ca is not None and self.certificate is None and self.key is None:
            self._take("certificate", CERTIFICATE_VARIABLE)
            self._take("key", KEY_VARIABLE)
        if (self.certificate is None) != (self.key is None):
            raise RequestError("a client's certificate and its key go together: give both")
        if self.certificate is not None and self.ca is None:
            raise RequestError("a client's certificate needs an encrypted connection: give the authority (ca) too")
        check_token(self.secret)
        if self.secret and self.ca is None and not self.is_loopback and not self.insecure:
            raise RequestError(
                f"a token would go to {self.address} in the clear: give the authority of its certificate (ca), or "
                "say insecure"
            )

    def _take(self, name: str, variable: str) -> None:
        object.__setattr__(self, name, os.environ.get(variable) or None)  # frozen for its users

    @property
    def secret(self) -> str | None:
        """The token in use."""
        return (os.environ.get(TOKEN_VARIABLE) if self.token is None else self.token) or None

    @property
    def is_loopback(self) -> bool:
        """Whether nothing leaves this machine."""
        return self.target.startswith("unix:") or is_loopback(self.target.rpartition(":")[0])

    @property
    def target(self) -> str:
        """The address with a port, as gRPC takes it."""
        if self.address.startswith("unix:"):
            return self.address
        host, colon, port = self.address.rpartition(":")
        if colon and port.isdigit() and (":" not in host or host.startswith("[")):
            return self.address
        host = self.address
        if ":" in host and not host.startswith("["):
            host = f"[{host}]"
        return f"{host}:{DEFAULT_PORT}"

    def open(self) -> "Client":
        """A client; nothing is sent yet."""
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.enable_retries", 0),  # ours know what is safe, and count
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # two clients in a process are two connections
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if self.ca is None:
            channel = grpc.insecure_channel(self.target, options)
        else:
            roots = None if self.ca == "system" else read_pem(self.ca, "CERTIFICATE")
            pair = ((self.key, "PRIVATE KEY"), (self.certificate, "CERTIFICATE"))
            own = [None if path is None else read_pem(path, kind) for path, kind in pair]
            channel = grpc.secure_channel(self.target, grpc.ssl_channel_credentials(roots, *own), options)
        return Client(channel, self)


class Client:
    """An open channel. Threads may share it; forked processes may not."""

    def __init__(self, channel: Any, connection: Connection) -> None:
        self.connection, self._channel = connection, channel
        secret = connection.secret
        self._metadata = [("authorization", f"Bearer {secret}")] if secret else []
        self._describe = channel.unary_unary(
            f"/{SERVICE}/Describe", DescribeRequest.SerializeToString, Description.FromString
        )
        self._encode = channel.unary_unary(
            f"/{SERVICE}/Encode", EncodeRequest.SerializeToString, EncodeResponse.FromString
        )
        self._stream = channel.stream_stream(
            f"/{SERVICE}/EncodeStream", EncodeRequest.SerializeToString, EncodeResponse.FromString
        )

    def describe(self, timeout: float = 10.0, attempts: int = 3) -> Any:
        """The server's `Description`."""
        return self._retried(lambda: self._describe(DescribeRequest(), timeout, self._metadata), attempts)

    def encode(self, request: Any, timeout: float = 60.0) -> Any:
        """Sends a request; `result` of what comes back is waited for with `answer`."""
        return self._encode.future(request, timeout, self._metadata)

    def answer(self, request: Any, sent: Any, timeout: float = 60.0, attempts: int = 5) -> Any:
        """The response to a request that was sent with `encode`; asks again, ever later, where that may help.

        Raises:
            RemoteError: refused, or not answered after so many attempts.
        """
        calls: Iterator[Any] = iter([sent])

        def call() -> Any:
            return (next(calls, None) or self.encode(request, timeout)).result()

        return self._retried(call, attempts)

    def stream(self, requests: Iterable[Any], timeout: float | None = None) -> Any:
        """The responses to many requests, in their order; errors are raised as gRPC's `RpcError`."""
        return self._stream(iter(requests), timeout, self._metadata)

    def close(self) -> None:
        """Ends what is under way."""
        self._channel.close()

    def _retried(self, call: Any, attempts: int) -> Any:
        for attempt in range(1, attempts + 1):
            try:
                return call()
            except grpc.RpcError as error:
                found = explain(error, self.connection.address)
                if not found.again or attempt == attempts:
                    raise found from error
            time.sleep(backoff(attempt))
        raise AssertionError("at least one attempt")


def check_token(token: str | None) -> None:
    """A `RequestError` for a token that cannot stand in a request's header: printable ASCII without blanks can."""
    if token is not None and not all("!" <= letter <= "~" for letter in token):
        raise RequestError("a token is of printable ASCII characters, without blanks")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone: `localhost`, 127.x.y.z or ::1, with brackets or without."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def backoff(attempt: int) -> float:
    """Seconds to wait after this many failures: doubling from 0.1 to 5, of which a random half or more."""
    return min(5.0, 0.1 * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def explain(error: Any, address: str) -> RemoteError:
    """One line for a failed call."""
    code, details = error.code(), " ".join((error.details() or "").split())[:300]
    if code == grpc.StatusCode.UNAVAILABLE:
        line = f"the encoder service at {address} cannot be reached or is shutting down: {details}"
        if "handshake failed" in details:
            line += " (is its certificate for this address and of this authority, and does it speak TLS?)"
        elif "Socket closed" in details:
            line += " (does it want an encrypted connection, or a certificate of this client?)"
        return RemoteError(line, again=True)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return RemoteError(f"a message is too large for the encoder service at {address}: {details}")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return RemoteError(f"the encoder service at {address} is busy: {details}", again=True)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        line = f"the encoder service at {address} did not answer in time: see whether it runs, or raise the timeout"
        return RemoteError(line, late=True)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return RemoteError(f"the encoder service at {address} wants another token: set {TOKEN_VARIABLE} or token")
    name = code.name if code is not None else "no status"
    return RemoteError(f"the encoder service at {address} answered {name}: {details}")


def read_pem(path: str | os.PathLike, kind: str) -> bytes:
    """A PEM file with a `"CERTIFICATE"` or a `"PRIVATE KEY"`; a `RequestError` where there is none."""
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise RequestError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from error
    if f"{kind}-----".encode() not in content:
        raise RequestError(f"{os.fspath(path)}: is no PEM file with a {kind.lower()}")
    return content
