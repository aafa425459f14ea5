"""The bytes of a HEF: its header, the checksum over what follows, and protobuf's wire format, field by field.

Header versions and their checksums as in HailoRT 4.23.0 (src/hef/hef_internal.hpp, src/hef/hef.cpp), the wire format
as in protobuf's documentation ("Encoding"). No schema is compiled and no field that nobody asks for is unpacked: the
weights of an older HEF lie inside its protobuf. Sizes are held against the file before anything is read, and fields
are counted, so that neither time nor memory depends on what a damaged file claims.
"""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, Any

MAGIC = b"\x01HEF"
MAX_PROTO_BYTES = 512 * 2**20  # the largest of Hailo's own Whisper HEFs is far below a tenth of this
MAX_FIELDS = 200_000  # of the messages that are looked into; a real file has some thousands
_CHUNK = 2**20

_COMMON = struct.Struct(">III")  # magic, version, size of the protobuf; big-endian, packed
_REST = {
    0: struct.Struct(">I16s"),  # reserved, MD5
    1: struct.Struct(">IQI"),  # CRC-32, size of the CCWs, reserved
    2: struct.Struct(">QQQQ"),  # XXH3-64, size of the CCWs, reserved
    3: struct.Struct(">QQIQQQ"),  # XXH3-64, size of the CCWs with padding, padding, additional information, reserved
}
CHECKSUMS = {0: "MD5", 1: "CRC-32", 2: "XXH3-64", 3: "XXH3-64"}


class HefError(ValueError):
    """What is wrong with a HEF's bytes, in one line, without the file's name."""


@dataclass(frozen=True)
class HefHeader:
    """What stands before the protobuf.

    Attributes:
        version: 0 to 3.
        header_bytes: its own size.
        proto_bytes: size of the protobuf behind it.
        ccws_bytes: size of the weights and configuration words behind that; 0 in version 0, which has them inside.
        additional_bytes: size of what follows these (version 3).
        checksum: as the file has it: 16 bytes of MD5, or an integer.
    """

    version: int
    header_bytes: int
    proto_bytes: int
    ccws_bytes: int
    additional_bytes: int
    checksum: bytes | int


def read_header(file: IO[bytes], size: int) -> HefHeader:
    """The header of a file of `size` bytes; a `HefError` where it is none, or promises another size."""
    start = file.read(_COMMON.size)
    if start[:4] != MAGIC:
        raise HefError("is no HEF: it does not start with \\x01HEF" if start else "is empty")
    if len(start) < _COMMON.size:
        raise HefError("is cut short: it ends within its header")
    _, version, proto_bytes = _COMMON.unpack(start)
    if version not in _REST:
        raise HefError(f"has header version {version}, and HailoRT up to 4.23 knows 0 to 3")
    form = _REST[version]
    rest = file.read(form.size)
    if len(rest) < form.size:
        raise HefError("is cut short: it ends within its header")
    values = form.unpack(rest)
    checksum = values[1] if version == 0 else values[0]
    ccws = 0 if version == 0 else values[1]
    additional = values[3] if version == 3 else 0
    header = HefHeader(version, _COMMON.size + form.size, proto_bytes, ccws, additional, checksum)
    promised = header.header_bytes + proto_bytes + ccws + additional
    if promised != size:
        raise HefError(
            f"is {'cut short' if promised > size else 'too long'}: its header promises {promised:,} bytes, and it has "
            f"{size:,}"
        )
    if version == 3 and values[2] > ccws:
        raise HefError("is damaged: its padding is larger than what it belongs to")
    if proto_bytes > MAX_PROTO_BYTES:
        raise HefError(f"describes itself in {proto_bytes / 2**20:,.0f} MiB: more than {MAX_PROTO_BYTES >> 20} MiB")
    return header


def read_body(file: IO[bytes], header: HefHeader, size: int) -> tuple[bytes, str]:
    """The protobuf, and how the checksum over everything behind the header stands: "ok", or why it is not known.

    A `HefError` where it is wrong.
    """
    proto = file.read(header.proto_bytes)
    left = size - header.header_bytes - len(proto)
    digest = _digest(header.version)
    if digest is None:
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            left -= len(chunk)
    else:
        update, result = digest
        update(proto)
        while left > 0 and (chunk := file.read(min(_CHUNK, left))):
            left -= len(chunk)
            update(chunk)
        if left == 0 and result() != header.checksum:
            raise HefError(f"is damaged: its {CHECKSUMS[header.version]} checksum is not that of its content")
    if left > 0 or len(proto) < header.proto_bytes:
        raise HefError("became shorter while it was read")
    return proto, "ok" if digest is not None else "not verified (XXH3 needs pip install xxhash)"


def _digest(version: int) -> tuple[Callable[[bytes], Any], Callable[[], Any]] | None:
    if version == 0:
        md5 = hashlib.md5(usedforsecurity=False)
        return md5.update, md5.digest
    if version == 1:
        crc = _Crc()
        return crc.update, lambda: crc.value
    if find_spec("xxhash") is None:
        return None
    import xxhash

    xxh3 = xxhash.xxh3_64()
    return xxh3.update, xxh3.intdigest


class _Crc:
    value = 0

    def update(self, chunk: bytes) -> None:
        self.value = zlib.crc32(chunk, self.value)


class Reader:
    """Reads messages out of one protobuf; counts fields over all of them."""

    def __init__(self, data: bytes) -> None:
        self.view = memoryview(data)
        self.left = MAX_FIELDS

    def whole(self) -> "Message":
        """The outermost message."""
        return Message(self, self.view)


class Message:
    """One message: its fields by number, unpacked when they are asked for.

    Wire types: an integer for varints, a view of the bytes for everything else.
    """

    def __init__(self, reader: Reader, view: memoryview) -> None:
        self._reader = reader
        self._fields: dict[int, list[int | memoryview]] = {}
        for number, value in _fields(reader, view):
            self._fields.setdefault(number, []).append(value)

    def integer(self, number: int, default: int = 0) -> int:
        """A varint; the last one where there are several, as protobuf has it."""
        for value in reversed(self._fields.get(number, [])):
            if isinstance(value, int):
                return value
        return default

    def has(self, number: int) -> bool:
        """Whether the field is there at all."""
        return number in self._fields

    def real(self, number: int, default: float = 0.0) -> float:
        """A float or a double."""
        for value in reversed(self._fields.get(number, [])):
            if not isinstance(value, int) and len(value) in (4, 8):
                return float(struct.unpack("<f" if len(value) == 4 else "<d", value)[0])
        return default

    def doubles(self, number: int, most: int) -> tuple[float, ...]:
        """A list of doubles, packed or one by one."""
        blocks = [value for value in self._fields.get(number, []) if not isinstance(value, int)]
        count = sum(len(block) // 8 for block in blocks)
        if count > most or any(len(block) % 8 for block in blocks):
            raise HefError(f"is damaged: a list of {count:,} numbers stands where there can be {most:,}")
        return tuple(number for block in blocks for (number,) in struct.iter_unpack("<d", block))

    def text(self, number: int) -> str:
        """A string; "" where there is none."""
        texts = self.texts(number)
        return texts[-1] if texts else ""

    def texts(self, number: int) -> tuple[str, ...]:
        """A list of strings, what cannot be printed in them replaced."""
        return tuple(_text(value) for value in self._fields.get(number, []) if not isinstance(value, int))

    def message(self, number: int) -> "Message":
        """A message; an empty one where there is none."""
        views = [value for value in self._fields.get(number, []) if not isinstance(value, int)]
        return Message(self._reader, views[-1] if views else memoryview(b""))

    def messages(self, number: int) -> Iterator["Message"]:
        """A list of messages."""
        for value in self._fields.get(number, []):
            if not isinstance(value, int):
                yield Message(self._reader, value)


def _fields(reader: Reader, view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    position, end = 0, len(view)
    while position < end:
        reader.left -= 1
        if reader.left < 0:
            raise HefError(f"is damaged: it describes itself in more than {MAX_FIELDS:,} fields")
        key, position = _varint(view, position, end)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise HefError("is damaged: a field without a number")
        if kind == 0:
            value, position = _varint(view, position, end)
            yield number, value
            continue
        if kind == 2:
            length, position = _varint(view, position, end)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise HefError(f"is damaged: wire type {kind} stands nowhere in a HEF")
        if length > end - position:
            raise HefError("is damaged: a field is longer than the message that holds it")
        yield number, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise HefError("is damaged: a number is cut off")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise HefError("is damaged: a number of more than ten bytes")


def _text(view: memoryview) -> str:
    if len(view) > 4096:
        raise HefError(f"is damaged: a name of {len(view):,} bytes")
    text = bytes(view).decode("utf-8", errors="replace")
    return text if text.isprintable() else "".join(one if one.isprintable() else "\ufffd" for one in text)
