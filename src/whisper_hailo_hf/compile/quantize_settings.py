"""What is quantised and what was asked for; nothing here needs onnx."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from whisper_hailo_hf.arithmetic import WEIGHTS
from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from onnx import ModelProto

    from whisper_hailo_hf.compile.simulation import Rounding, Simulation

METHODS = ("minmax", "percentile", "mse", "kl")
Progress = Callable[[str, int, int], None]  # what is done, how far, of how many


def check_method(method: str, percentile: float) -> None:
    """A `RequestError` for a method that does not exist, or a percentile that is none."""
    if method not in METHODS:
        raise RequestError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    if not 50 < percentile <= 100:
        raise RequestError(f"percentile lies above 50 and up to 100, not at {percentile!r}")


@dataclass(frozen=True)
class Settings:
    """What was asked for; see `quantize_encoder`."""

    method: str
    percentile: float
    sixteen_bit: tuple[str, ...]
    weight_bits: dict[str, int]
    windows: int
    equalize: bool
    bias_correction: bool
    finetune_steps: int
    finetune_learning_rate: float
    report_windows: int
    layer_windows: int
    seed: int

    def __post_init__(self) -> None:
        check_method(self.method, self.percentile)
        for bits in self.weight_bits.values():
            if bits not in WEIGHTS:
                raise RequestError(f"weights have {', '.join(map(str, WEIGHTS))} bits, not {bits!r}")
        for name in ("finetune_steps", "layer_windows"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} is 0 or more, not {getattr(self, name)}")
        if self.report_windows < 1 or not self.finetune_learning_rate > 0:
            raise RequestError("report_windows and finetune_learning_rate are positive numbers")


@dataclass(frozen=True)
class Network:
    """What is quantised.

    Attributes:
        model: the float graph.
        mel_bins, frames: of a window of features.
        tiles: a window's features (mel bins, frames) to inputs of the graph; several for a graph of a short window.
        states: the graph's outputs for these to the states after the host epilogue, (positions, d_model).
    """

    model: "ModelProto"
    mel_bins: int
    frames: int
    tiles: Callable[[Tensor], Sequence[Tensor]]
    states: Callable[[Sequence[Tensor]], Tensor]

    def inputs(self, window: Any) -> Sequence[Tensor]:
        """A window's inputs of the graph."""
        return self.tiles(torch.as_tensor(np.asarray(window, np.float32)))

    def forward(self, simulation: "Simulation", rounding: "Rounding | None", window: Any) -> Tensor:
        """A window's states."""
        return self.states([simulation.run(tile, rounding) for tile in self.inputs(window)])
