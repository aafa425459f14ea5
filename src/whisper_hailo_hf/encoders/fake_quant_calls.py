"""Which torch functions a core's forward calls, in which order, and how their values hang together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from whisper_hailo_hf.encoders.export import INPUT_NAME, OUTPUT_NAME
from whisper_hailo_hf.encoders.layers import EncoderCore
from whisper_hailo_hf.encoders.placement import Op
from whisper_hailo_hf.errors import RequestError

_KINDS: dict[Any, str] = {
    torch.conv2d: "conv",
    F.conv2d: "conv",
    F.batch_norm: "norm",
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu",
    F.silu: "silu",
    torch.sigmoid: "sigmoid",
    torch.Tensor.sigmoid: "sigmoid",
    F.adaptive_avg_pool2d: "pool",
    F.interpolate: "move",
    F.dropout: "move",
    torch.matmul: "matmul",
    torch.Tensor.matmul: "matmul",
    torch.Tensor.__matmul__: "matmul",
}
_KINDS |= dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), "add")
_KINDS |= dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__), "mul")
_KINDS |= dict.fromkeys(
    (getattr(torch.Tensor, name) for name in ("reshape", "transpose", "permute", "squeeze", "unsqueeze", "flatten")),
    "move",
)
COUNTED = {"conv", "norm", "relu", "silu", "sigmoid", "pool", "add", "mul", "matmul"}
_OPERATORS = {
    "conv": "Conv",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "pool": "GlobalAveragePool",
    "add": "Add",
    "mul": "Mul",
    "matmul": "MatMul",
    "silu": "Mul",
}


def kind_of(func: Any, args: Any) -> str:
    kind = _KINDS.get(func, "other")
    if kind in ("add", "mul") and not all(isinstance(one, Tensor) for one in args[:2]):
        return "other"  # by a plain number
    if kind == "pool" and args[1] not in (1, (1, 1)):
        return "other"
    return kind


@dataclass
class Call:
    """One call of a torch function that matters, in the order of a forward."""

    kind: str  # of an operation in `placement`, or `norm`, `silu`
    layer: str | None  # the operation's name
    value: str  # what comes out
    reads: tuple[str | None, ...]  # what goes in; None for what does not depend on the input
    norm: nn.BatchNorm2d | None = None  # for a convolution, what follows it and folds into it
    gate: str = ""  # for a SiLU, the value of its sigmoid


class Recorder(TorchFunctionMode):
    """Learns the operations of a forward and how their values hang together, named as the export names them."""

    def __init__(self, core: EncoderCore, features: Tensor) -> None:
        super().__init__()
        self.core, self.calls, self.ops = core, list[Call](), list[Op]()
        self._scope: list[str] = []
        self._modules: list[nn.Module] = []
        self._values: dict[int, str] = {id(features): INPUT_NAME}
        self._alive: list[Any] = [features]  # an id is only good as long as its tensor lives
        self._taken: dict[str, int] = {}
        self._made_by: dict[str, Call] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, Tensor)]
        known = tuple(self._values[id(one)] for one in given if id(one) in self._values)
        kind = kind_of(func, args)
        if isinstance(result, Tensor) and (known or kind in COUNTED):
            self._alive.append(result)
            self._note(kind, func, args, known, result)
        return result

    def _note(self, kind: str, func: Any, args: Any, known: tuple[str, ...], result: Tensor) -> None:
        operands = args[:2] if kind in ("add", "mul", "matmul") else args[:1]
        reads = tuple(self._values.get(id(one)) for one in operands)
        if kind == "norm":
            maker = self._made_by.get(known[0]) if known else None
            if maker is None or maker.kind != "conv" or not isinstance(self._modules[-1], nn.BatchNorm2d):
                raise RequestError("fake quantisation knows BatchNorm behind a convolution only")
            maker.norm = self._modules[-1]
            self.calls.append(Call("norm", None, known[0], reads))
            self._values[id(result)] = known[0]
            return
        name = self._name(_OPERATORS.get(kind, getattr(func, "__name__", "op")))
        value = f"{name}_output_0"
        gate = ""
        if kind == "silu":
            sigmoid = self._name("Sigmoid")
            gate = f"{sigmoid}_output_0"
            self.ops += [Op(sigmoid, "sigmoid", known, gate), Op(name, "mul", (*known, gate), value)]
        else:
            table = kind == "add" and len(known) < 2
            self.ops.append(Op(name, kind if known else "other", known, value, table))
        self._values[id(result)] = value
        if kind in COUNTED:
            call = Call(kind, name, value, reads, gate=gate)
            self.calls.append(call)
            self._made_by[value] = call

    def _name(self, operator: str) -> str:
        name = "/" + "/".join([*(part for part in self._scope if part), operator])
        count = self._taken.get(name, 0)
        self._taken[name] = count + 1
        return f"{name}_{count}" if count else name

    def watch(self) -> Iterator[Any]:
        """Sets the hooks by which the recorder knows which module it is in, and yields them."""
        for name, module in self.core.named_modules():
            yield module.register_forward_pre_hook(self._entering(name))
            yield module.register_forward_hook(self._left)

    def _entering(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            outer = ".".join(part for part in self._scope if part)
            self._scope.append(name[len(outer) :].lstrip(".") if outer else name)
            self._modules.append(module)

        return enter

    def _left(self, module: nn.Module, args: Any, result: Any) -> None:
        self._scope.pop()
        self._modules.pop()

    def finish(self, output: Tensor) -> None:
        """Gives the network's output its name."""
        last = self._values[id(output)]
        for call in self.calls:
            call.value = OUTPUT_NAME if call.value == last else call.value
            call.reads = tuple(OUTPUT_NAME if one == last else one for one in call.reads)
        self.ops = [
            Op(
                op.name,
                op.kind,
                tuple(OUTPUT_NAME if one == last else one for one in op.inputs),
                OUTPUT_NAME if op.output == last else op.output,
                op.table,
            )
            for op in self.ops
        ]


@torch.no_grad()
def record_calls(core: EncoderCore, features: Tensor) -> tuple[list[Call], list[Op]]:
    """Runs a core once, in evaluation, and learns what it is made of.

    Args:
        core: the network; it is left as it was.
        features: an input of the right shape.

    Returns:
        The calls that matter, in their order, and the operations that they are, named as the export names them.

    Raises:
        RequestError: a BatchNorm that stands elsewhere than behind a convolution.
    """
    training = {module: module.training for module in core.modules()}
    recorder = Recorder(core, features)
    hooks = list(recorder.watch())
    core.eval()
    try:
        with recorder:
            output = core(features)
    finally:
        for hook in hooks:
            hook.remove()
        for module, was in training.items():
            module.training = was
    recorder.finish(output)
    return recorder.calls, recorder.ops
