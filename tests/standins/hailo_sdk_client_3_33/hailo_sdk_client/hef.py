"""What compile() gives: a synthetic HEF that says of itself what the network is, and holds its integers."""

import json
import struct

import numpy as np

from hailo_sdk_client.faults import told
from hailo_sdk_client.rounding import scale_of


def hef_of(runner, ends, graph):
    from helpers_hef import Port, make_hef

    if told("compile", "garbage"):
        return b"no HEF at all"
    hn = runner.get_hn()
    ports, parts = [], {}
    for kind in ("input", "output"):
        ((name, layer),) = [pair for pair in hn["layers"].items() if pair[1]["type"] == f"{kind}_layer"]
        low, high, bits = ends[kind]
        width = bits // 8
        if kind == "output" and told("compile", "eight_bit_output"):
            width = 1  # DFC 3.33: eight bits, and the scale of sixteen
        scale, zero = scale_of(low, high, bits)
        height, length, channels = layer["output_shapes"][0][1:]
        # what the stand-in for a chip computes with: which part of the graph a stream is
        parts[f"{kind}s"] = [[name, [0, height * length], [0, channels]]]
        if kind == "output" and told("compile", "short_output"):
            length //= 2
        shape, scale = (height, length, channels), float(np.float32(scale))
        ports.append(Port(name, shape, data_bytes=width, zero_point=float(zero), scale=scale))
    text = json.dumps(parts).encode()
    payload = struct.pack("<I", len(text)) + text + struct.pack("<I", len(graph)) + graph
    arch = told("compile", "arch") or runner.hw_arch
    return make_hef(ports[:1], ports[1:], version=1, name=runner.model_name, arch=arch, payload=payload)
