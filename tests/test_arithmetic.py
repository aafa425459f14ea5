"""The one definition of 8 bits: rounding, ranges, scales of weights, gradients, the same in NumPy, torch and ONNX."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_hailo_hf.arithmetic import (
    ACTIVATIONS,
    WEIGHTS,
    Affine,
    accumulator,
    affine,
    fake_quantize_range,
    fake_quantize_weight,
    symmetric,
)

RANGES = [(-1.0, 3.0), (0.0, 6.3), (-2.5, 0.0), (0.5, 2.0), (-3.0, -1.0), (-1e-6, 1e6)]


def values(low: float, high: float, count: int = 5000) -> np.ndarray:
    """Numbers around a range, and beyond both its ends."""
    rng = np.random.default_rng(0)
    width = high - low
    return rng.uniform(low - 0.2 * width, high + 0.2 * width, count).astype(np.float32)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_a_range_contains_zero_and_both_ends(low, high, bits):
    scale = affine(low, high, bits)
    assert scale.quantize(np.zeros(1, np.float32))[0] == scale.zero_point
    assert scale.dequantize(scale.quantize(np.zeros(3, np.float32))).tolist() == [0.0, 0.0, 0.0]
    assert scale.low <= min(low, 0) + scale.scale
    assert scale.high >= max(high, 0) - scale.scale
    assert 0 <= scale.zero_point <= ACTIVATIONS[bits].high


@pytest.mark.parametrize(("low", "high"), RANGES)
def test_what_is_in_the_range_is_off_by_half_a_step_and_the_rest_saturates(low, high):
    scale, x = affine(low, high), values(low, high)
    back = scale.dequantize(scale.quantize(x))
    inside = (x >= scale.low) & (x <= scale.high)
    assert np.abs(back - x)[inside].max() <= scale.scale * 0.5001
    assert np.allclose(back[x > scale.high], scale.high)
    assert np.allclose(back[x < scale.low], scale.low)


def test_behind_a_relu_the_zero_point_is_zero():
    assert affine(0.0, 4.2).zero_point == 0
    assert affine(0.3, 4.2).zero_point == 0


def test_ties_go_to_the_even_step():
    scale = Affine(np.asarray(0.5, np.float32), 10, ACTIVATIONS[8])
    halves = np.array([0.25, 0.75, 1.25, -0.25, -0.75], np.float32)
    assert scale.quantize(halves).tolist() == [10, 12, 12, 10, 8]


def test_infinity_and_large_numbers_saturate():
    for bits in (8, 16):
        scale = affine(-1, 1, bits)
        x = np.array([np.inf, -np.inf, 1e30, -1e30], np.float32)
        low, high = 0, ACTIVATIONS[bits].high
        assert scale.quantize(x).tolist() == [high, low, high, low]


def test_a_range_of_nothing_but_zero():
    scale = affine(0.0, 0.0)
    assert (scale.scale, scale.zero_point) == (1.0, 0)


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)])
def test_no_range(low, high):
    with pytest.raises(ValueError, match="no range of numbers"):
        affine(low, high)


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4), st.sampled_from([8, 16]))
def test_torch_numpy_and_onnx_agree_to_the_bit(low, width, bits):
    scale, x = affine(low, low + width, bits), values(low, low + width, 300)
    ours = scale.dequantize(scale.quantize(x))
    torch_range = torch.tensor(low, dtype=torch.float32), torch.tensor(low + width, dtype=torch.float32)
    theirs = fake_quantize_range(torch.from_numpy(x), *torch_range, bits)
    assert np.array_equal(ours, theirs.numpy())
    assert np.array_equal(scale.quantize(x), onnx_quantize(x, scale))


_SESSIONS: dict[str, onnxruntime.InferenceSession] = {}


def onnx_quantize(x: np.ndarray, scale: Affine) -> np.ndarray:
    """ONNX Runtime's own QuantizeLinear."""
    kind = np.dtype(scale.integer.dtype)
    if kind.name not in _SESSIONS:
        make = onnx.helper.make_tensor_value_info
        integer = onnx.helper.np_dtype_to_tensor_dtype(kind)
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])],
            "one",
            [make("x", onnx.TensorProto.FLOAT, ["n"]), make("s", onnx.TensorProto.FLOAT, []), make("z", integer, [])],
            [make("q", integer, ["n"])],
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
        _SESSIONS[kind.name] = onnxruntime.InferenceSession(model.SerializeToString())
    return _SESSIONS[kind.name].run(None, {"x": x, "s": scale.scale, "z": np.asarray(scale.zero_point, kind)})[0]


# Weights and biases


@pytest.mark.parametrize("bits", WEIGHTS)
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_have_a_scale_for_each_channel(bits, axis):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 5, 1, 3)).astype(np.float32) * rng.uniform(0.01, 10, (6, 5, 1, 1)).astype(np.float32)
    scale = symmetric(weight, bits, axis)
    integers = scale.quantize(weight)
    assert scale.scale.shape == (weight.shape[axis],)
    assert integers.dtype.name == WEIGHTS[bits].dtype
    peaks = np.abs(integers.astype(int)).max(axis=tuple(i for i in range(4) if i != axis))
    assert (peaks == WEIGHTS[bits].high).all()
    torch_weight = fake_quantize_weight(torch.from_numpy(weight), bits, axis)
    assert np.array_equal(scale.dequantize(integers), torch_weight.numpy())


def test_a_channel_without_weights_stays_zero():
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[1] = 0.5
    scale = symmetric(weight)
    assert scale.quantize(weight)[0].tolist() == np.zeros((3, 1, 1)).tolist()
    assert torch.equal(fake_quantize_weight(torch.from_numpy(weight)), torch.from_numpy(weight))


def test_a_bias_fits_the_accumulator_however_small_the_weights():
    inputs = affine(-1e-4, 1e-4)
    weight = np.full((3, 2, 1, 1), 1e-7, np.float32)
    bias = np.array([50.0, -3.0, 0.0], np.float32)
    weights = symmetric(weight, bias=bias, input_scale=float(inputs.scale))
    integers = accumulator(inputs, weights).quantize(bias)
    assert integers.dtype == np.int32
    assert np.allclose(accumulator(inputs, weights).dequantize(integers), bias, rtol=1e-5)
    assert np.abs(integers.astype(np.int64)).max() <= 2**30


def test_affine_as_json():
    for bits in (8, 16):
        scale = affine(-1.3, 2.9, bits)
        again = Affine.from_dict(scale.to_dict())
        assert (again.scale, again.zero_point, again.integer) == (scale.scale, scale.zero_point, scale.integer)


# The gradient


def test_the_gradient_passes_where_nothing_saturates():
    x = torch.tensor([-5.0, -0.9, 0.1, 2.4, 9.0], requires_grad=True)
    fake_quantize_range(x, torch.tensor(-1.0), torch.tensor(3.0)).backward(torch.arange(1.0, 6.0))
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


def test_the_gradient_of_weights_passes_everywhere():
    weight = torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fake_quantize_weight(weight).square().sum().backward()
    expected = 2 * fake_quantize_weight(weight.detach())
    assert torch.allclose(weight.grad, expected)


def test_half_precision_keeps_its_dtype():
    x = torch.linspace(-1, 1, 50, dtype=torch.bfloat16)
    rounded = fake_quantize_range(x, torch.tensor(-1.0), torch.tensor(1.0))
    assert rounded.dtype == torch.bfloat16
    assert (rounded - x).abs().max() < 0.02


def test_it_does_not_change_its_input():
    x = torch.linspace(-3, 3, 20)
    before = x.clone()
    fake_quantize_range(x, torch.tensor(-1.0), torch.tensor(1.0))
    assert torch.equal(x, before)
