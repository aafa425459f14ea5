"""Writes HEFs: files in Hailo's format, of every header version and both layouts, that no compiler made.

Fields as in HailoRT's hef.proto, v4.23.0. Where a real file has its weights, one of these may have the integer graph
that the stand-in for a chip computes with.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAYLOAD_MARK = b"whisper-hailo stand-in:"
CODES = {"hailo8": 1, "hailo8r": 2, "hailo8l": 3, "hailo15h": 103}
FORMAT_CODES = {"NHWC": 0, "NHCW": 1, "NC": 2, "FCR": 3, "NHW": 5, "F8CR": 7, "RGB888": 8}
DEFAULT_EXTENSIONS = ((2, "DDR"), (13, "HAILO_NET_FLOW"), (26, "PERIPH_CALCULATION_IN_HAILORT"))


@dataclass(frozen=True)
class Port:
    """An input or output as it is written; the names are those of `hailo.hef.HefStream`."""

    name: str
    shape: tuple[int, int, int]
    format: str = "NHCW"
    data_bytes: int = 1
    zero_point: float = 0.0
    scale: float = 1.0
    limits: tuple[float, float] | None = None
    zero_points: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    original_names: tuple[str, ...] = ()
    padded_shape: tuple[int, int, int] | None = None

    @property
    def written_limits(self) -> tuple[float, float]:
        if self.limits is not None:
            return self.limits
        most = 2 ** (8 * self.data_bytes) - 1
        return (-self.zero_point * self.scale, (most - self.zero_point) * self.scale)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def block(number: int, data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return varint(number << 3 | 2) + varint(len(data)) + data


def real(number: int, value: float) -> bytes:
    return varint(number << 3 | 5) + struct.pack("<f", value)


def double(number: int, value: float) -> bytes:
    return varint(number << 3 | 1) + struct.pack("<d", value)


def layer_info(port: Port) -> bytes:
    """ProtoHEFEdgeLayerInfo."""
    padded = port.padded_shape or port.shape
    sizes = [size for pair in zip(port.shape, padded, strict=True) for size in pair]
    base = b"".join(integer(number, size) for number, size in enumerate(sizes, start=1))
    base += integer(7, FORMAT_CODES[port.format]) + integer(12, port.data_bytes)
    low, high = port.written_limits
    numbers = real(1, port.zero_point) + real(2, port.scale) + real(3, low) + real(4, high)
    if port.scales:
        numbers += block(5, struct.pack(f"<{len(port.zero_points)}d", *port.zero_points))
        numbers += block(6, struct.pack(f"<{len(port.scales)}d", *port.scales))
    names = b"".join(block(5, name) for name in port.original_names)
    return block(1, port.name) + block(2, base) + block(3, numbers) + names


def edge(port: Port, direction: int, connection: int = 0) -> bytes:
    """ProtoHEFEdgeLayer; direction 0 is an input, connection 0 the boundary to the host."""
    return integer(1, direction) + integer(2, 0) + block(3, layer_info(port)) + block(5, integer(3, connection))


def muxed(name: str, ports: Iterable[Port]) -> bytes:
    """Outputs that leave the chip interleaved."""
    inner = b"".join(block(5, block(1, layer_info(port))) for port in ports)
    return integer(1, 1) + integer(2, 1) + block(4, block(1, name) + inner) + block(5, integer(3, 0))


def core_op(
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    *,
    contexts: int = 1,
    fps: float = 0.0,
    order: Sequence[str] | None = None,
    mux: bool = False,
    operations: bytes = b"",
) -> bytes:
    """ProtoHEFCoreOp, or the same fields of ProtoHEFNetworkGroup."""
    last = contexts - 1
    written = []
    for index in range(contexts):
        edges = [edge(port, 0) for port in inputs] if index == 0 else []
        if index == last:
            edges += [muxed(f"{name}/mux", outputs)] if mux else [edge(port, 1) for port in outputs]
        if contexts > 1:  # what goes from context to context is no input or output of the network
            inner = Port(f"{name}/inner{index}", (1, 8, 8))
            edges += [edge(inner, 0, 1)] * (index > 0) + [edge(inner, 1, 1)] * (index < last)
        metadata = block(1, f"context_{index}") + b"".join(block(2, one) for one in edges)
        written.append(
            block(3, integer(1, index) + (block(2, operations) if operations else b"") + block(3, metadata))
        )
    about = block(1, name) + (double(4, fps) if fps else b"")
    names = [port.name for port in outputs] if order is None else order
    return block(1, about) + b"".join(written) + b"".join(block(4, one) for one in names) + block(6, name)


def protobuf(
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    *,
    name: str = "encoder",
    arch: str | int = "hailo8l",
    multi_layout: bool | None = None,
    net_flow: bool = True,
    compiler: str = "3.33.0",
    timestamp: int = 1_760_000_000_000,
    extensions: Iterable[tuple[int, str]] | None = None,
    payload: bytes = b"",
    **core: Any,
) -> bytes:
    """ProtoHEFHef. A file for the 8L has its network once more, inside, for some clusters of the chip."""
    code = CODES.get(arch, arch) if isinstance(arch, str) else arch
    listed = list(DEFAULT_EXTENSIONS if extensions is None else extensions)
    listed = [one for one in listed if net_flow or one[0] != 13]
    if core.get("contexts", 1) > 1:
        listed.append((4, "IS_MULTI_CONTEXTS"))
    inner = core_op(name, inputs, outputs, **core)
    if code == 3 if multi_layout is None else multi_layout:
        inner = block(1, block(1, name)) + block(7, block(1, inner) + block(2, integer(1, 0b110011)))
    group = block(8, block(1, name) + block(4, inner)) + block(10, name) if net_flow else inner
    head = integer(1, code) + integer(2, timestamp) + block(3, compiler) + integer(4, 5)
    body = block(1, head) + block(2, group)
    body += b"".join(block(5, integer(1, kind) + block(2, label)) for kind, label in listed)
    return body + (block(3, payload) if payload else b"")


def container(proto: bytes, version: int = 3, ccws: bytes = b"", additional: bytes = b"") -> bytes:
    """The file: header, protobuf, and behind it the weights (inside it in version 0)."""
    start = struct.pack(">III", 0x01484546, version, len(proto))
    if version == 0:
        return start + struct.pack(">I16s", 0, hashlib.md5(proto).digest()) + proto
    if version == 1:
        return start + struct.pack(">IQI", zlib.crc32(proto + ccws), len(ccws), 0) + proto + ccws
    import xxhash

    if version == 2:
        return start + struct.pack(">QQQQ", xxhash.xxh3_64_intdigest(proto + ccws), len(ccws), 0, 0) + proto + ccws
    padding = -len(proto) % 16
    padded = bytes(padding) + ccws
    digest = xxhash.xxh3_64_intdigest(proto + padded + additional)
    sizes = struct.pack(">QQIQQQ", digest, len(padded), padding, len(additional), 0, 0)
    return start + sizes + proto + padded + additional


def make_hef(
    inputs: Sequence[Port], outputs: Sequence[Port], *, version: int = 3, payload: bytes = b"", **described: Any
) -> bytes:
    """A whole file. `payload` is what the stand-in for a chip computes with."""
    marked = PAYLOAD_MARK + payload if payload else b"\0" * 64
    if version == 0:
        return container(protobuf(inputs, outputs, payload=marked, **described), 0)
    return container(protobuf(inputs, outputs, **described), version, marked)


# For the stand-in for a chip


STANDINS = Path(__file__).resolve().parent / "standins"
_PACKAGES = ("hailo_platform", "hailo_chip")


def hef_of_graph(
    graph: str | os.PathLike,
    *,
    split: tuple[str, int] | None = None,
    split_input: int = 1,
    changes: dict[str, Any] | None = None,
    version: int = 2,
    **described: Any,
) -> bytes:
    """A HEF that the stand-in computes with an integer graph of ours.

    Args:
        graph: the ONNX file.
        split: cuts the output, ("time", 2) or ("channels", 3), in so many parts.
        split_input: cuts the input along time in so many parts.
        changes: fields of the output's `Port` that are written otherwise than they are.
        version: of the header.
        described: for `protobuf`.
    """
    import onnx
    from hailo_chip.chip import payload

    from whisper_hailo_hf.backends.emulator import IntegerGraph

    integers = IntegerGraph(graph, threads=1)
    loaded = onnx.load(graph).graph
    _, mels, *rows = (one.dim_value for one in loaded.input[0].type.tensor_type.shape.dim)
    _, width, *positions = (one.dim_value for one in loaded.output[0].type.tensor_type.shape.dim)

    def ports(prefix: str, affine: Any, rows: list[int], channels: int, cut: tuple[str, int], **more: Any) -> Any:
        along, count = cut
        made, places = [], []
        for index in range(count):
            part = [list(rows), channels]
            time, channel = [0, max(rows)], [0, channels]
            if along == "time":
                size = max(rows) // count
                part[0] = [size if row == max(rows) else 1 for row in rows]
                time = [index * size, (index + 1) * size]
            else:
                size = channels // count
                part[1] = size
                channel = [index * size, (index + 1) * size]
            facts = {
                "data_bytes": 1 if affine.integer.dtype == "uint8" else 2,
                "zero_point": float(affine.zero_point),
                "scale": float(affine.scale),
            }
            made.append(Port(f"encoder/{prefix}{index + 1}", (*part[0], part[1]), **facts | more))
            places.append([made[-1].name, time, channel])
        return made, places

    inputs, from_input = ports("input_layer", integers.input, rows, mels, ("time", split_input))
    outputs, to_output = ports("conv", integers.output, positions, width, split or ("time", 1), **changes or {})
    content = payload(Path(graph).read_bytes(), from_input, to_output)
    return make_hef(inputs, outputs, version=version, payload=content, **described)


def install_hef(folder: str | os.PathLike, arch: str = "hailo8l", **made: Any) -> Path:
    """Makes the HEF of a model folder's integer graph, and records it as the compiler driver does."""
    folder = Path(folder)
    path = folder / arch / "encoder.hef"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(hef_of_graph(folder / "onnx" / "encoder_int8.onnx", arch=arch, **made))
    config = json.loads((folder / "config.json").read_text())
    graph = config["artefacts"]["onnx/encoder_int8.onnx"]
    record = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    record |= {"weights": graph["weights"], "time_axis": config["time_axis"], "hw_arch": arch}
    record |= {name: graph[name] for name in ("input", "output")}
    config["artefacts"][f"{arch}/encoder.hef"] = record
    (folder / "config.json").write_text(json.dumps(config))
    return path


@contextmanager
def hailo_platform(version: str = "4.20", **world: Any) -> Iterator[Any]:
    """`hailo_platform` of this version can be imported, here and in processes started from here. Gives the world that
    it stands in, to be changed."""
    folders = [str(STANDINS / f"hailo_platform_{version.replace('.', '_')}"), str(STANDINS)]
    before, environment = list(sys.path), {name: os.environ.get(name) for name in ("PYTHONPATH", "HAILO_STANDIN")}
    _forget()
    sys.path[:0] = folders
    with tempfile.TemporaryDirectory() as scratch:
        try:
            from hailo_chip import state

            for name, value in ({"lock": f"{scratch}/hailo0"} | world).items():
                setattr(state, name, value)
            os.environ["PYTHONPATH"] = os.pathsep.join([*folders, environment["PYTHONPATH"] or ""]).rstrip(os.pathsep)
            os.environ["HAILO_STANDIN"] = state.to_environment()
            yield state
        finally:
            sys.path[:] = before
            for name, value in environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]:
        del sys.modules[name]
    importlib.invalidate_caches()
