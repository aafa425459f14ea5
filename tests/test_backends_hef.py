"""The `hef` backend on a stand-in for the chip: the emulator's integers, HailoRT's traps, and all that fails."""

from __future__ import annotations

import copy
import fcntl
import gc
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers_hef import Port, hailo_platform, hef_of_graph, install_hef, make_hef
from helpers_models import features_for, small_model

from whisper_hailo_hf import RequestError, WhisperHailoError, WhisperHailoForConditionalGeneration, artefacts
from whisper_hailo_hf.backends import available_backends, registry
from whisper_hailo_hf.backends import hef as hef_module
from whisper_hailo_hf.backends.emulator import IntegerGraph
from whisper_hailo_hf.backends.hef_ports import Stream, arrange
from whisper_hailo_hf.compile.quantize import quantize_encoder

HEF, INT8 = artefacts.HEF_PATH, artefacts.ONNX_INT8_PATH
PLAIN = {"layer_windows": 0, "choices": False, "method": "minmax"}


def quantized_folder(folder: Path, family: str = "conv", sixteen_bit: str = "", **changes) -> Path:
    model = small_model(family, **changes)
    data = np.random.default_rng(0).standard_normal((16, 8, 60)).astype(np.float32)
    quantize_encoder(model, data, output=folder / "made.onnx", sixteen_bit=sixteen_bit or (), **PLAIN)
    model.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return quantized_folder(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory):
    """Its output has 16 bits."""
    return quantized_folder(tmp_path_factory.mktemp("sixteen"), sixteen_bit="output")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """The attention family with a window of a third of the whole."""
    options = {"window_seconds": 0.2}
    return quantized_folder(tmp_path_factory.mktemp("tiled"), "attention", encoder_options=options)


@pytest.fixture(params=["4.20", "4.23"])
def each_version(request):
    with hailo_platform(request.param) as world:
        yield world
        gc.collect()


@pytest.fixture
def world():
    with hailo_platform("4.20") as world:
        yield world
        gc.collect()
    assert not world.violations


@pytest.fixture
def folder(wide, tmp_path):
    """A model folder with an integer graph, to put a HEF into."""
    return Path(shutil.copytree(wide, tmp_path / "model"))


def load(folder, backend="hef", **options):
    """The model in a folder that `quantized_folder` made, without the time that a load takes."""
    config = json.loads((folder / "config.json").read_text())
    described = {name: config[name] for name in ("encoder_options", "time_axis", "artefacts")}
    model = small_model(config["encoder_family"], **described)
    encoder = model.get_encoder()
    encoder.artefacts.update({name: folder / name for name in config["artefacts"] if (folder / name).is_file()})
    model.set_encoder_backend(backend, **options)
    return model


def really_load(folder, backend="hef", **options):
    return WhisperHailoForConditionalGeneration.from_pretrained(
        folder, encoder_backend=backend, encoder_backend_options=options
    )


@torch.no_grad()
def states(model, features):
    return model.get_encoder()(features)[0]


def backend_of(model):
    return model.get_encoder().backend


def emulated(folder, features):
    return states(load(folder, "emulator"), features)


def one_line(raised, *words: str) -> None:
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < 600
    for word in words:
        assert word in line


# The same integers as the emulator's


@pytest.mark.parametrize("io", ["native", "float32"])
def test_states_are_the_emulator_s_bit_by_bit(each_version, folder, io):
    install_hef(folder)
    model = load(folder, io=io)
    for batch in (1, 2, 5):
        features = features_for(model.config, batch, seed=batch)
        assert torch.equal(states(model, features), emulated(folder, features))
    assert each_version.opened == 1
    assert each_version.most_in_flight == 2
    backend_of(model).close()
    assert each_version.events == ["vdevice", "configured", "shutdown", "release"]
    assert not each_version.violations


@pytest.mark.parametrize(
    "made",
    [
        {"split": ("time", 3)},
        {"split": ("channels", 4)},
        {"split_input": 2},
        {"arch": "hailo8l", "net_flow": False},
        {"contexts": 3, "version": 1},
        {"mux": True, "split": ("time", 2)},
    ],
)
def test_parts_are_joined(world, folder, made):
    install_hef(folder, **made)
    model = load(folder)
    features = features_for(model.config, 3)
    assert torch.equal(states(model, features), emulated(folder, features))


def test_outputs_in_another_order_than_time(world, folder):
    """The record says which comes first; HailoRT gives them in its own order."""
    install_hef(folder, split=("time", 3), order=["encoder/conv3", "encoder/conv1", "encoder/conv2"])
    features = features_for(load(folder).config, 2)
    assert not torch.equal(states(load(folder), features), emulated(folder, features))
    config = json.loads((folder / "config.json").read_text())
    config["artefacts"][HEF]["outputs"] = [f"encoder/conv{index}" for index in (1, 2, 3)]
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(states(load(folder), features), emulated(folder, features))


def test_time_on_the_height(world, tmp_path):
    folder = quantized_folder(tmp_path, time_axis="height")
    install_hef(folder)
    model = load(folder)
    features = features_for(model.config, 2)
    assert torch.equal(states(model, features), emulated(folder, features))


@pytest.mark.parametrize("io", ["native", "float32"])
def test_16_bits(world, sixteen, tmp_path, io):
    folder = Path(shutil.copytree(sixteen, tmp_path / "model"))
    install_hef(folder)
    model = load(folder, io=io)
    features = features_for(model.config, 3)
    assert torch.equal(states(model, features), emulated(folder, features))
    assert backend_of(model).info()["outputs"] == {
        "encoder/conv1": "(1, 30, 16) " + ("uint16" if io == "native" else "float32")
    }


def test_windows_in_tiles(world, tiled, tmp_path):
    folder = Path(shutil.copytree(tiled, tmp_path / "model"))
    install_hef(folder)
    model = load(folder, frames_in_flight=3)
    features = features_for(model.config, 2)
    assert torch.equal(states(model, features), emulated(folder, features))
    assert world.frames == 6


@pytest.mark.parametrize("tiles", ["all", "first"])
def test_a_published_hef_has_its_layer_norm_on_the_chip(world, tiled, tmp_path, tiles):
    """As those for Whisper tiny (10 s) and base (5 s): a window of its own length, final states, no record."""
    path = tmp_path / "tiny-whisper-encoder-10s.hef"
    path.write_bytes(hef_of_graph(tiled / INT8))
    options = {"window_seconds": 0.2, "tiles": tiles}
    model = small_model("attention", encoder_options=options)
    model.set_encoder_backend("hef", path=path, layer_norm="chip")
    features = features_for(model.config, 2)
    found = states(model, features)
    graph = IntegerGraph(tiled / INT8)
    windows = model.get_encoder().host.windows(features).numpy()
    runs = [torch.from_numpy(graph.run(window[None])).squeeze(2).transpose(1, 2)[0] for window in windows]
    expected = torch.stack(runs).reshape(2, -1, 16)
    assert found.shape == (2, 30, 16)
    assert torch.equal(found[:, : expected.shape[1]], expected)
    assert not found[:, expected.shape[1] :].any()


def test_a_window_of_another_length_tells_which_to_ask_for(world, tiled, tmp_path):
    path = tmp_path / "other.hef"
    path.write_bytes(hef_of_graph(tiled / INT8))
    model = small_model("attention")
    model.set_encoder_backend("hef", path=str(path), layer_norm="chip")
    with pytest.raises(WhisperHailoError) as raised:
        states(model, features_for(model.config))
    one_line(raised, "hears 0.2 s at a time", "encoder_options={'window_seconds': 0.2}")


def test_an_empty_batch(world, folder):
    install_hef(folder)
    assert backend_of(load(folder)).encode(np.zeros((0, 8, 60), np.float32)).shape == (0, 30, 16)


def test_numbers_are_quantised_as_hailort_does(world, folder):
    """What saturates, ties, and what lies beyond the calibrated range."""
    install_hef(folder)
    model = load(folder)
    loud = torch.linspace(-40, 40, 8 * 60).reshape(1, 8, 60)
    assert torch.equal(states(model, loud), emulated(folder, loud))
    native, floats = states(load(folder), loud * 1e30), states(load(folder, io="float32"), loud * 1e30)
    assert torch.equal(native, floats)


@pytest.mark.parametrize("bits", [8, 16])
def test_ports_agree_with_the_definition_of_integers(bits):
    from whisper_hailo_hf.arithmetic import affine

    rng = np.random.default_rng(bits)
    integers = affine(-1.5, 2.25, bits)
    zero, scale = np.float32(integers.zero_point), integers.scale
    stream = Stream("a", (1, 50, 7), integers.integer.dtype, np.asarray(zero), scale, (-1.5, 2.25))
    (port,) = arrange([stream], 7, 50, "inputs")
    values = rng.normal(0, 2, (7, 50)).astype(np.float32)
    buffer = port.buffer()
    port.fill(buffer, values)
    assert np.array_equal(buffer[0].T, integers.quantize(values))
    found = np.empty((50, 7), np.float32)
    port.read(buffer, found)
    assert np.array_equal(found, integers.dequantize(buffer[0]))


def test_narrower_limits_saturate_where_hailort_saturates():
    stream = Stream("a", (1, 9, 1), "uint8", np.float32(100).reshape(()), np.float32(0.1).reshape(()), (-1.0, 2.0))
    (port,) = arrange([stream], 1, 9, "inputs")
    buffer = port.buffer()
    port.fill(buffer, np.linspace(-8, 8, 9, dtype=np.float32)[None])
    assert buffer.ravel().tolist() == [90, 90, 90, 90, 100, 120, 120, 120, 120]


@pytest.mark.parametrize("io", ["native", "float32"])
def test_a_scale_for_each_feature(world, folder, io):
    scales, zeros = tuple(0.01 * (1 + index) for index in range(16)), tuple(float(100 + index) for index in range(16))
    install_hef(folder, changes={"scales": scales, "zero_points": zeros})
    model = load(folder, io=io)
    features = features_for(model.config, 1)
    graph = IntegerGraph(folder / INT8)
    window = model.get_encoder().host.windows(features).numpy()
    integers = graph.run_integers(graph.input.quantize(window))
    numbers = np.float32(integers.transpose(0, 2, 3, 1) - np.float32(zeros)) * np.float32(scales)
    host = model.get_encoder().host
    with torch.no_grad():
        expected = host.states(torch.from_numpy(numbers).permute(0, 3, 1, 2))
    assert torch.allclose(states(model, features), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "channels", "length", "axes"),
    [
        ([(1, 30, 16)], 16, 30, [(2, 1)]),
        ([(30, 1, 16)], 16, 30, [(2, 0)]),
        ([(16, 1, 30)], 16, 30, [(0, 2)]),
        ([(1, 16, 30)], 16, 30, [(1, 2)]),
        ([(16, 30)], 16, 30, [(1, 2)]),
        ([(16,), (16,)], 16, 2, [(2, 1), (2, 1)]),
        ([(1, 10, 16), (1, 20, 16)], 16, 30, [(2, 1), (2, 1)]),
        ([(1, 30, 4), (1, 30, 12)], 16, 30, [(2, 1), (2, 1)]),
    ],
)
def test_layouts(shapes, channels, length, axes):
    one, zero = np.ones((), np.float32), np.zeros((), np.float32)
    streams = [Stream(f"s{index}", shape, "uint8", zero, one) for index, shape in enumerate(shapes)]
    ports = arrange(streams, channels, length, "outputs")
    assert [port._axes for port in ports] == axes
    whole = np.arange(channels * length, dtype=np.float32).reshape(channels, length) % 251
    states = np.empty((length, channels), np.float32)
    for port in ports:
        buffer = port.buffer()
        assert buffer.size == np.prod(port.stream.shape)
        port.fill(buffer, whole)
        port.read(buffer, states)
    assert np.array_equal(states, whole.T)


@pytest.mark.parametrize("shapes", [[], [(2, 15, 16)], [(1, 30, 15)], [(1, 10, 16), (1, 10, 16)]])
def test_shapes_of_another_model(shapes):
    one = np.ones((), np.float32)
    with pytest.raises(WhisperHailoError, match="are not the 16 channels by 30 states of this encoder: it was made"):
        arrange([Stream("s", shape, "uint8", one, one) for shape in shapes], 16, 30, "outputs")


@pytest.mark.parametrize("made", [{}, {"split": ("time", 2)}])
def test_what_the_chip_gives_before_the_epilogue(world, tiled, tmp_path, made):
    """For those who do the epilogue elsewhere, as a service's client."""
    from whisper_hailo_hf.backends.base import states_of_core

    folder = Path(shutil.copytree(tiled, tmp_path / "model"))
    install_hef(folder, **made)
    model, emulator = load(folder), load(folder, "emulator")
    features = features_for(model.config, 2)
    found = backend_of(model).core_states(features.numpy())
    assert np.array_equal(found, backend_of(emulator).core_states(features.numpy()))
    for ours, theirs in zip(backend_of(model).integers(), backend_of(emulator).integers(), strict=True):
        assert ours.to_dict() == theirs.to_dict()
    assert torch.equal(states_of_core(model.get_encoder().host, torch.from_numpy(found)), states(model, features))


def test_no_integers_where_each_feature_has_its_own(world, folder):
    install_hef(folder, changes={"scales": (0.1,) * 15 + (0.2,), "zero_points": (1.0,) * 16})
    assert backend_of(load(folder)).integers() is None


# Settings


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"io": "uint8"}, "io is native or float32, not 'uint8'"),
        ({"timeout": 0}, "timeout is a positive number, not 0"),
        ({"frames_in_flight": 0}, "frames_in_flight is a positive number, not 0"),
        ({"batch_size": "four"}, "batch_size is a positive number, not 'four'"),
        ({"fallback": "remote"}, "fallback is onnx, torch or emulator, not 'remote'"),
        ({"path": "a.hef"}, "path and layer_norm go together"),
        ({"layer_norm": "chip"}, "path and layer_norm go together"),
        ({"path": "a.hef", "layer_norm": "both"}, "layer_norm is host or chip, not 'both'"),
        ({"path": "/no/such.hef", "layer_norm": "chip"}, "/no/such.hef: no such file"),
        ({"speed": 11}, "'hef' has no option speed: it has path, layer_norm, io,"),
    ],
)
def test_wrong_settings(world, folder, options, line):
    install_hef(folder)
    with pytest.raises(RequestError, match=line):
        load(folder, **options)


def test_settings_reach_hailort(world, folder, monkeypatch):
    from hailo_chip import runtime

    seen = []
    real = runtime.VDevice.__init__

    def noted(self, params=None, **rest):
        seen.append(params)
        real(self, params, **rest)

    monkeypatch.setattr(runtime.VDevice, "__init__", noted)
    install_hef(folder)
    world.service = True
    model = load(folder, group_id="CAMERA", multi_process_service=True, batch_size=8, frames_in_flight=4)
    features = features_for(model.config, 6)
    assert torch.equal(states(model, features), emulated(folder, features))
    (params,) = seen
    assert params.scheduling_algorithm == runtime.HailoSchedulingAlgorithm.ROUND_ROBIN
    assert (params.group_id, params.multi_process_service) == ("CAMERA", True)
    assert backend_of(model)._handle._model._batch_size == 8
    assert world.most_in_flight == 4
    seen.clear()
    backend_of(model).close()
    states(load(folder), features)
    assert (seen[0].group_id, seen[0].multi_process_service) == ("SHARED", False)


def test_a_camera_program_in_the_same_process_shares_the_chip(world, folder):
    from hailo_platform import VDevice

    install_hef(folder)
    params = VDevice.create_params()
    params.group_id = "SHARED"
    model = load(folder)
    features = features_for(model.config)
    with VDevice(params):
        assert torch.equal(states(model, features), emulated(folder, features))
    with pytest.raises(Exception, match="error: 74"):  # ours is open: it cannot be had alone
        VDevice(VDevice.create_params())


# What `auto` and the records say


def said_by_auto(caplog, folder):
    registry._say.cache_clear()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="whisper_hailo_hf"):
        model = WhisperHailoForConditionalGeneration.from_pretrained(folder)
    return model.encoder_backend, " ".join(record.getMessage() for record in caplog.records)


def test_auto_takes_the_chip_where_it_answers_and_the_file_fits(world, folder, caplog):
    install_hef(folder)
    assert said_by_auto(caplog, folder) == ("hef", "encoder backend: hef (HailoRT 4.20.0, device 0001:01:00.0)")
    assert world.opened == 0  # the device is opened at the first forward


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("no device", "not hef: HailoRT 4.20.0 finds no device"),
        ("no driver", "not hef: the Hailo driver is not loaded: sudo apt install hailo-all"),
        ("no file", f"not hef: no {HEF} beside the weights"),
        ("damaged", "not hef: encoder.hef is damaged"),
        ("other chip", "not hef: it was compiled for hailo8, and the device is a HAILO8L"),
        ("newer", "not hef: it needs HailoRT 4.21 or later, and 4.20.0 is installed"),
    ],
)
def test_auto_says_why_not(world, folder, caplog, how, line):
    if how == "other chip":
        install_hef(folder, arch="hailo8")
    elif how != "no file":
        path = install_hef(folder, version=3 if how == "newer" else 1)
    if how == "no device":
        world.devices = []
    elif how == "no driver":
        world.driver = None
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    backend, said = said_by_auto(caplog, folder)
    assert backend == "torch"
    assert line in said


def test_without_hailo_platform(folder):
    status = available_backends()["hef"]
    assert not status.available
    assert "hailo_platform is not installed: sudo apt install hailo-all" in status.reason
    with pytest.raises(RequestError, match="'hef' cannot run here: hailo_platform is not installed"):
        load(folder)


@pytest.mark.parametrize("error", [ImportError("_pyhailort version"), RuntimeError("MissingPyHRTLib"), OSError("x")])
def test_a_hailo_platform_that_does_not_import(tmp_path, monkeypatch, error):
    (tmp_path / "hailo_platform").mkdir()
    (tmp_path / "hailo_platform" / "__init__.py").write_text(f"raise {type(error).__name__}({str(error)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    reason = available_backends()["hef"].reason
    assert f"cannot be imported ({type(error).__name__}: {error})" in reason


def test_the_file_for_the_chip_that_is_here(world, folder):
    install_hef(folder)
    install_hef(folder, arch="hailo8")
    for chip, name in (("HAILO8L", "hailo8l"), ("HAILO8", "hailo8")):
        world.architecture = chip
        model = load(folder)
        states(model, features_for(model.config, 1))
        assert backend_of(model).info()["hef"] == str(folder / name / "encoder.hef")
        backend_of(model).close()


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("missing", f"no {HEF} beside the weights: make it with whisper-hailo compile"),
        ("damaged", "encoder.hef is damaged: .* make it anew with whisper-hailo compile"),
        ("no record", f"no {HEF} beside the weights"),
    ],
)
def test_an_unfit_file_is_refused_in_one_line(world, folder, how, line):
    path = install_hef(folder)
    config = json.loads((folder / "config.json").read_text())
    if how == "missing":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    else:
        del config["artefacts"][HEF]
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=line) as raised:
        load(folder)
    one_line(raised)


def test_changed_weights_are_noticed(world, folder):
    install_hef(folder)
    model = load(folder)
    features = features_for(model.config)
    states(model, features)
    with torch.no_grad():
        model.get_encoder().core.head.weight.mul_(2.0)
    with pytest.raises(RequestError, match=r"made from other weights than those loaded: .* whisper-hailo compile"):
        states(model, features)


def test_it_travels_with_the_model(world, folder, tmp_path):
    install_hef(folder)
    load(folder).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / HEF).read_bytes() == (folder / HEF).read_bytes()
    features = features_for(load(folder).config)
    assert torch.equal(states(really_load(tmp_path / "again"), features), emulated(folder, features))


def test_the_fidelity_ladder_climbs_to_the_chip(world, folder):
    from whisper_hailo_hf.evaluation import compare_stages

    install_hef(folder)
    model = load(folder, "torch")
    data = features_for(model.config, 3).numpy()
    report = compare_stages(folder, data, ["emulator", "hef"], windows=3)
    assert [stage.status for stage in report.stages] == ["run", "run"]
    assert report.neighbours[0].metrics["cosine_min"] == pytest.approx(1.0)
    world.devices = []
    statuses = {stage.name: stage.status for stage in compare_stages(folder, data, windows=3).stages}
    assert statuses["hef"] == "absent"


# Faults


def test_no_device_when_it_is_opened(each_version, folder):
    install_hef(folder)
    model = load(folder)
    each_version.devices = []
    with pytest.raises(WhisperHailoError) as raised:
        states(model, features_for(model.config))
    one_line(raised, "no Hailo device is free", "whisper-hailo doctor", "HailoRT error 74")


def test_busy(each_version, folder):
    """Another process has the device: here, another holder of the lock that stands for it."""
    install_hef(folder)
    model = load(folder)
    features = features_for(model.config)
    with open(each_version.lock, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(WhisperHailoError) as raised:
            states(model, features)
        one_line(raised, "another process holds it")
    assert torch.equal(states(model, features), emulated(folder, features))


def test_busy_names_who_holds_it(world, folder, monkeypatch):
    from whisper_hailo_hf.hailo.system import Holder

    install_hef(folder)
    model = load(folder)
    world.devices = ["0001:01:00.0"]
    monkeypatch.setattr("whisper_hailo_hf.backends.hef_device.holders_of_device", lambda: (Holder(7, "rpicam-hello"),))
    with open(world.lock, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(WhisperHailoError) as raised:
            states(model, features_for(model.config))
    one_line(raised, "held by rpicam-hello (process 7)", "multi_process_service=True")


@pytest.mark.parametrize("status", [8, 36, 63])
def test_lost_in_the_middle_of_a_batch_and_found_again(world, folder, caplog, status):
    install_hef(folder)
    model = load(folder)
    features = features_for(model.config, 6)
    world.fail_at = {"3": status}
    with caplog.at_level(logging.WARNING, logger="whisper_hailo_hf"):
        found = states(model, features)
    assert torch.equal(found, emulated(folder, features))
    assert world.opened == 2
    assert "opening the Hailo device anew" in caplog.text


def test_lost_in_the_middle_of_a_tiled_window(world, tiled, tmp_path):
    folder = Path(shutil.copytree(tiled, tmp_path / "model"))
    install_hef(folder)
    model = load(folder)
    world.fail_at = {"4": 36}
    features = features_for(model.config, 3)
    assert torch.equal(states(model, features), emulated(folder, features))


def test_lost_twice_is_an_error(each_version, folder):
    install_hef(folder)
    model = load(folder)
    features = features_for(model.config, 6)
    each_version.fail_at = {"3": 36, "5": 36}
    with pytest.raises(WhisperHailoError) as raised:
        states(model, features)
    one_line(raised, "stopped in the middle of its work", "dmesg | grep hailo")
    assert each_version.opened == 2
    each_version.fail_at = {}
    assert torch.equal(states(model, features), emulated(folder, features))


def test_lost_for_good(world, folder):
    install_hef(folder)
    model = load(folder)
    world.fail_at, world.gone_after = {"1": 36}, True
    with pytest.raises(WhisperHailoError) as raised:
        states(model, features_for(model.config, 4))
    one_line(raised, "no Hailo device is free")


@pytest.mark.parametrize("fault", ["lost", "timeout", "absent", "no platform"])
def test_the_fallback_takes_over(folder, caplog, fault):
    with hailo_platform("4.20") as world:
        install_hef(folder)
        features = features_for(load(folder, "torch").config, 4)
        expected = states(load(folder, "torch"), features)
        model = load(folder, fallback="torch", timeout=0.3)
        if fault == "lost":
            world.fail_at, world.gone_after = {"1": 36}, True
        elif fault == "timeout":
            world.hang_at = 2
        elif fault == "absent":
            world.devices = []
        if fault != "no platform":
            with caplog.at_level(logging.WARNING, logger="whisper_hailo_hf"):
                assert torch.equal(states(model, features), expected)
                assert torch.equal(states(model, features * 1.0), expected)
            assert caplog.text.count("the encoder runs on torch from here on") == 1
            assert backend_of(model).info()["runs_on"].startswith("torch: ")
            assert world.opened <= 1 + (fault == "lost")
    if fault == "no platform":
        model = load(folder, fallback="torch")  # a machine without any of Hailo's software
        assert torch.equal(states(model, features), expected)


def test_no_fallback_for_what_is_wrong_with_the_file(world, folder):
    install_hef(folder, arch="hailo8")
    model = load(folder, fallback="torch")
    with pytest.raises(WhisperHailoError, match="compiled for hailo8, and the device is a HAILO8L"):
        states(model, features_for(model.config))


def test_timeout(each_version, folder):
    install_hef(folder)
    model = load(folder, timeout=0.3)
    features = features_for(model.config, 5)
    each_version.hang_at = 2
    started = time.monotonic()
    with pytest.raises(WhisperHailoError) as raised:
        states(model, features)
    assert time.monotonic() - started < 5
    one_line(raised, "did not answer in time", "timeout=", "HailoRT error 4")
    # the frame that hung has written into its buffer since: nothing of that must come out
    assert torch.equal(states(model, features), emulated(folder, features))
    assert each_version.opened == 2


def test_a_queue_that_stays_full(world, folder, monkeypatch):
    from hailo_chip import runtime

    install_hef(folder)
    model = load(folder, timeout=0.2)

    def never(self, timeout_ms: int = 1000, frames_count: int = 1) -> None:
        time.sleep(timeout_ms / 1000)
        raise runtime.failure(4)

    monkeypatch.setattr(runtime.ConfiguredInferModel, "wait_for_async_ready", never)
    with pytest.raises(WhisperHailoError, match="did not answer in time"):
        states(model, features_for(model.config))


def test_another_chip_that_does_not_say_what_it_is(each_version, folder, monkeypatch):
    """Then HailoRT refuses at configure(), with 26 up to 4.20 and 93 from 4.21 on."""
    install_hef(folder, arch="hailo8")
    monkeypatch.setattr(hef_module, "_architectures", lambda platform: ())
    model = load(folder)
    with pytest.raises(WhisperHailoError) as raised:
        states(model, features_for(model.config))
    one_line(raised, "compiled for another chip", "hailo8l")
    assert str(raised.value).endswith(("error 26)", "error 93)"))
    assert each_version.events[-1] == "release"  # what was opened before that is let go


def test_version_skew(each_version, folder):
    install_hef(folder)
    model = load(folder)
    each_version.driver = "4.19.0"
    with pytest.raises(WhisperHailoError) as raised:
        states(model, features_for(model.config))
    one_line(raised, "not of one version", "sudo apt", "HailoRT error 76")


def test_a_hef_that_is_too_new_for_the_runtime(folder):
    for version, works in (("4.20", False), ("4.23", True)):
        with hailo_platform(version):
            install_hef(folder, version=3)
            model = load(folder)
            features = features_for(model.config)
            if works:
                assert torch.equal(states(model, features), emulated(folder, features))
            else:
                with pytest.raises(WhisperHailoError, match=r"needs HailoRT 4.21 or later, and 4.20.0 is installed"):
                    states(model, features)
            backend_of(model).close()


@pytest.mark.parametrize("recorded", [True, False])
def test_an_output_of_16_bits_that_was_compiled_with_8(world, sixteen, tmp_path, recorded):
    """Its states would be 257 times too small, and there would be text."""
    folder = Path(shutil.copytree(sixteen, tmp_path / "model"))
    graph = IntegerGraph(folder / INT8)
    path = install_hef(folder, changes={"data_bytes": 1, "limits": (graph.output.low, graph.output.high)})
    options = {} if recorded else {"path": path, "layer_norm": "host"}
    model = load(folder, **options)
    with pytest.raises(WhisperHailoError) as raised:
        states(model, features_for(model.config))
    one_line(raised, "encoder/conv1", "compile it anew", "uint16" if recorded else "belongs to another width")


def test_a_damaged_file_without_a_record(world, wide, tmp_path):
    path = tmp_path / "own.hef"
    content = bytearray(hef_of_graph(wide / INT8))
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(RequestError, match="is damaged: its XXH3-64 checksum"):
        small_model().set_encoder_backend("hef", path=path, layer_norm="host")


def test_a_file_that_changes_after_it_was_checked(world, folder):
    path = install_hef(folder)
    model = load(folder)
    path.write_bytes(make_hef([Port("a", (1, 2, 3))], [Port("b", (1, 2, 3))]))
    with pytest.raises(RequestError, match=r"encoder.hef is damaged"):
        states(model, features_for(model.config))


def test_service_that_does_not_run(world, folder):
    install_hef(folder)
    model = load(folder, multi_process_service=True)
    with pytest.raises(WhisperHailoError, match="the hailort service does not answer: sudo systemctl enable --now"):
        states(model, features_for(model.config))


def test_an_interrupted_batch_leaves_nothing_behind(world, folder, monkeypatch):
    install_hef(folder)
    model = load(folder)
    features = features_for(model.config, 4)
    real = hef_module.HefBackend._epilogue

    def interrupted(self, found):
        raise KeyboardInterrupt

    monkeypatch.setattr(hef_module.HefBackend, "_epilogue", interrupted)
    with pytest.raises(KeyboardInterrupt):
        states(model, features)
    assert world.events[-1] == "release"
    monkeypatch.setattr(hef_module.HefBackend, "_epilogue", real)
    assert torch.equal(states(model, features), emulated(folder, features))


# Threads, copies, processes


def test_two_threads(world, folder):
    install_hef(folder)
    world.latency = 0.002
    model = load(folder)
    inputs = [features_for(model.config, 3, seed) for seed in range(6)]
    expected = [emulated(folder, features) for features in inputs]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda features: backend_of(model).encode(features.numpy()), inputs * 2))
    for one, other in zip(found, expected * 2, strict=True):
        assert np.array_equal(one, other.numpy())
    assert world.opened == 1


def test_python_goes_on_while_the_chip_works(world, folder):
    """Features of the next window can be made meanwhile: nobody holds the interpreter."""
    install_hef(folder)
    model = load(folder)
    features = features_for(model.config, 6)
    states(model, features[:1])
    world.latency = 0.05
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(backend_of(model).encode, features.numpy())
        turns = 0
        while not done.done():
            turns += 1
            time.sleep(0.001)
    assert turns > 30


def test_results_are_copies(world, folder):
    install_hef(folder)
    backend = backend_of(load(folder))
    features = features_for(small_model().config, 1)
    first = backend.encode(features.numpy())
    kept = first.copy()
    backend.encode(-features.numpy())
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_open_the_device_for_themselves(world, folder, how):
    install_hef(folder)
    model = load(folder, timeout=3.0)
    features = features_for(model.config)
    expected = states(model, features)
    twin = pickle.loads(pickle.dumps(model)) if how == "pickle" else copy.deepcopy(model)
    assert backend_of(model)._handle is not None
    assert backend_of(twin)._handle is None
    assert backend_of(twin).settings.timeout == 3.0
    assert torch.equal(states(twin, features), expected)  # both open: the group SHARED
    assert world.opened == 2
    backend_of(model).close()
    assert torch.equal(states(twin, features * 1.0), expected)


def test_a_fork_is_told_what_to_do_instead(world, folder):
    install_hef(folder)
    model = load(folder)
    features = features_for(model.config)
    states(model, features)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads are there: that is the point
        child = os.fork()
    if child == 0:
        try:
            backend_of(model).encode(features.numpy())
            line = "no error"
        except WhisperHailoError as error:
            line = str(error)
        backend_of(model).close()  # leaves the parent's device alone
        os.write(write, f"{line}|{backend_of(model)._handle}|{len(hef_module._abandoned)}".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        line, handle, abandoned = pipe.read().split("|")
    os.waitpid(child, 0)
    assert f"was opened by process {os.getpid()}, and this one is its fork" in line
    assert "spawn" in line
    assert (handle, abandoned) == ("None", "1")
    assert torch.equal(states(model, features), emulated(folder, features))


def test_a_dropped_model_lets_go_of_the_device(world, folder):
    install_hef(folder)
    model = load(folder)
    states(model, features_for(model.config))
    del model
    gc.collect()
    assert world.events == ["vdevice", "configured", "shutdown", "release"]


CHILD = """
import atexit, sys
import hailo_chip

@atexit.register  # runs after those that are registered later
def tell():
    print("events", *hailo_chip.state.events, hailo_chip.state.violations, flush=True)

import numpy, torch
from whisper_hailo_hf import WhisperHailoError, WhisperHailoForConditionalGeneration as Model

model = Model.from_pretrained(sys.argv[1], encoder_backend="hef")
features = numpy.load(sys.argv[2])
try:
    model.get_encoder().backend.encode(features)
except WhisperHailoError as error:
    print("refused", error, flush=True)
sys.stdin.readline()
numpy.save(sys.argv[3], model.get_encoder().backend.encode(features))
print("done", flush=True)
"""


def test_another_process(world, folder, tmp_path):
    """It is refused as long as this one holds the device, is right after that, and releases it when it exits."""
    install_hef(folder)
    model = load(folder)
    features = features_for(model.config, 3)
    expected = states(model, features)
    np.save(tmp_path / "in.npy", features.numpy())
    command = [sys.executable, "-c", CHILD, str(folder), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline().startswith("refused no Hailo device is free")
        backend_of(model).close()
        out, err = child.communicate("\n", timeout=120)
    finally:
        child.kill()
    assert child.returncode == 0, err
    assert out.splitlines() == ["done", "events vdevice configured shutdown release []"]
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected.numpy())


# The stand-in's own traps: a backend that fell into one of them would not have passed the above


def test_the_stand_in_has_the_traps(each_version, folder):
    import hailo_platform as hailo
    from hailo_platform.pyhailort.pyhailort import HailoRTInvalidOperationException, HailoRTNotFoundException

    path = str(install_hef(folder))
    params = hailo.VDevice.create_params()
    assert params.scheduling_algorithm == int(hailo.HailoSchedulingAlgorithm.NONE)
    with pytest.raises(ValueError, match="file path"):
        hailo.HEF(Path(path))
    with hailo.VDevice(params) as device:
        with pytest.raises(hailo.HailoRTException, match=r"error: 74 \(HAILO_OUT_OF_PHYSICAL_DEVICES\)"):
            hailo.VDevice(hailo.VDevice.create_params())
        with pytest.raises(TypeError):
            device.create_infer_model(Path(path))
        with pytest.raises(hailo.HailoRTException, match="error: 13"):
            device.create_infer_model("/no/such.hef")
        model = device.create_infer_model(path)
        assert model.input().shape == [1, 60, 8]
        assert model.input().format.type == hailo.FormatType.UINT8
        with model.configure() as configured:
            bindings = configured.create_bindings()
            with pytest.raises(hailo.HailoRTException, match="C_CONTIGUOUS"):
                bindings.input().set_buffer(np.zeros((60, 8, 2), np.uint8)[..., 0])
            frozen = np.zeros((1, 60, 8), np.uint8)
            frozen.flags.writeable = False
            with pytest.raises(ValueError, match="not writeable"):
                bindings.input().set_buffer(frozen)
            with pytest.raises(AttributeError):
                bindings.input().set_buffer([0, 1])
            with pytest.raises(HailoRTNotFoundException):
                bindings.input("none")
            with pytest.raises(HailoRTNotFoundException):
                configured.run([bindings], 1000)
            bindings.input().set_buffer(np.zeros((1, 60, 8), np.float32))  # nobody looks at the type
            output = np.ones((1, 30, 16), np.uint8)
            bindings.output().set_buffer(output)
            assert bindings.output().get_buffer() is output
            with pytest.raises(HailoRTInvalidOperationException):  # but at the bytes, when it runs
                configured.run([bindings], 1000)
            bindings.input().set_buffer(np.full((1, 60, 8), 77, np.uint8))
            with pytest.raises(TypeError):
                configured.run([bindings], timeout_ms=1000)
            with pytest.raises(TypeError):
                configured.run(bindings, 1000)
            configured.run([bindings], 1000)
            assert not output.any()  # zeros, and no exception: the scheduler is off and nothing was activated
            configured.activate()
            configured.run([bindings], 1000)
            assert output.any()
            infos = []
            configured.run_async([bindings], lambda completion_info: infos.append(completion_info)).wait(1000)
            assert infos == [SimpleNamespace(exception=None)]
    assert not each_version.violations
