"""Layers that the encoder families share: one-dimensional convolutions in rank-4 form.

Time lies on one of the two spatial axes (`time_axis`); the other has length 1. Weights are stored in one form,
(out, in, 1, taps), whatever the axis: only the forward turns them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "gelu": nn.GELU}


def along(axis: str, value: int, other: int = 1) -> tuple[int, int]:
    """A (height, width) pair with `value` on the time axis."""
    return (other, value) if axis == "width" else (value, other)


class AxisConv2d(nn.Conv2d):
    """A convolution along time only, padded to keep ceil(time / stride) frames.

    Shapes: (batch, in, 1, time) -> (batch, out, 1, ceil(time / stride)), or with time on the height. An even number of
    taps has no centre and is not padded: it gives dilation * (taps - 1) frames less, at stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        taps: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        time_axis: str = "width",
    ) -> None:
        if taps % 2 == 0 and stride > 1:
            raise ValueError(f"a convolution of {taps} taps has no centre: use an odd number for a stride")
        super().__init__(in_channels, out_channels, (1, taps), groups=groups, bias=bias)
        self.time_axis = time_axis
        self.time_stride, self.time_dilation, self.time_padding = stride, dilation, 0
        if taps % 2:
            self.time_padding = dilation * (taps - 1) // 2

    def turned_weight(self) -> Tensor:
        """The weight with its taps on the time axis."""
        return self.weight if self.time_axis == "width" else self.weight.transpose(2, 3)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.conv2d(
            hidden,
            self.turned_weight(),
            self.bias,
            stride=along(self.time_axis, self.time_stride),
            padding=along(self.time_axis, self.time_padding, 0),
            dilation=along(self.time_axis, self.time_dilation),
            groups=self.groups,
        )

    def plain(self) -> nn.Conv2d:
        """The same convolution as an ordinary `nn.Conv2d`, for export."""
        taps = self.weight.shape[-1]
        # without initialisation, which would draw from the user's random numbers
        conv = nn.utils.skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            along(self.time_axis, taps),
            stride=along(self.time_axis, self.time_stride),
            padding=along(self.time_axis, self.time_padding, 0),
            dilation=along(self.time_axis, self.time_dilation),
            groups=self.groups,
            bias=self.bias is not None,
        )
        conv.weight = nn.Parameter(self.turned_weight().detach().clone(), requires_grad=False)
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)
        return conv


class FoldableBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that gradient checkpointing leaves right.

    Checkpointing runs the forward again inside the backward, and plain BatchNorm would count the same batch twice in
    its running statistics.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        if self.training and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            assert self.running_mean is not None
            assert self.running_var is not None
            # copies: the second run must save as many tensors for the backward as the first, and change none
            mean, var = self.running_mean.clone(), self.running_var.clone()
            return F.batch_norm(hidden, mean, var, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(hidden)


class ConvUnit(nn.Module):
    """Convolution, batch normalisation that folds away, activation: one layer on the chip."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        taps: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: str | None = "relu",
        norm: str = "batch",
        time_axis: str = "width",
    ) -> None:
        super().__init__()
        self.conv = AxisConv2d(
            in_channels,
            out_channels,
            taps,
            stride=stride,
            dilation=dilation,
            groups=groups,
            bias=norm == "none",
            time_axis=time_axis,
        )
        self.norm = FoldableBatchNorm2d(out_channels) if norm == "batch" else nn.Identity()
        self.act = ACTIVATIONS[activation]() if activation else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(hidden)))


class Gate(nn.Module):
    """Squeeze and excitation (Hu et al. 2018, arXiv:1709.01507): the whole window scales each channel.

    A full average pool, two 1x1 convolutions, a sigmoid: the form that the compiler knows.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        inner = max(8, channels // reduction)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.act = nn.ReLU()
        self.excite = nn.Conv2d(inner, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.sigmoid(self.excite(self.act(self.squeeze(self.pool(hidden)))))


class PositionMap(nn.Module):
    """A learned or fixed table of one vector per frame, as a leaf so that Transformers initialises it.

    Shapes: `weight` is (positions, channels). `kind` is `"zeros"` or `"sinusoids"` (Whisper's own table).
    """

    def __init__(self, positions: int, channels: int, kind: str = "zeros") -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.zeros(positions, channels), requires_grad=kind == "zeros")

    def forward(self) -> Tensor:
        return self.weight


class EncoderBlock(GradientCheckpointingLayer):
    """Base of the blocks that repeat along an encoder's depth."""


class Trace:
    """Collects the input of each block, as (batch, time, channels) with the tiles of a window side by side.

    What comes back goes on through the network, so that gradients pass through the collected tensors themselves.
    """

    def __init__(self, batch: int, time_axis: str) -> None:
        self.batch, self.axis = batch, 2 if time_axis == "width" else 3
        self.states: list[Tensor] = []

    def __call__(self, hidden: Tensor) -> Tensor:
        runs, channels = hidden.shape[:2]
        self.states.append(hidden.squeeze(self.axis).transpose(1, 2).reshape(self.batch, -1, channels))
        return self.states[-1].reshape(runs, -1, channels).transpose(1, 2).unsqueeze(self.axis)


class EncoderCore(nn.Module):
    """What runs on the chip: log-mel features of one window to states before the host epilogue.

    Shapes: (batch, mel bins, 1, frames) -> (batch, d_model, 1, frames // 2), or with time on the height. `frames` is
    fixed when the core is built. A `trace` collects the input of each block.
    """

    frames: int
    conv1: nn.Module  # the first convolution

    def forward(self, features: Tensor, trace: Trace | None = None) -> Tensor:
        raise NotImplementedError
