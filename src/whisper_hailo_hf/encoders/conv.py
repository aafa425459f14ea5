"""The `conv` family: the student. Nothing inside but convolutions along time, folded normalisation, ReLU, adds, gates.

Frame i of the output is frame i of Whisper's own 1500: time is halved twice on the way in (3000 mel frames, 1500,
750), the body runs at half the output's rate, where its activations stay within widths that are known to compile, and
a nearest resize leads back, joined by the stem's own 1500 frames.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from whisper_hailo_hf.encoders.layers import ConvUnit, EncoderBlock, EncoderCore, Gate, Trace, along
from whisper_hailo_hf.encoders.registry import EncoderFamily, register_family
from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig


@dataclass(frozen=True)
class ConvOptions:
    """Options of the `conv` family; the number of blocks is the config's `encoder_layers`.

    Attributes:
        width: channels of the stem and of the residual stream.
        inner: channels inside a block.
        taps: taps of a block's middle convolution (odd).
        dilations: dilations of the middle convolutions, repeated along the depth.
        depthwise: whether the middle convolution works on each channel alone.
        gate_every: a gate in every n-th block; 0 for none.
        activation: `"relu"`, `"relu6"` or `"silu"`.
    """

    width: int = 384
    inner: int = 384
    taps: int = 3
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    depthwise: bool = False
    gate_every: int = 2
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.activation not in ("relu", "relu6", "silu"):
            raise RequestError(f"activation is 'relu', 'relu6' or 'silu', not {self.activation!r}")
        if not (_all_counts(self.width, self.inner, self.taps) and self.taps % 2):
            raise RequestError("width, inner and taps are positive whole numbers, and taps is odd")
        if not (self.dilations and _all_counts(*self.dilations)):
            raise RequestError(f"dilations are positive whole numbers, not {self.dilations!r}")


def _all_counts(*values: Any) -> bool:
    return all(isinstance(value, int) and value > 0 for value in values)


class ConvBlock(EncoderBlock):
    """Residual bottleneck: 1x1, dilated taps, 1x1, perhaps a gate. (batch, width, 1, time) in and out."""

    def __init__(self, options: ConvOptions, index: int, time_axis: str) -> None:
        super().__init__()
        width, inner = options.width, options.inner
        self.reduce = ConvUnit(width, inner, activation=options.activation, time_axis=time_axis)
        self.mix = ConvUnit(
            inner,
            inner,
            options.taps,
            dilation=options.dilations[index % len(options.dilations)],
            groups=inner if options.depthwise else 1,
            activation=options.activation,
            time_axis=time_axis,
        )
        self.expand = ConvUnit(inner, width, activation=None, time_axis=time_axis)
        gated = options.gate_every > 0 and index % options.gate_every == options.gate_every - 1
        self.gate = Gate(width) if gated else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.gate(self.expand(self.mix(self.reduce(hidden))))


class ConvCore(EncoderCore):
    """Stem to half rate, body, and back to one state per two mel frames."""

    conv1: ConvUnit
    conv2: ConvUnit

    def __init__(self, config: "WhisperHailoConfig", options: ConvOptions) -> None:
        super().__init__()
        if config.max_source_positions % 2:
            raise RequestError(
                f"the conv family needs an even max_source_positions, not {config.max_source_positions}"
            )
        axis, width, act = config.time_axis, options.width, options.activation
        self.frames = 2 * config.max_source_positions
        self.conv1 = ConvUnit(config.num_mel_bins, width, 3, stride=2, activation=act, time_axis=axis)
        self.conv2 = ConvUnit(width, width, 3, stride=2, activation=act, time_axis=axis)
        self.blocks = nn.ModuleList([ConvBlock(options, index, axis) for index in range(config.encoder_layers)])
        self.resize = nn.Upsample(scale_factor=tuple(float(n) for n in along(axis, 2)), mode="nearest")
        self.join = ConvUnit(width, width, activation=None, time_axis=axis)
        self.skip = ConvUnit(width, width, activation=None, time_axis=axis)
        self.refine = ConvUnit(width, width, 3, activation=act, time_axis=axis)
        self.head = nn.Conv2d(width, config.d_model, 1)

    def forward(self, features: Tensor, trace: Trace | None = None) -> Tensor:
        early = self.conv1(features)
        hidden = self.conv2(early)
        for block in self.blocks:
            if trace is not None:
                hidden = trace(hidden)
            hidden = block(hidden)
        hidden = self.resize(self.join(hidden)) + self.skip(early)
        return self.head(self.refine(hidden))


@torch.no_grad()
def start_from_teacher(core: EncoderCore, teacher: "WhisperEncoder") -> None:
    """Copies the teacher's two stem convolutions where the shapes allow; its biases become the normalisation's."""
    assert isinstance(core, ConvCore)
    for unit, conv in ((core.conv1, teacher.conv1), (core.conv2, teacher.conv2)):
        if unit.conv.weight.shape == conv.weight.unsqueeze(2).shape and conv.bias is not None:
            unit.conv.weight.copy_(conv.weight.unsqueeze(2))
            unit.norm.bias.copy_(conv.bias)


register_family(
    EncoderFamily(
        name="conv",
        options=ConvOptions,
        core=ConvCore,
        presets={
            "micro": {"encoder_layers": 2, "width": 32, "inner": 16},
            "tiny": {"encoder_layers": 12, "width": 384, "inner": 384},
            "base": {"encoder_layers": 12, "width": 384, "inner": 384},
            "small": {"encoder_layers": 20, "width": 640, "inner": 512},
        },
        positional_map=True,
        start_from_teacher=start_from_teacher,
    )
)
