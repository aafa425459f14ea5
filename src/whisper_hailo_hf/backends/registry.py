"""The registry of backends and the choice of `auto`.

Backends are named here and imported when they are asked for, so that importing the package imports none of their
runtimes.
"""

import importlib
import inspect
import logging
from functools import cache
from typing import TYPE_CHECKING, Any

from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from whisper_hailo_hf.backends.base import BackendStatus, EncoderBackend, EncoderParts

logger = logging.getLogger(__name__)

# in the order in which `auto` tries them; torch can always run, so that what comes after it is asked for by name
_BACKENDS = {
    "hef": "whisper_hailo_hf.backends.hef:HefBackend",
    "onnx": "whisper_hailo_hf.backends.onnx:OnnxBackend",
    "torch": "whisper_hailo_hf.backends.torch:TorchBackend",
    "emulator": "whisper_hailo_hf.backends.emulator:EmulatorBackend",
    "remote": "whisper_hailo_hf.backends.remote:RemoteBackend",
}


def backend_names() -> list[str]:
    """What `encoder_backend` may be."""
    return ["auto", *_BACKENDS]


def backend_class(name: str) -> "type[EncoderBackend]":
    """The class of a backend; a `RequestError` lists those that exist."""
    if name not in _BACKENDS:
        raise RequestError(f"unknown encoder backend {name!r}: choose {', '.join(backend_names())}")
    module, _, attribute = _BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def available_backends() -> "dict[str, BackendStatus]":
    """Each backend by name: whether it can run on this machine, and why or why not."""
    return {name: backend_class(name).status() for name in _BACKENDS}


def make_backend(name: str, parts: "EncoderParts", **options: Any) -> "EncoderBackend":
    """The backend of that name for these parts.

    Args:
        name: one of `backend_names()`. `auto` takes the first that can run here and whose artefact lies beside the
            weights and fits them, and says once which and why.
        parts: the model's encoder.
        options: settings of the backend; with `auto`, those that the one chosen does not know are left aside.

    Raises:
        RequestError: unknown name or option, or a backend that cannot run here.
    """
    auto = name == "auto"
    if auto:
        name = _choose(parts)
    cls = backend_class(name)
    status = cls.status()
    if not status.available and not options.get("fallback"):
        raise RequestError(f"the encoder backend {name!r} cannot run here: {status.reason}")
    known = list(inspect.signature(cls).parameters)[1:]
    if not auto and (unknown := [option for option in options if option not in known]):
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise RequestError(f"the encoder backend {name!r} has no option {', '.join(unknown)}: {has}")
    return cls(parts, **{option: value for option, value in options.items() if option in known})


def _choose(parts: "EncoderParts") -> str:
    reasons: list[str] = []
    for name in _BACKENDS:
        cls = backend_class(name)
        status = cls.status()
        reason = cls.why_not_auto(parts) if status.available else status.reason
        if reason is None:
            _say(f"encoder backend: {name}" + (f" ({'; '.join(reasons)})" if reasons else f" ({status.reason})"))
            return name
        reasons.append(f"not {name}: {reason}")
    raise AssertionError("torch can always run")


@cache
def _say(line: str) -> None:
    logger.warning(line)
