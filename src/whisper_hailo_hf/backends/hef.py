"""`hef`: the core on a Hailo chip.

The file is `hailo8l/encoder.hef` beside the weights, or one that is named. The device is opened at the first `encode`,
in the process that runs it. The chip has integers; what goes in and comes out is made of and into float32 here, and
the host's epilogue is that of every other backend.
"""

import atexit
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.arithmetic import ACTIVATIONS, Affine
from whisper_hailo_hf.backends.base import BackendStatus, EncoderBackend, EncoderParts, host_states, weights_version
from whisper_hailo_hf.backends.hef_device import DeviceFault, HefDevice, Settings
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.hailo.device import device_ids, import_platform, look_at_device
from whisper_hailo_hf.hailo.faults import Fault, explain
from whisper_hailo_hf.hailo.hef import Hef, HefStream, read_hef

logger = logging.getLogger(__name__)

_FILE = artefacts.HEF_PATH.rpartition("/")[2]
_AT_EXIT_SECONDS = 5.0
_FALLBACK_FILES = {"onnx": artefacts.ONNX_PATH, "emulator": artefacts.ONNX_INT8_PATH}
_abandoned: list[Any] = []  # devices that a parent process opened: not ours to release, nor to be collected
_open_backends: "weakref.WeakSet[HefBackend]" = weakref.WeakSet()


class HefBackend(EncoderBackend):
    """A Hailo-8L or Hailo-8.

    Args:
        parts: the model's encoder.
        path: a HEF to run instead of the one beside the weights. It has no record, so that nothing but its shapes can
            be checked.
        layer_norm: where the final LayerNorm (and the positional map) is: `"host"`, as in the HEFs that this package
            makes, or `"chip"`, as in those that Hailo publishes for Whisper. Only for a HEF named by `path`, which
            must say it.
        io: `"native"`, integers over PCIe, or `"float32"`, which HailoRT converts.
        frames_in_flight: windows that are under way at a time.
        batch_size: frames that the chip runs before it loads its next context; None leaves it to HailoRT.
        timeout: seconds that one window may take. HailoRT may wait twice as long.
        group_id: which of a process's virtual devices share the chip.
        multi_process_service: share the chip with other processes, through the hailort service.
        fallback: backend that takes over for good where the device is not there, busy, too slow, or lost and not to be
            opened again; None is an error instead.

    Raises:
        RequestError: a setting that there is not, no HEF, or one that does not fit the weights.
    """

    name = "hef"

    def __init__(
        self,
        parts: EncoderParts,
        *,
        path: str | os.PathLike | None = None,
        layer_norm: str | None = None,
        io: str = "native",
        frames_in_flight: int = 2,
        batch_size: int | None = None,
        timeout: float = 10.0,
        group_id: str = "SHARED",
        multi_process_service: bool = False,
        fallback: str | None = None,
    ) -> None:
        super().__init__(parts)
        if io not in ("native", "float32"):
            raise RequestError(f"io is native or float32, not {io!r}")
        if layer_norm not in (None, "host", "chip"):
            raise RequestError(f"layer_norm is host or chip, not {layer_norm!r}")
        if (path is None) != (layer_norm is None):
            raise RequestError(
                "path and layer_norm go together: layer_norm='chip' for a HEF that Hailo published, which ends in the "
                "final LayerNorm, 'host' for one of this package's making"
            )
        for setting, value, least in (
            ("frames_in_flight", frames_in_flight, 1),
            ("batch_size", batch_size, 1),
            ("timeout", timeout, 0.001),
        ):
            if value is not None and not (isinstance(value, int | float) and least <= value <= 65535):
                raise RequestError(f"{setting} is a positive number, not {value!r}")
        if fallback is not None and fallback not in ("onnx", "torch", "emulator"):
            raise RequestError(f"fallback is onnx, torch or emulator, not {fallback!r}")
        self.path = None if path is None else Path(path).expanduser()
        self.layer_norm = layer_norm or "host"
        self.settings = Settings(io, frames_in_flight, batch_size, timeout, group_id, multi_process_service)
        self.fallback = fallback
        self._stand_in: EncoderBackend | None = None
        self._why_not_here = ""
        self._turn = Lock()
        self._version: tuple[tuple[int, int], ...] = ()
        self._hef: Hef | None = None
        self.file()
        if fallback in _FALLBACK_FILES:
            with suppress(WhisperHailoError):  # fetched now: when the device is lost it may be too late
                parts.artefacts.get(_FALLBACK_FILES[fallback])

    @classmethod
    def status(cls) -> BackendStatus:
        try:
            platform = import_platform()
            found = device_ids(platform)
        except WhisperHailoError as error:
            return BackendStatus(cls.name, False, str(error))
        except Exception as error:
            return BackendStatus(cls.name, False, explain(error).line)
        version = getattr(platform, "__version__", "of an unknown version")
        if not found:
            return BackendStatus(cls.name, False, f"HailoRT {version} finds no device: whisper-hailo doctor looks why")
        return BackendStatus(cls.name, True, f"HailoRT {version}, device {', '.join(found)}")

    @classmethod
    def why_not_auto(cls, parts: EncoderParts) -> str | None:
        if not _names(parts):
            return f"no {artefacts.HEF_PATH} beside the weights"
        platform = import_platform()
        try:
            hef = read_hef(_fitting(parts)[1])
        except WhisperHailoError as error:
            return str(error)
        return _why_unusable(hef, platform)

    def file(self) -> Path:
        """The HEF that stands for the weights as they are now."""
        if self.path is not None:
            self._hef = read_hef(self.path)
            return self.path
        _, path = _fitting(self.parts)
        self._hef = read_hef(path)
        return path

    def open(self) -> HefDevice:
        try:
            platform = import_platform()
        except WhisperHailoError as error:
            raise DeviceFault(Fault("absent", None, str(error))) from error
        name, path = ("", self.path) if self.path is not None else _fitting(self.parts)
        self._hef = hef = read_hef(path)
        if reason := _why_unusable(hef, platform):
            raise WhisperHailoError(f"{path.name}: {reason}")
        record = self.parts.records.get(name, {})
        core, host = self.parts.core, self.parts.host
        device = HefDevice(
            platform,
            path,
            hef,
            self.settings,
            channels=(self.parts.mel_bins, host.layer_norm.weight.shape[0]),
            lengths=(core.frames, host.window_positions),
            output_order=record.get("outputs"),
            output_dtype=(record.get("output") or {}).get("dtype"),
        )
        _open_backends.add(self)
        return device

    def encode(self, input_features: np.ndarray) -> np.ndarray:
        self._refuse_forks()
        features = np.ascontiguousarray(input_features, dtype=np.float32)
        with self._turn:  # one at a time: the chip is one
            if self._stand_in is None:
                try:
                    return self._run(features, self._epilogue)
                except DeviceFault as error:
                    if self.fallback is None or not error.fault.of_device:
                        raise
                    self._fall_back(str(error))
            assert self._stand_in is not None
            return self._stand_in.encode(features)

    def integers(self) -> tuple[Affine, Affine] | None:
        if self.layer_norm == "chip" or self._hef is None or self._stand_in is not None:
            return None
        network = self._hef.networks[0]
        found = _same(network.inputs), _same(network.outputs)
        return None if None in found else found  # type: ignore[return-value]

    def core_states(self, input_features: np.ndarray) -> np.ndarray:
        self._refuse_forks()
        features = np.ascontiguousarray(input_features, dtype=np.float32)
        with self._turn:
            return self._run(features, lambda found: torch.from_numpy(found.reshape(1, -1, found.shape[-1])))

    @torch.no_grad()
    def _run(self, features: np.ndarray, finish: Callable[[np.ndarray], Tensor]) -> np.ndarray:
        """The states of each input, `finish`ed from those of its windows, (tiles, positions, d_model)."""
        current = weights_version(self.parts.core)
        if current != self._version:
            self.close()
            self._version = current
        host = self.parts.host
        windows = host.windows(torch.from_numpy(features)).squeeze(2 if host.time_axis == "width" else 3)
        left = np.ascontiguousarray(windows.numpy())
        tiles = len(left) // len(features) if len(features) else 1
        states: list[Tensor] = []
        held: list[np.ndarray] = []
        reopened = False
        while len(left):
            try:
                with self.handle() as device:
                    frames = device.run(left)
                for found in frames:
                    left = left[1:]
                    held.append(found)
                    if len(held) == tiles:
                        states.append(finish(np.stack(held)))
                        held = []
            except DeviceFault as error:
                self.close()
                if error.fault.kind != "lost" or reopened:
                    raise
                reopened = True
                logger.warning("opening the Hailo device anew: %s", error)
            except BaseException:
                self.close()  # interrupted: frames are under way that nobody waits for
                raise
        shape = (0, host.positions, host.layer_norm.weight.shape[0])
        return torch.cat(states).numpy() if states else np.empty(shape, np.float32)

    def _refuse_forks(self) -> None:
        """Before any lock: a thread that the fork left behind may hold it for ever."""
        if self._handle is not None and self._owner != os.getpid():
            raise WhisperHailoError(
                f"the Hailo device was opened by process {self._owner}, and this one is its fork: start processes "
                "with multiprocessing's 'spawn', or fork before the first forward"
            )

    def _epilogue(self, found: np.ndarray) -> Tensor:
        """(tiles, positions, d_model) of one input to its states, (1, positions, d_model)."""
        host = self.parts.host
        hidden = torch.from_numpy(found)
        if self.layer_norm == "host":
            return host_states(host, hidden.transpose(1, 2).unsqueeze(2 if host.time_axis == "width" else 3))
        hidden = hidden.reshape(1, -1, hidden.shape[-1])
        return torch.nn.functional.pad(hidden, (0, 0, 0, host.positions - hidden.shape[1]))

    def _fall_back(self, reason: str) -> None:
        from whisper_hailo_hf.backends.registry import make_backend

        assert self.fallback is not None
        self.close()
        self._stand_in = make_backend(self.fallback, self.parts)
        self._why_not_here = reason
        logger.warning("the encoder runs on %s from here on: %s", self.fallback, reason)

    def close(self) -> None:
        """Lets go of the device; the next `encode` opens it anew. One that a parent process opened is left to it."""
        with self._lock:
            device, self._handle = self._handle, None
            if device is None:
                return
            if self._owner != os.getpid():
                _abandoned.append(device)
                return
            device.close()

    def info(self) -> dict[str, Any]:
        hef, device = self._hef, self._handle
        facts: dict[str, Any] = {
            "backend": self.name,
            "hef": hef.path if hef else None,
            "compiled": f"for {hef.architecture} with DFC {hef.compiler}" if hef else None,
            "contexts": hef.networks[0].contexts if hef else None,
            "layer_norm": self.layer_norm,
            **vars(self.settings),
            "fallback": self.fallback,
        }
        if isinstance(device, HefDevice):
            facts["inputs"] = {stream.name: f"{stream.shape} {stream.dtype}" for stream in device.inputs}
            facts["outputs"] = {stream.name: f"{stream.shape} {stream.dtype}" for stream in device.outputs}
        if self._stand_in is not None:
            facts["runs_on"] = f"{self.fallback}: {self._why_not_here}"
        return facts

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() | {"_version": (), "_stand_in": None, "_why_not_here": ""}
        del state["_turn"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._turn = Lock()

    def __del__(self) -> None:
        if self.__dict__.get("_handle") is not None:
            self.close()


def _names(parts: EncoderParts) -> list[str]:
    return [name for name in parts.artefacts if name.rpartition("/")[2] == _FILE]


def _same(streams: Sequence[HefStream]) -> Affine | None:
    """The integers of all these streams; None if they are not the same, or have a scale for each feature."""
    if not streams:
        return None
    first = streams[0]
    alike = {(one.zero_point, one.scale, one.data_bytes, one.scales) for one in streams}
    if len(alike) > 1 or first.scales or not first.zero_point.is_integer() or 8 * first.data_bytes not in ACTIVATIONS:
        return None
    return Affine(np.asarray(first.scale, np.float32), int(first.zero_point), ACTIVATIONS[8 * first.data_bytes])


def _fitting(parts: EncoderParts) -> tuple[str, Path]:
    """Name and path of the HEF beside the weights, fetched if need be: of those for several chips, the one for the
    chip that is here.

    A `RequestError` where there is none, or it does not stand for the weights; a `WhisperHailoError` where it cannot
    be had.
    """
    names = _names(parts)
    architectures = _architectures_here() if len(names) > 1 else ()
    names.sort(key=lambda name: (name.partition("/")[0].upper() not in architectures, name != artefacts.HEF_PATH))
    if not names:
        raise RequestError(f"no {artefacts.HEF_PATH} beside the weights: make it with whisper-hailo compile")
    path = parts.artefacts.get(names[0])
    if path is None:
        raise RequestError(f"config.json names {names[0]}, which is not there: make it with whisper-hailo compile")
    weights = artefacts.fingerprint(parts.core)
    if reason := artefacts.why_unfit(path, parts.records.get(names[0]), weights):
        raise RequestError(f"{reason}: fetch it again, or make it anew with whisper-hailo compile")
    return names[0], path


def _architectures_here() -> tuple[str, ...]:
    try:
        return _architectures(import_platform())
    except WhisperHailoError:
        return ()


def _architectures(platform: Any) -> tuple[str, ...]:
    """Of the devices that answer."""
    try:
        found = [look_at_device(platform, one).architecture for one in device_ids(platform)]
    except Exception:  # opening the device will say what is wrong with it
        return ()
    return tuple(name for name in found if name)


def _why_unusable(hef: Hef, platform: Any) -> str | None:
    """None if this runtime can read the file and the device runs it, as far as they say what they are."""
    if reason := hef.why_not_read_by(str(getattr(platform, "__version__", ""))):
        return reason
    return next((reason for one in _architectures(platform) if (reason := hef.why_not_run_on(one))), None)


@atexit.register
def _close_all() -> None:
    """HailoRT shall not be left to the order in which Python takes its modules apart."""
    for backend in list(_open_backends):
        if backend._turn.acquire(timeout=_AT_EXIT_SECONDS):
            backend.close()
