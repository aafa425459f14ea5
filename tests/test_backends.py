"""Where the encoder runs: the registry, the choice of `auto`, settings of ONNX Runtime, artefacts, copies, forks."""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from whisper_hailo_hf import RequestError, WhisperHailoConfig, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.backends import available_backends, backend_names, registry
from whisper_hailo_hf.backends.onnx import OnnxBackend
from whisper_hailo_hf.backends.torch import TorchBackend

GRAPH = "onnx/encoder.onnx"
FAMILIES: dict[str, dict[str, Any]] = {
    "conv": {"encoder_options": {"width": 16, "inner": 8}},
    "attention": {},
    "attention in tiles": {"encoder_options": {"window_seconds": 0.2}},
}


@pytest.fixture
def build(tiny_config_kwargs):
    def make(kind: str = "conv", **kwargs: Any) -> WhisperHailoForConditionalGeneration:
        torch.manual_seed(0)
        family = kind.split(maxsplit=1)[0]
        config = WhisperHailoConfig(**tiny_config_kwargs, encoder_family=family, **FAMILIES[kind], **kwargs)
        model = WhisperHailoForConditionalGeneration(config).eval()
        with torch.no_grad():
            for name, tensor in model.model.encoder.state_dict().items():
                if tensor.is_floating_point() and "embed_positions" not in name:
                    tensor.add_(torch.rand_like(tensor) * 0.3)  # running statistics too
        return model

    return make


@pytest.fixture
def features() -> Tensor:
    return torch.randn(3, 8, 60, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def saved(build, tmp_path) -> Path:
    """A folder with a graph beside the weights."""
    model = build()
    model.set_encoder_backend("onnx")
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / GRAPH).is_file()
    return tmp_path / "saved"


@pytest.fixture
def said(caplog):
    """What `auto` says from here on."""
    registry._say.cache_clear()
    caplog.set_level(logging.INFO, logger="whisper_hailo_hf")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("whisper_hailo_hf")]


def load(folder: Path, **kwargs: Any) -> WhisperHailoForConditionalGeneration:
    return WhisperHailoForConditionalGeneration.from_pretrained(folder, **kwargs)


@torch.no_grad()
def states(model: Any, features: Tensor) -> Tensor:
    return model.model.encoder(features).last_hidden_state


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


# The registry


def test_names():
    assert backend_names() == ["auto", "hef", "onnx", "torch", "emulator", "remote"]
    status = available_backends()
    assert status["torch"].available
    assert status["onnx"].available
    assert "onnxruntime" in status["onnx"].reason


def test_unknown_backend_names_the_choices(build, saved):
    line = "unknown encoder backend 'tpu': choose auto, hef, onnx, torch, emulator, remote"
    with pytest.raises(RequestError, match=line):
        build().set_encoder_backend("tpu")
    with pytest.raises(RequestError, match=line):
        load(saved, encoder_backend="tpu")


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("onnx", {"thread": 2}, "'onnx' has no option thread: it has threads, providers, graph_optimization"),
        ("onnx", {"threads": 0}, "threads is a positive number, not 0"),
        ("onnx", {"graph_optimization": "most"}, "graph_optimization is one of all, .* not 'most'"),
        ("onnx", {"providers": ["AbacusExecutionProvider"]}, "AbacusExecutionProvider"),
        ("torch", {"threads": 2}, "'torch' has no option threads: it has none"),
    ],
)
def test_wrong_option(build, features, name, options, line):
    model = build()
    before = model.encoder_backend
    with pytest.raises(RequestError, match=line) as raised:
        model.set_encoder_backend(name, **options)
    assert "\n" not in str(raised.value)
    assert model.encoder_backend == before


# The choice of `auto`


def test_auto_without_a_graph_takes_torch_and_says_why_once(build, tmp_path, said):
    build().save_pretrained(tmp_path)
    for _ in range(3):
        assert load(tmp_path).encoder_backend == "torch"
    (line,) = said()
    assert "torch" in line
    assert f"no {GRAPH} beside the weights" in line


def test_auto_leaves_options_aside_that_its_choice_does_not_know(build):
    model = build()
    model.set_encoder_backend("auto", threads=2)
    assert model.encoder_backend == "torch"


def test_auto_takes_a_graph_that_fits(saved, said, features):
    model = load(saved)
    assert model.encoder_backend == "onnx"
    (line,) = said()
    assert "onnx" in line
    assert_close(states(model, features), states(load(saved, encoder_backend="torch"), features))
    assert model.model.encoder.backend.info()["graph"] == str(saved / GRAPH)


def test_auto_trains_on_torch(saved, features):
    model = load(saved)
    model.train()
    loss = model(input_features=features, labels=torch.tensor([[5, 6]] * 3)).loss
    loss.backward()
    assert model.model.encoder.core.conv1.conv.weight.grad.abs().sum() > 0
    assert model.encoder_backend == "onnx"


def test_onnx_asked_for_by_name_cannot_train(saved, features):
    model = load(saved, encoder_backend="onnx").train()
    line = r"the encoder backend 'onnx' cannot train: call set_encoder_backend\('torch'\) first"
    with pytest.raises(RequestError, match=line):
        model(input_features=features, labels=torch.tensor([[5, 6]] * 3))
    with pytest.raises(RequestError, match="inner states"):
        model.eval().model.encoder(features, output_hidden_states=True)
    model.set_encoder_backend("torch")
    model.train()(input_features=features, labels=torch.tensor([[5, 6]] * 3)).loss.backward()


def test_without_onnxruntime(saved, said, monkeypatch):
    find = importlib.util.find_spec
    missing = lambda name, *args: None if name.split(".")[0] == "onnxruntime" else find(name, *args)  # noqa: E731
    monkeypatch.setattr("whisper_hailo_hf.backends.onnx.find_spec", missing)
    assert load(saved).encoder_backend == "torch"
    (line,) = said()
    assert "onnxruntime is not installed" in line
    with pytest.raises(
        RequestError, match=r"'onnx' cannot run here: onnxruntime is not installed: pip install .*\[onnx\]"
    ):
        load(saved, encoder_backend="onnx")


def test_without_onnxruntime_in_a_process_of_its_own(saved):
    code = """
import sys
import importlib.util, importlib.machinery
finder = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *a, **k: None if name.split(".")[0] in ("onnxruntime", "onnx") else finder(name, *a, **k)
)
import torch, whisper_hailo_hf
from transformers import AutoModelForSpeechSeq2Seq as Auto
print(Auto.from_pretrained(sys.argv[1]).encoder_backend)
try:
    Auto.from_pretrained(sys.argv[1], encoder_backend="onnx")
except whisper_hailo_hf.RequestError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, line = done.stdout.splitlines()
    assert name == "torch"
    assert "pip install" in line


def test_onnxruntime_under_another_distribution(saved, monkeypatch):
    """The module onnxruntime also comes as onnxruntime-gpu, onnxruntime-openvino and others."""

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return "9.9" if name == "onnxruntime-gpu" else importlib.metadata.version(name)

    monkeypatch.setattr("whisper_hailo_hf.backends.onnx.version", version)
    found = {"onnxruntime": ["onnxruntime-gpu"]}
    monkeypatch.setattr("whisper_hailo_hf.backends.onnx.packages_distributions", lambda: found)
    model = load(saved)
    assert model.encoder_backend == "onnx"
    assert model.model.encoder.backend.info()["runtime"] == "onnxruntime-gpu 9.9"


# The same states everywhere


@pytest.mark.parametrize("axis", ["width", "height"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_same_states_whatever_the_backend_and_batch(build, features, kind, axis):
    model = build(kind, time_axis=axis)
    expected = states(model, features)
    assert expected.std() > 0.1
    assert_close(states(build(kind), features), expected)  # the other layout
    for backend in ("torch", "onnx"):
        model.set_encoder_backend(backend)
        for count in (1, 2, 5):
            batch = features.repeat(2, 1, 1)[:count]
            together = states(model, batch)
            assert_close(together, expected.repeat(2, 1, 1)[:count])
            for index in range(count):
                assert_close(states(model, batch[index : index + 1])[0], together[index])
        encoded = model.model.encoder.backend.encode(features.numpy())
        assert encoded.dtype == "float32"
        assert_close(torch.from_numpy(encoded), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(build, features, dtype):
    model = build()
    expected = states(model, features)
    model.set_encoder_backend("onnx")
    model.to(dtype)
    got = states(model, features.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, atol=0.1, rtol=0.05)
    ids = model.generate(features.to(dtype), max_new_tokens=3)
    assert len(ids) == len(features)


# ONNX Runtime's settings


def test_settings_reach_the_session(build, features):
    import onnxruntime

    model = build()
    model.set_encoder_backend("onnx", threads=2, providers=["CPUExecutionProvider"], graph_optimization="basic")
    states(model, features)
    with model.model.encoder.backend.handle() as session:
        options = session.get_session_options()
        assert options.intra_op_num_threads == 2
        assert options.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        assert session.get_providers() == ["CPUExecutionProvider"]
    info = model.model.encoder.backend.info()
    assert (info["threads"], info["graph_optimization"]) == (2, "basic")


@pytest.mark.parametrize("level", ["all", "extended", "basic", "disabled"])
def test_every_graph_optimization_gives_the_same(build, features, level):
    model = build()
    expected = states(model, features)
    model.set_encoder_backend("onnx", graph_optimization=level)
    assert_close(states(model, features), expected)


def test_settings_through_from_pretrained_are_not_saved(saved, features, tmp_path):
    model = load(saved, encoder_backend="onnx", encoder_backend_options={"threads": 3})
    assert model.model.encoder.backend.threads == 3
    model.save_pretrained(tmp_path / "again")
    assert "threads" not in (tmp_path / "again" / "config.json").read_text()
    assert "encoder_backend" not in (tmp_path / "again" / "config.json").read_text()
    assert load(tmp_path / "again").encoder_backend == "onnx"


# Artefacts that do not fit


def spoil(saved: Path, how: str) -> None:
    if how == "damaged":
        data = bytearray((saved / GRAPH).read_bytes())
        data[len(data) // 2] ^= 1
        (saved / GRAPH).write_bytes(data)
    elif how == "truncated":
        (saved / GRAPH).write_bytes((saved / GRAPH).read_bytes()[:-100])
    elif how == "empty":
        (saved / GRAPH).write_bytes(b"")
    elif how == "other weights":
        from safetensors.torch import load_file, save_file

        weights = load_file(saved / "model.safetensors")
        name = next(name for name in weights if "encoder.core.head" in name)
        weights[name] = weights[name] + 0.5
        save_file(weights, saved / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("damaged", "damaged"),
        ("truncated", "damaged"),
        ("empty", "damaged"),
        ("other weights", "made from other weights"),
    ],
)
def test_an_unfit_graph_is_refused_and_made_anew(saved, said, features, how, line):
    spoil(saved, how)
    model = load(saved)
    assert model.encoder_backend == "torch"
    assert any(line in text for text in said())
    expected = states(model, features)
    asked_for = load(saved, encoder_backend="onnx")
    assert_close(states(asked_for, features), expected)
    assert any("exporting the encoder anew" in text for text in said())
    assert asked_for.model.encoder.backend.info()["graph"] != str(saved / GRAPH)
    asked_for.save_pretrained(saved)  # repaired
    assert load(saved).encoder_backend == "onnx"


def test_a_graph_for_the_other_layout_is_refused(saved, said, features):
    import json

    config = json.loads((saved / "config.json").read_text())
    assert config["artefacts"][GRAPH]["time_axis"] == "width"
    config["time_axis"] = "height"
    (saved / "config.json").write_text(json.dumps(config))
    model = load(saved)
    assert model.encoder_backend == "torch"
    assert any("time_axis 'width', not 'height'" in text for text in said())
    expected = states(model, features)
    assert_close(states(load(saved, encoder_backend="onnx"), features), expected)


def test_a_graph_without_a_record_is_refused(saved, said):
    import json

    config = json.loads((saved / "config.json").read_text())
    config["artefacts"] = {}
    (saved / "config.json").write_text(json.dumps(config))
    assert load(saved).encoder_backend == "torch"


def test_onnx_follows_the_weights(build, features):
    model = build()
    model.set_encoder_backend("onnx")
    before = states(model, features)
    model.set_encoder_backend("torch")
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.set_encoder_backend("onnx")
    model.set_encoder_backend("torch")
    model(input_features=features, labels=torch.tensor([[5, 6]] * 3)).loss.backward()
    model.set_encoder_backend("onnx")  # before the step: its graph must not stay
    with torch.no_grad():
        optimizer.step()
    model.eval()
    after = states(model, features)
    assert not torch.allclose(after, before, atol=1e-3)
    model.set_encoder_backend("torch")
    assert_close(states(model, features), after)


def test_onnx_follows_the_weights_between_two_runs(saved, features):
    """An open session, made from the file beside the weights, is dropped when they change."""
    model = load(saved)
    before = states(model, features)
    with torch.no_grad():
        model.model.encoder.core.head.weight.mul_(-1.0)
    after = states(model, features)
    assert not torch.allclose(after, before, atol=1e-3)
    model.set_encoder_backend("torch")
    assert_close(states(model, features), after)


def test_a_graph_of_former_weights_is_not_saved(saved, tmp_path, features):
    model = load(saved, encoder_backend="torch")
    with torch.no_grad():
        model.model.encoder.core.head.weight.mul_(-1.0)
    model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / GRAPH).exists()
    assert load(tmp_path / "new").encoder_backend == "torch"


# Copies, threads, processes


def opened(build, features: Tensor) -> tuple[WhisperHailoForConditionalGeneration, Tensor]:
    model = build()
    model.set_encoder_backend("onnx", threads=1)
    return model, states(model, features)


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_copies_open_their_own_session(build, features, how):
    model, expected = opened(build, features)
    twin = pickle.loads(pickle.dumps(model)) if how == "pickle" else copy.deepcopy(model)
    assert twin.encoder_backend == "onnx"
    assert twin.model.encoder.backend.threads == 1
    assert twin.model.encoder.backend._handle is None
    assert torch.equal(states(twin, features), expected)
    with torch.no_grad():
        twin.model.encoder.core.head.weight.mul_(2.0)
    assert not torch.allclose(states(twin, features), expected)
    assert torch.equal(states(model, features), expected)  # the original keeps its own
    del model
    assert not torch.allclose(states(twin, features + 1), expected)


def test_threads_share_a_session(build, features):
    model, _ = opened(build, features)
    model.model.encoder.backend.close()
    batches = [features + shift for shift in range(6)]
    expected = [states(copy.deepcopy(model), batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for one, other in zip(pool.map(lambda batch: states(model, batch), batches), expected, strict=True):
                assert torch.equal(one, other)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_opens_its_own_session(build, features, tmp_path):
    torch.set_num_threads(1)
    model, expected = opened(build, features)
    backend = model.model.encoder.backend
    child = os.fork()
    if child == 0:
        code = 1
        try:
            same = torch.from_numpy(backend.encode(features.numpy()))
            code = 0 if torch.equal(same, expected) and backend._owner == os.getpid() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert backend._owner == os.getpid()
    backend.close()
    assert torch.equal(torch.from_numpy(backend.encode(features.numpy())), expected)


def test_what_was_exported_is_removed(build, features):
    model, _ = opened(build, features)
    folder = model.model.encoder.backend._folder
    assert folder.is_dir()
    model.set_encoder_backend("torch")
    import gc

    gc.collect()
    assert not folder.exists()


def test_closed_and_used_again(build, features):
    model, expected = opened(build, features)
    model.model.encoder.backend.close()
    assert torch.equal(states(model, features + 0.0), expected)
    fresh = model.model.encoder.backend.encode(features.numpy())
    assert torch.equal(torch.from_numpy(fresh), expected)


def test_info(build, saved):
    for backend, kind in (("torch", TorchBackend), ("onnx", OnnxBackend)):
        model = load(saved, encoder_backend=backend)
        assert isinstance(model.model.encoder.backend, kind)
        assert model.model.encoder.backend.info()["backend"] == backend == model.encoder_backend
