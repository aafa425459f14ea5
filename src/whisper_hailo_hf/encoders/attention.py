"""The `attention` family: the stock encoder's maths in Hailo's form, Conv2d instead of Conv1d and Linear.

It loads stock Whisper weights and is the reference for the rest. A window shorter than 30 s keeps the first rows of
the position table, unstretched, as Hailo's own ports do (window 10 s for tiny, 5 s for base).
Source of the maths: Transformers' `WhisperEncoder`; of the rewriting: hailo-whisper and whisperkittools.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whisper_hailo_hf.encoders.layers import ACTIVATIONS, AxisConv2d, EncoderBlock, EncoderCore, PositionMap, Trace
from whisper_hailo_hf.encoders.registry import POSITIONS_PER_SECOND, EncoderFamily, register_family
from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig


@dataclass(frozen=True)
class AttentionOptions:
    """Options of the `attention` family; layers, heads and feed-forward width are the config's `encoder_*`.

    Attributes:
        window_seconds: seconds of audio in one run of the core: 30, 10 or 5 (any divisor of the whole window). None
            is the whole window.
        tiles: `"all"` covers the whole window with runs side by side; `"first"` runs once, on the first window, and
            leaves zeros behind it.
    """

    window_seconds: float | None = None
    tiles: Literal["all", "first"] = "all"

    def __post_init__(self) -> None:
        if not isinstance(self.window_seconds, int | float | None):
            raise RequestError(f"window_seconds is a number of seconds, not {self.window_seconds!r}")
        if self.tiles not in ("all", "first"):
            raise RequestError(f"tiles is 'all' or 'first', not {self.tiles!r}")


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a rank-4 tensor (batch, channels, ., .)."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with 1x1 convolutions for its projections."""

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        if d_model % heads:
            raise RequestError(f"d_model {d_model} is not a multiple of encoder_attention_heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Conv2d(d_model, d_model, 1)
        self.k_proj = nn.Conv2d(d_model, d_model, 1, bias=False)
        self.v_proj = nn.Conv2d(d_model, d_model, 1)
        self.out_proj = nn.Conv2d(d_model, d_model, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        exporting = torch.jit.is_tracing()
        # whole numbers while a graph is exported: it shall not compute its own shapes
        shape = [int(size) for size in hidden.shape] if exporting else hidden.shape
        # (batch, d_model, ., .) -> (batch, heads, time, d_model / heads)
        query, key, value = (
            proj(hidden).reshape(shape[0], self.heads, shape[1] // self.heads, -1).transpose(2, 3)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if exporting:
            scaled = query * (shape[1] // self.heads) ** -0.5
            mixed = (scaled @ key.transpose(2, 3)).softmax(-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(mixed.transpose(2, 3).reshape(shape))


class AttentionBlock(EncoderBlock):
    """Whisper's pre-norm encoder layer. (batch, d_model, 1, time) in and out."""

    def __init__(self, config: "WhisperHailoConfig") -> None:
        super().__init__()
        d_model = config.d_model
        if config.activation_function not in ACTIVATIONS:
            raise RequestError(
                f"no activation_function {config.activation_function!r} here: choose {', '.join(ACTIVATIONS)}"
            )
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout
        self.self_attn_layer_norm = ChannelLayerNorm(d_model)
        self.self_attn = Attention(d_model, config.encoder_attention_heads, config.attention_dropout)
        self.final_layer_norm = ChannelLayerNorm(d_model)
        self.fc1 = nn.Conv2d(d_model, config.encoder_ffn_dim, 1)
        self.act = ACTIVATIONS[config.activation_function]()
        self.fc2 = nn.Conv2d(config.encoder_ffn_dim, d_model, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        mixed = self.self_attn(self.self_attn_layer_norm(hidden))
        hidden = hidden + F.dropout(mixed, self.dropout, self.training)
        inner = F.dropout(self.act(self.fc1(self.final_layer_norm(hidden))), self.activation_dropout, self.training)
        return hidden + F.dropout(self.fc2(inner), self.dropout, self.training)


class AttentionCore(EncoderCore):
    """Stem, positions and layers; the final LayerNorm is the host's."""

    def __init__(self, config: "WhisperHailoConfig", options: AttentionOptions) -> None:
        super().__init__()
        positions = float(config.max_source_positions)
        if options.window_seconds is not None:
            positions = round(float(options.window_seconds) * POSITIONS_PER_SECOND, 6)
        if not positions.is_integer() or positions < 1 or config.max_source_positions % positions:
            raise RequestError(
                f"window_seconds {options.window_seconds} does not divide the {config.max_source_positions} positions "
                f"({config.max_source_positions / POSITIONS_PER_SECOND:g} s) of this model: use 30, 10 or 5"
            )
        positions = int(positions)
        self.frames, self.time_axis, self.dropout = 2 * positions, config.time_axis, config.dropout
        self.conv1 = AxisConv2d(config.num_mel_bins, config.d_model, 3, time_axis=config.time_axis)
        self.conv2 = AxisConv2d(config.d_model, config.d_model, 3, stride=2, time_axis=config.time_axis)
        self.act = nn.GELU()
        self.embed_positions = PositionMap(positions, config.d_model, "sinusoids")
        self.layers = nn.ModuleList([AttentionBlock(config) for _ in range(config.encoder_layers)])

    def forward(self, features: Tensor, trace: Trace | None = None) -> Tensor:
        hidden = self.act(self.conv2(self.act(self.conv1(features))))
        positions = self.embed_positions().t().unsqueeze(0)  # (1, d_model, time)
        hidden = hidden + positions.unsqueeze(2 if self.time_axis == "width" else 3)
        hidden = F.dropout(hidden, self.dropout, self.training)
        for layer in self.layers:
            if trace is not None:
                hidden = trace(hidden)
            hidden = layer(hidden)
        return hidden


@torch.no_grad()
def load_stock_weights(core: EncoderCore, stock: "WhisperEncoder") -> None:
    """Loads a stock encoder's weights: kernels gain an axis, the position table is cut to the window."""
    own, state = core.state_dict(), {}
    for name, tensor in stock.state_dict().items():
        if name.startswith("layer_norm."):
            continue  # the host's
        if name == "embed_positions.weight":
            tensor = tensor[: own[name].shape[0]]
        elif name in own and own[name].dim() == 4:
            # Conv1d (out, in, taps) -> (out, in, 1, taps); Linear (out, in) -> (out, in, 1, 1)
            tensor = tensor.unsqueeze(2) if tensor.dim() == 3 else tensor[:, :, None, None]
        state[name] = tensor
    core.load_state_dict(state)


register_family(
    EncoderFamily(
        name="attention",
        options=AttentionOptions,
        core=AttentionCore,
        presets={},
        positional_map=False,
        start_from_teacher=load_stock_weights,
    )
)
