"""The `conv` family: the student. Nothing inside but convolutions along time, folded normalisation, ReLU, adds, gates.

Frame i of the output is frame i of Whisper's own 1500: time is halved twice on the way in (3000 mel frames, 1500,
750). The body runs at half the output's rate or at fewer frames still, on levels of 750, 375 and 188, where its
activations stay within widths that are known to compile and where a few taps see seconds. Coming back, each level adds
what it had on the way down, and a nearest resize leads to 1500, joined by the stem's own 1500 frames.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from whisper_hailo_hf.encoders.layers import ConvUnit, EncoderBlock, EncoderCore, Gate, PositionMap, Trace, along
from whisper_hailo_hf.encoders.registry import EncoderFamily, register_family
from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig


@dataclass(frozen=True)
class ConvOptions:
    """Options of the `conv` family; the number of blocks is the config's `encoder_layers`.

    Attributes:
        width: channels of the residual stream.
        stem: channels at 1500 frames on the way in; 0 for as many as `width`.
        levels: how often the blocks' time is halved below 750 frames, along the depth: stretched over the blocks if
            there are more or fewer of them.
        inner: channels inside a block.
        taps: taps of a block's middle convolution (odd).
        dilations: dilations of the middle convolutions, repeated along the depth.
        depthwise: whether the middle convolution works on each channel alone.
        gate_every: a gate in every n-th block; 0 for none.
        activation: `"relu"`, `"relu6"` or `"silu"`.
        norm: `"batch"`, which folds away, or `"none"`.
        refine_taps: taps of the convolution at 1500 frames before the head.
        refine_depthwise: whether it works on each channel alone.
        positions: a learned table is added behind the stem, so that the network knows where in the window it is.
    """

    width: int = 384
    stem: int = 0
    levels: tuple[int, ...] = (0,)
    inner: int = 384
    taps: int = 3
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    depthwise: bool = False
    gate_every: int = 2
    activation: str = "relu"
    norm: str = "batch"
    refine_taps: int = 3
    refine_depthwise: bool = False
    positions: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ("relu", "relu6", "silu"):
            raise RequestError(f"activation is 'relu', 'relu6' or 'silu', not {self.activation!r}")
        if self.norm not in ("batch", "none"):
            raise RequestError(f"norm is 'batch' or 'none', not {self.norm!r}")
        taps = (self.taps, self.refine_taps)
        if not (_all_counts(self.width, self.inner, *taps) and all(n % 2 for n in taps)):
            raise RequestError("width, inner, taps and refine_taps are positive whole numbers, and taps are odd")
        if not (self.dilations and _all_counts(*self.dilations)):
            raise RequestError(f"dilations are positive whole numbers, not {self.dilations!r}")
        if not (isinstance(self.stem, int) and self.stem >= 0):
            raise RequestError(f"stem is a number of channels, or 0 for those of width, not {self.stem!r}")
        if not (self.levels and all(isinstance(level, int) and 0 <= level <= 3 for level in self.levels)):
            raise RequestError(f"levels are whole numbers from 0 (750 frames) to 3 (94), not {self.levels!r}")

    def route(self, blocks: int) -> list[int]:
        """How often the time of each of so many blocks is halved below 750 frames."""
        return [self.levels[block * len(self.levels) // blocks] for block in range(blocks)]


def _all_counts(*values: Any) -> bool:
    return all(isinstance(value, int) and value > 0 for value in values)


class ConvBlock(EncoderBlock):
    """Residual bottleneck: 1x1, dilated taps, 1x1, perhaps a gate. (batch, width, 1, time) in and out."""

    def __init__(self, options: ConvOptions, index: int, time_axis: str) -> None:
        super().__init__()
        width, inner = options.width, options.inner
        same: dict[str, Any] = {"norm": options.norm, "time_axis": time_axis}
        self.reduce = ConvUnit(width, inner, activation=options.activation, **same)
        self.mix = ConvUnit(
            inner,
            inner,
            options.taps,
            dilation=options.dilations[index % len(options.dilations)],
            groups=inner if options.depthwise else 1,
            activation=options.activation,
            **same,
        )
        self.expand = ConvUnit(inner, width, activation=None, **same)
        gated = options.gate_every > 0 and index % options.gate_every == options.gate_every - 1
        self.gate = Gate(width) if gated else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.gate(self.expand(self.mix(self.reduce(hidden))))


class Descent(nn.Module):
    """Half as many frames: (batch, width, 1, time) -> (batch, width, 1, ceil(time / 2))."""

    def __init__(self, options: ConvOptions, time_axis: str) -> None:
        super().__init__()
        self.down = ConvUnit(
            options.width,
            options.width,
            3,
            stride=2,
            activation=options.activation,
            norm=options.norm,
            time_axis=time_axis,
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(hidden)


class Ascent(nn.Module):
    """Back to `frames` frames, twice as many or one less than that, and what the level had on the way down is added.

    Where the level above has an odd number of frames, a convolution of two taps without padding takes the one too
    many: nothing is ever cut.
    """

    def __init__(self, options: ConvOptions, frames: int, time_axis: str) -> None:
        super().__init__()
        self.odd = frames % 2 == 1
        self.join = ConvUnit(
            options.width,
            options.width,
            2 if self.odd else 1,
            activation=None,
            norm=options.norm,
            time_axis=time_axis,
        )
        self.resize = nn.Upsample(scale_factor=tuple(float(n) for n in along(time_axis, 2)), mode="nearest")

    def forward(self, hidden: Tensor, kept: Tensor) -> Tensor:
        # without a view of its neighbours the join costs half as much before the resize
        hidden = self.join(self.resize(hidden)) if self.odd else self.resize(self.join(hidden))
        return hidden + kept


class ConvCore(EncoderCore):
    """Stem to half rate, body, and back to one state per two mel frames."""

    conv1: ConvUnit
    conv2: ConvUnit

    def __init__(self, config: "WhisperHailoConfig", options: ConvOptions) -> None:
        super().__init__()
        positions, blocks = config.max_source_positions, config.encoder_layers
        if positions % 2:
            raise RequestError(f"the conv family needs an even max_source_positions, not {positions}")
        axis, width, act = config.time_axis, options.width, options.activation
        stem = options.stem or width
        same: dict[str, Any] = {"norm": options.norm, "time_axis": axis}
        self.frames, self.time_axis = 2 * positions, axis
        self.conv1 = ConvUnit(config.num_mel_bins, stem, 3, stride=2, activation=act, **same)
        self.conv2 = ConvUnit(stem, width, 3, stride=2, activation=act, **same)
        self.positional_map = PositionMap(positions // 2, width) if options.positions else None
        self.blocks = nn.ModuleList([ConvBlock(options, index, axis) for index in range(blocks)])
        self.route = options.route(blocks)
        frames = [positions // 2]
        while len(frames) <= max(self.route):
            frames.append((frames[-1] + 1) // 2)
        self.descents, self.ascents = nn.ModuleList(), nn.ModuleList()
        level = 0
        for goal in [*self.route, 0]:
            self.descents.extend(Descent(options, axis) for _ in range(level, goal))
            self.ascents.extend(Ascent(options, frames[upper], axis) for upper in range(level - 1, goal - 1, -1))
            level = goal
        self.resize = nn.Upsample(scale_factor=tuple(float(n) for n in along(axis, 2)), mode="nearest")
        self.join = ConvUnit(width, width, activation=None, **same)
        self.skip = ConvUnit(stem, width, activation=None, **same)
        groups = width if options.refine_depthwise else 1
        self.refine = ConvUnit(width, width, options.refine_taps, groups=groups, activation=act, **same)
        self.head = nn.Conv2d(width, config.d_model, 1)

    def forward(self, features: Tensor, trace: Trace | None = None) -> Tensor:
        early = self.conv1(features)
        hidden = self.conv2(early)
        if self.positional_map is not None:
            hidden = hidden + self.positional_map().t()[None].unsqueeze(2 if self.time_axis == "width" else 3)
        kept: list[Tensor] = []  # the stream of each level above
        descents, ascents = iter(self.descents), iter(self.ascents)
        for goal, block in zip(self.route, self.blocks, strict=True):
            hidden = self._to_level(goal, hidden, kept, descents, ascents)
            if trace is not None:
                hidden = trace(hidden)
            hidden = block(hidden)
        hidden = self._to_level(0, hidden, kept, descents, ascents)
        hidden = self.resize(self.join(hidden)) + self.skip(early)
        return self.head(self.refine(hidden))

    @staticmethod
    def _to_level(goal: int, hidden: Tensor, kept: list[Tensor], descents: Any, ascents: Any) -> Tensor:
        while len(kept) < goal:
            kept.append(hidden)
            hidden = next(descents)(hidden)
        while len(kept) > goal:
            hidden = next(ascents)(hidden, kept.pop())
        return hidden


@torch.no_grad()
def start_from_teacher(core: EncoderCore, teacher: "WhisperEncoder") -> None:
    """Copies the teacher's two stem convolutions where the shapes allow; its biases become the normalisation's."""
    assert isinstance(core, ConvCore)
    for unit, conv in ((core.conv1, teacher.conv1), (core.conv2, teacher.conv2)):
        if unit.conv.weight.shape == conv.weight.unsqueeze(2).shape and conv.bias is not None:
            unit.conv.weight.copy_(conv.weight.unsqueeze(2))
            bias = unit.norm.bias if isinstance(unit.norm, nn.BatchNorm2d) else unit.conv.bias
            assert bias is not None
            bias.copy_(conv.bias)


# The body at 375 and 188 frames, where a block costs a half and a quarter of what it does at 750; a table of
# positions; a stem of half the width. docs/student.md has what was measured for it.
_PYRAMID: dict[str, Any] = {"refine_taps": 5, "refine_depthwise": True, "positions": True}
_TINY = _PYRAMID | {
    "encoder_layers": 12,
    "width": 384,
    "stem": 192,
    "inner": 384,
    "levels": (1,) * 2 + (2,) * 8 + (1,) * 2,
}
_SMALL = _PYRAMID | {
    "encoder_layers": 20,
    "width": 640,
    "stem": 320,
    "inner": 512,
    "levels": (1,) * 3 + (2,) * 14 + (1,) * 3,
}

register_family(
    EncoderFamily(
        name="conv",
        options=ConvOptions,
        core=ConvCore,
        presets={
            "micro": {"encoder_layers": 2, "width": 32, "inner": 16},
            "tiny": _TINY,
            "base": _TINY,
            "small": _SMALL,
        },
        positional_map=True,
        start_from_teacher=start_from_teacher,
    )
)
