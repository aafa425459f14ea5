"""Where the decoder's forward runs on the CPU: torch, or ONNX Runtime with the same weights in float32 or 8 bits.

And the rules on its tokens that would otherwise cost as much as its layers.
"""

from whisper_hailo_hf.decoders.choice import DecoderChoice, decoder_backend_names
from whisper_hailo_hf.decoders.onnx import OnnxDecoder
from whisper_hailo_hf.decoders.suppression import SuppressTokens, SuppressTokensAtBegin, with_masks_made_once

__all__ = [
    "DecoderChoice",
    "OnnxDecoder",
    "SuppressTokens",
    "SuppressTokensAtBegin",
    "decoder_backend_names",
    "with_masks_made_once",
]
