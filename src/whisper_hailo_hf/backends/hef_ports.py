"""Features into a chip's input buffers and states out of its output buffers: layouts, integers, and parts.

The layout is taken from the shapes that HailoRT gives for the host, (height, width, features). Time lies on whichever
axis is as long as it should be; an encoder that was cut into several outputs, along time or along the channels, is
joined.

Integers as HailoRT's own host quantisation makes them (v4.23.0, include/hailo/quantization.hpp), with
`arithmetic.Affine`'s rounding: the emulator's integers, bit by bit, but in place and several times as fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.errors import WhisperHailoError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stream:
    """An input or output of a configured network, as the host sees it.

    Attributes:
        name: its name.
        shape: of one frame, 1 to 3 axes.
        dtype: of its buffers: "uint8", "uint16" or "float32".
        zero_point, scale: for the whole, shape (), or for each feature; unused for float32.
        limits: range of the calibration; None where the file has none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    zero_point: FloatArray
    scale: FloatArray
    limits: tuple[float, float] | None = None

    @property
    def span(self) -> float:
        """How far apart the highest and the lowest number are that its integers can stand for."""
        return float(np.iinfo(self.dtype).max * self.scale.max()) if self.dtype != "float32" else float("inf")


class Port:
    """One stream's buffer layout and its part of the whole.

    Args:
        stream: the stream.
        channels_axis, time_axis: of its buffers.
        channels, time: which part of the whole it has.
    """

    def __init__(self, stream: Stream, channels_axis: int, time_axis: int, channels: slice, time: slice) -> None:
        self.stream = stream
        self.name = stream.name
        self.channels, self.time = channels, time
        self.length = time.stop - time.start
        self._axes = channels_axis, time_axis
        axis_shape = [1, 1]  # (channels, time)
        if stream.scale.ndim:
            if stream.scale.size != channels.stop - channels.start:
                raise WhisperHailoError(
                    f"the HEF's {stream.name} has {stream.scale.size} scales, one for each of what?"
                )
            axis_shape[0] = -1
        self._scale, self._zero = stream.scale.reshape(axis_shape), stream.zero_point.reshape(axis_shape)
        if stream.dtype != "float32":
            most = float(np.iinfo(stream.dtype).max)
            whole = np.rint(self._zero)
            self._whole, self._fraction = whole, self._zero - whole
            low, high = np.float32(0), np.float32(most)
            if stream.limits is not None:
                low, high = (self._steps(np.float32(limit)) + whole for limit in stream.limits)
            self._low, self._high = (np.clip(limit, 0, most) - whole for limit in (low, high))
        self._work = np.empty((channels.stop - channels.start, self.length), np.float32)

    def buffer(self) -> npt.NDArray[Any]:
        """A buffer for one frame: writeable, C-contiguous, of the size that HailoRT wants."""
        return np.zeros(self.stream.shape, self.stream.dtype)

    def view(self, buffer: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(channels, time) of a buffer."""
        return np.moveaxis(buffer, self._axes, (0, 1)).reshape(self._work.shape)

    def fill(self, buffer: npt.NDArray[Any], features: FloatArray) -> None:
        """Writes this port's part of the features, (all channels, all frames), into its buffer."""
        part, view = features[self.channels, self.time], self.view(buffer)
        if self.stream.dtype == "float32":
            view[...] = part
            return
        np.divide(part, self._scale, out=self._work)
        if self._fraction.any():
            self._work += self._fraction
        np.rint(self._work, out=self._work)
        np.clip(self._work, self._low, self._high, out=self._work)
        self._work += self._whole
        np.copyto(view, self._work, casting="unsafe")  # whole numbers within the integers' range

    def read(self, buffer: npt.NDArray[Any], states: FloatArray) -> None:
        """Copies the buffer's numbers to this port's part of the states, (all positions, all channels)."""
        part, view = states[self.time, self.channels], self.view(buffer).T
        if self.stream.dtype == "float32":
            part[...] = view
            return
        np.subtract(view, self._zero.T, out=part, dtype=np.float32)
        part *= self._scale.T

    def _steps(self, value: Any) -> Any:
        return np.rint(value / self._scale + self._fraction)


def arrange(streams: Sequence[Stream], channels: int, length: int, what: str) -> list[Port]:
    """Ports that together hold `channels` times `length` numbers, in the order given.

    Args:
        streams: all inputs, or all outputs.
        channels: mel bins, or d_model.
        length: frames, or positions, of one window.
        what: "inputs" or "outputs", for people.

    Raises:
        WhisperHailoError: the shapes hold something else.
    """
    shapes = [(1,) * (3 - len(stream.shape)) + stream.shape for stream in streams]
    for axis in (2, 1, 0):  # features last, as a HEF of a convolution has them; others after that
        times = [time for shape in shapes if (time := _layout(shape, axis)) is not None]
        if len(times) < len(shapes) or not shapes:
            continue
        counts = [shape[axis] for shape in shapes]
        sizes = [shape[time] for shape, time in zip(shapes, times, strict=True)]
        if set(counts) == {channels} and sum(sizes) == length:
            along_time = True
        elif set(sizes) == {length} and sum(counts) == channels:
            along_time = False
        else:
            continue
        ports, begin = [], 0
        for stream, shape, time, count, size in zip(streams, shapes, times, counts, sizes, strict=True):
            end = begin + (size if along_time else count)
            part = slice(begin, end)
            where = (slice(0, channels), part) if along_time else (part, slice(0, length))
            ports.append(Port(replace(stream, shape=shape), axis, time, *where))
            begin = end
        return ports
    have = ", ".join("x".join(map(str, stream.shape)) for stream in streams) or "none"
    unit = "frames" if what == "inputs" else "states"
    raise WhisperHailoError(
        f"the HEF's {what} ({have}) are not the {channels} channels by {length} {unit} of this encoder"
        f"{_hint(shapes, channels, length, what)}"
    )


def _layout(shape: tuple[int, ...], channels_axis: int) -> int | None:
    """Which axis time lies on, if channels lie on that one; None if two axes would be left."""
    others = [axis for axis in range(3) if axis != channels_axis]
    long = [axis for axis in others if shape[axis] > 1]
    if len(long) > 1:
        return None
    return long[0] if long else others[-1]


def _hint(shapes: Sequence[tuple[int, ...]], channels: int, length: int, what: str) -> str:
    """Seconds, where it is only the window that is another."""
    if what != "inputs" or len(shapes) != 1 or shapes[0][2] != channels:
        return ": it was made from another model"
    found = max(shapes[0][:2])
    if min(shapes[0][:2]) != 1 or found == length:
        return ": it was made from another model"
    return (
        f": it hears {found / 100:g} s at a time, and the encoder's window is {length / 100:g} s; load the model with "
        f"family='attention' and encoder_options={{'window_seconds': {found / 100:g}}}"
    )
