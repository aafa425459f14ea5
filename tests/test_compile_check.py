"""The graph check: each rule on a graph that calls for it, the encoder families, and the page of rules."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers_graphs import array, node, whole, write
from helpers_models import small_model

from whisper_hailo_hf import HailoWhisperEncoder, WhisperHailoConfig, check_graph
from whisper_hailo_hf.compile.rules import DEVICES, RULES, SEVERITIES, markdown
from whisper_hailo_hf.encoders import get_family
from whisper_hailo_hf.encoders.export import export_core
from whisper_hailo_hf.errors import RequestError

W = {"w": array(8, 8, 1, 3)}
CONV = node("Conv", "x w", "c", kernel_shape=[1, 3], pads=[0, 1, 0, 1])
X = (1, 8, 1, 16)
SCALE = {"s": array(8, value=1.0), "b": array(8, value=0.1), "m": array(8, value=0.0), "v": array(8, value=1.0)}


def conv(taps=3, **attributes):
    return node("Conv", "x w", "y", **{"kernel_shape": [1, taps], "pads": [0, taps // 2, 0, taps // 2]} | attributes)


def mean(inputs, outputs, *axes):
    return node("ReduceMean", inputs, outputs, axes=list(axes))


# rule, the node that it is about, and the graph: nodes, constants, inputs, opset
CASES = [
    ("conv", "y", [conv()], W, {}),
    ("conv-depthwise", "y", [conv(group=8)], {"w": array(8, 1, 1, 3)}, {}),
    ("conv-transposed", "y", [node("ConvTranspose", "x w", "y")], W, {}),
    ("conv-1d", "y", [node("Conv", "x w", "y")], {"w": array(8, 8, 3)}, {"inputs": {"x": (1, 8, 16)}}),
    ("conv-free-weights", "y", [node("Conv", "x w", "y")], {}, {"inputs": {"x": X, "w": (8, 8, 1, 3)}}),
    ("kernel-long", "y", [conv(9)], {"w": array(8, 8, 1, 9)}, {}),
    ("dilation-large", "y", [conv(pads=[0, 9, 0, 9], dilations=[1, 9])], W, {}),
    ("conv-uneven-padding", "y", [conv(pads=[0, 2, 0, 0])], W, {}),
    ("linear", "y", [node("MatMul", "x k", "y")], {"k": array(16, 4)}, {}),
    ("batch-norm-folded", "y", [CONV, node("BatchNormalization", "c s b m v", "y")], W | SCALE, {}),
    ("batch-norm", "y", [node("BatchNormalization", "x s b m v", "y")], SCALE, {}),
    ("instance-norm", "y", [node("InstanceNormalization", "x s b", "y")], SCALE, {}),
    ("layer-norm", "y", [node("LayerNormalization", "x k", "y", axis=-1)], {"k": array(16)}, {}),
    ("activation-fused", "y", [CONV, node("Relu", "c", "y")], W, {}),
    ("activation", "y", [node("Tanh", "x", "y")], {}, {}),
    ("silu", "y", [CONV, node("Sigmoid", "c", "s"), node("Mul", "s c", "y")], W, {}),
    ("soft-activation", "y", [node("HardSwish", "x", "y")], {}, {}),
    ("erf", "y", [node("Erf", "x", "y")], {}, {}),
    ("add-fused", "y", [CONV, node("Add", "x c", "y")], W, {}),
    ("elementwise", "y", [node("Sub", "x z", "y")], {}, {"inputs": {"x": X, "z": X}}),
    ("attention-residual", "y", [node("MatMul", "x z", "p"), node("Add", "x p", "y")], {},
     {"inputs": {"x": X, "z": (1, 8, 16, 16)}}),
    ("constant-add", "y", [node("Add", "k x", "y")], {"k": array(8, 1, 16)}, {}),
    ("gate", "y", [node("GlobalAveragePool", "x", "g"), node("Sigmoid", "g", "s"), node("Mul", "s x", "y")], {}, {}),
    ("scalar", "y", [node("Mul", "x k", "y")], {"k": array(value=0.125)}, {}),
    ("broadcast", "y", [node("Mul", "x k", "y")], {"k": array(8, 1, 1)}, {}),
    ("denominator", "y", [node("Div", "x z", "y")], {}, {"inputs": {"x": X, "z": X}}),
    ("matmul", "y", [node("MatMul", "x z", "y")], {}, {"inputs": {"x": X, "z": (1, 8, 16, 3)}}),
    ("attention-window", "y", [node("MatMul", "x z", "y")], {},
     {"inputs": {"x": (1, 8, 500, 64), "z": (1, 8, 64, 500)}}),
    ("softmax", "y", [node("Softmax", "x", "y")], {}, {}),
    ("head-shuffle", "r", [node("Reshape", "x k", "r"), node("MatMul", "r z", "y")], {"k": whole(1, 2, 4, 16)},
     {"inputs": {"x": X, "z": (1, 2, 16, 3)}}),
    ("shuffle", "y", [node("Transpose", "x", "y", perm=[0, 3, 2, 1])], {}, {}),
    ("flatten", "y", [node("GlobalAveragePool", "x", "g"), node("Flatten", "g", "y")], {}, {}),
    ("pad", "y", [node("Pad", "x k", "y")], {"k": whole(0, 0, 0, 1, 0, 0, 0, 1)}, {}),
    ("pad-other", "y", [node("Pad", "x k", "y", mode="reflect")], {"k": whole(0, 0, 0, 1, 0, 0, 0, 1)}, {}),
    ("resize-nearest", "y", [node("Resize", "x - k", "y", mode="nearest")],
     {"k": np.array([1, 1, 1, 2], dtype=np.float32)}, {}),
    ("resize-other", "y", [node("Resize", "x - k", "y", mode="linear")],
     {"k": np.array([1, 1, 1, 2], dtype=np.float32)}, {}),
    ("pool", "y", [node("GlobalAveragePool", "x", "y")], {}, {}),
    ("no-op", "i", [node("Identity", "x", "i"), node("Relu", "i", "y")], {}, {}),
    ("concat", "y", [node("Concat", "x x", "y", axis=1)], {}, {}),
    ("slice", "y", [node("Slice", "x a b", "y")], {"a": whole(0, 0, 0, 0), "b": whole(1, 4, 1, 16)}, {}),
    ("split", "p", [node("Split", "x", "p q", axis=1), node("Add", "p q", "y")], {}, {}),
    ("reduce-sum", "y", [node("ReduceSum", "x a", "y")], {"a": whole(1)}, {}),
    ("reduce-sum-time", "y", [node("ReduceSum", "x a", "y")], {"a": whole(-1)}, {}),
    ("reduce-axis", "y", [node("ReduceSum", "x a", "y")], {"a": whole(-2)}, {}),
    ("mean-pool", "y", [mean("x", "y", 2, 3)], {}, {}),
    ("constant-folded", "s", [node("Shape", "x", "s"), node("Reshape", "x s", "y")], {}, {}),
    ("problem-operator", "y", [node("Cast", "x", "y", to=10)], {}, {}),
    ("quantised-graph", "y", [node("DequantizeLinear", "q k", "y"), node("QuantizeLinear", "x k", "q")][::-1],
     {"k": array(value=0.1)}, {}),
    ("unknown-operator", "y", [node("Sin", "x", "y")], {}, {}),
    ("dynamic-shape", "x", [node("Relu", "x", "y")], {}, {"inputs": {"x": (1, 8, 1, "time")}}),
    ("rank", "y", [node("Relu", "x", "y")], {}, {"inputs": {"x": (1, 8, 16)}}),
    ("output", "p", [node("Split", "x", "p q", axis=1)], {}, {"outputs": "p q"}),
    ("opset", "opset", [node("Relu", "x", "y")], {}, {"opset": 12}),
    ("long-row", "y", [conv()], {"w": array(65, 8, 1, 3)}, {"inputs": {"x": (1, 8, 1, 1000)}}),
    ("wide-activation", "y", [conv()], {"w": array(600, 8, 1, 3)}, {"inputs": {"x": (1, 8, 1, 600)}}),
]  # fmt: skip
GROUP_NORM = (
    "group-norm", "r2",
    [node("Reshape", "x a", "r"), node("InstanceNormalization", "r s b", "i"), node("Reshape", "i e", "r2"),
     node("Mul", "r2 k", "k2"), node("Add", "k2 k", "y")],
    {"a": whole(1, 1, -1), "e": whole(*X), "s": array(1, value=1.0), "b": array(1, value=0.0), "k": array(8, 1, 1)},
    {},
)  # fmt: skip


def report_of(tmp_path, nodes, constants, more, device="hailo8l"):
    return check_graph(write(tmp_path / "graph.onnx", nodes, constants=constants, **more), device)


@pytest.mark.parametrize("case", [*CASES, GROUP_NORM], ids=lambda case: case[0])
def test_rule(case, tmp_path):
    name, where, nodes, constants, more = case
    report = report_of(tmp_path, nodes, constants, more)
    rule = next(one for one in RULES if one.id == name and "hailo8l" in one.devices)
    verdicts = [one for one in (*report.findings, *report.nodes) if one.name == where and name in one.rules]
    assert verdicts, [(one.name, one.rules) for one in (*report.findings, *report.nodes)]
    assert SEVERITIES.index(verdicts[0].status) >= SEVERITIES.index(rule.severity)
    assert verdicts[0].bits >= rule.bits
    assert report.passed == (
        all(one.status not in ("rewritten", "rejected") for one in (*report.nodes, *report.findings))
    )
    if rule.severity in ("rewritten", "rejected"):
        assert not report.passed
    assert len(report.nodes) == sum(report.counts.values()) == len(nodes)
    elsewhere = check_graph(report.path, "hailo10h")  # each node has a verdict there too
    assert [one.name for one in elsewhere.nodes] == [one.name for one in report.nodes]


def test_every_rule_has_a_graph_that_calls_for_it():
    assert {case[0] for case in [*CASES, GROUP_NORM]} == {one.id for one in RULES}


# Where a rule ends


@pytest.mark.parametrize(
    ("nodes", "constants", "more"),
    [
        ([conv(7)], {"w": array(8, 8, 1, 7)}, {}),
        ([conv(pads=[0, 8, 0, 8], dilations=[1, 8])], W, {}),
        ([conv(2, pads=[0, 0, 0, 0])], {"w": array(8, 8, 1, 2)}, {}),
        ([conv()], {"w": array(64, 8, 1, 3)}, {"inputs": {"x": (1, 8, 1, 1000)}}),
        ([conv()], {"w": array(384, 8, 1, 3)}, {"inputs": {"x": (1, 8, 1, 999)}}),
        ([conv()], {"w": array(1536, 8, 1, 3)}, {"inputs": {"x": (1, 8, 1, 500)}}),
        ([node("Conv", "x w", "y")], {"w": array(64, 3, 7, 7)}, {"inputs": {"x": (1, 3, 640, 640)}}),
        ([node("Conv", "x w", "y")], {"w": array(256, 64, 1, 1)}, {"inputs": {"x": (1, 64, 1500, 1)}}),
        ([node("Conv", "x w", "y")], {"w": array(768, 64, 1, 1)}, {"inputs": {"x": (1, 64, 1000, 1)}}),
        ([node("Clip", "x lo hi", "y")], {"lo": array(value=0.0), "hi": array(value=6.0)}, {}),
    ],
)
def test_what_raises_no_question(nodes, constants, more, tmp_path):
    report = report_of(tmp_path, nodes, constants, more)
    assert (report.findings, report.counts["risky"], report.passed) == ((), 0, True)


@pytest.mark.parametrize(
    ("nodes", "constants", "inputs"),
    [
        # the same tensor is taken elsewhere too
        ([CONV, node("Relu", "c", "r"), node("Add", "r c", "y")], W, None),
        # the gate is of another kind: not out of a pool
        ([node("Mul", "x z", "y")], {}, {"x": X, "z": (1, 8, 1, 1)}),
        # SiLU of something else
        ([node("Sigmoid", "x", "s"), node("Mul", "s z", "y")], {}, {"x": X, "z": X}),
        # not of the activation's own shape
        ([node("Add", "x k", "y")], {"k": array(1, 8, 1, 1)}, None),
        ([node("Add", "x k", "y")], {"k": array(3, 8, 1, 16)}, None),
    ],
)
def test_what_only_looks_like_a_pattern(nodes, constants, inputs, tmp_path):
    report = report_of(tmp_path, nodes, constants, {"inputs": inputs})
    rules = {name for one in report.nodes for name in one.rules}
    assert not rules & {"activation-fused", "gate", "silu", "constant-add", "add-fused"}


def test_layer_norm_in_single_operators(tmp_path):
    nodes = [
        mean("x", "mu", 1), node("Sub", "x mu", "d"), node("Pow", "d two", "p"), mean("p", "var", 1),
        node("Add", "var eps", "ve"), node("Sqrt", "ve", "sd"), node("Div", "d sd", "q"),
        node("Mul", "q k", "qk"), node("Add", "qk k", "n"), node("Relu", "n", "y"),
    ]  # fmt: skip
    constants = {"two": array(value=2.0), "eps": array(value=1e-5), "k": array(8, 1, 1)}
    report = report_of(tmp_path, nodes, constants, {})
    assert [one.rules for one in report.nodes] == [("layer-norm",)] * 9 + [("activation",)]


@pytest.mark.parametrize("form", ["torch", "half first"])
def test_gelu_in_single_operators(form, tmp_path):
    nodes = [CONV, node("Div", "c root", "a"), node("Erf", "a", "e"), node("Add", "e one", "f")]
    if form == "torch":
        nodes += [node("Mul", "c f", "g"), node("Mul", "g half", "y")]
    else:
        nodes += [node("Mul", "c half", "g"), node("Mul", "g f", "y")]
    constants = W | {"root": array(value=2**0.5), "one": array(value=1.0), "half": array(value=0.5)}
    report = report_of(tmp_path, nodes, constants, {})
    assert [one.rules for one in report.nodes] == [("conv",)] + [("soft-activation",)] * 5
    assert report.passed


def test_mish_and_hard_swish(tmp_path):
    mish = [node("Softplus", "x", "s"), node("Tanh", "s", "t"), node("Mul", "x t", "y")]
    swish = [node("HardSigmoid", "x", "h"), node("Mul", "x h", "y")]
    for nodes in (mish, swish):
        report = report_of(tmp_path, nodes, {}, {})
        assert {one.rules for one in report.nodes} == {("soft-activation",)}


def test_softmax_by_hand_is_a_denominator(tmp_path):
    nodes = [node("ReduceSum", "x a", "sum"), node("Add", "sum eps", "plus"), node("Div", "x plus", "y")]
    report = report_of(tmp_path, nodes, {"a": whole(3), "eps": array(value=1e-6)}, {})
    assert [one.rules for one in report.nodes] == [("denominator",)] * 3


def test_an_image_network(tmp_path):
    """Convolution, BatchNorm, pools, a residual, a classifier of rank 2."""
    nodes = [
        node("Conv", "x w1", "a", kernel_shape=[7, 7], strides=[2, 2], pads=[3, 3, 3, 3]),
        node("BatchNormalization", "a s b m v", "n"), node("Relu", "n", "r"),
        node("MaxPool", "r", "p", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", "p w2", "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1]), node("Add", "c p", "d"),
        node("Relu", "d", "e"), node("GlobalAveragePool", "e", "g"), node("Flatten", "g", "f"),
        node("Gemm", "f w3", "y"),
    ]  # fmt: skip
    constants = SCALE | {"w1": array(8, 3, 7, 7), "w2": array(8, 8, 3, 3), "w3": array(8, 10)}
    report = report_of(tmp_path, nodes, constants, {"inputs": {"x": (1, 3, 224, 224)}})
    assert report.passed
    assert [one.rules[0] for one in report.nodes] == [
        "conv", "batch-norm-folded", "activation-fused", "pool", "conv", "add-fused", "activation-fused", "pool",
        "flatten", "linear",
    ]  # fmt: skip
    assert report.counts["risky"] == 0


def test_open_shapes_are_said_once(tmp_path):
    nodes = [conv(), node("Softmax", "y", "z")]
    report = report_of(tmp_path, nodes, W, {"inputs": {"x": ("batch", 8, 1, "time")}, "outputs": "z"})
    (finding,) = report.findings
    assert (finding.name, finding.rules, finding.detail) == ("x", ("dynamic-shape",), "batch x 8 x 1 x time")
    assert [one.rules for one in report.nodes] == [("conv",), ("softmax",)]


def test_an_operator_of_somebody_elses(tmp_path):
    report = report_of(tmp_path, [node("Magic", "x", "m", domain="com.example"), node("Relu", "m", "y")], {}, {})
    assert [one.status for one in report.nodes] == ["rejected", "rejected"]
    assert report.nodes[0].rules == ("unknown-operator", "dynamic-shape")


def test_devices_differ(tmp_path):
    nodes, constants = GROUP_NORM[2], GROUP_NORM[3]
    statuses = {one: report_of(tmp_path, nodes, constants, {}, one).nodes[0].status for one in DEVICES}
    assert statuses == {"hailo8l": "rewritten", "hailo8": "rewritten", "hailo10h": "risky"}
    with pytest.raises(RequestError, match="no rules for the device 'hailo15h': choose hailo8l, hailo8, hailo10h"):
        report_of(tmp_path, nodes, constants, {}, "hailo15h")


def test_report_as_json(tmp_path):
    data = report_of(tmp_path, GROUP_NORM[2], GROUP_NORM[3], {}).to_dict()
    assert json.loads(json.dumps(data))["rules"]["group-norm"]["dfc"] == "3.33.0"
    assert data["passed"] is False
    assert data["needs_16_bit"] == ["r", "i", "r2", "k2", "y"]
    assert data["counts"]["rewritten"] == 5


# The encoder families


def exported(tmp_path, family, time_axis="width", opset=17, **changes) -> Path:
    encoder = small_model(family, cls=HailoWhisperEncoder, time_axis=time_axis, **changes)
    return export_core(encoder.core, encoder.config.num_mel_bins, time_axis, tmp_path / "graph.onnx", opset)


@pytest.mark.parametrize("opset", [13, 17, 18])
@pytest.mark.parametrize("time_axis", ["width", "height"])
@pytest.mark.parametrize(
    "options",
    [{}, {"depthwise": True, "taps": 7}, {"activation": "silu", "gate_every": 1}],
    ids=["plain", "depthwise", "silu"],
)
def test_the_conv_family_is_clean(options, time_axis, opset, tmp_path):
    options = {"width": 24, "inner": 12, **options}
    report = check_graph(exported(tmp_path, "conv", time_axis, opset, encoder_layers=3, encoder_options=options))
    assert report.passed
    assert report.counts["risky"] == 0, report.by_rule()
    assert report.findings == ()


@pytest.mark.parametrize("time_axis", ["width", "height"])
def test_the_tiny_preset_is_clean_and_its_risks_are_few(time_axis, tmp_path):
    options = get_family("conv").preset("tiny")
    layers = options.pop("encoder_layers")
    config = WhisperHailoConfig(
        d_model=384, encoder_layers=layers, encoder_attention_heads=6, encoder_options=options, time_axis=time_axis
    )
    core = HailoWhisperEncoder(config).core
    report = check_graph(export_core(core, 80, time_axis, tmp_path / "graph.onnx"))
    assert report.passed
    risks = {rule.id: len(found) for rule, found in report.by_rule() if rule.severity == "risky"}
    # what runs at 1500 frames, and where time is a row, the features themselves
    assert set(risks) == ({"long-row"} if time_axis == "width" else {"wide-activation"})
    assert sum(risks.values()) <= 8


def rules_of(report):
    return {rule.id: [one.name for one in found] for rule, found in report.by_rule()}


@pytest.mark.parametrize("time_axis", ["width", "height"])
@pytest.mark.parametrize("opset", [13, 17])
def test_stock_attention_is_refused_by_name(opset, time_axis, tmp_path):
    report = check_graph(exported(tmp_path, "attention", time_axis, opset))
    assert not report.passed
    found = rules_of(report)
    assert any(name.startswith("/layers.0/self_attn_layer_norm/") for name in found["layer-norm"])
    assert "/layers.1/self_attn/Softmax" in found["softmax"]
    assert "/layers.0/self_attn/Reshape" in found["head-shuffle"]
    assert "/layers.0/self_attn/MatMul" in found["matmul"]
    assert "/layers.0/Add" in found["attention-residual"]
    assert "/layers.0/self_attn/Mul" in found["scalar"]
    assert not found.keys() & {"unknown-operator", "reduce-axis", "erf", "broadcast"}  # each is in a pattern


@pytest.mark.parametrize("time_axis", ["width", "height"])
def test_linear_attention_is_refused_by_name(time_axis, tmp_path):
    report = check_graph(exported(tmp_path, "linear_attention", time_axis))
    assert not report.passed
    found = rules_of(report)
    assert "/layers.0/attn_norm/InstanceNormalization" in found["group-norm"]
    assert "/norm/Add" in found["group-norm"]
    assert {"/layers.0/attn/Div", "/layers.0/attn/ReduceSum_1", "/layers.0/attn/Add_2"} <= set(found["denominator"])
    assert "/layers.0/attn/ReduceSum" in found["reduce-sum-time"]
    assert {"/Pad", "/Pad_1"} == set(found["pad"])
    assert "/layers.1/attn/Reshape_3" in found["shuffle"]
    assert "/layers.0/attn/Mul_1" in found["broadcast"]
    assert "/layers.0/attn/Add" in found["scalar"]
    assert {"/layers.0/Add", "/layers.0/Add_1"} <= set(found["attention-residual"])
    statuses = {one.name: one.status for one in report.nodes}
    assert statuses["/layers.0/attn_norm/InstanceNormalization"] == "rewritten"
    assert statuses["/layers.1/attn/Reshape_3"] == "rejected"


# The rules themselves


def test_rules_are_complete():
    for rule in RULES:
        assert rule.severity in SEVERITIES
        assert set(rule.devices) <= set(DEVICES)
        assert rule.devices
        assert all((rule.match, rule.compiler, rule.source, rule.dfc))
        assert rule.instead or rule.severity in ("allowed", "fused")
        assert rule.bits in (8, 16)
    pairs = [(rule.id, device) for rule in RULES for device in rule.devices]
    assert len(pairs) == len(set(pairs))


def test_the_page_of_rules_is_written_from_them():
    page = Path(__file__).resolve().parent.parent / "docs" / "graph-rules.md"
    assert page.read_text(encoding="utf-8") == markdown()


# The verb


def test_verb_passes_the_conv_family(cli, tmp_path):
    status, out, err = cli("check", exported(tmp_path, "conv"), "--nodes")
    assert (status, err) == (0, "")
    assert "passed" in out
    assert "/blocks.0/mix/conv/Conv" in out


def test_verb_fails_linear_attention_and_says_why(cli, tmp_path):
    path = exported(tmp_path, "linear_attention")
    status, out, err = cli("check", path)
    assert (status, err) == (1, "")
    assert "rewritten: group-norm" in out
    assert "reduce_axes [1, 2, 3]" in out
    assert "DFC 3.33.0" in out
    status, out, _ = cli("check", path, "--json", "--device", "hailo10h")
    data = json.loads(out)
    assert (status, data["passed"], data["device"]) == (1, False, "hailo10h")


def test_verb_with_cost_and_har(cli, tmp_path):
    from helpers_har import write_har

    path = exported(tmp_path, "conv")
    har = write_har(path, tmp_path / "graph.har")
    status, out, err = cli("check", path, "--cost", "--har", har)
    assert (status, err) == (0, ""), out
    assert "modelled" in out
    data = json.loads(cli("check", path, "--cost", "--har", har, "--json")[1])
    assert data["cost"]["modelled"] is True
    assert data["har"]["ok"] is True


def test_verb_fails_where_the_har_is_another_network(cli, tmp_path):
    from helpers_har import write_har

    path = exported(tmp_path, "conv")
    har = write_har(path, tmp_path / "graph.har")
    model = onnx.load(path)
    tensor = next(one for one in model.graph.initializer if one.name == "head.weight")
    changed = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 2, tensor.name)
    tensor.CopyFrom(changed)
    onnx.save(model, path)
    status, out, _ = cli("check", path, "--har", har)
    assert status == 1
    assert "weights" in out


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "is empty"), (b"hello", "is no ONNX file")],
)
def test_verb_refuses_what_is_no_graph(cli, content, words, tmp_path):
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    status, out, err = cli("check", path)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_look_at_a_graph_waits_for_no_large_library(tmp_path):
    path = write(tmp_path / "graph.onnx", [CONV, node("Relu", "c", "y")], constants=W)
    code = (
        "import sys; from whisper_hailo_hf.cli.main import main\n"
        f"try: main(['check', {str(path)!r}, '--cost'])\n"
        "except SystemExit as end: print(end.code, *sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "0", result.stdout + result.stderr
