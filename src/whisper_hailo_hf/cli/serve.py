"""`whisper-hailo serve`: a model's encoder over the network."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from whisper_hailo_hf.cli import console
from whisper_hailo_hf.errors import RequestError


def serve(
    model: Annotated[
        str | None, typer.Argument(help="Model: folder or Hub id. [default: the bundled demo]", show_default=False)
    ] = None,
    encoder_backend: Annotated[str, typer.Option(help="Where the encoder runs.")] = "auto",
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Setting of the encoder backend, as threads=2.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; a public one needs --cert and a token.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [default: 50505]")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients need. [default: $WHISPER_HAILO_TOKEN]")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="The server's certificate, PEM: encrypts.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Authority, PEM: clients need a certificate that it signed.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on a public address without encryption or token.")
    ] = False,
    reflection: Annotated[bool, typer.Option("--reflection", help="Let clients ask for the protocol.")] = False,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus, on the loopback address.")] = None,
    batch: Annotated[int, typer.Option(help="Windows that a chip gets at a time; ONNX Runtime gets one.")] = 4,
    queue: Annotated[int, typer.Option(help="Windows that may wait, over all clients.")] = 64,
    calls: Annotated[int, typer.Option(help="Calls under way, over all clients.")] = 64,
    drain: Annotated[float, typer.Option(help="Seconds for work under way after SIGTERM.")] = 30.0,
    make_certificates: Annotated[
        Path | None,
        typer.Option(help="Instead of serving: make a test authority, certificates and a token in this folder."),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="With --make-certificates: name or IP address of the server.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what is served as one JSON document, and log in JSON lines.")
    ] = False,
) -> None:
    """Serve a model's encoder: other machines run their pipeline with it, or collect its states.

    Listens until SIGTERM or Ctrl-C, and then finishes what is under way.
    """
    console.quiet_libraries()
    _need_extra()
    if make_certificates is not None:
        _make_certificates(make_certificates, name or [], as_json)
        return
    if name:
        raise RequestError("--name goes with --make-certificates; to listen on an address, say --host")
    from whisper_hailo_hf.cli.init import _options
    from whisper_hailo_hf.service.running import serve as serve_encoder
    from whisper_hailo_hf.service.settings import ServerSettings, read_secret_file
    from whisper_hailo_hf.speech_model import demo_model_path
    from whisper_hailo_hf.wire import DEFAULT_PORT

    settings = ServerSettings(
        host=host,
        port=DEFAULT_PORT if port is None else port,
        token=None if token_file is None else read_secret_file(token_file),
        certificate=cert,
        key=key,
        client_ca=client_ca,
        insecure=insecure,
        reflection=reflection,
        metrics_port=metrics_port,
        batch=batch,
        queue=queue,
        calls=calls,
        drain_timeout=drain,
        backend_options=_options(option or []),
    )
    if as_json:
        _log_json()

    def started(server: Any) -> None:
        served = server.served.description
        facts = {
            "address": host,
            "port": server.port,
            "model": served.model,
            "backend": served.backend,
            "core_sha256": served.core_sha256,
            "artefact_sha256": served.artefact_sha256 or None,
            "encrypted": cert is not None,
            "token": settings.secret is not None,
            "metrics_port": server.metrics_port,
        }
        if as_json:
            console.print_json(facts)
        else:
            shown = [(what.replace("_", " "), str(value)) for what, value in facts.items() if value is not None]
            console.print_table("serving", shown)
        sys.stdout.flush()

    serve_encoder(demo_model_path() if model is None else model, settings, encoder_backend, started)


def _make_certificates(folder: Path, names: list[str], as_json: bool) -> None:
    from whisper_hailo_hf.service.certificates import make_test_authority

    files = {name: str(path) for name, path in make_test_authority(folder, names).items()}
    if as_json:
        console.print_json(files)
    else:
        console.print_table("test authority", list(files.items()))


def _need_extra() -> None:
    from importlib.util import find_spec

    modules = ("grpc", "google.protobuf", "grpc_health", "grpc_reflection", "prometheus_client", "cryptography")
    for module in modules:
        parent, _, child = module.rpartition(".")
        if (parent and find_spec(parent) is None) or find_spec(module) is None:
            raise RequestError(f"this verb needs {child}: pip install 'whisper-hailo-hf[serve]'")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it has to say comes as an error, in our words


def _log_json() -> None:
    from whisper_hailo_hf.service.supervision import JsonLines

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    own = logging.getLogger("whisper_hailo_hf")
    own.handlers = [handler]
    own.setLevel(logging.INFO)
