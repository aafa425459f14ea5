"""What the chip does with a frame: the emulator's integers, out of the HEF's stead of weights."""

import io
import json
import struct
from typing import Any

import numpy as np

from whisper_hailo_hf.backends.emulator import IntegerGraph
from whisper_hailo_hf.hailo.hef import Hef, read_hef

MARK = b"whisper-hailo stand-in:"


class Program:
    """A HEF, loaded.

    Behind the mark: the length of a JSON text, the text, and an integer graph in ONNX. The text says which part of the
    graph's input or output each stream has: {"inputs": [[name, [from, to] of time, [from, to] of channels]], ...}.
    """

    def __init__(self, content: bytes) -> None:
        self.hef: Hef = read_hef(content)
        begin = content.find(MARK)
        if begin < 0:
            raise ValueError("this HEF has nothing to compute with")
        begin += len(MARK)
        (length,) = struct.unpack_from("<I", content, begin)
        self.parts = json.loads(content[begin + 4 : begin + 4 + length])
        begin += 4 + length
        (size,) = struct.unpack_from("<I", content, begin)
        self.graph = IntegerGraph(io.BytesIO(content[begin + 4 : begin + 4 + size]), threads=1)
        network = self.hef.networks[0]
        self.inputs = {one.name: one for one in network.inputs}
        self.outputs = {one.name: one for one in network.outputs}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Integers in, integers out, each (height, width, features)."""
        shape = [one if isinstance(one, int) else 1 for one in self.graph.session.get_inputs()[0].shape]
        whole = np.zeros((shape[1], shape[2] * shape[3]), self.graph.input.integer.dtype)
        for name, time, channels in self.parts["inputs"]:
            whole[slice(*channels), slice(*time)] = inputs[name].reshape(-1, inputs[name].shape[-1]).T
        found = self.graph.run_integers(whole.reshape(shape))
        states = found.reshape(found.shape[1], -1).T
        outputs = {}
        for name, time, channels in self.parts["outputs"]:
            stream, part = self.outputs[name], states[slice(*time), slice(*channels)]
            if stream.data_bytes == 1 and part.dtype == np.uint16:  # compiled with 8 bits, whatever was asked for
                part = (part >> 8).astype(np.uint8)
            outputs[name] = np.ascontiguousarray(part).reshape(stream.shape)
        return outputs


def payload(graph: bytes, inputs: list[Any], outputs: list[Any]) -> bytes:
    """What `Program` looks for behind the mark."""
    text = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
    return struct.pack("<I", len(text)) + text + struct.pack("<I", len(graph)) + graph
