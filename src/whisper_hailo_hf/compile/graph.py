"""An ONNX file read with care, and its graph to look at: nodes, constants, shapes, who gives and takes a tensor."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

NEEDS_ONNX = "reading an ONNX graph needs onnx: pip install 'whisper-hailo-hf[onnx]'"


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        name: its name, or that of its first output if it has none.
        op: the operator, such as "Conv"; of another domain than ONNX's own, with the domain before it.
        inputs, outputs: names of tensors; an input that is left out is "".
        attributes: by name; strings as str, tensors as arrays.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphView:
    """A graph.

    Attributes:
        nodes: in the order in which they run, without those that only hold a constant.
        constants: weights and tables by the name of their tensor.
        shapes: by the name of the tensor, as far as they are fixed.
        inputs, outputs: names of the graph's own tensors.
        producers: the node behind each tensor that a node gives.
        readers: the nodes that take a tensor.
        known: names of all tensors that can be computed before any input is there, `constants` among them.
        open_shapes: inputs whose shape is not fixed, as text such as "batch x 80 x 1 x ?".
        opset: version of ONNX's operator set.
    """

    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    producers: dict[str, Node]
    readers: dict[str, tuple[Node, ...]]
    known: frozenset[str]
    open_shapes: dict[str, str]
    opset: int

    def data_inputs(self, node: Node) -> tuple[str, ...]:
        """What a node takes that is not known beforehand."""
        return tuple(name for name in node.inputs if name and name not in self.known)

    def constant_inputs(self, node: Node) -> tuple[np.ndarray, ...]:
        """The constants that a node takes, in order."""
        return tuple(self.constants[name] for name in node.inputs if name in self.constants)

    def consumers(self, tensor: str) -> tuple[Node, ...]:
        """The nodes that take a tensor."""
        return self.readers.get(tensor, ())

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor; a `RequestError` where it is not fixed."""
        if tensor not in self.shapes:
            raise RequestError(f"the graph does not fix the shape of {tensor!r}: export it with static shapes")
        return self.shapes[tensor]


def load_onnx(path: str | os.PathLike) -> "ModelProto":
    """Reads an ONNX file, with the weights that it may keep in other files of its folder.

    Raises:
        RequestError: there is no such file, it is no ONNX file, it names weights outside its folder, those cannot be
            read, or ONNX's own checker refuses it.
    """
    try:
        import onnx
    except ImportError as error:
        raise RequestError(NEEDS_ONNX) from error
    from google.protobuf.message import DecodeError

    path = Path(path)
    if not path.is_file():
        raise RequestError(f"{path} is a folder: name an ONNX file" if path.is_dir() else f"{path}: no such file")
    try:
        data = path.read_bytes()
        model = onnx.ModelProto.FromString(data)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from None
    except DecodeError:
        raise RequestError(f"{path} is no ONNX file") from None
    if not data:
        raise RequestError(f"{path} is empty")
    if not model.graph.node or not model.opset_import:
        raise RequestError(f"{path} is no ONNX file, or one without a graph")
    folder = path.resolve().parent
    for tensor in _tensors(model.graph):
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if location and not (folder / location).resolve().is_relative_to(folder):
            raise RequestError(f"{path} keeps weights in {location!r}, outside its own folder: refused")
    try:
        onnx.load_external_data_for_model(model, str(folder))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise RequestError(f"{path}: the weights beside it cannot be read: {_one_line(error)}") from None
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise RequestError(f"{path} is no valid ONNX graph: {_one_line(error)}") from None
    return model


def view_graph(source: "str | os.PathLike | ModelProto", *, static: bool = True) -> GraphView:
    """The graph in a file, or of a model in memory, which stays as it is.

    Args:
        source: a path, or a model.
        static: demand that ONNX's shape inference fixes every shape.

    Raises:
        RequestError: as `load_onnx`; with `static`, also where shapes contradict each other or an input's is open.
    """
    try:
        import onnx
    except ImportError as error:
        raise RequestError(NEEDS_ONNX) from error
    where = "the graph" if isinstance(source, onnx.ModelProto) else os.fspath(source)
    model = source if isinstance(source, onnx.ModelProto) else load_onnx(source)
    if model.functions:
        from onnx.inliner import inline_local_functions

        model = inline_local_functions(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=static, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise RequestError(f"{where} is no valid ONNX graph: {_one_line(error)}") from None
    view = _view(inferred, next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0))
    for name, sizes in view.open_shapes.items() if static else ():
        raise RequestError(f"the input {name!r} of {where} has an open shape ({sizes}): export it with static shapes")
    return view


def _view(graph: "GraphProto", opset: int) -> GraphView:
    import onnx

    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes, known = [], set(constants)
    shapes = {name: array.shape for name, array in constants.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.HasField("shape") and all(size > 0 for size in sizes):
            shapes[value.name] = tuple(sizes)
    for proto in graph.node:
        attributes = {one.name: _plain(onnx.helper.get_attribute_value(one)) for one in proto.attribute}
        inputs = [name for name in proto.input if name]
        if proto.op_type == "Constant" and len(attributes) == 1:
            constants[proto.output[0]] = np.asarray(next(iter(attributes.values())))
            known.add(proto.output[0])
            continue
        if known.issuperset(inputs) or (proto.op_type in ("Shape", "Size") and inputs[0] in shapes):
            known.update(proto.output)
        op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
        name = proto.name or proto.output[0]
        nodes.append(Node(name, op, tuple(proto.input), tuple(proto.output), attributes))
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in dict.fromkeys(node.inputs):
            readers.setdefault(name, []).append(node)
    given = [value for value in graph.input if value.name not in constants]
    return GraphView(
        nodes=tuple(nodes),
        constants=constants,
        shapes=shapes,
        inputs=tuple(value.name for value in given),
        outputs=tuple(value.name for value in graph.output),
        producers={output: node for node in nodes for output in node.outputs if output},
        readers={name: tuple(some) for name, some in readers.items() if name},
        known=frozenset(known),
        open_shapes={value.name: _sizes(value) for value in given if value.name not in shapes},
        opset=opset,
    )


def _sizes(value: Any) -> str:
    if not value.type.tensor_type.HasField("shape"):
        return "unknown"
    sizes = value.type.tensor_type.shape.dim
    return " x ".join(str(size.dim_value) if size.dim_value > 0 else size.dim_param or "?" for size in sizes)


def _plain(value: Any) -> Any:
    import onnx

    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _tensors(graph: "GraphProto") -> Iterator["TensorProto"]:
    """All tensors that a graph holds, those in attributes and in graphs within it too."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
