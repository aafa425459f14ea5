"""HailoRT's Python API, as far as its users need it: classes with its names, signatures, exceptions and traps."""

import gc
import os
import queue
import threading
import time
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from hailo_chip.chip import Program
from hailo_chip.world import VERSIONS, held, state
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.hailo.hef import read_hef

VERSION = "4.23.0"  # set by the package that stands in for hailo_platform

NAMES = {
    2: "HAILO_INVALID_ARGUMENT", 4: "HAILO_TIMEOUT", 6: "HAILO_INVALID_OPERATION", 8: "HAILO_INTERNAL_FAILURE",
    13: "HAILO_OPEN_FILE_FAILURE", 64: "HAILO_DRIVER_NOT_INSTALLED", 73: "HAILO_DEVICE_IN_USE",
    74: "HAILO_OUT_OF_PHYSICAL_DEVICES", 76: "HAILO_INVALID_DRIVER_VERSION", 77: "HAILO_RPC_FAILED",
    91: "HAILO_HEF_FILE_CORRUPTED", 92: "HAILO_HEF_NOT_SUPPORTED",
}  # fmt: skip


class HailoRTException(Exception):
    pass


class HailoRTInvalidArgumentException(HailoRTException):
    pass


class HailoRTTimeout(HailoRTException):
    pass


class HailoRTInvalidOperationException(HailoRTException):
    pass


class HailoRTInvalidProtocolVersionException(HailoRTException):
    pass


class HailoRTFirmwareControlFailedException(HailoRTException):
    pass


class HailoRTInvalidFrameException(HailoRTException):
    pass


class HailoRTInvalidHEFException(HailoRTException):
    pass


class HailoRTDriverOperationFailedException(HailoRTException):
    pass


class HailoRTUnsupportedOpcodeException(HailoRTException):
    pass


class HailoRTNotFoundException(HailoRTException):
    pass


class HailoCommunicationClosedException(HailoRTException):
    pass


class HailoRTStreamAborted(HailoRTException):
    pass


class HailoRTStreamAbortedByUser(HailoRTException):
    pass


class HailoRTNetworkGroupNotActivatedException(HailoRTException):
    pass


class HailoRTHEFNotCompatibleWithDevice(HailoRTException):
    pass


_SEE_LOG = "See hailort.log for more information"
_CLASSES: dict[int, tuple[type[HailoRTException], str]] = {
    2: (HailoRTInvalidArgumentException, f"Invalid argument. {_SEE_LOG}"),
    4: (HailoRTTimeout, "Received a timeout - hailort has failed because a timeout had occurred"),
    6: (HailoRTInvalidOperationException, f"Invalid operation. {_SEE_LOG}"),
    15: (
        HailoRTInvalidProtocolVersionException,
        "HailoRT has failed because an invalid protocol version was received",
    ),
    18: (HailoRTFirmwareControlFailedException, "libhailort control operation failed"),
    25: (HailoRTInvalidFrameException, "An invalid frame was received"),
    26: (HailoRTInvalidHEFException, f"Invalid HEF. {_SEE_LOG}"),
    36: (HailoRTDriverOperationFailedException, "Failure in hailort driver ioctl. run 'dmesg | grep hailo' for more"),
    48: (HailoRTUnsupportedOpcodeException, "HailoRT has failed because an unsupported opcode was sent to device"),
    61: (HailoRTNotFoundException, "Item not found"),
    62: (HailoCommunicationClosedException, "Communication closed"),
    63: (HailoRTStreamAborted, "Stream aborted"),
    69: (HailoRTNetworkGroupNotActivatedException, "Network group is not activated"),
    93: (HailoRTHEFNotCompatibleWithDevice, f"HEF file is not compatible with device. {_SEE_LOG}"),
}


def failure(status: int) -> HailoRTException:
    """What Python sees of a status."""
    if status in _CLASSES:
        cls, text = _CLASSES[status]
        return cls(text)
    return HailoRTException(f"libhailort failed with error: {status} ({NAMES.get(status, 'HAILO_SOMETHING')})")


def _known() -> Any:
    return SimpleNamespace(**VERSIONS[VERSION])


class FormatType(IntEnum):
    AUTO, UINT8, UINT16, FLOAT32 = range(4)


class FormatOrder(IntEnum):
    AUTO, NHWC, NHCW, FCR, F8CR, NHW, NC, BAYER_RGB = range(8)
    RGB888, NCHW = 10, 11


class HailoSchedulingAlgorithm(IntEnum):
    NONE, ROUND_ROBIN = range(2)


class DeviceArchitectureTypes(IntEnum):
    HAILO8_A0, HAILO8, HAILO8L, HAILO15H, HAILO15L, HAILO15M, HAILO10H = range(7)

    def __str__(self) -> str:
        return self.name


def _driver_status() -> int:
    if state.driver is None:
        return 64
    return 0 if state.driver in ("same", VERSION) else 76


class Device:
    def __init__(self, device_id: str | None = None) -> None:
        if status := _driver_status():
            raise failure(status)
        if not state.devices:
            raise HailoRTException("HailoRT device not found in the system")
        if device_id is not None and device_id not in state.devices:
            raise failure(2)
        self.control = _Control()

    @staticmethod
    def scan() -> list[str]:
        if state.driver is None:
            raise failure(64)
        return list(state.devices)

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *args: Any) -> bool:
        self.release()
        return False

    def release(self) -> None:
        pass


class _Control:
    def identify(self) -> Any:
        return SimpleNamespace(
            protocol_version=2,
            firmware_version=f"{VERSION} (release,app)",
            board_name="Hailo-8\0",
            device_architecture=DeviceArchitectureTypes[state.architecture],
            serial_number="HLDDLBB000000000\0\0",
            part_number="HM21LB1C2LAE",
            product_name="<N/A>",
        )

    def get_chip_temperature(self) -> Any:
        return SimpleNamespace(ts0_temperature=41.25, ts1_temperature=42.5, sample_count=1)

    def power_measurement(self, dvm: Any = None, measurement_type: Any = None) -> float:
        raise failure(18)  # boards for the Raspberry Pi have no sensor


def _load(source: Any) -> bytes:
    if type(source) is bytes:
        return source
    try:
        with open(source, "rb") as file:
            return file.read()
    except OSError:
        raise failure(13) from None


def _checked(content: bytes) -> Any:
    """What the library finds wrong with a file when it reads it."""
    unsupported, damaged = _known().damaged_codes
    version = int.from_bytes(content[4:8], "big")
    if content[:4] != b"\x01HEF" or version > _known().newest_header:
        raise failure(unsupported)
    try:
        hef = read_hef(content)
    except RequestError:
        raise failure(damaged) from None
    if any(kind > _known().newest_extension for kind, _ in hef.extensions):
        raise failure(unsupported)
    return hef


class HEF:
    def __init__(self, hef_source: Any) -> None:
        if not isinstance(hef_source, str | bytes):
            raise ValueError("HEF can only be created from a file path (str) or a buffer (bytes)")
        self._hef = _checked(_load(hef_source))

    def get_network_group_names(self) -> list[str]:
        return [network.name for network in self._hef.networks]


class _Params:
    """Compares as HailoRT's do: the getter of the algorithm gives a number."""

    def __init__(self) -> None:
        self.device_ids: list[str] = []
        self.device_count = 1
        self._algorithm = HailoSchedulingAlgorithm.NONE  # Python's default, not the library's
        self.group_id = "UNIQUE"
        self.multi_process_service = False

    @property
    def scheduling_algorithm(self) -> int:
        return int(self._algorithm)

    @scheduling_algorithm.setter
    def scheduling_algorithm(self, value: HailoSchedulingAlgorithm) -> None:
        if not isinstance(value, HailoSchedulingAlgorithm):
            raise TypeError("incompatible function arguments")
        self._algorithm = value


class VDevice:
    def __init__(self, params: Any = None, *, device_ids: list[str] | None = None) -> None:
        gc.collect()
        self._group: str | None = None
        self._models = 0
        self._creation_pid = os.getpid()
        if params is not None and device_ids is not None:
            raise failure(6)
        self._params = params if params is not None else VDevice.create_params()
        if device_ids:
            self._params.scheduling_algorithm = HailoSchedulingAlgorithm.NONE
        if status := _driver_status():
            raise failure(status)
        if self._params.multi_process_service and not state.service:
            raise failure(77)
        if not state.devices or not held.take(self._params.group_id, self._params.multi_process_service):
            raise failure(74)
        self._group = self._params.group_id
        state.opened += 1
        state.events.append("vdevice")

    @staticmethod
    def create_params() -> Any:
        return _Params()

    def create_infer_model(self, hef_source: Any, name: str = "") -> "InferModel":
        if os.getpid() != self._creation_pid:
            raise HailoRTException("InferModel can be created only from the process VDevice was created in.")
        if not isinstance(hef_source, str | bytes):
            raise TypeError("create_infer_model_from_file(): incompatible function arguments.")
        content = _load(hef_source)
        _checked(content)
        return InferModel(self, content)

    def get_physical_devices_ids(self) -> list[str]:
        return list(state.devices)

    def release(self) -> None:
        if self._group is not None:
            if self._models:
                state.violations.append("the device was released while a network was configured on it")
            held.give_back(self._group)
            self._group = None
            state.events.append("release")

    def __enter__(self) -> "VDevice":
        return self

    def __exit__(self, *args: Any) -> bool:
        self.release()
        return False

    def __del__(self) -> None:
        self.release()


class InferModel:
    class InferStream:
        def __init__(self, stream: Any, is_input: bool) -> None:
            self._stream, self._is_input = stream, is_input
            self._type = FormatType.UINT8 if stream.data_bytes == 1 else FormatType.UINT16
            order = FormatOrder[stream.format]
            self._order = FormatOrder.NHWC if order in (FormatOrder.NHCW, FormatOrder.RGB888) else order

        @property
        def name(self) -> str:
            return self._stream.name

        @property
        def shape(self) -> list[int]:
            whole = list(self._stream.shape)
            return whole[2:] if self._order == FormatOrder.NC else whole

        @property
        def format(self) -> Any:
            return SimpleNamespace(type=self._type, order=self._order, flags=0)

        @property
        def quant_infos(self) -> list[Any]:
            stream = self._stream
            pairs = list(zip(stream.zero_points, stream.scales, strict=True)) or [(stream.zero_point, stream.scale)]
            low, high = stream.limits
            return [
                SimpleNamespace(qp_zp=zero, qp_scale=scale, limvals_min=low, limvals_max=high) for zero, scale in pairs
            ]

        @property
        def is_nms(self) -> bool:
            return False

        def set_format_type(self, type: FormatType) -> None:
            self._type = FormatType(type)

        def set_format_order(self, order: FormatOrder) -> None:
            self._order = FormatOrder(order)

    def __init__(self, vdevice: VDevice, content: bytes) -> None:
        self._vdevice, self._content = vdevice, content
        self._program = Program(content)
        self._inputs = {name: self.InferStream(one, True) for name, one in self._program.inputs.items()}
        self._outputs = {name: self.InferStream(one, False) for name, one in self._program.outputs.items()}
        self._batch_size = 0

    @property
    def hef(self) -> HEF:
        return HEF(self._content)

    @property
    def input_names(self) -> list[str]:
        return list(self._inputs)

    @property
    def output_names(self) -> list[str]:
        return list(self._outputs)

    @property
    def inputs(self) -> list[Any]:
        return list(self._inputs.values())

    @property
    def outputs(self) -> list[Any]:
        return list(self._outputs.values())

    def input(self, name: str = "") -> Any:
        return _named(self._inputs, name)

    def output(self, name: str = "") -> Any:
        return _named(self._outputs, name)

    def set_batch_size(self, batch_size: int) -> None:
        self._batch_size = batch_size

    def set_power_mode(self, power_mode: Any) -> None:
        pass

    def configure(self) -> "ConfiguredInferModel":
        if os.getpid() != self._vdevice._creation_pid:
            raise HailoRTException("InferModel can be configured only from the process it was created in.")
        wanted = self._program.hef.architecture
        runs = {"HAILO8L": {"hailo8l"}, "HAILO8": {"hailo8", "hailo8r", "hailo8l"}}.get(state.architecture, set())
        if wanted not in runs:
            raise failure(_known().arch_code)
        return ConfiguredInferModel(self)


def _named(streams: dict[str, Any], name: str) -> Any:
    if not name:
        if len(streams) > 1:
            raise failure(6)
        return next(iter(streams.values()))
    if name not in streams:
        raise failure(61)
    return streams[name]


class _Bound:
    """One stream's buffer in a binding."""

    def __init__(self) -> None:
        self._buffer: Any = None

    def set_buffer(self, buffer: Any) -> None:
        if not buffer.flags.c_contiguous:
            raise HailoRTException("Buffer must be C_CONTIGUOUS")
        if not buffer.flags.writeable:
            raise ValueError("array is not writeable")
        self._buffer = buffer  # the array itself: neither its shape nor its type is looked at

    def get_buffer(self, tf_format: bool | None = False) -> Any:
        return self._buffer


class Bindings:
    def __init__(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self._inputs = {name: _Bound() for name in inputs}
        self._outputs = {name: _Bound() for name in outputs}

    def input(self, name: str = "") -> _Bound:
        return _named(self._inputs, name)

    def output(self, name: str = "") -> _Bound:
        return _named(self._outputs, name)


class AsyncInferJob:
    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: HailoRTException | None = None

    def wait(self, timeout_ms: int) -> None:
        if not self._done.wait(timeout_ms / 1000):
            raise failure(4)
        if self._error is not None:
            raise self._error


class ConfiguredInferModel:
    Bindings = Bindings

    def __init__(self, infer_model: InferModel) -> None:
        self._model: InferModel | None = infer_model
        self._program = infer_model._program
        self._vdevice: VDevice | None = infer_model._vdevice
        self._vdevice._models += 1
        self._scheduled = self._vdevice._params.scheduling_algorithm == HailoSchedulingAlgorithm.ROUND_ROBIN
        self._active = False
        # what is set from here on comes too late
        self._formats = {one.name: (one.format.type, one.shape) for one in (*infer_model.inputs, *infer_model.outputs)}
        self._frames: queue.Queue[Any] = queue.Queue()
        self._in_flight = 0
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._broken = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        state.events.append("configured")

    def __enter__(self) -> "ConfiguredInferModel":
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        self.shutdown()
        self._model = self._vdevice = None

    def activate(self) -> None:
        if self._scheduled:
            raise failure(6)
        self._active = True

    def deactivate(self) -> None:
        if self._scheduled:
            raise failure(6)
        self._active = False

    def create_bindings(self, input_buffers: Any = None, output_buffers: Any = None) -> Bindings:
        bindings = Bindings(self._program.inputs, self._program.outputs)
        for name, buffer in (input_buffers or {}).items():
            bindings.input(name).set_buffer(buffer)
        for name, buffer in (output_buffers or {}).items():
            bindings.output(name).set_buffer(buffer)
        return bindings

    def wait_for_async_ready(self, timeout_ms: int = 1000, frames_count: int = 1) -> None:
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._in_flight + frames_count <= state.queue_size, timeout_ms / 1000
            ):
                raise failure(4)

    def run(self, bindings: list[Bindings], timeout: int) -> None:
        self.run_async(bindings).wait(timeout)

    def run_async(self, bindings: list[Bindings], callback: Callable[..., None] | None = None) -> AsyncInferJob:
        if not isinstance(bindings, list):
            raise TypeError(f"'{type(bindings).__name__}' object is not iterable")
        if self._broken or self._stopped.is_set():
            raise failure(63)
        frames = []
        for one in bindings:
            buffers: dict[str, Any] = {}
            for bound, unset in ((one._inputs, 61), (one._outputs, 6)):
                for name, stream in bound.items():
                    if stream._buffer is None:
                        raise failure(unset)
                    kind, shape = self._formats[name]
                    size = np.dtype(kind.name.lower()).itemsize * int(np.prod(shape))
                    if stream._buffer.nbytes != size:
                        raise failure(6)
                    buffers[name] = stream._buffer
            frames.append(buffers)
        job = AsyncInferJob()
        with self._changed:
            self._in_flight += len(frames)
            state.most_in_flight = max(state.most_in_flight, self._in_flight)
        self._frames.put((job, frames, callback))
        return job

    def set_scheduler_timeout(self, timeout_ms: int) -> None:
        if not self._scheduled:
            raise failure(6)

    def set_scheduler_threshold(self, threshold: int) -> None:
        if not self._scheduled:
            raise failure(6)

    def set_scheduler_priority(self, priority: int) -> None:
        if not self._scheduled:
            raise failure(6)

    def get_async_queue_size(self) -> int:
        return state.queue_size

    def shutdown(self) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self._frames.put(None)
            self._thread.join(5)
            if self._vdevice is not None:
                if self._vdevice._group is None:
                    state.violations.append("a network was shut down after its device")
                self._vdevice._models -= 1
            state.events.append("shutdown")

    def _work(self) -> None:
        while (item := self._frames.get()) is not None:
            job, frames, callback = item
            status = 0
            for buffers in frames:
                status = status or (63 if self._broken or self._stopped.is_set() else self._frame(buffers))
            with self._changed:
                self._in_flight -= len(frames)
                self._changed.notify_all()
            if status:
                self._broken = True  # an error shuts the pipeline down
                job._error = failure(status)
            if callback is not None:
                callback(completion_info=SimpleNamespace(exception=job._error))
            if status != 4:  # nobody is ever told of the frame that hangs
                job._done.set()

    def _frame(self, buffers: dict[str, np.ndarray]) -> int:
        number, state.frames = state.frames, state.frames + 1
        if state.latency:
            time.sleep(state.latency)
        if status := state.fail_at.get(str(number)):
            if state.gone_after:
                state.devices = []
            return status
        if number == state.hang_at:
            self._stopped.wait(60)
            for name in self._program.outputs:  # and then the chip writes after all
                buffers[name].reshape(-1).view(np.uint8)[:] = 0xAB
            return 4
        if not self._scheduled and not self._active:
            for name in self._program.outputs:
                buffers[name].reshape(-1).view(np.uint8)[:] = 0  # without a word
            return 0
        inputs = {name: self._in(name, buffers[name]) for name in self._program.inputs}
        for name, found in self._program.run(inputs).items():
            self._out(name, found, buffers[name])
        return 0

    def _typed(self, name: str, buffer: np.ndarray) -> tuple[FormatType, np.ndarray]:
        kind, _ = self._formats[name]
        return kind, buffer.reshape(-1).view(np.uint8).view(kind.name.lower())

    def _in(self, name: str, buffer: np.ndarray) -> np.ndarray:
        """HailoRT's own quantisation, where the host gave floats."""
        stream = self._program.inputs[name]
        kind, numbers = self._typed(name, buffer)
        if kind == FormatType.FLOAT32:
            scale, zero = np.float32(stream.scale), np.float32(stream.zero_point)
            numbers = np.rint(np.clip(numbers, *map(np.float32, stream.limits)) / scale + zero)
        return numbers.astype(np.uint8 if stream.data_bytes == 1 else np.uint16).reshape(stream.shape)

    def _out(self, name: str, found: np.ndarray, buffer: np.ndarray) -> None:
        stream = self._program.outputs[name]
        kind, numbers = self._typed(name, buffer)
        if kind == FormatType.FLOAT32:
            zero = np.array(stream.zero_points or stream.zero_point, np.float32)
            scale = np.array(stream.scales or stream.scale, np.float32)
            found = (found.astype(np.float32) - zero) * scale
        numbers[:] = found.reshape(-1)
