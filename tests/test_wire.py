"""The wire: tensors and audio to bytes and back, addresses, tokens, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.wire import client
from whisper_hailo_hf.wire.messages import CODING, DTYPE, Audio, EncodeRequest, Tensor
from whisper_hailo_hf.wire.tensors import WireError, pack_audio, pack_tensor, unpack_audio, unpack_tensor


@given(
    st.sampled_from(["float32", "float16", "uint8", "uint16"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=5))
    )
)
@settings(max_examples=60, deadline=None)
def test_arrays_come_back_bit_for_bit(array):
    message = Tensor.FromString(pack_tensor(array, 0.5, 3).SerializeToString())
    packed = unpack_tensor(message)
    assert packed.values.dtype == array.dtype
    assert packed.values.shape == array.shape
    assert packed.values.tobytes() == array.tobytes()
    if array.dtype.kind == "u":
        np.testing.assert_array_equal(packed.real(), (array.astype(np.float32) - 3) * np.float32(0.5))


def test_the_other_byte_order_is_read():
    message = pack_tensor(np.array([1, 256], np.uint16), 1.0)
    message.byte_order, message.data = 1, np.array([1, 256], ">u2").tobytes()
    assert unpack_tensor(message).values.tolist() == [1, 256]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"dtype": 0}, "unknown dtype 0"),
        ({"dtype": 99}, "unknown dtype 99"),
        ({"byte_order": 5}, "unknown byte order"),
        ({"data": b"123"}, "3 bytes for a uint8 tensor of shape"),
        ({"shape": [2**31, 2**31]}, "bytes for a uint8 tensor"),
        ({"shape": []}, "0 dimensions"),
        ({"shape": [1] * 9}, "9 dimensions"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"scale": float("nan")}, "scale nan"),
        ({"scale": -1.0}, "scale -1.0"),
        ({"zero_point": 256}, "zero point 256 is no uint8"),
        ({"zero_point": -1}, "zero point -1"),
    ],
)
def test_tensors_that_contradict_themselves(change, line):
    fields = {"dtype": DTYPE["UINT8"], "shape": [2, 3], "scale": 1.0, "data": bytes(6)}
    with pytest.raises(WireError, match=line):
        unpack_tensor(Tensor(**fields | change))


@pytest.mark.parametrize("coding", ["flac", "pcm"])
def test_audio_comes_back_within_half_a_step(coding, make_speech):
    samples = 0.9 * make_speech(2.0)
    found = unpack_audio(pack_audio(samples, coding), 480_000)
    assert found.dtype == np.float32
    assert np.abs(found - samples).max() <= 0.5 / 32768 + 1e-7


def test_loud_audio_is_clipped_and_not_wrapped():
    found = unpack_audio(pack_audio(np.array([2.0, -2.0], np.float32), "pcm"), 10)
    assert found.tolist() == [32767 / 32768, -1.0]


def flac(samples: np.ndarray, rate: int = 16_000, kind: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype="PCM_16")
    return file.getvalue()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"coding": 0, "data": b"ab"}, "unknown audio coding"),
        ({"coding": CODING["PCM_S16LE"], "data": b"abc"}, "half a sample"),
        ({"coding": CODING["PCM_S16LE"], "data": b""}, "without a sample"),
        ({"coding": CODING["PCM_S16LE"], "data": bytes(2000)}, "more than one window"),
        ({"coding": CODING["FLAC"], "data": b"no such thing"}, "cannot be decoded"),
        ({"coding": CODING["FLAC"], "data": flac(np.zeros(100))[:60]}, "cannot be decoded|without a sample"),
        ({"coding": CODING["FLAC"], "data": flac(np.zeros(100_000))}, "more than one window"),
        ({"coding": CODING["FLAC"], "data": flac(np.zeros(100), 8000)}, "8000 Hz"),
        ({"coding": CODING["FLAC"], "data": flac(np.zeros((100, 2)))}, "2 channels"),
        ({"coding": CODING["FLAC"], "data": flac(np.zeros(100), kind="WAV")}, "audio is WAV"),
    ],
)
def test_audio_that_will_not_do(fields, line):
    with pytest.raises(WireError, match=line):
        unpack_audio(Audio(**fields), 500)


@pytest.mark.parametrize(
    ("address", "target", "loopback"),
    [
        ("pi.local", "pi.local:50505", False),
        ("pi.local:1", "pi.local:1", False),
        ("127.0.0.9:1", "127.0.0.9:1", True),
        ("localhost", "localhost:50505", True),
        ("localhost.example.org", "localhost.example.org:50505", False),
        ("::1", "[::1]:50505", True),
        ("[::1]:7", "[::1]:7", True),
        ("fe80::1", "[fe80::1]:50505", False),
        ("unix:/tmp/x", "unix:/tmp/x", True),
    ],
)
def test_addresses(address, target, loopback):
    connection = client.Connection(address)
    assert connection.target == target
    assert connection.is_loopback == loopback


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"address": ""}, "no address"),
        ({"address": "http://pi"}, "no address"),
        ({"address": "pi", "token": "secret"}, "in the clear"),
        ({"address": "localhost", "token": "geheim ü"}, "printable ASCII"),
        ({"address": "pi", "certificate": "c"}, "go together"),
        ({"address": "pi", "certificate": "c", "key": "k"}, "encrypted connection"),
    ],
)
def test_connections_that_will_not_do(settings, line, monkeypatch):
    for variable in (client.TOKEN_VARIABLE, client.CA_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(RequestError, match=line):
        client.Connection(**settings)


def test_an_authority_that_is_none(tmp_path):
    with pytest.raises(RequestError, match=r"x\.pem: cannot be read"):
        client.Connection("pi", ca=tmp_path / "x.pem").open()
    (tmp_path / "x.pem").write_text("no such thing", encoding="utf-8")
    with pytest.raises(RequestError, match=r"x\.pem: is no PEM file with a certificate"):
        client.Connection("pi", ca=tmp_path / "x.pem").open()


def test_token_of_the_environment_is_guarded_too(monkeypatch):
    monkeypatch.setenv(client.TOKEN_VARIABLE, "secret")
    with pytest.raises(RequestError, match="in the clear"):
        client.Connection("pi")
    assert client.Connection("pi", insecure=True).secret == "secret"
    assert client.Connection("pi", token="").secret is None


def test_authority_and_certificate_of_the_environment(monkeypatch):
    monkeypatch.setenv(client.TOKEN_VARIABLE, "secret")
    monkeypatch.setenv(client.CERTIFICATE_VARIABLE, "own.pem")
    monkeypatch.setenv(client.KEY_VARIABLE, "own-key.pem")
    with pytest.raises(RequestError, match="in the clear"):  # a certificate alone encrypts nothing
        client.Connection("pi")
    monkeypatch.setenv(client.CA_VARIABLE, "ca.pem")
    found = client.Connection("pi")
    assert (found.ca, found.certificate, found.key) == ("ca.pem", "own.pem", "own-key.pem")
    found = client.Connection("pi", ca="other.pem", certificate="c", key="k")
    assert (found.ca, found.certificate, found.key) == ("other.pem", "c", "k")
    found = client.Connection("pi", insecure=True)
    assert (found.ca, found.certificate) == (None, None)
    monkeypatch.delenv(client.KEY_VARIABLE)
    with pytest.raises(RequestError, match="go together"):
        client.Connection("pi")


def test_unknown_fields_of_later_versions_are_passed_over():
    request = EncodeRequest(sample_id="x").SerializeToString() + b"\xf8\x3f\x01"  # field 127, a varint
    assert EncodeRequest.FromString(request).sample_id == "x"
