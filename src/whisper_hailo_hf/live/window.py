"""From samples to encoder states, with no more work than the samples need.

A phrase of a few seconds is most often far shorter than Whisper's window of 30 s. The features of the rest, silence,
are one constant, which is filled in and not computed: the result is that of the whole window, to the last bit that the
feature extractor keeps. Where an encoder is made of shorter windows side by side (the `attention` family with
`window_seconds`), those with nothing but padding can be left out, and the decoder then looks at fewer states.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.errors import RequestError

WINDOWS = ("full", "short")
# A window has its room of silence behind the last sample, or a word at its very edge would look cut.
_ROOM_S = 0.5


class Window:
    """Samples in, encoder states out, for one model.

    Args:
        speech: model and feature extractor.
        size: `full`, or `short` to run and to look at only those windows of a tiled encoder that hold audio.

    Raises:
        RequestError: `short` with an encoder that is not made of windows shorter than 30 s.
    """

    def __init__(self, speech: Any, size: str = "full") -> None:
        if size not in WINDOWS:
            raise RequestError(f"unknown window {size!r}: choose {', '.join(WINDOWS)}")
        self.model, self.extractor = speech.model, speech.feature_extractor
        config = self.model.config
        self.positions = config.max_source_positions
        self.hop = self.extractor.hop_length
        self.samples = 2 * self.positions * self.hop
        self.samples_per_position = 2 * self.hop
        encoder = self.model.get_encoder()
        host = getattr(encoder, "host", None)
        self._tile = 0
        if size == "short":
            tile = getattr(host, "window_positions", 0)
            mapped = getattr(host, "positional_map", None) is not None
            if not 0 < tile < self.positions or mapped or speech.encoder_backend != "torch":
                raise RequestError(
                    f"{speech.name} cannot use a shorter window: that needs an encoder of the attention family made "
                    "of windows (encoder_options={'window_seconds': 10}) on the torch backend"
                )
            self._tile = tile

    def features(self, samples: FloatArray) -> torch.Tensor:
        """Log-mel features of samples, at most 30 s of them: (1, mel bins, 2 * positions), padded as with silence."""
        # Whole frames, and one filter's length of silence, so that the mirror at the end reflects nothing but silence.
        frames = min(len(samples) // self.hop + 1 + self.extractor.n_fft // self.hop, 2 * self.positions)
        found = self.extractor(
            samples, sampling_rate=SAMPLING_RATE, max_length=frames * self.hop, return_tensors="np"
        ).input_features
        # Whisper scales by the loudest: (max(x, loudest - 8) + 4) / 4, where silence has x = -10.
        silence = max(float(found.max()) - 2.0, -1.5)
        whole = np.full((*found.shape[:2], 2 * self.positions), silence, np.float32)
        whole[..., : found.shape[-1]] = found
        return torch.from_numpy(whole)

    @torch.no_grad()
    def encode(self, features: torch.Tensor, samples: int) -> torch.Tensor:
        """Encoder states, (1, positions, d_model), of features that hold so many samples of audio."""
        encoder = self.model.get_encoder()
        features = features.to(self.model.device, self.model.dtype)
        if not self._tile:
            return encoder(features).last_hidden_state
        needed = (samples + _ROOM_S * SAMPLING_RATE) / self.samples_per_position
        tiles = min(-(-int(needed) // self._tile), self.positions // self._tile)
        host = encoder.host
        hidden = encoder.core(host.windows(features[..., : 2 * self._tile * tiles]))
        hidden = hidden.squeeze(2 if host.time_axis == "width" else 3).transpose(1, 2)
        return host.layer_norm(hidden.reshape(1, -1, hidden.shape[-1]))
