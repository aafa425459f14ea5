"""The one definition of 8 bits: scales, zero points, rounding, saturation, and the gradient through them.

An integer q stands for the real number (q - zero_point) * scale, and

    q = saturate(round_half_even(x / scale) + zero_point)

which is ONNX's QuantizeLinear. HailoRT's host quantisation (v4.23.0, include/hailo/quantization.hpp) adds the zero
point before it rounds: the same but for exact ties. All in float32, so that NumPy, torch and ONNX Runtime agree.

Activations are asymmetric, one scale a tensor, and their range contains zero, which padding and ReLU need exactly.
Weights are symmetric, one scale an output channel. Biases are int32 at the accumulator's scale.
Source of the scheme: Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2021, arXiv:2106.08295.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Integer:
    """A kind of integer: NumPy's name of what stores it, and the lowest and highest value in use."""

    dtype: str
    low: int
    high: int


# by bits; the lowest value of a signed kind is left out, so that negation loses nothing
ACTIVATIONS = {8: Integer("uint8", 0, 255), 16: Integer("uint16", 0, 65535)}
# 4-bit weights are stored one a byte
WEIGHTS = {4: Integer("int8", -7, 7), 8: Integer("int8", -127, 127), 16: Integer("int16", -32767, 32767)}
ACCUMULATOR = Integer("int32", -(2**31) + 1, 2**31 - 1)
# An accumulator of 32 bits holds a bias of this many steps and the sum of the products beside it.
_BIAS_STEPS = 2**30


@dataclass(frozen=True, eq=False)
class Affine:
    """How real numbers become integers: x = (q - zero_point) * scale.

    Attributes:
        scale: float32, of shape () for a tensor or (channels,) along `axis`.
        zero_point: the integer that stands for 0.0; 0 where `axis` is set.
        integer: the kind of integer.
        axis: which axis has a scale for each index; None for one scale.
    """

    scale: npt.NDArray[np.float32]
    zero_point: int
    integer: Integer
    axis: int | None = None

    @property
    def low(self) -> float:
        """The lowest number that is representable (one scale only)."""
        return float((self.integer.low - self.zero_point) * self.scale)

    @property
    def high(self) -> float:
        """The highest number that is representable (one scale only)."""
        return float((self.integer.high - self.zero_point) * self.scale)

    def quantize(self, values: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Real numbers to integers of the same shape; what lies outside saturates."""
        steps = np.rint(np.asarray(values, np.float32) / self._spread(values.ndim))
        # before the zero point is added: float32 holds no integer beyond 2**24 exactly, and inf is none
        low, high = self.integer.low - self.zero_point, self.integer.high - self.zero_point
        return (np.clip(steps, low, high).astype(np.int64) + self.zero_point).astype(self.integer.dtype)

    def dequantize(self, integers: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Integers to the real numbers that they stand for: float32, same shape."""
        centred = integers.astype(np.int64) - self.zero_point
        return centred.astype(np.float32) * self._spread(integers.ndim)

    def _spread(self, dimensions: int) -> npt.NDArray[np.float32]:
        return self.scale if self.axis is None else spread(self.scale, dimensions, self.axis)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON types (one scale only)."""
        return {"scale": float(self.scale), "zero_point": self.zero_point, "dtype": self.integer.dtype}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Affine":
        """The reverse of `to_dict`."""
        integer = next(integer for integer in ACTIVATIONS.values() if integer.dtype == data["dtype"])
        return cls(np.float32(data["scale"]), int(data["zero_point"]), integer)  # type: ignore[arg-type]


def spread(scales: Any, dimensions: int, axis: int) -> Any:
    """A vector, NumPy's or torch's, shaped to be multiplied along one axis of a tensor of so many dimensions."""
    return scales.reshape([-1 if index == axis else 1 for index in range(dimensions)])


def scale_and_zero(low: Any, high: Any, integer: Integer) -> tuple[Any, Any]:
    """Scale and zero point of a range, both of the range's own kind (NumPy or torch, float32, any shape).

    The range is widened to contain zero; one that is nothing but zero has the scale 1.
    """
    low, high = low.clip(max=0), high.clip(min=0)
    scale = (high - low) / (integer.high - integer.low)
    scale = scale + (scale == 0)
    return scale, (integer.low - low / scale).round()


def affine(low: float, high: float, bits: int = 8) -> Affine:
    """Asymmetric integers of 8 or 16 bits for numbers from `low` to `high`."""
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"no range of numbers: {low} to {high}")
    scale, zero = scale_and_zero(np.float32(low), np.float32(high), ACTIVATIONS[bits])
    return Affine(np.asarray(scale, np.float32), int(zero), ACTIVATIONS[bits])


def symmetric(
    weight: npt.NDArray[np.float32],
    bits: int = 8,
    axis: int = 0,
    bias: npt.NDArray[np.float32] | None = None,
    input_scale: float = 1.0,
) -> Affine:
    """Symmetric integers of 4, 8 or 16 bits for a weight, a scale for each index of `axis`, the output channels.

    With a bias, no scale is so small that the bias would not fit the accumulator, whose step is
    `input_scale` * scale.
    """
    others = tuple(index for index in range(weight.ndim) if index != axis)
    scale = np.abs(weight).max(axis=others).astype(np.float32) / np.float32(WEIGHTS[bits].high)
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias).astype(np.float32) / np.float32(_BIAS_STEPS * input_scale))
    # neither 0 nor a subnormal number, whose products would vanish
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1.0), scale)
    return Affine(scale.astype(np.float32), 0, WEIGHTS[bits], axis)


def accumulator(inputs: Affine, weights: Affine) -> Affine:
    """The integers that a bias is stored in, for these inputs and weights."""
    return Affine((inputs.scale * weights.scale).astype(np.float32), 0, ACCUMULATOR, 0)


class _FakeQuantize(torch.autograd.Function):
    """Forward: to integers and back. Backward: as if it had not been, but nothing where it saturated (the
    straight-through estimator, Bengio et al. 2013, arXiv:1308.3432)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        steps = torch.div(values, scale).round_().add_(zero_point)
        ctx.save_for_backward((steps >= low) & (steps <= high))
        return steps.clamp_(low, high).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient * ctx.saved_tensors[0], None, None, None, None


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, integer: Integer) -> Tensor:
    """What is left of `values` after a way through these integers, in the values' own dtype.

    `scale` and `zero_point` are float32 and broadcast against the values. The gradient passes straight through where
    nothing saturated.
    """
    quantized = _FakeQuantize.apply(values.float(), scale, zero_point, integer.low, integer.high)
    return quantized.to(values.dtype)


def fake_quantize_range(values: Tensor, low: Tensor, high: Tensor, bits: int = 8) -> Tensor:
    """`fake_quantize` of an activation whose range is from `low` to `high` (tensors of shape ())."""
    integer = ACTIVATIONS[bits]
    return fake_quantize(values, *scale_and_zero(low, high, integer), integer)


def weight_scale(weight: Tensor, bits: int = 8, axis: int = 0) -> Tensor:
    """The scale of each index of `axis` of a weight, from its largest value now: (channels,), float32."""
    others = [index for index in range(weight.dim()) if index != axis]
    scale = weight.detach().float().abs().amax(others) / WEIGHTS[bits].high
    return torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)


def fake_quantize_weight(weight: Tensor, bits: int = 8, axis: int = 0) -> Tensor:
    """`fake_quantize` of a weight, with `weight_scale` for each output channel."""
    scale = spread(weight_scale(weight, bits, axis), weight.dim(), axis)
    return fake_quantize(weight, scale, torch.zeros((), device=weight.device), WEIGHTS[bits])


def fake_quantize_bias(bias: Tensor, input_scale: Tensor, scale: Tensor) -> Tensor:
    """`fake_quantize` of a bias at the accumulator's scale, from those of the inputs and of each channel's weights."""
    return fake_quantize(bias, input_scale * scale, torch.zeros((), device=bias.device), ACCUMULATOR)
