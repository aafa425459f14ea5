"""Training through the rounding to integers: a core whose forward computes as its integer graph will.

The core itself stays as it is: its parameters are trained, its state dict and its export know nothing of this. While
it is on, each torch function of a forward passes through here. Weights are rounded with their BatchNorm folded in by
the running statistics, so that what is rounded is what the chip will hold, and the BatchNorm then works on the
unscaled result as ever (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2; torch.ao.nn.intrinsic.qat does the
same). Activations are rounded where `encoders.placement` says, within ranges that follow what is seen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from whisper_hailo_hf.arithmetic import fake_quantize_range, fake_quantize_weight
from whisper_hailo_hf.encoders.export import INPUT_NAME, OUTPUT_NAME, input_shape
from whisper_hailo_hf.encoders.fake_quant_calls import COUNTED, Call, kind_of, record_calls
from whisper_hailo_hf.encoders.layers import EncoderCore
from whisper_hailo_hf.encoders.placement import Layer, Op, Placement, place
from whisper_hailo_hf.errors import RequestError

_SETTLED = 100  # batches after which ranges follow as a moving average; before, they are the mean of all so far
_SMALLEST = 1e-6  # of a BatchNorm's factor: weights that it all but takes away are not divided by nothing


@dataclass(frozen=True)
class FakeQuantSettings:
    """What is rounded, and to how many bits.

    Attributes:
        sixteen_bit: `"residual_adds"`, `"output"`, names of layers or patterns, as for the quantizer.
        weight_bits: of all weights but those of layers named in `sixteen_bit`: 8 or 4.
    """

    sixteen_bit: tuple[str, ...] = ()
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if self.weight_bits not in (4, 8):
            raise RequestError(f"weight_bits is 8 or 4, not {self.weight_bits!r}")


class RangeTracker(nn.Module):
    """The range of one value: the mean over batches, later a moving one, of its windows' lowest and highest numbers.

    `low` and `high` are buffers, and so is the number of batches seen.
    """

    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def observe(self, value: Tensor) -> None:
        """Takes a batch (batch, ...) into the range."""
        windows = value.detach().flatten(1).float()
        self.batches += 1
        share = 1 / self.batches.clamp(max=_SETTLED)
        self.low += share * (windows.amin(1).mean() - self.low)
        self.high += share * (windows.amax(1).mean() - self.high)

    def forward(self, value: Tensor, bits: int) -> Tensor:
        """The value after a way through integers."""
        return fake_quantize_range(value, self.low, self.high, bits)


class FakeQuantization(nn.Module):
    """A core's rounding, to be switched on and off and taken away again; made by `prepare_fake_quant`.

    Being a module, it moves and is saved like one: its state is the ranges. It does not hold the core.

    Attributes:
        enabled: whether anything is rounded.
        observing: whether ranges follow what is seen in training mode; to be switched off for the last steps.
        placement: what is rounded.
    """

    def __init__(self, core: EncoderCore, settings: FakeQuantSettings, calls: list[Call], ops: list[Op]) -> None:
        super().__init__()
        self.settings, self.enabled, self.observing = settings, True, True
        self.placement: Placement = place(ops, [OUTPUT_NAME], settings.sixteen_bit)
        self._layers: dict[str, Layer] = {layer.name: layer for layer in self.placement.layers}
        self._calls = calls
        self._names = sorted(self.placement.bits)
        self.trackers = nn.ModuleList([RangeTracker() for _ in self._names])
        self._by_name = {name: index for index, name in enumerate(self._names)}
        self._modes: list[_Mode] = []
        self._hooks = [
            core.register_forward_pre_hook(self._enter, with_kwargs=True),
            core.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The range of each value that was seen, under its name in the exported graph."""
        pairs = zip(self._names, self.trackers, strict=True)
        return {name: (float(one.low), float(one.high)) for name, one in pairs if one.batches}  # type: ignore[arg-type]

    @contextmanager
    def off(self) -> Iterator[None]:
        """The float network, for a while."""
        enabled, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = enabled

    def remove(self) -> None:
        """The core is as it was before, but for what it has learnt."""
        for hook in self._hooks:
            hook.remove()

    def _tracker(self, value: str) -> RangeTracker:
        return self.trackers[self._by_name[self.placement.root(value)]]  # type: ignore[return-value]

    def _enter(self, core: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.enabled or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
            return None
        if core.training and any(getattr(part, "gradient_checkpointing", False) for part in core.modules()):
            raise RequestError("fake quantisation does not go with gradient checkpointing: switch one of them off")
        follow = self.observing and core.training
        if args:
            args = (self._write(INPUT_NAME, args[0], follow), *args[1:])
        else:
            name = next(iter(kwargs))
            kwargs = kwargs | {name: self._write(INPUT_NAME, kwargs[name], follow)}
        mode = _Mode(self, follow)
        self._modes.append(mode)
        mode.__enter__()
        return args, kwargs

    def _leave(self, core: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._modes:
            self._modes.pop().__exit__(None, None, None)

    def _write(self, value: str, result: Tensor, follow: bool) -> Tensor:
        """A value as it is stored."""
        if value not in self.placement.bits:
            return result
        tracker = self._tracker(value)
        if follow:
            tracker.observe(result)
        return tracker(result, self.placement.bits[value]) if tracker.batches else result

    def _read(self, layer: Layer, name: str | None, value: Any) -> Any:
        """A value as a layer reads it."""
        if name is None:
            return value
        bits, tracker = self.placement.bits[self.placement.root(name)], self._tracker(name)
        if bits == layer.input_bits or not tracker.batches:
            return value
        return tracker(value, layer.input_bits)

    def _weight_bits(self, layer: Layer) -> int:
        return 16 if layer.weight_bits == 16 else self.settings.weight_bits

    def _convolve(self, call: Call, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(names, args, strict=False)) | kwargs
        given["input"] = self._read(layer, call.reads[0], given["input"])
        weight, bits = given["weight"], self._weight_bits(layer)
        if call.norm is None:
            return F.conv2d(**given | {"weight": fake_quantize_weight(weight, bits)})
        factor = _factor(call.norm).to(weight.dtype)
        given["weight"] = fake_quantize_weight(weight * factor.reshape(-1, 1, 1, 1), bits)
        bias, given["bias"] = given.get("bias"), None
        result = F.conv2d(**given) / factor.reshape(-1, 1, 1)
        return result if bias is None else result + bias.reshape(-1, 1, 1)

    def _run(self, call: Call, func: Callable[..., Any], args: Any, kwargs: Any, follow: bool) -> Tensor:
        layer = self._layers.get(call.layer or "")
        if layer is None:  # a normalisation, or a ReLU behind a layer
            return self._write(call.value, func(*args, **kwargs), follow)
        if call.kind == "conv":
            result = self._convolve(call, layer, args, kwargs)
            if call.norm is not None:  # it is stored after that
                return result
        elif call.kind == "silu":
            gate = torch.sigmoid(args[0])
            result = args[0] * self._write(call.gate, gate, follow)
        else:
            values = list(args)
            for index, name in enumerate(call.reads):
                values[index] = self._read(layer, name, values[index])
                if name is None and layer.op.table and isinstance(values[index], Tensor):
                    table = values[index].detach().float()
                    values[index] = fake_quantize_range(values[index], table.amin(), table.amax(), layer.input_bits)
            result = func(*values, **kwargs)
        return self._write(call.value, result, follow)


def _factor(norm: nn.BatchNorm2d) -> Tensor:
    """What a BatchNorm multiplies each channel by, from its running statistics."""
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight
    return torch.where(factor.abs() < _SMALLEST, torch.full_like(factor, _SMALLEST), factor)


class _Mode(TorchFunctionMode):
    """Sends the calls of one forward through the rounding."""

    def __init__(self, owner: FakeQuantization, follow: bool) -> None:
        super().__init__()
        self.owner, self.follow, self.position = owner, follow, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = kind_of(func, args)
        if kind not in COUNTED:
            return func(*args, **kwargs)
        calls = self.owner._calls
        call = calls[self.position] if self.position < len(calls) else None
        if call is None or call.kind != kind:
            raise RequestError("the encoder's forward is not the one that fake quantisation was prepared for")
        self.position += 1
        return self.owner._run(call, func, args, kwargs, self.follow)


@torch.no_grad()
def prepare_fake_quant(
    core: EncoderCore, mel_bins: int, time_axis: str, settings: FakeQuantSettings | None = None
) -> FakeQuantization:
    """Makes a core round in its forward as its integer graph will; one forward of silence is run to learn its form.

    Args:
        core: the network; its parameters go on being trained, its state dict and export stay as they are.
        mel_bins, time_axis: of its input.
        settings: what is rounded.

    Returns:
        The rounding, on and observing. A value is rounded from the first batch on that was seen in training mode.

    Raises:
        RequestError: a network of another form, or a name in `sixteen_bit` that no layer has.
    """
    parameter = next(core.parameters())
    features = torch.zeros(input_shape(core, mel_bins, time_axis), device=parameter.device, dtype=parameter.dtype)
    calls, ops = record_calls(core, features)
    return FakeQuantization(core, settings or FakeQuantSettings(), calls, ops)
