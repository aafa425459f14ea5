"""Where a network's numbers become integers: one rule for the quantizer's graph and for training.

A layer is what the chip runs as one: a convolution, product of matrices, sum, product or quotient of two values,
gate, sigmoid, pool, sum over an axis, normalisation or softmax, with the ReLU behind it. What goes into a layer and
what comes out is stored as integers, and so are the network's own input and output; between a convolution and its ReLU
nothing is. What only moves numbers (resize, reshape, transpose) keeps those that it was given. All else stays in
float: other activation functions, whatever they are made of, and what happens inside a normalisation or softmax.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from whisper_hailo_hf.errors import RequestError

RESIDUAL_ADDS, OUTPUT = "residual_adds", "output"  # what 16 bits may be asked for by, besides names
_LAYERS = {"conv", "matmul", "add", "mul", "sigmoid", "pool", "concat", "relu", "reduce", "norm", "softmax"}
_BEFORE_RELU = {"conv", "matmul", "add", "mul"}


@dataclass(frozen=True)
class Op:
    """One operation of a network.

    Attributes:
        name: as in the graph, `/blocks.0/reduce/conv/Conv` for example.
        kind: `conv`, `matmul`, `add`, `mul`, `div`, `sigmoid`, `pool`, `concat`, `relu` (or a clip from 0 on),
            `reduce`, `norm`, `softmax`, `move` or `other`.
        inputs: the values that it reads, constants left out.
        output: the value that it gives.
        table: whether it also reads a constant of more than one number.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    output: str
    table: bool = False


@dataclass(frozen=True)
class Layer:
    """An operation and its activation, as the chip runs them.

    Attributes:
        op: the operation.
        output: what the layer gives: the operation's own output, or that of the ReLU behind it.
        input_bits: of the integers that it reads.
        weight_bits: 8 or 16, before any choice of the caller's.
        residual: whether it adds two values of the network.
    """

    op: Op
    output: str
    input_bits: int
    weight_bits: int
    residual: bool

    @property
    def name(self) -> str:
        return self.op.name

    @property
    def relu(self) -> bool:
        """Whether a ReLU is part of it."""
        return self.output != self.op.output


@dataclass(frozen=True)
class Placement:
    """What is stored as integers.

    Attributes:
        layers: in the order in which they run.
        bits: of each stored value, 8 or 16. A layer of `input_bits` 8 reads a value of 16 after another rounding.
        source: for a value that was only moved, the stored value whose numbers it has.
        activations: names of the ReLU operations that are part of a layer.
    """

    layers: tuple[Layer, ...]
    bits: dict[str, int]
    source: dict[str, str] = field(default_factory=dict)
    activations: frozenset[str] = frozenset()

    def root(self, value: str) -> str:
        """The value whose scale this value has."""
        return self.source.get(value, value)

    def stored(self, value: str) -> bool:
        """Whether the value is stored as integers."""
        return self.root(value) in self.bits


def place(ops: Sequence[Op], outputs: Iterable[str], sixteen_bit: Iterable[str] = ()) -> Placement:
    """Decides what is stored as integers, and in how many bits.

    Args:
        ops: the network, in the order in which it runs.
        outputs: names of the values that it gives.
        sixteen_bit: `"residual_adds"` (each sum of two values, in and out), `"output"` (the values that the network
            gives), and names of operations, or patterns as `/blocks.3/*`: what they read, their weights and what they
            give.

    Raises:
        RequestError: a name that no layer has.
    """
    outputs, wanted = set(outputs), list(sixteen_bit)
    readers: dict[str, list[Op]] = {}
    for op in ops:
        for value in op.inputs:
            readers.setdefault(value, []).append(op)
    makers = {op.output: op for op in ops}
    behind: dict[str, Op] = {}  # by the name of an operation, the ReLU that becomes part of it
    for op in ops:
        after = readers.get(op.output, [])
        if op.kind in _BEFORE_RELU and len(after) == 1 and after[0].kind == "relu" and op.output not in outputs:
            behind[op.name] = after[0]
    taken = {relu.name for relu in behind.values()}
    drafts = [op for op in ops if op.name not in taken and _is_layer(op, makers)]
    named = _matches(wanted, [op.name for op in drafts])

    stored = {value for op in drafts for value in op.inputs}
    stored |= {behind[op.name].output if op.name in behind else op.output for op in drafts}
    # what goes in and what comes out are integers on any device, whatever reads or makes them
    stored |= outputs | {value for op in ops for value in op.inputs} - {op.output for op in ops}
    source: dict[str, str] = {}
    for op in ops:
        if op.kind == "move" and (root := source.get(op.inputs[0], op.inputs[0])) in stored:
            source[op.output] = root

    layers, bits = [], {value: 8 for value in stored if value not in source}
    for op in drafts:
        output = behind[op.name].output if op.name in behind else op.output
        residual = op.kind == "add" and len(op.inputs) == 2
        wide = op.name in named or (residual and RESIDUAL_ADDS in wanted)
        layers.append(Layer(op, output, 16 if wide else 8, 16 if op.name in named else 8, residual))
        if wide:
            bits |= {source.get(value, value): 16 for value in (*op.inputs, output)}
    if OUTPUT in wanted:
        bits |= {root: 16 for value in outputs if (root := source.get(value, value)) in bits}
    return Placement(tuple(layers), bits, source, frozenset(taken))


def _is_layer(op: Op, makers: Mapping[str, Op]) -> bool:
    if op.kind == "add":
        return len(op.inputs) == 2 or op.table
    if op.kind in ("mul", "div"):
        return len(op.inputs) == 2 and not _is_part_of_an_activation(op, makers)
    return op.kind in _LAYERS


def _is_part_of_an_activation(op: Op, makers: Mapping[str, Op]) -> bool:
    """Whether both factors come from one value, as in GELU: x * (1 + erf(x)). A sigmoid is a layer of its own."""
    one, other = (_origin(value, makers) for value in op.inputs)
    return one == other


def _origin(value: str, makers: Mapping[str, Op]) -> str:
    while (op := makers.get(value)) is not None and len(op.inputs) == 1 and op.kind in ("other", "add", "mul", "div"):
        value = op.inputs[0]
    return value


def _matches(wanted: Iterable[str], names: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for pattern in wanted:
        if pattern in (RESIDUAL_ADDS, OUTPUT):
            continue
        matching = {name for name in names if fnmatchcase(name, pattern)}
        if not matching:
            known = ", ".join(list(names)[:4])
            raise RequestError(
                f"no layer is named {pattern!r}: use {RESIDUAL_ADDS!r}, {OUTPUT!r} or names and patterns of layers, "
                f"such as {known}"
            )
        found |= matching
    return found
