"""Hailo's own file formats and devices: files read without any of Hailo's software, devices looked at with advice."""

from whisper_hailo_hf.hailo.har import Har, HnLayer, read_har
from whisper_hailo_hf.hailo.hef import Hef, HefNetwork, HefStream, read_hef

__all__ = ["Har", "Hef", "HefNetwork", "HefStream", "HnLayer", "read_har", "read_hef"]
