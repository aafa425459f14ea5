"""A HEF on an open Hailo device: frames in, frames out, two or more at a time.

The InferModel API of HailoRT 4.18 to 4.23. What its users fell over is avoided here: the scheduler is set, since
Python's default gives zeros without a word; paths are strings; buffers are writeable, contiguous and ours until the
job that uses them is done; waits end; what was opened last is released first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whisper_hailo_hf.backends.hef_ports import FloatArray, Stream, arrange
from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.hailo.faults import Fault, explain
from whisper_hailo_hf.hailo.hef import Hef
from whisper_hailo_hf.hailo.system import holders_of_device

_NATIVE = ("UINT8", "UINT16")  # of FormatType
_NARROWER = 4.0  # an output's integers that span so many times less than was calibrated are no rounding matter


class DeviceFault(WhisperHailoError):
    """HailoRT failed; `fault` says how."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.line)
        self.fault = fault


@dataclass(frozen=True)
class Settings:
    """How the device is used; see `HefBackend`."""

    io: str = "native"
    frames_in_flight: int = 2
    batch_size: int | None = None
    timeout: float = 10.0
    group_id: str = "SHARED"
    multi_process_service: bool = False

    @property
    def milliseconds(self) -> int:
        """The timeout as HailoRT takes it."""
        return max(1, round(1000 * self.timeout))


@dataclass
class _Slot:
    """One frame's buffers, and the job that uses them."""

    bindings: Any
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    job: Any = None


class HefDevice:
    """Opens the device and puts the HEF on it.

    Args:
        platform: the module `hailo_platform`.
        path: the HEF.
        hef: what it says of itself.
        settings: how the device is used.
        channels: of input and output: mel bins and d_model.
        lengths: of input and output: frames and positions of one window.
        output_order: names of the outputs, in the order in which they are joined; None is the file's own.
        output_dtype: what the outputs' integers were meant to be, "uint16" for example; None where nobody knows.

    Raises:
        DeviceFault: HailoRT failed.
        WhisperHailoError: the HEF does not fit the encoder or the runtime.
    """

    def __init__(
        self,
        platform: Any,
        path: Path,
        hef: Hef,
        settings: Settings,
        *,
        channels: tuple[int, int],
        lengths: tuple[int, int],
        output_order: Sequence[str] | None = None,
        output_dtype: str | None = None,
    ) -> None:
        self.platform, self.settings = platform, settings
        self._vdevice = self._model = self._configured = None
        self._slots: list[_Slot] = []
        self._shape = (lengths[1], channels[1])
        try:
            with _explained():
                self._vdevice = platform.VDevice(self._params())
            with _explained():
                self._model = self._vdevice.create_infer_model(str(path))
                if settings.batch_size is not None:
                    self._model.set_batch_size(settings.batch_size)
                inputs, outputs = self._model.inputs, self._model.outputs
                native = [self._stream(stream) for stream in outputs]
                if settings.io == "float32":
                    for stream in (*inputs, *outputs):
                        stream.set_format_type(platform.FormatType.FLOAT32)
                self._set_orders((*inputs, *outputs))
                self.inputs = [self._stream(stream) for stream in inputs]
                found = {stream.name: stream for stream in map(self._stream, outputs)}
            _check_widths(native, output_dtype)
            order = list(output_order or [stream.name for stream in hef.networks[0].outputs])
            if set(order) != set(found):
                order = list(found)
            self.outputs = [found[name] for name in order]
            self.input_ports = arrange(self.inputs, channels[0], lengths[0], "inputs")
            self.output_ports = arrange(self.outputs, channels[1], lengths[1], "outputs")
            with _explained(configuring=True):
                self._configured = self._model.configure()
            with _explained():
                self._slots = [self._slot() for _ in range(settings.frames_in_flight)]
        except BaseException:
            self.close()
            raise

    def _params(self) -> Any:
        params = self.platform.VDevice.create_params()
        # Python's default is NONE, under which run() gives zeros unless activate() was called
        params.scheduling_algorithm = self.platform.HailoSchedulingAlgorithm.ROUND_ROBIN
        params.group_id = self.settings.group_id
        if self.settings.multi_process_service:
            params.multi_process_service = True
        return params

    def _set_orders(self, streams: Sequence[Any]) -> None:
        order = self.platform.FormatOrder
        for stream in streams:
            found = stream.format.order
            whole = found == order.FCR and stream.shape[-1] % 8 == 0  # not padded, and then the same as NHWC
            if not (found in (order.NHWC, order.NC) or whole):
                stream.set_format_order(order.NHWC)

    def _stream(self, stream: Any) -> Stream:
        """An input or output as it is set now."""
        kinds = self.platform.FormatType
        kind = stream.format.type
        dtype = next((name.lower() for name in (*_NATIVE, "FLOAT32") if kind == getattr(kinds, name)), None)
        if dtype is None:
            raise WhisperHailoError(f"the HEF's {stream.name} is of the type {kind}, and 8 or 16 bits are expected")
        infos = list(stream.quant_infos)
        zeros = np.array([info.qp_zp for info in infos], np.float32)
        scales = np.array([info.qp_scale for info in infos], np.float32)
        if not infos or not (np.isfinite(scales).all() and (scales > 0).all()):
            raise WhisperHailoError(f"the HEF's {stream.name} has no scale: compile it anew")
        if (zeros == zeros[0]).all() and (scales == scales[0]).all():
            zeros, scales = zeros[0].reshape(()), scales[0].reshape(())
        low, high = float(infos[0].limvals_min), float(infos[0].limvals_max)
        limits = (low, high) if high > low and not scales.ndim else None
        return Stream(str(stream.name), tuple(map(int, stream.shape)), dtype, zeros, scales, limits)

    def _slot(self) -> _Slot:
        assert self._configured is not None
        slot = _Slot(self._configured.create_bindings())
        for ports, buffers, find in (
            (self.input_ports, slot.inputs, slot.bindings.input),
            (self.output_ports, slot.outputs, slot.bindings.output),
        ):
            for port in ports:
                buffers[port.name] = port.buffer()
                find(port.name).set_buffer(buffers[port.name])
        return slot

    def run(self, windows: FloatArray) -> Iterator[FloatArray]:
        """Runs windows, (count, mel bins, frames), and gives the states of each, (positions, d_model), in order.

        While the chip works on one window, the next is made integers and the last is made states.

        Raises:
            DeviceFault: HailoRT failed, or did not answer within the timeout. The device must then be closed.
        """
        for index, window in enumerate(windows):
            slot = self._slots[index % len(self._slots)]
            if slot.job is not None:
                yield self._finish(slot)
            self._start(slot, window)
        for index in range(len(windows), len(windows) + len(self._slots)):
            slot = self._slots[index % len(self._slots)]
            if slot.job is not None:
                yield self._finish(slot)

    def _start(self, slot: _Slot, window: FloatArray) -> None:
        assert self._configured is not None
        for port in self.input_ports:
            port.fill(slot.inputs[port.name], window)
        with _explained():
            self._configured.wait_for_async_ready(timeout_ms=self.settings.milliseconds, frames_count=1)
            slot.job = self._configured.run_async([slot.bindings])

    def _finish(self, slot: _Slot) -> FloatArray:
        with _explained():
            slot.job.wait(self.settings.milliseconds)
        slot.job = None
        states = np.empty(self._shape, np.float32)  # a copy: the buffers go round
        for port in self.output_ports:
            port.read(slot.outputs[port.name], states)
        return states

    def close(self) -> None:
        """Lets go of everything, last opened first: HailoRT may crash in another order."""
        configured, self._configured = self._configured, None
        if configured is not None:
            _quietly(configured.shutdown)
        self._slots = []
        if configured is not None:
            _quietly(partial(configured.__exit__, None, None, None))
        configured = None
        self._model = None
        vdevice, self._vdevice = self._vdevice, None
        if vdevice is not None:
            _quietly(vdevice.release)


def _check_widths(outputs: Sequence[Stream], wanted: str | None) -> None:
    """DFC 3.33 has been seen to compile an output that was asked for in 16 bits with 8, and to leave the scale of 16
    (Hailo community, post 19705): the states would be 257 times too small."""
    for stream in outputs:
        if wanted is not None and stream.dtype != wanted:
            raise WhisperHailoError(
                f"the HEF's output {stream.name} is {stream.dtype}, and its record says {wanted}: compile it anew"
            )
        if stream.limits is not None and stream.span * _NARROWER < stream.limits[1] - stream.limits[0]:
            raise WhisperHailoError(
                f"the HEF's output {stream.name} was calibrated for {stream.limits[0]:.3g} to {stream.limits[1]:.3g}, "
                f"and its {stream.dtype} spans {stream.span:.3g}: its scale belongs to another width; compile it anew "
                "with an output of 8 bits"
            )


@contextmanager
def _explained(configuring: bool = False) -> Iterator[None]:
    """What HailoRT throws in here becomes a `DeviceFault`."""
    try:
        yield
    except WhisperHailoError:
        raise
    except Exception as error:
        fault = explain(error, configuring)
        if fault.kind in ("absent", "busy"):
            holders = ", ".join(map(str, holders_of_device()))
            fault = explain(error, configuring, holders)
        raise DeviceFault(fault) from error


def _quietly(action: Callable[[], Any]) -> None:
    """A device that is being let go of may be gone already."""
    with suppress(Exception):
        action()
