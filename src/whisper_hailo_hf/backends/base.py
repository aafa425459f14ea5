"""The protocol of a backend: where the encoder's forward runs."""

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from whisper_hailo_hf.arithmetic import Affine
from whisper_hailo_hf.encoders import EncoderCore, HostStage


@dataclass
class EncoderParts:
    """What a backend is made from.

    Attributes:
        core: the network that runs on the chip; its weights are the truth that artefacts are checked against.
        host: windows before it, epilogue behind it.
        mel_bins: rows of the log-mel features.
        time_axis: layout of the core's tensors.
        artefacts: local paths of the files that lie beside the weights, by their name in the model folder; asking for
            one may fetch it from the Hub.
        records: what the config says of them.
    """

    core: EncoderCore
    host: HostStage
    mel_bins: int
    time_axis: str
    artefacts: Mapping[str, Path]
    records: dict[str, Any]


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run here, and why or why not, in one line."""

    name: str
    available: bool
    reason: str


class EncoderBackend(ABC):
    """One place where the encoder's forward can run.

    Backends are made when they are chosen and open their session or device at the first `encode`, in the process that
    runs it. What they opened is dropped when they are copied, pickled or carried over a fork.
    """

    name: ClassVar[str]

    def __init__(self, parts: EncoderParts) -> None:
        self.parts = parts
        self._handle: Any = None
        self._owner = 0
        self._lock = RLock()

    @classmethod
    @abstractmethod
    def status(cls) -> BackendStatus:
        """Whether this backend can run on this machine."""

    @classmethod
    def why_not_auto(cls, parts: EncoderParts) -> str | None:
        """None if `auto` may pick this backend for this model, otherwise why not."""
        return None

    @abstractmethod
    def encode(self, input_features: np.ndarray) -> np.ndarray:
        """Log-mel features to encoder states.

        Args:
            input_features: float32, (batch, mel bins, 2 * positions).

        Returns:
            float32, (batch, positions, d_model), freshly allocated.
        """

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """What this backend is and how it is set, for people and for reports."""

    def integers(self) -> tuple[Affine, Affine] | None:
        """The integers of the network's input and output; None where it has none, or not one scale for each."""
        return None

    def core_states(self, input_features: np.ndarray) -> np.ndarray:
        """What the network gives, before the host's epilogue; of graphs, and where `integers()` gives its scales.

        Args:
            input_features: as for `encode`.

        Returns:
            float32, (batch, core positions, d_model), in any memory order; each the value of an integer of the output
            where there are integers. `states_of_core` makes encoder states of it.
        """
        raise NotImplementedError(f"{self.name} gives finished states only")

    def open(self) -> Any:
        """Opens what `encode` needs; called once in each process."""
        return None

    @contextmanager
    def handle(self) -> Iterator[Any]:
        """What `open` returned, opened if this process has not yet."""
        with self._lock:
            if self._handle is None or self._owner != os.getpid():
                self._handle, self._owner = self.open(), os.getpid()
            current = self._handle
        yield current

    def close(self) -> None:
        """Lets go of the session or device; the next `encode` opens it anew."""
        with self._lock:
            self._handle = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_handle"], state["_owner"] = None, 0
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = RLock()


class GraphBackend(EncoderBackend):
    """A backend that runs the core's static batch-1 graph, window after window.

    It is opened anew when the weights have changed.
    """

    def __init__(self, parts: EncoderParts) -> None:
        super().__init__(parts)
        self._version: tuple[tuple[int, int], ...] = ()

    @abstractmethod
    def run(self, window: np.ndarray) -> np.ndarray:
        """One float32 run of the graph, in its layout: (1, mels, 1, frames) -> (1, d_model, 1, frames // 2)."""

    @torch.no_grad()
    def encode(self, input_features: np.ndarray) -> np.ndarray:
        return host_states(self.parts.host, self._outputs(input_features)).numpy()

    @torch.no_grad()
    def core_states(self, input_features: np.ndarray) -> np.ndarray:
        host = self.parts.host
        hidden = self._outputs(input_features).squeeze(2 if host.time_axis == "width" else 3).transpose(1, 2)
        return hidden.reshape(len(input_features), -1, hidden.shape[-1]).numpy()

    def _outputs(self, input_features: np.ndarray) -> Tensor:
        current = weights_version(self.parts.core)
        with self._lock:
            if current != self._version:
                self.close()
                self._version = current
        windows = self.parts.host.windows(torch.from_numpy(np.ascontiguousarray(input_features, dtype=np.float32)))
        outputs = [self.run(window[None].numpy()) for window in windows.contiguous()]
        return torch.from_numpy(outputs[0] if len(outputs) == 1 else np.concatenate(outputs))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_version": ()}


def weights_version(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Differs after an optimiser step, `load_state_dict`, `.to()` or an update of statistics.

    Where the tensors lie and how often they were written to, as torch counts it; writes through `.data` do not count.
    """
    tensors = module.state_dict(keep_vars=True).values()
    # tensors made under torch.inference_mode() count no versions
    return tuple((0 if tensor.is_inference() else tensor._version, tensor.data_ptr()) for tensor in tensors)


def host_states(host: HostStage, core_output: Tensor) -> Tensor:
    """The epilogue in float32 on the CPU, whatever the dtype and device of the model."""
    weight = host.layer_norm.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        host = copy.deepcopy(host).to("cpu", torch.float32)
    return host.states(core_output)


@torch.no_grad()
def states_of_core(host: HostStage, core_states: Tensor) -> Tensor:
    """Encoder states, (batch, positions, d_model), of what `core_states` gave: float32 on the CPU."""
    hidden = core_states.float().reshape(-1, host.window_positions, core_states.shape[-1]).transpose(1, 2)
    return host_states(host, hidden.unsqueeze(2 if host.time_axis == "width" else 3))
