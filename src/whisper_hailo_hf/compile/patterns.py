"""Groups of nodes that the compiler takes as one: activations, normalisations, quotients, gates.

A node is known by the name of its first output, which is unique in any ONNX graph; node names need not be.
"""

from collections.abc import Callable, Iterable

from whisper_hailo_hf.compile.graph import GraphView, Node

LINEAR = ("Conv", "ConvTranspose", "Gemm")
ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand")


def claims(graph: GraphView) -> dict[str, str]:
    """Rule ids of the nodes that belong to a pattern, by the node's first output; an earlier pattern wins."""
    found: dict[str, str] = {}
    finders: tuple[tuple[str, Callable[[GraphView, Node], list[Node] | None]], ...] = (
        ("layer-norm", _layer_norm),
        ("group-norm", _group_norm),
        ("silu", _silu),
        ("soft-activation", _soft_activation),
        ("denominator", _denominator),
    )
    for rule, find in finders:
        for node in graph.nodes:
            for member in find(graph, node) or ():
                found.setdefault(member.outputs[0], rule)
    return found


def producer(graph: GraphView, tensor: str) -> Node | None:
    """The node that gives a tensor, if one does."""
    return graph.producers.get(tensor)


def only_consumer(graph: GraphView, node: Node) -> Node | None:
    """The one node that takes what this one gives, if there is just one and the graph does not give it out."""
    takers = graph.consumers(node.outputs[0])
    return takers[0] if len(takers) == 1 and node.outputs[0] not in graph.outputs else None


def is_scalar(graph: GraphView, node: Node) -> bool:
    """Whether an elementwise node has one activation and one constant number."""
    others = [name for name in node.inputs if name in graph.known]
    return len(graph.data_inputs(node)) == 1 and all(_size(graph, name) == 1 for name in others)


def is_gate(graph: GraphView, tensor: str) -> bool:
    """Whether a tensor is one value for each channel that comes out of a pool over the whole map."""
    shape = graph.shapes.get(tensor, ())
    if len(shape) != 4 or shape[2:] != (1, 1):
        return False
    return any(
        len(graph.shapes.get(node.inputs[0], ())) == 4 and graph.shapes[node.inputs[0]][2:] != (1, 1)
        for node in upstream(graph, tensor, lambda node: graph.shapes.get(node.outputs[0], ())[2:] == (1, 1))
        if node.op in ("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "ReduceMean")
    )


def upstream(graph: GraphView, tensor: str, through: Callable[[Node], bool]) -> Iterable[Node]:
    """The nodes behind a tensor, as far as `through` holds."""
    waiting, seen = [tensor], set()
    while waiting:
        node = graph.producers.get(waiting.pop())
        if node is None or node.outputs[0] in seen or not through(node):
            continue
        seen.add(node.outputs[0])
        yield node
        waiting.extend(graph.data_inputs(node))


def splits_heads(graph: GraphView, node: Node) -> bool:
    """Whether only further moves and scalings lie between this Reshape or Transpose and a product of activations."""

    def passes(other: Node) -> bool:
        return other.op in _MOVES or (other.op in ("Mul", "Div") and is_scalar(graph, other))

    waiting, seen = [node], set()
    while waiting:
        here = waiting.pop()
        if here.outputs[0] in seen:
            continue
        seen.add(here.outputs[0])
        before = [graph.producers.get(name) for name in graph.data_inputs(here)]
        for other in (*before, *graph.consumers(here.outputs[0])):
            if other is None:
                continue
            if other.op == "MatMul" and len(graph.data_inputs(other)) == 2:
                return True
            if passes(other):
                waiting.append(other)
    return False


def joins_attention(graph: GraphView, node: Node, claimed: dict[str, str]) -> bool:
    """Whether an Add joins a branch with a normalisation, quotient or product of activations to the stream that it
    branched from."""

    def special(other: Node) -> bool:
        if claimed.get(other.outputs[0]) in ("layer-norm", "group-norm", "denominator"):
            return True
        return other.op == "Softmax" or (other.op == "MatMul" and len(graph.data_inputs(other)) == 2)

    first, second = graph.data_inputs(node)
    for stream, branch in ((first, second), (second, first)):
        start = graph.producers.get(stream)
        within = list(upstream(graph, branch, lambda other, start=start: other is not start))  # type: ignore[misc]
        if any(stream in other.inputs for other in within) and any(special(other) for other in within):
            return True
    return False


def _size(graph: GraphView, name: str) -> int | None:
    shape = graph.shapes.get(name)
    if shape is None:
        return None
    size = 1
    for one in shape:
        size *= one
    return size


def _constant_tail(graph: GraphView, node: Node, ops: tuple[str, ...]) -> list[Node]:
    """The nodes right behind that scale and shift by constants, in that order."""
    tail = []
    for op in ops:
        following = only_consumer(graph, node)
        if following is None or following.op != op or len(graph.data_inputs(following)) != 1:
            break
        tail.append(following)
        node = following
    return tail


def _with_transposes(graph: GraphView, first: Node, members: list[Node]) -> list[Node]:
    before = producer(graph, first.inputs[0])
    around = []
    if before is not None and before.op == "Transpose":
        own = {member.outputs[0] for member in members}
        if all(taker.outputs[0] in own for taker in graph.consumers(before.outputs[0])):
            around.append(before)
    behind = [taker for taker in graph.consumers(members[-1].outputs[0]) if taker.op == "Transpose"]
    return [*around, *members, *behind]


def _layer_norm(graph: GraphView, node: Node) -> list[Node] | None:
    if node.op == "LayerNormalization":
        return _with_transposes(graph, node, [node])
    if node.op != "Sqrt":
        return None
    # x - mean(x), squared, averaged, + eps, square root, then divided by
    plus = producer(graph, node.inputs[0])
    variance = (
        producer(graph, graph.data_inputs(plus)[0]) if plus and plus.op == "Add" and is_scalar(graph, plus) else None
    )
    square = producer(graph, variance.inputs[0]) if variance and variance.op == "ReduceMean" else None
    if variance is None or square is None or square.op not in ("Pow", "Mul"):
        return None
    centred = producer(graph, square.inputs[0])
    quotient = only_consumer(graph, node)
    if centred is None or centred.op != "Sub" or quotient is None or quotient.op != "Div":
        return None
    mean = producer(graph, centred.inputs[1])
    members = [one for one in (mean, centred, square, variance, plus, node, quotient) if one is not None]
    members += _constant_tail(graph, quotient, ("Mul", "Add"))
    return _with_transposes(graph, centred, members)


def _group_norm(graph: GraphView, node: Node) -> list[Node] | None:
    if node.op == "GroupNormalization":
        return [node]
    if node.op != "InstanceNormalization":
        return None
    before, behind = producer(graph, node.inputs[0]), only_consumer(graph, node)
    if before is None or behind is None or before.op != "Reshape" or behind.op != "Reshape":
        return None
    return [before, node, behind, *_constant_tail(graph, behind, ("Mul", "Add"))]


def _silu(graph: GraphView, node: Node) -> list[Node] | None:
    return _times_own(graph, node, "Sigmoid")


def _times_own(graph: GraphView, node: Node, op: str) -> list[Node] | None:
    """x * op(x), where nothing else takes op(x)."""
    if node.op == op:
        following = only_consumer(graph, node)
        if following is not None and following.op == "Mul" and node.inputs[0] in following.inputs:
            return [node, following]
    return None


def _soft_activation(graph: GraphView, node: Node) -> list[Node] | None:
    if node.op in ("Gelu", "HardSwish", "Mish"):
        return [node]
    if node.op == "Softplus":  # Mish: x * tanh(softplus(x))
        tanh = only_consumer(graph, node)
        times = only_consumer(graph, tanh) if tanh and tanh.op == "Tanh" else None
        return [node, tanh, times] if tanh and times and node.inputs[0] in times.inputs else None
    if node.op != "Erf":
        return _times_own(graph, node, "HardSigmoid")
    # GELU: x * (1 + erf(x / sqrt(2))) * 0.5, the factors in any order
    scaled, plus = producer(graph, node.inputs[0]), only_consumer(graph, node)
    if scaled is None or plus is None or scaled.op not in ("Div", "Mul") or plus.op != "Add":
        return None
    times = only_consumer(graph, plus)
    if not (is_scalar(graph, scaled) and is_scalar(graph, plus)) or times is None or times.op != "Mul":
        return None
    members, source = [scaled, node, plus, times], graph.data_inputs(scaled)[0]
    for name in times.inputs:
        half = producer(graph, name)
        if half is not None and half.op == "Mul" and is_scalar(graph, half) and source in half.inputs:
            return [*members, half]
    behind = only_consumer(graph, times)
    if source in times.inputs and behind is not None and behind.op == "Mul" and is_scalar(graph, behind):
        return [*members, behind]
    return None


def _denominator(graph: GraphView, node: Node) -> list[Node] | None:
    if node.op != "Div" or node.inputs[1] in graph.known:
        return None

    def sums(other: Node) -> bool:
        return other.op in ("ReduceSum", "Clip", "Max", "Mul") or (other.op == "Add" and is_scalar(graph, other))

    return [node, *(one for one in upstream(graph, node.inputs[1], sums) if one.op != "Mul")]
