"""Where the decoder's forward runs on the CPU: torch, or ONNX Runtime with the same weights in float32 or 8 bits."""

from whisper_hailo_hf.decoders.choice import DecoderChoice, decoder_backend_names
from whisper_hailo_hf.decoders.onnx import OnnxDecoder

__all__ = ["DecoderChoice", "OnnxDecoder", "decoder_backend_names"]
