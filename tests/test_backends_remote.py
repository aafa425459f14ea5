"""`remote`: the same states and the same text as the backend behind the service, and what is refused."""

from __future__ import annotations

import copy
import pickle
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_hef import hailo_platform, install_hef
from helpers_models import small_model
from helpers_service import POSITIONS, WIDTH, save_integer_model, windows
from transformers import pipeline
from typer.testing import CliRunner

from whisper_hailo_hf import RequestError, WhisperHailoError, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.backends import available_backends
from whisper_hailo_hf.cli.main import app
from whisper_hailo_hf.compile.quantize import quantize_encoder
from whisper_hailo_hf.service.running import background_server
from whisper_hailo_hf.speech_model import demo_model_path, load_speech_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_integer_model(tmp_path_factory.mktemp("integers"))


@pytest.fixture(scope="module")
def server(folder):
    with background_server(folder, backend="emulator") as server:
        yield server


@pytest.fixture
def address(server) -> str:
    return f"127.0.0.1:{server.port}"


def load(folder, backend, **kwargs):
    return WhisperHailoForConditionalGeneration.from_pretrained(folder, encoder_backend=backend, **kwargs)


@torch.no_grad()
def states(model, count=5, seed=3):
    return model.get_encoder()(torch.from_numpy(windows(count, seed)))[0]


def test_states_are_those_of_the_served_backend_bit_for_bit(folder, address):
    remote = load(folder, "remote", address=address)
    assert torch.equal(states(remote), states(load(folder, "emulator")))
    assert remote.model.encoder.backend.info()["runs_on"].startswith("emulator")


@pytest.mark.parametrize(("features", "kept"), [("float32", 0.0), ("float16", 0.2), ("uint8", 0.0)])
def test_other_ways_to_travel(folder, address, features, kept):
    options = {"address": address, "features": features, "states": "float32"}
    found = states(load(folder, "remote", encoder_backend_options=options))
    wanted = states(load(folder, "emulator"))
    assert float((found - wanted).abs().mean()) <= kept  # float16 features fall into another integer here and there


def test_half_precision_states(folder, address):
    found = states(load(folder, "remote", encoder_backend_options={"address": address, "states": "float16"}))
    torch.testing.assert_close(found, states(load(folder, "emulator")), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_backend_without_integers(folder, backend):
    options = {"features": "float32", "states": "float32"}
    with background_server(folder, backend=backend) as server:
        options["address"] = f"127.0.0.1:{server.port}"
        exact = states(load(folder, "remote", encoder_backend_options=options))
        rough = states(load(folder, "remote", address=options["address"]))
        uint8 = states(load(folder, "remote", encoder_backend_options=options | {"features": "uint8"}))
    wanted = states(load(folder, backend))
    torch.testing.assert_close(exact, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(rough, wanted, atol=2e-2, rtol=0)
    assert 0 < float((uint8 - wanted).abs().mean()) < 0.1


def test_text_through_the_pipeline(stock_whisper, multilingual_processor, make_speech, tmp_path):
    model = WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, "attention")
    samples = [make_speech(seconds, seed) for seed, seconds in enumerate((3.0, 12.0, 29.0))]
    model.save_pretrained(tmp_path)
    multilingual_processor.save_pretrained(tmp_path)

    def said(**model_kwargs):
        asr = pipeline("automatic-speech-recognition", model=str(tmp_path), model_kwargs=model_kwargs)
        return [asr(one.copy(), generate_kwargs={"max_new_tokens": 20})["text"] for one in samples]

    with background_server(tmp_path, backend="torch") as server:
        address = f"127.0.0.1:{server.port}"
        exact = {"features": "float32", "states": "float32"}
        remote = said(encoder_backend="remote", address=address, encoder_backend_options=exact)
        usual = said(encoder_backend="remote", address=address)
    wanted = said(encoder_backend="torch")
    assert len(set(wanted)) == len(wanted)
    assert remote == wanted
    assert usual == wanted


def test_another_model_is_refused(folder, address, tmp_path):
    other = small_model(seed=5)
    other.set_encoder_backend("remote", address=address)
    with pytest.raises(RequestError, match="serves another model: the network's weights"):
        states(other)
    same = load(folder, "remote", address=address)
    with torch.no_grad():
        same.model.encoder.host.layer_norm.bias.add_(1.0)
    with pytest.raises(RequestError, match="another model: the final LayerNorm"):
        states(same)


def test_weights_that_change_later_are_noticed(folder, address):
    model = load(folder, "remote", address=address)
    states(model)
    with torch.no_grad():
        next(model.model.encoder.core.parameters()).add_(1.0)
    with pytest.raises(RequestError, match="another model"):
        states(model)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "needs the address"),
        ({"address": "x", "features": "int4"}, "features is one of"),
        ({"address": "x", "states": "int4"}, "states is one of"),
        ({"address": "x", "timeout": 0}, "timeout is a positive"),
        ({"address": "x", "attempts": 0}, "attempts is a positive"),
        ({"address": "x", "thread": 0}, "has no option thread"),
    ],
)
def test_wrong_settings(options, line):
    with pytest.raises(RequestError, match=line):
        small_model().set_encoder_backend("remote", **options)


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = small_model()
    model.set_encoder_backend("remote", address=f"127.0.0.1:{port}", attempts=2, timeout=2)
    with pytest.raises(WhisperHailoError, match=r"cannot be reached or is shutting down: .*|did not answer in time"):
        states(model)


def test_a_server_that_comes_back_is_found_again(folder, address):
    model = load(folder, "remote", address=address)
    first = states(model, seed=1)
    with background_server(folder, backend="emulator") as other:
        model.set_encoder_backend("remote", address=f"127.0.0.1:{other.port}", attempts=2, timeout=5)
        assert torch.equal(states(model, seed=1), first)
    with pytest.raises(WhisperHailoError, match="cannot be reached"):
        states(model, seed=2)
    model.set_encoder_backend("remote", address=address)
    assert torch.equal(states(model, seed=1), first)


def test_copies_open_a_channel_of_their_own(folder, address):
    model = load(folder, "remote", address=address)
    wanted = states(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.model.encoder.backend))):
        backend = twin if not hasattr(twin, "get_encoder") else twin.get_encoder().backend
        assert np.array_equal(backend.encode(windows(5, 3)), wanted.numpy())


def test_no_windows_no_states(folder, address):
    model = load(folder, "remote", address=address)
    assert model.get_encoder().backend.encode(windows(0)).shape == (0, POSITIONS, WIDTH)


def test_a_chip_behind_the_service(folder, tmp_path):
    chip = Path(shutil.copytree(folder, tmp_path / "chip"))
    with hailo_platform("4.20") as world:
        install_hef(chip)
        with background_server(chip, backend="hef") as server:
            found = states(load(chip, "remote", address=f"127.0.0.1:{server.port}"))
            assert server.served.description.artefact == "hailo8l/encoder.hef"
            assert server.served.integers is not None
        assert not world.violations
    assert torch.equal(found, states(load(chip, "emulator")))


def test_status_and_auto():
    assert available_backends()["remote"].available
    model = small_model()
    model.set_encoder_backend("auto")
    assert model.encoder_backend != "remote"


def test_tiles_of_a_short_window(tmp_path):
    model = small_model("attention", encoder_options={"window_seconds": 0.2})
    calibration = windows(8)
    quantize_encoder(model, calibration, output=tmp_path / "x.onnx", layer_windows=0, choices=False, method="minmax")
    model.save_pretrained(tmp_path / "m")
    with background_server(tmp_path / "m", backend="emulator") as server:
        remote = states(load(tmp_path / "m", "remote", address=f"127.0.0.1:{server.port}"))
    assert torch.equal(remote, states(load(tmp_path / "m", "emulator")))


def test_recordings_are_transcribed_through_a_service():
    recording = Path(__file__).parents[1] / "examples" / "digits_theo.flac"
    said = recording.with_suffix(".txt").read_text(encoding="utf-8").strip()
    with background_server(demo_model_path(), backend="torch") as server:
        line = ["transcribe", str(recording), "--encoder-backend", "remote", "--address", f"127.0.0.1:{server.port}"]
        result = CliRunner().invoke(app, line)
        assert (result.exit_code, result.stdout.strip()) == (0, said)
        with pytest.raises(RequestError, match="an address goes with the encoder backend remote, not with auto"):
            load_speech_model(address=f"127.0.0.1:{server.port}")
