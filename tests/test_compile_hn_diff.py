"""What the compiler did to a graph is found and named; what it may do is not."""

import copy
import json
import random

import numpy as np
import onnx
import pytest
from helpers_har import files_of, pack, parsed, write_changed, write_har
from helpers_models import small_model
from onnx import TensorProto, helper, numpy_helper

from whisper_hailo_hf import HailoWhisperEncoder
from whisper_hailo_hf.compile.hn_diff import diff_har
from whisper_hailo_hf.encoders.export import export_core
from whisper_hailo_hf.errors import RequestError

STUDENT = {"width": 12, "inner": 6, "stem": 6, "levels": (0, 1, 2), "positions": True, "refine_taps": 5}
OPTIONS = [
    {},
    {"depthwise": True, "refine_depthwise": True, "norm": "none"},
    {"activation": "silu", "gate_every": 1},
    {"activation": "relu6", "gate_every": 0, "taps": 5},
]


def export(path, family="conv", **changes):
    encoder = small_model(family, cls=HailoWhisperEncoder, **changes)
    return export_core(encoder.core, encoder.config.num_mel_bins, encoder.config.time_axis, path)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A graph of the conv family with all of its parts, and what the parser would make of it."""
    path = tmp_path_factory.mktemp("student") / "encoder.onnx"
    export(path, encoder_layers=3, encoder_options={**STUDENT, "depthwise": True, "gate_every": 3})
    return path, *parsed(path)


@pytest.fixture(scope="module")
def oddments(tmp_path_factory):
    """What the conv family has not, between two convolutions: GroupNorm, as PyTorch exports it, and a reshape."""
    path = tmp_path_factory.mktemp("oddments") / "encoder.onnx"
    rng = np.random.default_rng(0)
    constants = {
        "first.weight": rng.normal(size=(8, 4, 1, 1)),
        "last.weight": rng.normal(size=(6, 4, 3, 3)),
        "norm.one": np.ones(1),
        "norm.zero": np.zeros(1),
        "norm.weight": rng.normal(size=(8, 1, 1)),
        "norm.bias": rng.normal(size=(8, 1, 1)),
    }
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    for name, shape in (("flat", [1, 1, -1]), ("back", [1, 8, 2, 12]), ("other", [1, 4, 8, 6])):
        tensors.append(numpy_helper.from_array(np.array(shape), name))
    window = {"group": 1, "strides": [1, 1], "dilations": [1, 1]}
    nodes = [
        ("Conv", "/first/Conv", ["features", "first.weight"], {**window, "kernel_shape": [1, 1], "pads": [0] * 4}),
        ("Reshape", "/norm/Reshape", ["/first/Conv_output_0", "flat"], {}),
        ("InstanceNormalization", "/norm/Norm", ["/norm/Reshape_output_0", "norm.one", "norm.zero"], {}),
        ("Reshape", "/norm/Reshape_1", ["/norm/Norm_output_0", "back"], {}),
        ("Mul", "/norm/Mul", ["/norm/Reshape_1_output_0", "norm.weight"], {}),
        ("Add", "/norm/Add", ["/norm/Mul_output_0", "norm.bias"], {}),
        ("Relu", "/Relu", ["/norm/Add_output_0"], {}),
        ("Reshape", "/Reshape", ["/Relu_output_0", "other"], {}),
        (
            "Conv",
            "/last/Conv",
            ["/Reshape_output_0", "last.weight"],
            {**window, "kernel_shape": [3, 3], "pads": [1] * 4},
        ),
    ]
    graph = helper.make_graph(
        [helper.make_node(op, inputs, [f"{name}_output_0"], name, **more) for op, name, inputs, more in nodes],
        "oddments",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 4, 2, 12])],
        [helper.make_tensor_value_info("/last/Conv_output_0", TensorProto.FLOAT, [1, 6, 8, 6])],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def diff_of(student, tmp_path, change=None):
    path, hn, weights = student
    return diff_har(path, write_changed(hn, weights, tmp_path / "encoder.har", change))


def errors(diff):
    return [finding for finding in diff.findings if finding.severity == "error"]


def layer_of(hn, node, kind=None):
    """The layer that names a node."""
    for name, layer in hn["layers"].items():
        if node in layer["original_names"] and kind in (None, layer["type"]):
            return name
    raise KeyError(node)


def remove(hn, name):
    """Takes a layer out and joins what was around it."""
    gone = hn["layers"].pop(name)
    for layer in hn["layers"].values():
        for ends, others in (("input", gone["input"]), ("output", gone["output"])):
            layer[ends] = [new for old in layer[ends] for new in (others if old == name else [old])]


def rename(hn, weights, old, new, kind):
    """Gives a layer another name and type."""
    text = json.dumps(hn["layers"]).replace(f'"{old}"', f'"{new}"')
    hn["layers"] = json.loads(text)
    hn["layers"][new]["type"] = kind
    for key in [key for key in weights if key.startswith(f"{old}/")]:
        weights[key.replace(old, new)] = weights.pop(key)


@pytest.mark.parametrize("fuse_adds", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("time_axis", ["width", "height"])
def test_faithful_har_gives_no_finding(time_axis, options, fuse_adds, tmp_path):
    path = tmp_path / "encoder.onnx"
    export(path, time_axis=time_axis, encoder_layers=4, encoder_options=STUDENT | options)
    diff = diff_har(path, write_har(path, tmp_path / "encoder.har", fuse_adds=fuse_adds))
    assert diff.ok
    assert not diff.findings
    counts = diff.counts()
    assert counts["same"] > 20
    assert counts["fused"] >= 8
    assert counts["changed"] == counts["rewritten"] == counts["lost"] == 0
    assert {match.types for match in diff.matches if match.op == "Conv"} <= {
        ("conv",),
        ("dw",),
        ("external_pad", "conv"),
        ("external_pad", "dw"),
    }
    if fuse_adds:
        assert any(match.op == "Add" and match.types == ("conv",) for match in diff.matches)


@pytest.mark.parametrize("time_axis", ["width", "height"])
def test_faithful_har_of_the_attention_family(time_axis, tmp_path):
    path = export(tmp_path / "encoder.onnx", "attention", time_axis=time_axis)
    diff = diff_har(path, write_har(path, tmp_path / "encoder.har"))
    assert not diff.findings
    found = {match.op: (match.status, match.types) for match in diff.matches}
    assert found["LayerNormalization"] == ("same", ("layer_normalization",))
    assert found["Erf"] == ("fused", ("conv",))  # of GELU


def test_pairs_and_what_the_har_says_of_itself(student, tmp_path):
    diff = diff_of(student, tmp_path)
    assert (diff.network, diff.state, diff.sdk_version, diff.hw_arch) == (
        "encoder",
        "hailo_model",
        "3.33.0",
        "hailo8l",
    )
    found = {match.node: match for match in diff.matches}
    assert found["/conv1/conv/Conv"].layers == ("encoder/conv1",)
    assert found["/conv1/act/Relu"].layers == ("encoder/conv1",)
    assert (found["/conv1/conv/Conv"].status, found["/conv1/act/Relu"].status) == ("same", "fused")
    assert found["/blocks.0/mix/conv/Conv"].types == ("dw",)
    data = json.loads(json.dumps(diff.to_dict()))
    assert data["ok"] is True
    assert data["counts"] == diff.counts()
    assert data["matches"][0]["node"] == "/conv1/conv/Conv"
    assert diff.rows()[0] == ("/conv1/conv/Conv", "Conv", "same", "conv1")
    assert "0 errors, 0 warnings" in diff.summary()


def set_param(node, key, value):
    def change(hn, weights):
        params = hn["layers"][layer_of(hn, node)]["params"]
        assert params[key] != value
        params[key] = value

    return change


def clip_padding(hn, weights):
    """A dilated convolution loses half of its padding, and its output shrinks."""
    layer = hn["layers"][layer_of(hn, "/refine/conv/Conv")]
    layer["params"]["padding"] = "VALID"
    layer["output_shapes"][0][2] -= 4


def shift_padding(hn, weights):
    """TensorFlow's scheme pads a stride of 2 behind, where PyTorch pads before: the same shape, another grid."""
    layer = hn["layers"][layer_of(hn, "/conv1/conv/Conv")]
    assert layer["params"]["padding"] == "SAME"
    layer["params"]["padding"] = "SAME_TENSORFLOW"


def turn_kernel(hn, weights):
    name = layer_of(hn, "/conv2/conv/Conv")
    params = hn["layers"][name]["params"]
    params["kernel_shape"][:2] = params["kernel_shape"][1::-1]
    weights[f"{name}/kernel:0"] = weights[f"{name}/kernel:0"].swapaxes(0, 1)


def shorten_kernel(hn, weights):
    name = layer_of(hn, "/conv2/conv/Conv")
    hn["layers"][name]["params"]["kernel_shape"][1] = 2
    weights[f"{name}/kernel:0"] = weights[f"{name}/kernel:0"][:, :2]


def change_one_weight(hn, weights):
    weights[layer_of(hn, "/join/conv/Conv") + "/kernel:0"][0, 0, 3, 2] += 0.01


def mirror_kernel(hn, weights):
    key = layer_of(hn, "/conv1/conv/Conv") + "/kernel:0"
    weights[key] = weights[key][:, ::-1]


def drop_bias(hn, weights):
    del weights[layer_of(hn, "/head/Conv") + "/bias:0"]


def drop_kernel(hn, weights):
    del weights[layer_of(hn, "/head/Conv") + "/kernel:0"]


def spoil_weight(hn, weights):
    weights[layer_of(hn, "/head/Conv") + "/kernel:0"][0, 0, 0, 0] = np.nan


def change_table(hn, weights):
    (key,) = [key for key in weights if "const_input" in key]
    weights[key][0, 0, 3] += 0.1


def dense_instead_of_depthwise(hn, weights):
    old = layer_of(hn, "/blocks.0/mix/conv/Conv")
    rename(hn, weights, old, "encoder/conv99", "conv")


def rewire(hn, weights):
    """A residual add takes the stem instead of the block's input."""
    name = layer_of(hn, "/blocks.1/Add")
    block, stem = hn["layers"][name]["input"][0], layer_of(hn, "/conv1/conv/Conv")
    hn["layers"][name]["input"][0] = stem
    hn["layers"][block]["output"].remove(name)
    hn["layers"][stem]["output"].append(name)


def lose_add(hn, weights):
    name = layer_of(hn, "/blocks.1/Add")
    kept = hn["layers"][name]["input"][1]
    hn["layers"][name]["input"] = [kept]
    remove(hn, name)


def lose_activation(hn, weights):
    layer = hn["layers"][layer_of(hn, "/conv2/act/Relu")]
    layer["original_names"].remove("/conv2/act/Relu")
    layer["params"]["activation"] = "linear"


def put_in_a_layer(hn, weights):
    """A layer that no node of the graph asked for."""
    name, before = "encoder/normalization1", layer_of(hn, "/conv1/conv/Conv")
    readers = hn["layers"][before]["output"]
    hn["layers"][name] = copy.deepcopy(hn["layers"][before]) | {
        "type": "normalization",
        "input": [before],
        "output": readers,
        "original_names": [],
        "params": {},
    }
    hn["layers"][before]["output"] = [name]
    for reader in readers:
        inputs = hn["layers"][reader]["input"]
        hn["layers"][reader]["input"] = [name if other == before else other for other in inputs]


def merge_two(hn, weights):
    """One convolution is said to be two."""
    gone = layer_of(hn, "/blocks.0/expand/conv/Conv")
    kept = hn["layers"][gone]["input"][0]
    names = hn["layers"][gone]["original_names"]
    remove(hn, gone)
    hn["layers"][kept]["original_names"] += names


def split_one(hn, weights):
    name = layer_of(hn, "/head/Conv")
    hn["layers"]["encoder/conv99"] = copy.deepcopy(hn["layers"][name])
    for key in ("kernel:0", "bias:0"):
        weights[f"encoder/conv99/{key}"] = weights[f"{name}/{key}"]


def swap_axes(hn, weights):
    shape = hn["layers"][layer_of(hn, "/resize/Resize")]["output_shapes"][0]
    shape[1:3] = shape[2:0:-1]


def end_early(hn, weights):
    (end,) = [layer for layer in hn["layers"].values() if layer["type"] == "output_layer"]
    end["input"] = [layer_of(hn, "/refine/conv/Conv")]


PLANTED = {
    "turned kernel": (turn_kernel, "kernel", "/conv2/conv/Conv"),
    "shorter kernel": (shorten_kernel, "kernel", "/conv2/conv/Conv"),
    "stride": (set_param("/conv2/conv/Conv", "strides", [1, 1, 1, 1]), "stride", "/conv2/conv/Conv"),
    "dilation": (
        set_param("/blocks.1/mix/conv/Conv", "dilations", [1, 1, 1, 1]),
        "dilation",
        "/blocks.1/mix/conv/Conv",
    ),
    "groups": (set_param("/join/conv/Conv", "groups", 2), "groups", "/join/conv/Conv"),
    "no groups": (dense_instead_of_depthwise, "kernel", "/blocks.0/mix/conv/Conv"),
    "clipped padding": (clip_padding, "padding", "/refine/conv/Conv"),
    "shifted padding": (shift_padding, "padding", "/conv1/conv/Conv"),
    "activation": (set_param("/conv1/conv/Conv", "activation", "relu6"), "activation", "/conv1/act/Relu"),
    "one weight": (change_one_weight, "weights", "/join/conv/Conv"),
    "mirrored kernel": (mirror_kernel, "weights", "/conv1/conv/Conv"),
    "no bias": (drop_bias, "bias", "/head/Conv"),
    "no kernel": (drop_kernel, "weights", "/head/Conv"),
    "NaN": (spoil_weight, "weights", "/head/Conv"),
    "table": (change_table, "weights", "/Add"),
    "wiring": (rewire, "wiring", "/blocks.1/Add"),
    "lost add": (lose_add, "lost", "/blocks.1/Add"),
    "lost activation": (lose_activation, "lost", "/conv2/act/Relu"),
    "merged": (merge_two, "rewritten", "/blocks.0/expand/conv/Conv"),
    "split": (split_one, "split", "/head/Conv"),
    "swapped axes": (swap_axes, "shape", "/resize/Resize"),
    "resize": (set_param("/resize/Resize", "method", "bilinear"), "resize", "/resize/Resize"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_planted_rewrite_is_found_and_named(planted, student, tmp_path):
    change, kind, node = PLANTED[planted]
    diff = diff_of(student, tmp_path, change)
    assert not diff.ok
    found = [finding for finding in errors(diff) if finding.kind == kind]
    assert any(node in finding.nodes for finding in found), diff.findings
    match = next(match for match in diff.matches if match.node == node)
    assert match.status in {"lost": ["lost"], "rewritten": ["rewritten"], "split": ["rewritten"]}.get(
        kind, ["changed"]
    )


def test_layer_of_no_node_is_named(student, tmp_path):
    diff = diff_of(student, tmp_path, put_in_a_layer)
    (finding,) = errors(diff)
    assert finding.kind == "added"
    assert finding.layers == ("encoder/normalization1",)
    assert finding.message == "normalization1, a normalization, is of no node of the graph"


def test_network_that_ends_elsewhere(student, tmp_path):
    (finding,) = errors(diff_of(student, tmp_path, end_early))
    assert finding.kind == "wiring"
    assert finding.message == "the network gives out conv17 instead of conv18"


def test_every_single_change_of_every_layer_is_found(student, tmp_path):
    path, hn, weights = student

    def first_changed(value):
        value = copy.deepcopy(value)
        if isinstance(value, list):
            index = len(value) - 2 if len(value) > 2 else 0
            value[index] = first_changed(value[index])
            return value
        if isinstance(value, bool):
            return not value
        return value + 1 if isinstance(value, int) else "tanh"

    changes = {}  # a few of each kind of layer and parameter
    for name, layer in hn["layers"].items():
        keys = [("output_shapes", 0)]
        for key in ("kernel_shape", "strides", "dilations", "groups", "activation", "elementwise_add"):
            if key in layer["params"] and layer["type"] != "avgpool":
                keys.append(("params", key))
        keys += [("weights", key) for key in weights if key.rpartition("/")[0] == name and "padding" not in key]
        for part, key in keys if layer["type"] not in ("input_layer", "output_layer", "external_pad") else ():
            if (layer["type"], part) != ("const_input", "output_shapes"):
                changes.setdefault((layer["type"], str(key).rpartition("/")[2]), []).append((name, part, key))
    assert len(changes) >= 20
    for name, part, key in [change for some in changes.values() for change in some[:: max(1, len(some) // 2)]]:

        def change(hn, weights, name=name, part=part, key=key):
            if part == "weights":
                weights[key].reshape(-1)[-1] += 0.05
            else:
                holder = hn["layers"][name][part]
                holder[key] = first_changed(holder[key])

        diff = diff_of((path, hn, weights), tmp_path, change)
        about = {layer for finding in errors(diff) for layer in finding.layers}
        readers = set(hn["layers"][name]["output"])
        assert name in about or (hn["layers"][name]["type"] == "const_input" and about & readers), (name, part, key)


def test_groupnorm_that_became_layer_normalization(oddments, tmp_path):
    hn, weights = parsed(oddments)

    def fuse(hn, weights):
        """As the compiler does: one layer over height, width and channels for the whole group of nodes."""
        nodes = [name for name in _nodes(oddments) if name.startswith("/norm/")]
        names = [layer_of(hn, node) for node in nodes]
        kept = hn["layers"][names[0]]
        for name in names[1:]:
            if name in hn["layers"]:
                for carrier in [one for one in hn["layers"][name]["input"] if "const_input" in one]:
                    remove(hn, carrier)
                remove(hn, name)
        kept.update(type="layer_normalization", original_names=nodes, params={"reduce_axes": [1, 2, 3], "groups": 1})
        kept["output_shapes"] = [[-1, 2, 12, 8]]
        kept["params"]["activation"] = "linear"

    diff = diff_har(oddments, write_changed(hn, weights, tmp_path / "odd.har", fuse))
    (finding,) = [one for one in errors(diff) if one.kind == "rewritten"]
    assert "/norm/Norm" in finding.nodes
    assert "a layer_normalization over axes [1, 2, 3] (height, width, channels)" in finding.message
    statuses = {match.node: match.status for match in diff.matches}
    assert {status for node, status in statuses.items() if node.startswith("/norm/")} == {"rewritten"}


def _nodes(path):
    return [node.name for node in onnx.load(path).graph.node if node.op_type != "Constant"]


def test_lost_reshape(oddments, tmp_path):
    hn, weights = parsed(oddments)
    (node,) = [name for name in _nodes(oddments) if name == "/Reshape"]

    def lose(hn, weights):
        remove(hn, layer_of(hn, node))

    clean = diff_har(oddments, write_changed(hn, weights, tmp_path / "odd.har"))
    diff = diff_har(oddments, write_changed(hn, weights, tmp_path / "odd.har", lose))
    assert not [one for one in clean.findings if node in one.nodes]
    assert [one.message for one in errors(diff) if one.kind == "lost"] == ["/Reshape (Reshape) is in no layer"]


def test_layernorm_over_more_than_the_channels(tmp_path):
    path = export(tmp_path / "encoder.onnx", "attention")

    def widen(hn, weights):
        layer = hn["layers"][layer_of(hn, "/layers.0/final_layer_norm/LayerNormalization")]
        layer["params"]["reduce_axes"] = [1, 2, 3]

    (finding,) = diff_har(path, write_har(path, tmp_path / "encoder.har", widen)).findings
    assert finding.kind == "axes"
    assert "/layers.0/final_layer_norm/LayerNormalization" in finding.nodes
    assert "over axes [1, 2, 3] (height, width, channels) instead of axes [3] (channels)" in finding.message


def test_names_of_tensors_count_too(student, tmp_path):
    def use_tensors(hn, weights):
        for layer in hn["layers"].values():
            layer["original_names"] = [
                f"{name}_output_0" if name.startswith("/") and name != "/head/Conv" else name
                for name in layer["original_names"]
            ]

    assert not diff_of(student, tmp_path, use_tensors).findings


def test_activation_that_no_layer_names_but_one_does(student, tmp_path):
    def forget(hn, weights):
        hn["layers"][layer_of(hn, "/conv2/act/Relu")]["original_names"].remove("/conv2/act/Relu")

    diff = diff_of(student, tmp_path, forget)
    assert diff.ok
    assert [finding.kind for finding in diff.findings] == ["unnamed"]
    assert "/conv2/act/Relu is named by no layer, but conv2 does it" in diff.findings[0].message


def test_broadcast_through_a_resize_is_told(student, tmp_path):
    """A gate's one value for each channel is stretched to all frames before the product."""

    def stretch(hn, weights):
        name = layer_of(hn, "/blocks.2/gate/Mul")
        gate = hn["layers"][name]["input"][1]
        hn["layers"]["encoder/resize99"] = {
            "type": "resize",
            "input": [gate],
            "output": [name],
            "output_shapes": hn["layers"][name]["output_shapes"],
            "original_names": ["/blocks.2/gate/Mul"],
            "params": {},
        }
        hn["layers"][name]["input"][1] = "encoder/resize99"

    diff = diff_of(student, tmp_path, stretch)
    assert diff.ok
    assert [finding.message for finding in diff.findings] == [
        "resize99, a resize, was put in front of /blocks.2/gate/Mul"
    ]


def test_har_laid_on_its_other_side(tmp_path):
    """Every shape with height and width exchanged is one finding, not a hundred."""
    wide, high = (tmp_path / f"{axis}.onnx" for axis in ("width", "height"))
    for path in (wide, high):
        export(path, time_axis=path.stem, encoder_options=STUDENT)
    diff = diff_har(wide, write_har(high, tmp_path / "high.har"))
    assert [finding.kind for finding in diff.findings] == ["transposed"]


def test_har_without_weights_is_compared_as_far_as_it_goes(student, tmp_path):
    path, hn, weights = student
    files = files_of(hn, weights)
    del files["encoder.npz"]
    diff = diff_har(path, pack(tmp_path / "encoder.har", files))
    assert diff.ok
    assert [finding.kind for finding in diff.findings] == ["unchecked"]


def test_unknown_form_of_padding_is_said(student, tmp_path):
    diff = diff_of(student, tmp_path, set_param("/conv1/conv/Conv", "padding", "EXPLICIT"))
    assert diff.ok
    assert "padding 'EXPLICIT' has a form that is not known here" in diff.findings[0].message


def test_har_of_another_graph(student, tmp_path):
    path = export(tmp_path / "other.onnx", "attention")
    (tmp_path / "renamed").mkdir()
    hn, weights = parsed(path)
    for layer in hn["layers"].values():
        layer["original_names"] = [f"x{name}" for name in layer["original_names"]]
    with pytest.raises(RequestError, match=r"names no node of .*: it was made from another graph"):
        diff_har(student[0], write_changed(hn, weights, tmp_path / "other.har"))


def test_earlier_form_of_an_optimised_har(student, tmp_path):
    path, hn, weights = student
    files = files_of(hn, weights, state="quantized_model")
    files["encoder.native.hn"] = files["encoder.hn"]
    files["encoder.native.npz"] = files["encoder.npz"]
    later = copy.deepcopy(hn)
    put_in_a_layer(later, weights)
    files["encoder.hn"] = json.dumps(later).encode()
    har = pack(tmp_path / "encoder.har", files)
    diff = diff_har(path, har)
    assert (diff.stage, diff.state, diff.findings) == ("native", "quantized_model", ())
    assert [finding.kind for finding in diff_har(path, har, stage="present").findings] == ["added"]


def test_files_that_cannot_be_used(student, tmp_path):
    path, hn, weights = student
    har = write_changed(hn, weights, tmp_path / "encoder.har")
    with pytest.raises(RequestError, match=r"none\.onnx"):
        diff_har(tmp_path / "none.onnx", har)
    with pytest.raises(RequestError, match=r"none\.har"):
        diff_har(path, tmp_path / "none.har")
    with pytest.raises(RequestError, match="no ONNX"):
        diff_har(har, har)


def test_any_graph_is_compared_or_refused_in_one_line(student, tmp_path):
    path, hn, weights = student
    rng = random.Random(0)
    oddities = [None, -1, 0, 2**70, 1.5, "", "conv", [], [[]], {}, [None], [1, 2], [-1, 0, 0, 0], True, float("nan")]

    def places(value, way=()):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield (*way, key)
            yield from places(inner, (*way, key))

    everywhere = list(places(hn["layers"]))
    outcomes = {"compared": 0, "refused": 0}
    for _ in range(60):

        def change(hn, weights):
            for *way, key in rng.sample(everywhere, rng.choice((1, 4))):
                holder = hn["layers"]
                try:
                    for step in way:
                        holder = holder[step]
                    holder[key] = rng.choice(oddities)
                except (KeyError, IndexError, TypeError):
                    pass  # an earlier oddity took the place

        try:
            diff_of((path, hn, weights), tmp_path, change)
            outcomes["compared"] += 1
        except RequestError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10
