"""Small ONNX graphs for tests, node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int | str, ...]


def node(op: str, inputs: str, outputs: str, name: str = "", domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node; `inputs` and `outputs` are names with spaces between them, "-" for an input that is left out."""
    given = ["" if one == "-" else one for one in inputs.split()]
    return helper.make_node(op, given, outputs.split(), name=name or outputs.split()[0], domain=domain, **attributes)


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Shape] | None = None,
    outputs: str = "y",
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model with float inputs `x` of (1, 8, 1, 16), unless others are given; shapes of the outputs are inferred."""
    given = {"x": (1, 8, 1, 16)} if inputs is None else inputs
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs.split()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
    for value in model.graph.output:
        value.CopyFrom(inferred[value.name])
        if not value.type.tensor_type.HasField("shape"):  # four sizes that nobody knows
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [None] * 4))
    return model


def write(path: Path, *args: Any, **kwargs: Any) -> Path:
    """Such a model as a file."""
    onnx.save(model_of(*args, **kwargs), path)
    return path


def array(*shape: int, value: float | None = None) -> np.ndarray:
    """Float32 of that shape: random, or one value."""
    if value is not None:
        return np.full(shape, value, dtype=np.float32)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    """Whole numbers, as ONNX takes axes and shapes."""
    return np.array(numbers, dtype=np.int64)
