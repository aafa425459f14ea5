"""What the host does around the chip: windows in front, the epilogue LayerNorm(z + P) behind.

`generate()` always sees 30 s of features and 1500 states. A core with a shorter window is run on tiles that are laid
side by side, or on the first window only with zero states behind it.
"""

from torch import Tensor, nn

from whisper_hailo_hf.encoders.layers import PositionMap


class HostStage(nn.Module):
    """Cuts features into the core's windows; joins, shifts and normalises what comes back.

    Args:
        positions: states of the whole contract (1500 for Whisper).
        d_model: channels of a state.
        window_positions: states of one run of the core; divides `positions`.
        tiles: `"all"` runs every window, `"first"` only the first one, with zeros for the rest.
        time_axis: layout of the core's tensors.
        positional_map: whether P, (positions, d_model), is added before the LayerNorm.
    """

    def __init__(
        self, positions: int, d_model: int, window_positions: int, tiles: str, time_axis: str, positional_map: bool
    ) -> None:
        super().__init__()
        self.positions, self.window_positions = positions, window_positions
        self.tiles, self.time_axis = tiles, time_axis
        self.positional_map = PositionMap(positions, d_model) if positional_map else None
        self.layer_norm = nn.LayerNorm(d_model)

    def windows(self, features: Tensor) -> Tensor:
        """(batch, mel bins, 2 * positions) -> (batch * tiles, mel bins, 1, 2 * window), or time on the height."""
        frames = 2 * self.window_positions
        if self.tiles == "first":
            features = features[..., :frames]
        features = features.unflatten(-1, (-1, frames)).transpose(1, 2).flatten(0, 1)
        return features.unsqueeze(2 if self.time_axis == "width" else 3)

    def states(self, core_output: Tensor) -> Tensor:
        """(batch * tiles, d_model, 1, window), or time on the height -> (batch, positions, d_model)."""
        hidden = core_output.squeeze(2 if self.time_axis == "width" else 3).transpose(1, 2)
        if self.tiles == "all":
            hidden = hidden.reshape(-1, self.positions, hidden.shape[-1])
        if self.positional_map is not None:
            hidden = hidden + self.positional_map().to(hidden.dtype)
        hidden = self.layer_norm(hidden)
        if hidden.shape[1] != self.positions:
            hidden = nn.functional.pad(hidden, (0, 0, 0, self.positions - hidden.shape[1]))
        return hidden
