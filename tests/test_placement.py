"""Where integers lie: the layers of a network, what is stored in how many bits, and what is left alone."""

import pytest

from whisper_hailo_hf import RequestError
from whisper_hailo_hf.encoders.placement import Op, place

# a residual block with a gate behind a stem, a table of positions, a resize, a head
BLOCK = [
    Op("/stem", "conv", ("in",), "s", True),
    Op("/act", "relu", ("s",), "a"),
    Op("/positions", "add", ("a",), "p", True),
    Op("/expand", "conv", ("p",), "e", True),
    Op("/pool", "pool", ("e",), "g"),
    Op("/excite", "conv", ("g",), "x", True),
    Op("/sigmoid", "sigmoid", ("x",), "o"),
    Op("/gate", "mul", ("e", "o"), "m"),
    Op("/sum", "add", ("p", "m"), "r"),
    Op("/resize", "move", ("r",), "z"),
    Op("/head", "conv", ("z",), "out", True),
]


def test_a_relu_belongs_to_the_layer_before_it():
    placement = place(BLOCK, ["out"])
    first = placement.layers[0]
    assert (first.name, first.output, first.relu) == ("/stem", "a", True)
    assert placement.activations == {"/act"}
    assert "s" not in placement.bits
    assert not placement.layers[1].relu


def test_what_moves_numbers_keeps_them():
    placement = place(BLOCK, ["out"])
    assert placement.root("z") == "r"
    assert placement.stored("z")
    assert "z" not in placement.bits
    assert [layer.name for layer in placement.layers] == [
        op.name for op in BLOCK if op.name not in ("/act", "/resize")
    ]
    assert set(placement.bits.values()) == {8}
    assert set(placement.bits) == {"in", "a", "p", "e", "g", "x", "o", "m", "r", "out"}


def test_residual_adds_are_those_of_two_values():
    placement = place(BLOCK, ["out"], ["residual_adds"])
    assert {name for name, bits in placement.bits.items() if bits == 16} == {"p", "m", "r"}
    by_name = {layer.name: layer for layer in placement.layers}
    assert by_name["/sum"].residual
    assert not by_name["/positions"].residual
    assert by_name["/sum"].input_bits == 16
    assert by_name["/sum"].weight_bits == 8  # it has none
    assert by_name["/head"].input_bits == 8  # it reads what is stored in 16 bits after a rounding to 8


def test_the_output_alone():
    placement = place(BLOCK, ["out"], ["output"])
    assert {name for name, bits in placement.bits.items() if bits == 16} == {"out"}
    assert placement.layers[-1].weight_bits == placement.layers[-1].input_bits == 8


def test_named_layers_and_patterns():
    placement = place(BLOCK, ["out"], ["/ex*"])
    named = [layer for layer in placement.layers if layer.weight_bits == 16]
    assert [layer.name for layer in named] == ["/expand", "/excite"]
    assert {name for name, bits in placement.bits.items() if bits == 16} == {"p", "e", "g", "x"}
    with pytest.raises(RequestError, match="no layer is named '/act': use 'residual_adds', 'output' or names"):
        place(BLOCK, ["out"], ["/act"])  # it is part of the stem's layer


def test_a_relu_that_others_bypass_stands_alone():
    ops = [
        Op("/conv", "conv", ("in",), "c", True),
        Op("/relu", "relu", ("c",), "r"),
        Op("/sum", "add", ("c", "r"), "out"),
    ]
    placement = place(ops, ["out"])
    assert [layer.name for layer in placement.layers] == ["/conv", "/relu", "/sum"]
    assert set(placement.bits) == {"in", "c", "r", "out"}
    seen = place(ops[:2], ["c", "r"])  # the convolution's own output is asked for
    assert not seen.layers[0].relu


def test_activation_functions_and_scalars_stay_in_float():
    ops = [
        Op("/conv", "conv", ("in",), "c", True),
        Op("/half", "mul", ("c",), "h"),  # by a number
        Op("/erf", "other", ("c",), "f"),
        Op("/one", "add", ("f",), "g"),  # a number added
        Op("/gelu", "mul", ("h", "g"), "u"),  # no gate
        Op("/norm", "other", ("u",), "n"),
        Op("/turn", "move", ("n",), "t"),
        Op("/next", "conv", ("t",), "out", True),
    ]
    placement = place(ops, ["out"])
    assert [layer.name for layer in placement.layers] == ["/conv", "/next"]
    assert set(placement.bits) == {"in", "c", "t", "out"}  # stored only where a layer reads it
    assert placement.root("t") == "t"


def test_the_edges_are_integers_whatever_is_there():
    ops = [
        Op("/pad", "move", ("in",), "p"),
        Op("/conv", "conv", ("p",), "c", True),
        Op("/erf", "other", ("c",), "out"),
    ]
    placement = place(ops, ["out"])
    assert set(placement.bits) == {"in", "c", "out"}
    assert placement.root("p") == "in"


def test_a_product_is_a_layer_and_an_activation_is_none():
    ops = [
        Op("/a", "conv", ("in",), "a", True),
        Op("/b", "conv", ("in",), "b", True),
        Op("/product", "mul", ("a", "b"), "ab"),
        Op("/sum", "reduce", ("b",), "s"),
        Op("/quotient", "div", ("ab", "s"), "q"),
        Op("/half", "div", ("q",), "h"),
        Op("/erf", "other", ("h",), "e"),
        Op("/one", "add", ("e",), "o"),
        Op("/gelu", "mul", ("q", "o"), "g"),
        Op("/c", "conv", ("g",), "out", True),
    ]
    placement = place(ops, ["out"])
    assert [layer.name for layer in placement.layers] == ["/a", "/b", "/product", "/sum", "/quotient", "/c"]
    assert set(placement.bits) == {"in", "a", "b", "ab", "s", "q", "g", "out"}
