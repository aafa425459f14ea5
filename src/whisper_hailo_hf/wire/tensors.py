"""Arrays and audio to messages and back; what does not add up is a `WireError` that says why in one line."""

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.wire import SAMPLING_RATE
from whisper_hailo_hf.wire.messages import CODING, DTYPE, Audio, Integers, Tensor

_NUMBERS = {"float32": "FLOAT32", "float16": "FLOAT16", "uint8": "UINT8", "uint16": "UINT16"}
_NAMES = {DTYPE[number]: name for name, number in _NUMBERS.items()}
_MAX_DIMENSIONS = 4


class WireError(WhisperHailoError):
    """A message whose parts contradict each other."""


@dataclass(frozen=True, eq=False)
class Packed:
    """An array and, if it holds integers, what they stand for: q is the real number (q - zero_point) * scale."""

    values: npt.NDArray[Any]
    scale: float = 0.0
    zero_point: int = 0

    def real(self) -> npt.NDArray[np.float32]:
        """Float32, same shape."""
        real = self.values.astype(np.float32)
        if self.values.dtype.kind == "u":
            real -= np.float32(self.zero_point)  # exact: float32 holds all integers of 16 bits and their differences
            real *= np.float32(self.scale)
        return real


def pack_tensor(values: npt.NDArray[Any], scale: float = 0.0, zero_point: int = 0) -> Any:
    """A `Tensor` message of a float32, float16, uint8 or uint16 array; integers need their scale."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return Tensor(
        dtype=DTYPE[_NUMBERS[values.dtype.name]],
        shape=values.shape,
        scale=scale,
        zero_point=zero_point,
        data=little.tobytes(),
    )


def unpack_tensor(message: Any) -> Packed:
    """The array of a `Tensor` message, in this machine's byte order; a read-only view of the message where it can.

    Raises:
        WireError: unknown dtype, a shape that does not fit the data, or integers without a usable scale.
    """
    name = _NAMES.get(message.dtype)
    if name is None:
        raise WireError(f"unknown dtype {message.dtype}: it is {', '.join(_NUMBERS.values())}")
    if message.byte_order not in (0, 1):
        raise WireError(f"unknown byte order {message.byte_order}")
    shape = tuple(message.shape)
    if not 1 <= len(shape) <= _MAX_DIMENSIONS:
        raise WireError(f"a tensor of {len(shape)} dimensions: 1 to {_MAX_DIMENSIONS} are possible")
    dtype = np.dtype(name).newbyteorder(">" if message.byte_order else "<")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != len(message.data):
        raise WireError(f"{len(message.data)} bytes for a {name} tensor of shape {list(shape)}, which takes {wanted}")
    array = np.frombuffer(message.data, dtype).reshape(shape)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "f":
        return Packed(array)
    if not (math.isfinite(message.scale) and message.scale > 0):
        raise WireError(f"integers with the scale {message.scale}: it is a positive number")
    if not 0 <= message.zero_point <= np.iinfo(array.dtype).max:
        raise WireError(f"the zero point {message.zero_point} is no {name}")
    return Packed(array, message.scale, message.zero_point)


def pack_integers(dtype: str, scale: float, zero_point: int) -> Any:
    """An `Integers` message."""
    return Integers(dtype=DTYPE[_NUMBERS[dtype]], scale=scale, zero_point=zero_point)


def unpack_integers(message: Any) -> dict[str, Any]:
    """`dtype`, `scale` and `zero_point`, as `arithmetic.Affine.from_dict` takes them."""
    return {"dtype": _NAMES[message.dtype], "scale": message.scale, "zero_point": message.zero_point}


def pack_audio(samples: npt.NDArray[np.float32], coding: str = "flac") -> Any:
    """An `Audio` message of samples at 16 kHz (float32, (samples,), full scale ±1; what is beyond is clipped).

    Args:
        samples: the audio.
        coding: `"flac"` or `"pcm"`, both of 16 bits.
    """
    import soundfile

    whole = whole_samples(samples)
    if coding == "pcm":
        return Audio(coding=CODING["PCM_S16LE"], data=whole.tobytes())
    file = io.BytesIO()
    soundfile.write(file, whole.astype(np.int16), SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return Audio(coding=CODING["FLAC"], data=file.getvalue())


def whole_samples(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """Samples of full scale ±1 in 16 bits, little-endian, same shape; what is beyond is clipped."""
    return np.rint(np.clip(samples, -1.0, 32767 / 32768) * 32768).astype("<i2")


def unpack_audio(message: Any, max_samples: int) -> npt.NDArray[np.float32]:
    """The samples of an `Audio` message: float32, (samples,), 16 kHz.

    Raises:
        WireError: unknown coding, damaged, another rate, not mono, nothing, or more than `max_samples`.
    """
    if message.coding == CODING["PCM_S16LE"]:
        if len(message.data) % 2:
            raise WireError("16-bit PCM with half a sample at its end")
        whole = np.frombuffer(message.data[: 2 * max_samples + 2], "<i2")
    elif message.coding == CODING["FLAC"]:
        whole = _read_flac(message.data, max_samples)
    else:
        raise WireError(f"unknown audio coding {message.coding}: it is PCM_S16LE or FLAC")
    if not whole.size:
        raise WireError("audio without a sample")
    if whole.size > max_samples:
        raise WireError(f"audio of more than one window ({max_samples} samples)")
    return whole.astype(np.float32) / np.float32(32768)


def _read_flac(data: bytes, max_samples: int) -> npt.NDArray[np.int16]:
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format != "FLAC" or file.samplerate != SAMPLING_RATE or file.channels != 1:
                raise WireError(
                    f"audio is {file.format}, {file.samplerate} Hz, {file.channels} channels: FLAC, 16000 Hz and mono "
                    "are needed"
                )
            # never more than is needed to see that it is too much: a small file may unpack to a huge one
            return file.read(max_samples + 1, dtype="int16")
    except (soundfile.LibsndfileError, RuntimeError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError("FLAC audio that cannot be decoded") from error
