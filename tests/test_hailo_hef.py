"""The HEF reader: files of every header version and layout read back exactly, damaged ones refused in one line."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from helpers_hef import Port, block, container, integer, make_hef, protobuf

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.hailo.hef import Hef, read_hef, version_of
from whisper_hailo_hf.hailo.hef_wire import MAX_FIELDS

INPUT = Port(
    "encoder/input_layer1", (1, 3000, 80), zero_point=12, scale=0.0123, original_names=("input_features", "/conv1")
)
STATES = Port("encoder/conv9", (1, 1500, 384), data_bytes=2, zero_point=30_000, scale=0.001, limits=(-30.0, 34.5))
SECOND = Port("encoder/conv7", (1, 750, 384), format="NHWC", zero_point=3, scale=0.5, padded_shape=(1, 752, 384))


def f32(value: float) -> float:
    return float(np.float32(value))


def assert_same(found, written: Port) -> None:
    assert (found.name, found.shape, found.format, found.data_bytes) == (
        written.name,
        written.shape,
        written.format,
        written.data_bytes,
    )
    assert found.padded_shape == (written.padded_shape or written.shape)
    assert (found.zero_point, found.scale) == (f32(written.zero_point), f32(written.scale))
    assert found.limits == tuple(map(f32, written.written_limits))
    assert (found.zero_points, found.scales) == (written.zero_points, written.scales)
    assert found.original_names == written.original_names


@pytest.mark.parametrize("net_flow", [True, False])
@pytest.mark.parametrize("arch", ["hailo8l", "hailo8"])
@pytest.mark.parametrize("version", range(4))
@pytest.mark.parametrize("contexts", [1, 3])
@pytest.mark.parametrize("mux", [False, True])
def test_every_form_reads_back_exactly(tmp_path, version, arch, net_flow, contexts, mux):
    content = make_hef(
        [INPUT], [STATES, SECOND], version=version, arch=arch, net_flow=net_flow, contexts=contexts, mux=mux,
        name="whisper", compiler="3.30.0", fps=44.25, payload=b"weights" * 50,
    )  # fmt: skip
    path = tmp_path / "a.hef"
    path.write_bytes(content)
    hef = read_hef(path)
    assert (hef.header_version, hef.checksum, hef.size) == (version, "ok", len(content))
    assert (hef.architecture, hef.compiler, hef.format_version) == (arch, "3.30.0", 5)
    assert hef.created == "2025-10-09T08:53:20+00:00"
    assert hef.multi_context == (contexts > 1)
    assert ((13, "HAILO_NET_FLOW") in hef.extensions) == net_flow
    (network,) = hef.networks
    assert (network.name, network.contexts, network.fps) == ("whisper", contexts, 44.25)
    assert network.layouts == (1 if arch == "hailo8l" else 0)
    assert_same(network.inputs[0], INPUT)
    assert len(network.inputs) == 1
    for found, written in zip(network.outputs, (STATES, SECOND), strict=True):
        assert_same(found, written)
    assert read_hef(content).networks == hef.networks


def test_outputs_come_in_the_order_that_the_file_states():
    hef = read_hef(make_hef([INPUT], [STATES, SECOND], order=[SECOND.name, STATES.name]))
    assert [one.name for one in hef.networks[0].outputs] == [SECOND.name, STATES.name]


def test_a_scale_for_each_feature():
    scales, zeros = tuple(0.5 + index for index in range(4)), tuple(float(index) for index in range(4))
    port = Port("net/conv1", (1, 2, 4), format="NC", scales=scales, zero_points=zeros)
    assert_same(read_hef(make_hef([INPUT], [port])).networks[0].outputs[0], port)


@pytest.mark.parametrize(
    ("version", "extensions", "since"),
    [(0, [], "4.18"), (1, [], "4.18"), (2, [], "4.20"), (3, [], "4.21"), (1, [(31, "EXTERNAL_RESOURCES")], "4.21")],
)
def test_which_runtime_can_read_it(version, extensions, since):
    hef = read_hef(make_hef([INPUT], [STATES], version=version, extensions=[(13, "HAILO_NET_FLOW"), *extensions]))
    assert hef.to_dict()["runtime_since"] == since
    assert (hef.why_not_read_by("4.20.0") is None) == (since <= "4.20")
    assert hef.why_not_read_by("4.23.0") is None
    assert "does not run Hailo-8" in hef.why_not_read_by("5.2.0")
    assert "needs HailoRT" in hef.why_not_read_by("4.17.0")
    assert hef.why_not_read_by("of an unknown version") is None


def test_an_extension_that_nobody_knows():
    hef = read_hef(make_hef([INPUT], [STATES], extensions=[(13, "HAILO_NET_FLOW"), (99, "TIME_TRAVEL")]))
    assert hef.unknown_extensions == (99,)
    assert "extension 99" in hef.why_not_read_by("4.23.0")


def test_compilers_newer_than_the_runtime_are_mentioned():
    hef = read_hef(make_hef([INPUT], [STATES], version=1, compiler="3.33.1"))
    assert "companion is HailoRT 4.23" in hef.advice_on("4.20.0")
    assert hef.advice_on("4.23.0") is None
    assert read_hef(make_hef([INPUT], [STATES], compiler="9.1")).advice_on("4.20.0") is None


@pytest.mark.parametrize(
    ("arch", "device", "runs"),
    [
        ("hailo8l", "HAILO8L", True),
        ("hailo8l", "HAILO8", True),
        ("hailo8", "HAILO8", True),
        ("hailo8", "HAILO8L", False),
        ("hailo15h", "HAILO8L", False),
        ("hailo8", "HAILO99", True),  # an unknown device: HailoRT will say
    ],
)
def test_which_device_runs_it(arch, device, runs):
    reason = read_hef(make_hef([INPUT], [STATES], arch=arch)).why_not_run_on(device)
    assert (reason is None) == runs
    assert runs or (arch in reason and device in reason)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("4.20.0", (4, 20, 0)), ("4.20.0-1", (4, 20, 0)), ("4", (4,)), ("", None), ("unknown", None), ("9" * 500, None)],
)
def test_versions(text, numbers):
    assert version_of(text) == numbers


# What is wrong with a file


def good(version: int = 2, **kwargs) -> bytes:
    return make_hef([INPUT], [STATES], version=version, payload=b"weights" * 9, **kwargs)


def proto_only(proto: bytes) -> bytes:
    return container(proto, 1)


HUGE = b"\xff" * 9 + b"\x01"  # 2**64 - 1
WRONG = {
    "empty": (b"", "is empty"),
    "another kind of file": (b"\x7fELF" + bytes(100), "is no HEF"),
    "two bytes": (b"\x01H", "is no HEF"),
    "header only": (good()[:20], "ends within its header"),
    "newer header": (b"\x01HEF" + struct.pack(">II", 7, 0) + bytes(60), "has header version 7"),
    "cut short": (good()[:-10], "is cut short: its header promises"),
    "too long": (good() + b"more", "is too long"),
    "a length bomb": (b"\x01HEF" + struct.pack(">IIIQI", 1, 2**31, 0, 2**63, 0) + bytes(60), "is cut short"),
    "no protobuf": (proto_only(b""), "holds no network"),
    "a field longer than the file": (proto_only(b"\x0a" + HUGE), "longer than the message"),
    "a number without an end": (proto_only(b"\x08" + b"\xff" * 11), "more than ten bytes"),
    "a number cut off": (proto_only(b"\x08\xff"), "is cut off"),
    "a group of old": (proto_only(b"\x0b\x00"), "wire type 3"),
    "field 0": (proto_only(b"\x00\x00"), "a field without a number"),
    "a long name": (proto_only(protobuf([INPUT], [STATES], name="x" * 5000)), "a name of 5,000 bytes"),
    "many scales": (
        proto_only(protobuf([INPUT], [Port("a", (1, 1, 2), zero_points=(0.0,) * 9, scales=(1.0,) * 9)])),
        "a list of 9 numbers",
    ),
    "no number": (proto_only(protobuf([INPUT], [Port("a", (1, 1, 2), scale=float("nan"))])), "that is no number"),
    "a size out of bounds": (proto_only(protobuf([INPUT], [Port("a", (1, 2**40, 2))])), "a size of"),
    "fields without end": (proto_only(b"\x08\x01" * (MAX_FIELDS + 1)), "more than 200,000 fields"),
}


@pytest.mark.parametrize("how", WRONG)
def test_what_is_wrong_is_said_in_one_line(tmp_path, how):
    content, line = WRONG[how]
    path = tmp_path / "a.hef"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=line) as raised:
        read_hef(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("version", range(4))
def test_a_flipped_bit_anywhere_behind_the_header_is_seen(version):
    content = good(version)
    header = {0: 32, 1: 28, 2: 44, 3: 56}[version]
    for position in range(header, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        with pytest.raises(RequestError, match="checksum"):
            read_hef(bytes(damaged))


def test_no_file(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        read_hef(tmp_path / "none.hef")
    with pytest.raises(RequestError, match="is no file"):
        read_hef(tmp_path)


def test_outputs_within_outputs_have_an_end():
    mux = block(1, "m")
    for _ in range(30):
        mux = block(1, "m") + block(5, block(2, mux))
    layer = integer(1, 1) + integer(2, 1) + block(4, mux)
    context = block(3, block(3, block(2, layer)))
    with pytest.raises(RequestError, match="8 deep"):
        read_hef(proto_only(block(2, block(10, "net") + context)))


def test_names_cannot_play_tricks_on_a_terminal():
    hef = read_hef(good(name="a\x1b[2Jb\nc"))
    assert hef.networks[0].name == "a\ufffd[2Jb\ufffdc"


def test_without_xxhash(monkeypatch):
    monkeypatch.setattr("whisper_hailo_hf.hailo.hef_wire.find_spec", lambda name: None)
    content = bytearray(good(3))
    assert "pip install xxhash" in read_hef(bytes(content)).checksum
    assert read_hef(good(1)).checksum == "ok"


def test_time_and_memory_are_bounded():
    """Files that promise much: messages of a byte each, views of views, long lists."""
    worst = [
        proto_only(block(2, b"\x3a\x00" * 90_000)),
        proto_only(b"".join(block(2, block(3, b"")) for _ in range(900))),
        proto_only(block(2, block(8, block(4, block(3, block(3, block(2, b"\x08\x01" * 60_000))))))),
        proto_only(block(5, b"\x08\x01") * 60_000),
        proto_only(block(1, block(3, "3.33.0") * 100_000)),
    ]
    for content in worst:
        started = time.perf_counter()
        with suppress(RequestError):
            read_hef(content)
        assert time.perf_counter() - started < 5  # a second at most, on a machine with nothing else to do
    tracemalloc.start()
    with pytest.raises(RequestError):
        read_hef(b"\x01HEF" + struct.pack(">II", 0, 2**32 - 1) + bytes(2000))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_mutated_files_are_refused_or_read():
    """benchmarks/hef_fuzz.py does the same for longer."""
    draw = random.Random(0)
    protos = [protobuf([INPUT], [STATES], arch=arch) for arch in ("hailo8", "hailo8l")]
    outcomes = {True: 0, False: 0}
    for _ in range(1500):
        proto = bytearray(draw.choice(protos))
        for _ in range(draw.randint(1, 2)):
            proto[draw.randrange(len(proto))] = draw.randrange(256)
        try:
            read, line = isinstance(read_hef(proto_only(bytes(proto))), Hef), ""
        except RequestError as error:
            read, line = False, str(error)
        outcomes[read] += 1
        assert "\n" not in line
    assert min(outcomes.values()) > 100
