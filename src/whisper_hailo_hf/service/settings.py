"""How a server is set, and which settings would be unsafe."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.wire import DEFAULT_PORT
from whisper_hailo_hf.wire.client import TOKEN_VARIABLE, check_token, is_loopback

_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class ServerSettings:
    """Settings of `serve`.

    Attributes:
        host, port: where it listens; port 0 takes a free one. Any host but a loopback address needs a certificate and
            a token.
        token: what clients must present; None takes the environment's WHISPER_HAILO_TOKEN, if it is set.
        certificate, key: PEM files of the server's certificate (with its chain) and key: connections are encrypted.
        client_ca: PEM file of an authority: clients must present a certificate that it signed (mutual TLS).
        insecure: listen on a public address without certificate or token all the same.
        reflection: let clients ask for the protocol (gRPC server reflection).
        metrics_port: where Prometheus may read, on `metrics_host`; None is nowhere, 0 a free port.
        queue: windows that may wait for the device, over all clients.
        queue_per_client: windows of one connection that may wait; also how far a stream is read ahead.
        batch: windows that a chip gets at a time, so that their transfers overlap; ONNX Runtime gets one.
        calls: calls under way at a time, over all clients.
        calls_per_client: calls under way on one connection.
        message_timeout: seconds in which the first message of a call must have arrived.
        idle_timeout: seconds that a stream may be silent.
        drain_timeout: seconds that work under way may take after a SIGTERM.
        backend_options: settings of the encoder backend.

    Raises:
        RequestError: settings that contradict each other or are unsafe.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = None
    certificate: str | os.PathLike | None = None
    key: str | os.PathLike | None = None
    client_ca: str | os.PathLike | None = None
    insecure: bool = False
    reflection: bool = False
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    queue: int = 64
    queue_per_client: int = 8
    batch: int = 4
    calls: int = 64
    calls_per_client: int = 16
    message_timeout: float = 10.0
    idle_timeout: float = 120.0
    drain_timeout: float = 30.0
    backend_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("queue", "queue_per_client", "batch", "calls", "calls_per_client"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is a positive number, not {getattr(self, name)}")
        for name in ("message_timeout", "idle_timeout", "drain_timeout"):
            if not getattr(self, name) > 0:
                raise RequestError(f"{name} is a positive number of seconds, not {getattr(self, name)}")
        for name in ("port", "metrics_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 65535:
                raise RequestError(f"{name} is 0 to 65535, not {value}")
        if (self.certificate is None) != (self.key is None):
            raise RequestError("a certificate and its key go together: give both")
        if self.client_ca is not None and self.certificate is None:
            raise RequestError("clients' certificates need a certificate of the server: give certificate and key")
        check_token(self.secret)
        if self.secret is not None and len(self.secret) < _SHORTEST_TOKEN:
            raise RequestError(
                f"a token of {len(self.secret)} characters can be guessed: take {_SHORTEST_TOKEN} or more"
            )
        if not is_loopback(self.host) and not self.insecure:
            missing = [
                what
                for what, given in (("a certificate and key", self.certificate), ("a token", self.secret))
                if given is None
            ]
            if missing:
                raise RequestError(
                    f"{self.host} can be reached from other machines: give {' and '.join(missing)}, or say --insecure"
                )

    @property
    def secret(self) -> str | None:
        """The token in use."""
        return (os.environ.get(TOKEN_VARIABLE) if self.token is None else self.token) or None

    @property
    def address(self) -> str:
        """Host and port, as gRPC takes them."""
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"{host}:{self.port}"


def read_secret_file(path: str | os.PathLike) -> str:
    """A token from a file, without the line break at its end."""
    try:
        token = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{os.fspath(path)}: cannot be read as a token") from error
    if not token:
        raise RequestError(f"{os.fspath(path)}: is empty, and a token is expected in it")
    return token
