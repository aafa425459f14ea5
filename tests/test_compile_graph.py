"""Reading ONNX files: what is refused and how, and what a view of a graph says."""

import os

import numpy as np
import onnx
import pytest
from helpers_graphs import array, model_of, node, whole, write
from onnx import TensorProto, helper

from whisper_hailo_hf.compile.graph import load_onnx, view_graph
from whisper_hailo_hf.errors import RequestError

CONV = node("Conv", "x w", "c", kernel_shape=[1, 3], pads=[0, 1, 0, 1])
RELU = node("Relu", "c", "y")
WEIGHT = {"w": array(8, 8, 1, 3)}


def refused(path, words):
    with pytest.raises(RequestError) as caught:
        view_graph(path)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert str(path) in message
    return message


def external(path, location, **entries):
    """The convolution's model with its weight in another file."""
    model = model_of([CONV, RELU], constants=WEIGHT)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    return path


# What is no graph


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"Dear Sir or Madam,\n" * 30, "is no ONNX file"),
        (b"\x00" * 100, "is no ONNX file"),
        (bytes(range(256)) * 20, "is no ONNX file"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "is no ONNX file, or one without a graph"),
    ],
)
def test_what_is_no_onnx_file(content, words, tmp_path):
    path = tmp_path / "encoder.onnx"
    path.write_bytes(content)
    refused(path, words)


def test_a_file_that_is_cut_off(tmp_path):
    path = write(tmp_path / "encoder.onnx", [CONV, RELU], constants=WEIGHT)
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, "is no ONNX file")


def test_no_file(tmp_path):
    refused(tmp_path / "none.onnx", "no such file")
    refused(tmp_path, "is a folder: name an ONNX file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write(tmp_path / "encoder.onnx", [CONV, RELU], constants=WEIGHT)
    path.chmod(0)
    refused(path, "cannot be read")


def test_a_graph_that_the_checker_refuses(tmp_path):
    path = write(tmp_path / "encoder.onnx", [CONV, node("Relu", "nowhere", "y")], constants=WEIGHT)
    refused(path, "is no valid ONNX graph")


def test_shapes_that_contradict_each_other(tmp_path):
    path = write(tmp_path / "encoder.onnx", [node("Add", "x k", "y")], constants={"k": array(1, 8, 1, 5)})
    refused(path, "is no valid ONNX graph")


# Weights in other files


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "sub/../../weights.bin"])
def test_weights_outside_the_folder_are_refused(location, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(WEIGHT["w"].tobytes())
    refused(external(folder / "encoder.onnx", location), "outside its own folder: refused")


def test_a_link_that_leads_outside_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(WEIGHT["w"].tobytes())
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    refused(external(folder / "encoder.onnx", "weights.bin"), "outside its own folder: refused")


def test_weights_of_an_attribute_outside_the_folder_are_refused(tmp_path):
    model = model_of([node("Constant", "", "w", value=helper.make_tensor("w", 1, [1], [0.0])), CONV, RELU])
    tensor = model.graph.node[0].attribute[0].t
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../weights.bin")
    path = tmp_path / "encoder.onnx"
    path.write_bytes(model.SerializeToString())
    refused(path, "outside its own folder: refused")


def test_weights_in_the_same_folder_are_read(tmp_path):
    (tmp_path / "weights.bin").write_bytes(WEIGHT["w"].tobytes())
    view = view_graph(external(tmp_path / "encoder.onnx", "weights.bin"))
    assert np.array_equal(view.constants["w"], WEIGHT["w"])


def test_weights_that_are_missing_or_cut_off(tmp_path):
    path = external(tmp_path / "encoder.onnx", "weights.bin", length=WEIGHT["w"].nbytes)
    refused(path, "the weights beside it cannot be read")
    (tmp_path / "weights.bin").write_bytes(WEIGHT["w"].tobytes()[:20])
    refused(path, "")


# What a view says


def test_view(tmp_path):
    constant = node("Constant", "", "k", value=onnx.numpy_helper.from_array(array(1, 8, 1, 16)))
    nodes = [CONV, RELU, constant, node("Add", "y k", "z", "/head/Add"), node("Relu", "z", "end")]
    nodes[-1].name = ""
    view = view_graph(write(tmp_path / "encoder.onnx", nodes, outputs="end", constants=WEIGHT))
    assert [one.op for one in view.nodes] == ["Conv", "Relu", "Add", "Relu"]
    assert [one.name for one in view.nodes] == ["c", "y", "/head/Add", "end"]
    assert view.nodes[0].attributes == {"kernel_shape": [1, 3], "pads": [0, 1, 0, 1]}
    assert set(view.constants) == {"w", "k"} == set(view.known)
    assert view.shape("z") == (1, 8, 1, 16)
    assert (view.inputs, view.outputs, view.opset) == (("x",), ("end",), 17)
    assert view.producers["z"] is view.nodes[2]
    assert view.consumers("y") == (view.nodes[2],)
    assert view.data_inputs(view.nodes[2]) == ("y",)
    assert [one.shape for one in view.constant_inputs(view.nodes[2])] == [(1, 8, 1, 16)]
    assert view.open_shapes == {}
    with pytest.raises(RequestError, match="does not fix the shape of 'elsewhere'"):
        view.shape("elsewhere")


def test_the_model_in_memory_stays_as_it_is():
    model = model_of([CONV, RELU], constants=WEIGHT)
    before = model.SerializeToString()
    assert view_graph(model).shape("c") == (1, 8, 1, 16)
    assert model.SerializeToString() == before


def test_what_follows_from_shapes_is_known(tmp_path):
    nodes = [node("Shape", "x", "s"), node("Mul", "s two", "t"), node("Relu", "x", "y")]
    view = view_graph(write(tmp_path / "a.onnx", nodes, constants={"two": whole(2)}))
    assert {"s", "t", "two"} == set(view.known)


def test_open_shapes(tmp_path):
    path = write(tmp_path / "a.onnx", [RELU], inputs={"c": ("batch", 8, 1, "time")})
    message = refused(path, "has an open shape (batch x 8 x 1 x time): export it with static shapes")
    assert "'c'" in message
    view = view_graph(path, static=False)
    assert view.open_shapes == {"c": "batch x 8 x 1 x time"}
    assert "y" not in view.shapes


def test_functions_are_inlined(tmp_path):
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function(
        "com.example", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opset
    )
    model = model_of([node("Relu", "x", "r"), node("Double", "r", "y", domain="com.example")])
    model.functions.append(function)
    path = tmp_path / "a.onnx"
    onnx.save(model, path)
    assert [one.op for one in view_graph(path).nodes] == ["Relu", "Add"]


def test_an_operator_of_another_domain_is_named_with_it(tmp_path):
    path = write(tmp_path / "a.onnx", [node("Magic", "x", "m", domain="com.example"), node("Relu", "m", "y")])
    view = view_graph(path, static=False)
    assert [one.op for one in view.nodes] == ["com.example.Magic", "Relu"]
    assert load_onnx(path).graph.node[0].op_type == "Magic"
