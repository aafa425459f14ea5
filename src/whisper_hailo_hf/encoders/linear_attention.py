"""The `linear_attention` family: what must not be sent to the chip. It is here to be measured, not to be used.

The earlier attempt at this task, 1croyable/whisper-hailo8L (2025-2026), put such an encoder on a Hailo-8L: kernel
attention in place of softmax, GroupNorm(1, C) in place of LayerNorm, 500 frames. It compiled, and what came out was
not what had been trained. This family follows its published structure in code of our own, so that the graph check can
be seen to refuse it and the fidelity ladder to show what breaks.

The 500 frames are laid out as 1500 by a nearest resize at the core's end. The host could as well do that, but then
every backend would have to know of a second frame rate; the resize is one layer that changes no value.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whisper_hailo_hf.encoders.layers import AxisConv2d, EncoderBlock, EncoderCore, PositionMap, Trace, along
from whisper_hailo_hf.encoders.registry import EncoderFamily, register_family
from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig

STRETCH = 3  # states of the contract for each frame of the body: 1500 / 500


@dataclass(frozen=True)
class LinearAttentionOptions:
    """Options of the `linear_attention` family; layers, heads and feed-forward width are the config's `encoder_*`.

    Attributes:
        feature_map: what makes queries and keys positive: `"elu"` (elu + 1, Katharopoulos et al. 2020,
            arXiv:2006.16236), `"silu"` (silu + 1, the earlier attempt's) or `"relu"`.
    """

    feature_map: str = "elu"

    def __post_init__(self) -> None:
        if self.feature_map not in ("elu", "silu", "relu"):
            raise RequestError(f"feature_map is 'elu', 'silu' or 'relu', not {self.feature_map!r}")


class KernelAttention(nn.Module):
    """Attention through sums over time: phi(q) * sum(phi(k) * v) / (phi(q) . sum(phi(k))), each channel on its own."""

    def __init__(self, d_model: int, heads: int, feature_map: str) -> None:
        super().__init__()
        if d_model % heads:
            raise RequestError(f"d_model {d_model} is not a multiple of encoder_attention_heads {heads}")
        self.heads, self.feature_map = heads, feature_map
        self.q_proj = nn.Conv2d(d_model, d_model, 1)
        self.k_proj = nn.Conv2d(d_model, d_model, 1, bias=False)
        self.v_proj = nn.Conv2d(d_model, d_model, 1)
        self.out_proj = nn.Conv2d(d_model, d_model, 1)

    def positive(self, hidden: Tensor) -> Tensor:
        if self.feature_map == "relu":
            return F.relu(hidden)
        return (F.elu(hidden) if self.feature_map == "elu" else F.silu(hidden)) + 1.0

    def forward(self, hidden: Tensor) -> Tensor:
        # whole numbers: an exported graph shall not compute its own shapes
        shape = [int(size) for size in hidden.shape] if torch.jit.is_tracing() else hidden.shape
        channels = shape[1] // self.heads
        # (batch, d_model, ., .) -> (batch, heads, d_model / heads, time)
        query, key, value = (
            part.reshape(shape[0], self.heads, channels, -1)
            for part in (self.positive(self.q_proj(hidden)), self.positive(self.k_proj(hidden)), self.v_proj(hidden))
        )
        numerator = query * (key * value).sum(3, keepdim=True)
        denominator = (query * key.sum(3, keepdim=True)).sum(2, keepdim=True) + 1e-6
        return self.out_proj((numerator / denominator).reshape(shape) / channels**0.5)


class LinearAttentionBlock(EncoderBlock):
    """Pre-norm layer with kernel attention. (batch, d_model, 1, time) in and out."""

    def __init__(self, config: "WhisperHailoConfig", options: LinearAttentionOptions) -> None:
        super().__init__()
        d_model = config.d_model
        self.attn_norm = nn.GroupNorm(1, d_model)
        self.attn = KernelAttention(d_model, config.encoder_attention_heads, options.feature_map)
        self.mlp_norm = nn.GroupNorm(1, d_model)
        self.fc1 = nn.Conv2d(d_model, config.encoder_ffn_dim, 1)
        self.act = nn.SiLU()
        self.fc2 = nn.Conv2d(config.encoder_ffn_dim, d_model, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.attn_norm(hidden))
        return hidden + self.fc2(self.act(self.fc1(self.mlp_norm(hidden))))


class LinearAttentionCore(EncoderCore):
    """Stem to a sixth of the mel rate, sinusoids, blocks, GroupNorm, and each frame three times."""

    conv1: AxisConv2d
    conv2: AxisConv2d

    def __init__(self, config: "WhisperHailoConfig", options: LinearAttentionOptions) -> None:
        super().__init__()
        positions, d_model, axis = config.max_source_positions, config.d_model, config.time_axis
        if positions % STRETCH:
            raise RequestError(
                f"the linear_attention family needs max_source_positions that {STRETCH} divides, not {positions}"
            )
        self.frames, self.time_axis = 2 * positions, axis
        self.conv1 = AxisConv2d(config.num_mel_bins, d_model, 3, stride=STRETCH, time_axis=axis)
        self.conv2 = AxisConv2d(d_model, d_model, 3, stride=2, time_axis=axis)
        for conv in (self.conv1, self.conv2):
            conv.time_padding = 0  # padded by an operator of its own, as in the earlier attempt
        self.act = nn.SiLU()
        self.embed_positions = PositionMap(positions // STRETCH, d_model, "sinusoids")
        self.layers = nn.ModuleList([LinearAttentionBlock(config, options) for _ in range(config.encoder_layers)])
        self.norm = nn.GroupNorm(1, d_model)
        self.stretch = nn.Upsample(scale_factor=tuple(float(n) for n in along(axis, STRETCH)), mode="nearest")

    def forward(self, features: Tensor, trace: Trace | None = None) -> Tensor:
        around = (1, 1, 0, 0) if self.time_axis == "width" else (0, 0, 1, 1)
        hidden = self.act(self.conv1(F.pad(features, around)))
        hidden = self.act(self.conv2(F.pad(hidden, around)))
        hidden = hidden + self.embed_positions().t()[None].unsqueeze(2 if self.time_axis == "width" else 3)
        for layer in self.layers:
            if trace is not None:
                hidden = trace(hidden)
            hidden = layer(hidden)
        return self.stretch(self.norm(hidden))


@torch.no_grad()
def start_from_teacher(core: EncoderCore, teacher: "WhisperEncoder") -> None:
    """Copies the teacher's two stem convolutions where the shapes allow."""
    assert isinstance(core, LinearAttentionCore)
    for ours, theirs in ((core.conv1, teacher.conv1), (core.conv2, teacher.conv2)):
        weight = theirs.weight.unsqueeze(2)
        if ours.weight.shape == weight.shape and ours.bias is not None and theirs.bias is not None:
            ours.weight.copy_(weight)
            ours.bias.copy_(theirs.bias)


register_family(
    EncoderFamily(
        name="linear_attention",
        options=LinearAttentionOptions,
        core=LinearAttentionCore,
        # as many parameters as the student of the same name, 11 million for d_model 384
        presets={"tiny": {"encoder_layers": 6}},
        positional_map=True,
        start_from_teacher=start_from_teacher,
    )
)
