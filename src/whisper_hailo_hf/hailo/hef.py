"""Reads a HEF, the file that runs on a Hailo chip, without any of Hailo's software.

What is read: for which chip it was compiled and by which compiler, its inputs and outputs with shapes, formats, widths
and scales, its contexts, and which releases of HailoRT can read it. Fields as in HailoRT 4.23.0
(hailort/libhailort/hef.proto, MIT); where a reader has to choose, it chooses as src/hef/hef.cpp does.

A HEF may come from anyone: see `hef_wire` for what bounds the reading of it.
"""

import io
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.hailo.hef_wire import HefError, Message, Reader, read_body, read_header

# ProtoHEFHwArch, by the names that the compiler's hw_arch takes; "hailo8" is written as HAILO8P
ARCHITECTURES = {
    0: "hailo8 (engineering sample)", 1: "hailo8", 2: "hailo8r", 3: "hailo8l", 4: "hailo15m", 5: "hailo10h",
    6: "hailo15l", 103: "hailo15h",
}  # fmt: skip
# Which HEFs a device runs (src/device_common/device_internal.cpp); one for the 8L runs on a Hailo-8 too, slower.
_RUNS = {"HAILO8": {"hailo8", "hailo8r", "hailo8l"}, "HAILO8L": {"hailo8l"}, "HAILO8R": {"hailo8", "hailo8r"}}
FORMATS = {
    0: "NHWC", 1: "NHCW", 2: "NC", 3: "FCR", 4: "BAYER_RGB", 5: "NHW", 6: "NMS", 7: "F8CR", 8: "RGB888", 11: "YUY2",
    13: "NHWC",
}  # fmt: skip
_MULTI_CONTEXT, _NET_FLOW, _NEWEST_EXTENSION = 4, 13, 32
# The first release of HailoRT that reads a header version or an extension, where that is younger than 4.17.
_HEADER_SINCE = {2: (4, 20), 3: (4, 21)}
_EXTENSION_SINCE = {28: (4, 17), 29: (4, 18), 31: (4, 21), 32: (4, 21)}
OLDEST_RUNTIME, NEWEST_RUNTIME = (4, 18), (4, 23)  # 4.18 brought the Python API that the `hef` backend uses
# Hailo Model Zoo's releases pair a compiler with a runtime: DFC 3.30 with HailoRT 4.20, and so on.
_PAIRS: dict[tuple[int, ...], tuple[int, int]] = {
    (3, 29): (4, 19),
    (3, 30): (4, 20),
    (3, 31): (4, 21),
    (3, 32): (4, 22),
    (3, 33): (4, 23),
}
_BOUNDARY, _INFO, _MUX, _INPUT = 0, 0, 1, 0
_MAX_STREAMS, _MAX_DEPTH = 1000, 8


@dataclass(frozen=True)
class HefStream:
    """An input or output of the chip.

    Attributes:
        name: such as "net/input_layer1".
        shape: (height, width, features) of one frame.
        padded_shape: the same, as it lies in the chip.
        format: the chip's own order, "NHCW" for example; HailoRT turns NHCW and RGB888 into NHWC for the host.
        data_bytes: 1 for 8 bits, 2 for 16.
        zero_point, scale: x = (q - zero_point) * scale.
        limits: lowest and highest x that was seen at calibration.
        zero_points, scales: one for each feature, where the file has them; otherwise empty.
        original_names: nodes of the graph that was compiled.
    """

    name: str
    shape: tuple[int, int, int]
    padded_shape: tuple[int, int, int]
    format: str
    data_bytes: int
    zero_point: float
    scale: float
    limits: tuple[float, float]
    zero_points: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    original_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class HefNetwork:
    """A network group.

    Attributes:
        name: its name.
        contexts: how many parts the chip runs one after the other, loading weights between them; 1 needs no loading.
        layouts: how many forms the file holds, for different clusters of the chip; 0 where it has but one.
        inputs, outputs: in the file's order.
        fps: frames per second of the slowest part, as the compiler reckoned it; 0 where it did not say.
    """

    name: str
    contexts: int
    layouts: int
    inputs: tuple[HefStream, ...]
    outputs: tuple[HefStream, ...]
    fps: float = 0.0


@dataclass(frozen=True)
class Hef:
    """What a HEF says of itself.

    Attributes:
        path: where it was read from; "" for bytes.
        size: bytes.
        header_version: 0 to 3.
        checksum: "ok", or why it was not verified.
        architecture: the chip it was compiled for: "hailo8l", "hailo8" and so on.
        compiler: version of the Dataflow Compiler, "3.33.0" for example.
        created: UTC, ISO 8601; "" where the file does not say.
        format_version: of the description inside.
        extensions: ids and names of what a runtime must know to read it.
        multi_context: whether the file says that some network has several contexts.
        networks: the network groups.
    """

    path: str
    size: int
    header_version: int
    checksum: str
    architecture: str
    compiler: str
    created: str
    format_version: int
    extensions: tuple[tuple[int, str], ...]
    multi_context: bool
    networks: tuple[HefNetwork, ...]

    @property
    def runtime_since(self) -> tuple[int, int]:
        """The first release of HailoRT, from 4.18 on, that can read it."""
        needs = [_EXTENSION_SINCE[kind] for kind, _ in self.extensions if kind in _EXTENSION_SINCE]
        return max(OLDEST_RUNTIME, _HEADER_SINCE.get(self.header_version, OLDEST_RUNTIME), *needs)

    @property
    def unknown_extensions(self) -> tuple[int, ...]:
        """Ids that no known release of HailoRT has; HailoRT refuses a file with one of those."""
        return tuple(kind for kind, _ in self.extensions if kind > _NEWEST_EXTENSION)

    def why_not_read_by(self, runtime: str) -> str | None:
        """None if a HailoRT of this version ("4.20.0") can read the file, otherwise why not."""
        version = version_of(runtime)
        if version is None:
            return None
        if version >= (5,):
            return f"HailoRT {runtime} does not run Hailo-8 chips: install HailoRT 4.23 or older"
        if self.unknown_extensions and version[:2] <= NEWEST_RUNTIME:
            known = ", ".join(map(str, self.unknown_extensions))
            return f"it needs what HailoRT {runtime} does not know (extension {known}): install a newer HailoRT 4"
        if version[:2] < self.runtime_since:
            return f"it needs HailoRT {_dotted(self.runtime_since)} or later, and {runtime} is installed"
        return None

    def why_not_run_on(self, device: str) -> str | None:
        """None if a device of this architecture ("HAILO8L", as HailoRT names it) runs the file, otherwise why not."""
        known = _RUNS.get(device.upper())
        if known is None or self.architecture in known:
            return None
        return f"it was compiled for {self.architecture}, and the device is a {device}: " + (
            "compile it for hailo8l, which runs on both" if device.upper() in ("HAILO8", "HAILO8L") else "compile anew"
        )

    def advice_on(self, runtime: str) -> str | None:
        """What is unusual about this compiler with this HailoRT; None where nothing is."""
        compiler, installed = version_of(self.compiler), version_of(runtime)
        pair = _PAIRS.get((*compiler, 0)[:2]) if compiler else None
        if pair is None or installed is None or installed[:2] >= pair:
            return None
        return (
            f"compiled with DFC {self.compiler}, whose companion is HailoRT {_dotted(pair)}: should HailoRT {runtime} "
            "refuse it, upgrade HailoRT or compile with an older DFC"
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON types."""
        return asdict(self) | {"runtime_since": _dotted(self.runtime_since)}


def read_hef(source: str | os.PathLike | bytes) -> Hef:
    """What a HEF says of itself.

    Args:
        source: the file's path, or its content.

    Raises:
        RequestError: there is no such file, it is no HEF, it is damaged (its checksum is verified), or holds no
            network.
    """
    name = "the HEF" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, bytes):
            return _read(io.BytesIO(source), len(source), "")
        path = Path(source)
        if not path.is_file():
            raise RequestError(f"{name}: no such file" if not path.exists() else f"{name} is no file: name a .hef")
        with path.open("rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size, str(path))
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror or error}") from None
    except HefError as error:
        raise RequestError(f"{name} {error}") from None


def version_of(text: str) -> tuple[int, ...] | None:
    """(4, 20, 0) of "4.20.0" or "4.20.0-1"; None where there is no number."""
    parts: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits or len(digits) > 9:
            break
        parts.append(int(digits))
        if digits != part:
            break
    return tuple(parts) or None


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


def _read(file: Any, size: int, path: str) -> Hef:
    header = read_header(file, size)
    proto, checksum = read_body(file, header, size)
    whole = Reader(proto).whole()
    head = whole.message(1)
    extensions = tuple(
        dict.fromkeys(
            (extension.integer(1), extension.text(2)) for extension in _first(whole.messages(5), "extensions")
        )
    )
    kinds = {kind for kind, _ in extensions}
    code = head.integer(1)
    networks = tuple(_networks(whole, _NET_FLOW in kinds))
    if not networks:
        raise HefError("holds no network")
    return Hef(
        path=path,
        size=size,
        header_version=header.version,
        checksum=checksum,
        architecture=ARCHITECTURES.get(code, f"unknown chip {code}"),
        compiler=head.text(3),
        created=_time(head.integer(2)),
        format_version=head.integer(4),
        extensions=extensions,
        multi_context=_MULTI_CONTEXT in kinds or any(network.contexts > 1 for network in networks),
        networks=networks,
    )


def _networks(whole: Message, net_flow: bool) -> Iterator[HefNetwork]:
    for group in _first(whole.messages(2), "networks"):
        # with HAILO_NET_FLOW the group's operations hold what older files have in the group itself, same numbers
        cores = [op.message(4) for op in _first(group.messages(8), "operations") if op.has(4)] if net_flow else [group]
        for core in cores:
            name = group.text(10) or core.message(1).text(1) or group.message(1).text(1)
            yield _network(name, core)


def _network(name: str, outer: Message) -> HefNetwork:
    layouts = list(_first(outer.messages(7), "layouts"))
    # files for the 8L: the outer message holds nothing but names, each inner one the network for some clusters
    core = layouts[0].message(1) if layouts and not outer.has(3) else outer
    contexts = list(_first(core.messages(3), "contexts"))
    inputs: dict[str, HefStream] = {}
    outputs: dict[str, HefStream] = {}
    for context in contexts:
        for layer in context.message(3).messages(2):
            if layer.message(5).integer(3) != _BOUNDARY:
                continue
            found = inputs if layer.integer(1) == _INPUT else outputs
            for stream in _streams(layer, layer.integer(2)):
                found.setdefault(stream.name, stream)
                if len(inputs) + len(outputs) > _MAX_STREAMS:
                    raise HefError(f"is damaged: it has more than {_MAX_STREAMS} inputs and outputs")
    order = core.message(5).texts(2) or core.texts(4) or outer.message(5).texts(2) or outer.texts(4)
    places = {output: place for place, output in reversed(list(enumerate(order)))}
    fps = core.message(1).real(4) or outer.message(1).real(4)
    return HefNetwork(
        name=name or core.message(1).text(1),
        contexts=len(contexts),
        layouts=len(layouts),
        inputs=tuple(inputs.values()),
        outputs=tuple(sorted(outputs.values(), key=lambda stream: places.get(stream.name, len(places)))),
        fps=fps if math.isfinite(fps) else 0.0,
    )


def _streams(layer: Message, kind: int) -> Iterator[HefStream]:
    if kind == _INFO:
        yield _stream(layer.message(3))
    elif kind == _MUX:
        yield from _unmuxed(layer.message(4), _MAX_DEPTH)


def _unmuxed(mux: Message, depth: int) -> Iterator[HefStream]:
    """The outputs that the chip sends interleaved."""
    if depth == 0:
        raise HefError(f"is damaged: outputs within outputs, more than {_MAX_DEPTH} deep")
    for edge in mux.messages(5):
        if edge.has(1):
            yield _stream(edge.message(1))
        elif edge.has(2):
            yield from _unmuxed(edge.message(2), depth - 1)


def _stream(info: Message) -> HefStream:
    base, numbers = info.message(2), info.message(3)
    sizes = [base.integer(field) for field in range(1, 7)]
    if max(sizes) >= 2**31:
        raise HefError(f"is damaged: a size of {max(sizes):,}")
    shape = (sizes[0], sizes[2], sizes[4])
    padded = (sizes[1] or shape[0], sizes[3] or shape[1], sizes[5] or shape[2])
    zero_points, scales = numbers.doubles(5, most=padded[2]), numbers.doubles(6, most=padded[2])
    reals = [numbers.real(field) for field in range(1, 5)]
    if not all(map(math.isfinite, (*reals, *zero_points, *scales))):
        raise HefError("is damaged: a scale, zero point or range that is no number")
    code = base.integer(7)
    return HefStream(
        name=info.text(1),
        shape=shape,
        padded_shape=padded,
        format=FORMATS.get(code, f"format {code}"),
        data_bytes=base.integer(12) or 1,
        zero_point=reals[0],
        scale=reals[1],
        limits=(reals[2], reals[3]),
        zero_points=zero_points,
        scales=scales,
        original_names=info.texts(5),
    )


def _first(messages: Iterator[Message], what: str, most: int = 1000) -> Iterator[Message]:
    for count, message in enumerate(messages):
        if count == most:
            raise HefError(f"is damaged: it has more than {most} {what}")
        yield message


def _time(milliseconds: int) -> str:
    if not 0 < milliseconds < 253402300800000:  # the year 10000
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
