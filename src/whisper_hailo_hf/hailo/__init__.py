"""Hailo's own file formats, read without any of Hailo's software."""

from whisper_hailo_hf.hailo.har import Har, HnLayer, read_har

__all__ = ["Har", "HnLayer", "read_har"]
