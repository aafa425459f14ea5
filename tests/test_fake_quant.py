"""Training through the rounding: the same places and numbers as the integer graph, gradients, and no trace after."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from helpers_models import features_for, small_model

from whisper_hailo_hf import RequestError
from whisper_hailo_hf.arithmetic import affine
from whisper_hailo_hf.artefacts import fingerprint
from whisper_hailo_hf.backends.emulator import IntegerGraph
from whisper_hailo_hf.compile.float_graph import FloatGraph
from whisper_hailo_hf.compile.qdq import build_qdq
from whisper_hailo_hf.compile.simulation import Rounding
from whisper_hailo_hf.encoders import Trace
from whisper_hailo_hf.encoders.export import export_core
from whisper_hailo_hf.encoders.fake_quant import FakeQuantSettings, prepare_fake_quant
from whisper_hailo_hf.encoders.placement import place

FORMS = {
    "flat": {"width": 24, "inner": 12},
    "pyramid": {"width": 24, "inner": 12, "stem": 12, "levels": (1, 2), "positions": True, "refine_depthwise": True},
    "silu": {"width": 16, "inner": 8, "activation": "silu", "depthwise": True},
    "without normalisation": {"width": 16, "inner": 8, "norm": "none"},
}


def prepared(form: str = "flat", axis: str = "width", **settings):
    """A core, its rounding, and windows for it."""
    model = small_model(encoder_options=FORMS[form], time_axis=axis)
    encoder = model.get_encoder()
    rounding = prepare_fake_quant(encoder.core, 8, axis, FakeQuantSettings(**settings))
    return encoder.core, rounding, encoder.host.windows(features_for(model.config, 8))


@torch.no_grad()
def watched(core, rounding, windows):
    """Ranges from a few batches in training mode, the normalisations left as they were."""
    state = copy.deepcopy(core.state_dict())
    core.train()
    for batch in windows.split(4):
        core(batch)
    core.load_state_dict(state)
    core.eval()
    return core


def exported(core, axis: str, tmp_path) -> FloatGraph:
    return FloatGraph.read(onnx.load(export_core(core, 8, axis, tmp_path / "core.onnx")))


def level(reference: torch.Tensor, found: torch.Tensor) -> float:
    """SNR in dB."""
    return float(10 * torch.log10(reference.square().sum() / (reference - found).square().sum()))


@pytest.mark.parametrize("sixteen", [(), ("residual_adds", "output"), ("/blocks.0/*",)])
@pytest.mark.parametrize("form", FORMS)
def test_the_places_are_those_of_the_exported_graph(tmp_path, form, sixteen):
    core, rounding, _ = prepared(form, sixteen_bit=sixteen)
    graph = exported(core, "width", tmp_path)
    expected = place(graph.ops, [graph.output], sixteen)
    assert rounding.placement.bits == expected.bits
    found = [(one.name, one.output, one.input_bits, one.weight_bits) for one in rounding.placement.layers]
    assert found == [(one.name, one.output, one.input_bits, one.weight_bits) for one in expected.layers]


@pytest.mark.parametrize("axis", ["width", "height"])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_forward_is_what_the_integer_graph_computes(tmp_path, form, axis):
    """Same ranges, same weights: torch's rounded forward against ONNX Runtime's integers."""
    core, rounding, windows = prepared(form, axis)
    watched(core, rounding, windows)
    graph = exported(core, axis, tmp_path)
    ranges = rounding.ranges()
    assert set(ranges) == set(rounding.placement.bits)
    placement = place(graph.ops, [graph.output])
    onnx.save(
        build_qdq(graph, Rounding(placement, lambda name, bits: affine(*ranges[name], bits))), tmp_path / "q.onnx"
    )
    integers = IntegerGraph(tmp_path / "q.onnx", threads=1)
    found = torch.from_numpy(np.concatenate([integers.run(window[None].numpy()) for window in windows]))
    ours = core(windows)
    steps = ((ours - found).abs() / float(integers.output.scale)).round()
    assert (steps <= 1).float().mean() > 0.95
    with rounding.off():
        exact = core(windows)
    assert level(exact, ours) < 60  # it is rounded at all
    assert level(ours, found) > level(exact, found) + 6


@torch.no_grad()
def test_16_bits_and_4_bits():
    levels = {}
    for name, settings in {
        "all": {},
        "wide": {"sixteen_bit": ("*",)},
        "residual": {"sixteen_bit": ("residual_adds", "output")},
        "narrow": {"weight_bits": 4},
    }.items():
        core, rounding, windows = prepared(**settings)
        watched(core, rounding, windows)
        found = core(windows)
        with rounding.off():
            levels[name] = level(core(windows), found)
    assert levels["narrow"] + 6 < levels["all"] < levels["residual"]
    assert levels["wide"] > levels["all"]
    with pytest.raises(RequestError, match="weight_bits is 8 or 4, not 6"):
        FakeQuantSettings(weight_bits=6)


def test_gradients_reach_everything_and_training_helps():
    core, rounding, windows = prepared(weight_bits=4)
    with torch.no_grad(), rounding.off():
        wanted = core(windows)
    watched(core, rounding, windows)
    rounding.observing = False
    optimizer = torch.optim.Adam(core.parameters(), lr=3e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 60)
    losses = []
    for _ in range(60):
        loss = (core(windows) - wanted).square().mean()  # normalisations in evaluation: their statistics stay
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        for name, parameter in core.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
        optimizer.step()
        schedule.step()
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_batch_statistics_are_those_of_the_unrounded_scale():
    """In training mode the normalisation sees outputs as if nothing had been folded."""
    core, _, windows = prepared()
    twin = copy.deepcopy(core)
    for hook in (*twin._forward_pre_hooks, *twin._forward_hooks):
        twin._forward_pre_hooks.pop(hook, None)
        twin._forward_hooks.pop(hook, None)
    core.train()
    twin.train()
    with torch.no_grad():
        core(windows)
        twin(windows)
    ours, theirs = core.conv1.norm, twin.conv1.norm
    assert torch.allclose(ours.running_mean, theirs.running_mean, atol=0.02)
    assert torch.allclose(ours.running_var, theirs.running_var, rtol=0.05)
    assert not torch.equal(ours.running_var, theirs.running_var)


def test_ranges_follow_in_training_only_and_can_be_held():
    core, rounding, windows = prepared()
    with torch.no_grad():
        core(windows)
        assert rounding.ranges() == {}
        core.train()
        core(windows)
        first = rounding.ranges()["input_features"]
        per_window = windows.flatten(1)
        assert first == pytest.approx((float(per_window.amin(1).mean()), float(per_window.amax(1).mean())), abs=1e-5)
        core(2 * windows)
        assert rounding.ranges()["input_features"] == pytest.approx((1.5 * first[0], 1.5 * first[1]), abs=1e-4)
        rounding.observing = False
        core(9 * windows)
        assert rounding.ranges()["input_features"] == pytest.approx((1.5 * first[0], 1.5 * first[1]), abs=1e-4)


@torch.no_grad()
def test_off_and_removed_nothing_is_left(tmp_path):
    core, rounding, windows = prepared()
    plain = small_model(encoder_options=FORMS["flat"]).get_encoder().core
    exact = plain(windows)
    known = fingerprint(core)
    assert list(core.state_dict()) == list(plain.state_dict())
    watched(core, rounding, windows)
    assert not torch.equal(core(windows), exact)
    with rounding.off():
        assert torch.equal(core(windows), exact)
    assert not torch.equal(core(windows), exact)
    assert {node.op_type for node in exported(core, "width", tmp_path).nodes} <= {
        "Conv", "Relu", "Add", "Mul", "Sigmoid", "GlobalAveragePool", "Resize",
    }  # fmt: skip
    rounding.remove()
    assert torch.equal(core(windows), exact)
    assert fingerprint(core) == known


@torch.no_grad()
def test_hints_and_ranges_travel():
    core, rounding, windows = prepared("pyramid")
    watched(core, rounding, windows)
    trace = Trace(len(windows), "width")
    assert torch.allclose(core(windows, trace), core(windows))
    assert len(trace.states) == 2
    other, again, _ = prepared("pyramid")
    again.load_state_dict(rounding.state_dict())
    assert again.ranges() == rounding.ranges()
    assert torch.equal(other(windows), core(windows))
    twin = copy.deepcopy(core)  # with its own rounding
    assert torch.equal(twin(windows), core(windows))
    twin.train()
    before = rounding.ranges()
    twin(3 * windows)
    assert rounding.ranges() == before


def test_an_error_in_the_forward_leaves_nothing_behind():
    core, rounding, windows = prepared()
    with pytest.raises(RuntimeError):
        core(windows[:, :3])
    a = torch.ones(2) + torch.ones(2)  # no mode is left on that would count this
    assert a.tolist() == [2.0, 2.0]
    assert rounding._modes == []
    core(windows)


def test_bfloat16_autocast():
    core, rounding, windows = prepared()
    core.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = core(windows).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in core.parameters())
    assert len(rounding.ranges()) == len(rounding.placement.bits)


def test_what_it_does_not_go_with():
    core, _, windows = prepared()
    core.train()
    core.blocks[0].gradient_checkpointing = True
    with pytest.raises(RequestError, match="does not go with gradient checkpointing"):
        core(windows)
    core.blocks[0].gradient_checkpointing = False
    core.blocks[1].gate = torch.nn.Identity()
    with pytest.raises(RequestError, match="not the one that fake quantisation was prepared for"):
        core(windows)
    assert torch.add(torch.ones(1), 1).item() == 2.0
