"""A stand-in for Hailo's Dataflow Compiler 3.33, for tests: no line of it is Hailo's.

It reproduces the documented interface and its traps, and computes: the float emulation is ONNX Runtime's, the
quantized one rounds weights and activations to the bits that the model script asks for.
"""

from hailo_sdk_client.runner import ClientRunner as ClientRunner
from hailo_sdk_client.runner import InferenceContext as InferenceContext
