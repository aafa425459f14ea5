"""`torch`: the encoder's own modules. The only backend that trains."""

from typing import Any

import numpy as np
import torch

from whisper_hailo_hf.backends.base import BackendStatus, EncoderBackend


class TorchBackend(EncoderBackend):
    """Runs the core and the host stage as they are, on the model's device and in its dtype."""

    name = "torch"

    @classmethod
    def status(cls) -> BackendStatus:
        return BackendStatus(cls.name, True, f"torch {torch.__version__}")

    @torch.no_grad()
    def encode(self, input_features: np.ndarray) -> np.ndarray:
        host = self.parts.host
        weight = host.layer_norm.weight
        features = torch.from_numpy(np.asarray(input_features, dtype=np.float32)).to(weight.device, weight.dtype)
        return host.states(self.parts.core(host.windows(features))).float().cpu().numpy()

    def info(self) -> dict[str, Any]:
        weight = self.parts.host.layer_norm.weight
        return {"backend": self.name, "device": str(weight.device), "dtype": str(weight.dtype).removeprefix("torch.")}
