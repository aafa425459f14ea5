"""Encoder families: what runs on the chip, and what the host does around it."""

from whisper_hailo_hf.encoders import attention as attention
from whisper_hailo_hf.encoders import conv as conv
from whisper_hailo_hf.encoders import linear_attention as linear_attention
from whisper_hailo_hf.encoders.host import HostStage
from whisper_hailo_hf.encoders.layers import EncoderBlock, EncoderCore, PositionMap, Trace
from whisper_hailo_hf.encoders.registry import EncoderFamily, build_encoder, get_family, register_family

__all__ = [
    "EncoderBlock",
    "EncoderCore",
    "EncoderFamily",
    "HostStage",
    "PositionMap",
    "Trace",
    "build_encoder",
    "get_family",
    "register_family",
]
