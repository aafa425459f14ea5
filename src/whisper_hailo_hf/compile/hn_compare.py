"""Compares one layer of the compiler's graph with what it should be: shapes, attributes, weights."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from whisper_hailo_hf.compile.graph import GraphView
from whisper_hailo_hf.compile.hn_fusion import Expected
from whisper_hailo_hf.hailo.har import HnLayer

# float32 on both sides; folding a normalisation in another order moves the last digits
RELATIVE, ABSOLUTE = 1e-4, 1e-5
ALIASES = {"leaky_relu": "leaky", "swish": "silu", "none": "linear", "": "linear", "hard_sigmoid": "hardsigmoid"}
# operators whose tensors have no channels to speak of: only the number of elements can be compared
_FREE_LAYOUT = {"MatMul", "Softmax", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it should be; `warning` where it could only not be checked."""

    kind: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Layout:
    """How ONNX's (batch, channels, height, width) lies in the compiler's graph.

    Attributes:
        swapped: whether the compiler exchanged height and width throughout.
    """

    swapped: bool = False

    def shape(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """(batch, channels, height, width) as (-1, height, width, channels)."""
        if len(sizes) == 2:
            return (-1, sizes[1])
        return (-1, *self.pair(sizes[2:4]), sizes[1])

    def pair(self, sizes: tuple[int, ...]) -> tuple[int, int]:
        """A (height, width) pair."""
        return (sizes[1], sizes[0]) if self.swapped else (sizes[0], sizes[1])

    def kernel(self, weights: np.ndarray, depthwise: bool) -> np.ndarray:
        """(out, in, height, width) as (height, width, in, out); depthwise as (height, width, channels, 1)."""
        if self.swapped:
            weights = weights.swapaxes(2, 3)
        return weights.transpose(2, 3, 0, 1) if depthwise else weights.transpose(2, 3, 1, 0)


def compare(
    view: GraphView,
    expected: Expected,
    layer: HnLayer,
    padding_layer: HnLayer | None,
    weights: Mapping[str, np.ndarray] | None,
    layout: Layout,
) -> Iterator[Difference]:
    """What differs between a layer and what it should be.

    Args:
        view: the ONNX graph.
        expected: what the layer should be.
        layer: what it is.
        padding_layer: the `external_pad` in front of it, if any.
        weights: its arrays; None if the archive has none at all.
        layout: how shapes correspond.
    """
    yield from _shapes(view, expected, layer, layout)
    if layer.type in ("conv", "dw"):
        yield from _convolution(view, expected, layer, padding_layer, layout)
    yield from _activation(expected, layer)
    if layer.type == "layer_normalization":
        yield from _reduced_axes(view, expected, layer, layout)
    if layer.type == "resize":
        yield from _resize(expected, layer)
    if expected.kernel is not None and weights is not None and layer.type in ("conv", "dw", "dense"):
        yield from _weights(expected, layer, weights, layout)


def _shapes(view: GraphView, expected: Expected, layer: HnLayer, layout: Layout) -> Iterator[Difference]:
    sizes = view.shape(expected.output)
    if not layer.output_shapes:
        yield Difference("shape", "the layer says no output shape", warning=True)
        return
    given = layer.output_shapes[0]
    if len(sizes) not in (2, 4) or expected.anchor.op in _FREE_LAYOUT or expected.anchor.op == "Split":
        if expected.anchor.op != "Split" and _elements(given) != _elements((-1, *sizes[1:])):
            yield Difference("shape", f"gives {_text(given[1:])} for {_text(sizes[1:])}: another number of elements")
        return
    wanted = layout.shape(sizes)
    if given[1:] != wanted[1:]:
        yield Difference("shape", f"gives {_text(given[1:])} instead of {_text(wanted[1:])} (height, width, channels)")


def _convolution(
    view: GraphView, expected: Expected, layer: HnLayer, padding_layer: HnLayer | None, layout: Layout
) -> Iterator[Difference]:
    anchor, params = expected.anchor, layer.params
    if expected.kernel is None:
        return
    outs, ins, *taps = expected.kernel.shape
    kernel = layout.pair(tuple(taps))
    groups = int(anchor.attributes.get("group", 1))
    depthwise = layer.type == "dw"
    channels = ins * groups
    wanted = (*kernel, channels, outs // channels) if depthwise else (*kernel, ins, outs)
    given = params.get("kernel_shape")
    if given is not None and tuple(_numbers(given)) != wanted:
        yield Difference("kernel", f"kernel_shape {_text(given)} instead of {_text(wanted)} (height, width, in, out)")
    strides, dilations = (layout.pair(tuple(anchor.attributes.get(name, (1, 1)))) for name in ("strides", "dilations"))
    for kind, name, pair in (("stride", "strides", strides), ("dilation", "dilations", dilations)):
        given = params.get(name, (1, 1, 1, 1))
        if tuple(_numbers(given)) != (1, *pair, 1):
            yield Difference(kind, f"{name} {_text(given)} instead of {_text((1, *pair, 1))}")
    given = params.get("groups", channels if depthwise else 1)
    if depthwise and groups != channels:
        yield Difference("groups", f"depthwise instead of {groups} group{'s' * (groups > 1)}")
    elif given != groups and not (depthwise and given == 1):
        yield Difference("groups", f"groups {given} instead of {groups}")
    if anchor.op == "Conv":
        yield from _padding(view, expected, layer, padding_layer, (kernel, strides, dilations), layout)
    added = bool(params.get("elementwise_add"))
    if added and expected.residual is None:
        yield Difference("residual", "adds something in (elementwise_add), where the graph adds nothing")
    elif expected.residual is not None and not added and len(layer.inputs) < 2:
        yield Difference(
            "residual", f"takes in the add of {expected.residual}, but has one input and no elementwise_add"
        )


def _padding(
    view: GraphView,
    expected: Expected,
    layer: HnLayer,
    padding_layer: HnLayer | None,
    window: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    layout: Layout,
) -> Iterator[Difference]:
    """Where the taps of the first and the last output lie, which is all that padding is for."""
    anchor = expected.anchor
    source = expected.pad.inputs[0] if expected.pad is not None else anchor.inputs[0]
    sizes = layout.pair(view.shape(source)[2:4])
    pads = _pads(view, expected, layout)
    if pads is None:
        yield Difference("padding", "the graph's own padding has a form that is not compared", warning=True)
        return
    extra = _external(padding_layer)
    for index, axis in enumerate(("height", "width")):
        kernel, stride, dilation = (pair[index] for pair in window)
        reach = dilation * (kernel - 1)
        before, behind = extra[index]
        inner = sizes[index] + before + behind
        own = _named_padding(layer.params.get("padding"), inner, reach, stride)
        if own is None:
            text = f"padding {layer.params.get('padding')!r} has a form that is not known here"
            yield Difference("padding", text, warning=True)
            return
        wanted = _used(sizes[index], reach, stride, *pads[index])
        given = _used(sizes[index], reach, stride, before + own[0], behind + own[1])
        if given != wanted:
            yield Difference(
                "padding",
                f"pads the {axis} by {given[0]} before and {given[1]} behind instead of {wanted[0]} and {wanted[1]}",
            )


def _pads(view: GraphView, expected: Expected, layout: Layout) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The graph's padding as (before, behind) of height and of width."""
    anchor = expected.anchor
    if anchor.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    top, left, bottom, right = map(int, anchor.attributes.get("pads", (0, 0, 0, 0)))
    if expected.pad is not None:
        ahead = expected.pad.attributes.get("pads")
        ahead = view.constants.get(expected.pad.inputs[1]) if ahead is None else ahead
        if ahead is None or len(ahead) != 8:
            return None
        top, left, bottom, right = (
            top + int(ahead[2]),
            left + int(ahead[3]),
            bottom + int(ahead[6]),
            right + int(ahead[7]),
        )
    pairs = layout.pair(((top, bottom), (left, right)))  # type: ignore[arg-type]
    return pairs  # type: ignore[return-value]


def _external(layer: HnLayer | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """What an `external_pad` adds, as (before, behind) of height and of width."""
    if layer is None or not layer.input_shapes or not layer.output_shapes:
        return (0, 0), (0, 0)
    grown = [after - before for before, after in zip(layer.input_shapes[0], layer.output_shapes[0], strict=False)][1:3]
    if len(grown) != 2:
        return (0, 0), (0, 0)
    for value in layer.params.values():
        numbers = _numbers(value)
        if len(numbers) == 8:  # (before, behind) of batch, height, width, channels
            pairs = (numbers[2], numbers[3]), (numbers[4], numbers[5])
        elif len(numbers) == 4:  # top, bottom, left, right
            pairs = (numbers[0], numbers[1]), (numbers[2], numbers[3])
        else:
            continue
        if [sum(pair) for pair in pairs] == grown:
            return pairs
    return (grown[0] // 2, grown[0] - grown[0] // 2), (grown[1] // 2, grown[1] - grown[1] // 2)


def _named_padding(name: Any, size: int, reach: int, stride: int) -> tuple[int, int] | None:
    """(before, behind) of one axis.

    "SAME" is the symmetric scheme, half the kernel's reach on either side whatever the stride; "SAME_TENSORFLOW" is
    TensorFlow's, as little as ceil(size / stride) outputs need, the odd one behind (`hn_layers.py` of
    icml2019/equalization, Hailo's code for Meller et al. 2019; TensorFlow's guide to padding).
    """
    if name == "VALID" or (name in ("SAME", "SAME_TENSORFLOW") and reach == 0 and stride == 1):
        return 0, 0
    if name == "SAME":
        return reach // 2, reach - reach // 2
    if name == "SAME_TENSORFLOW":
        total = max(0, (-(-size // stride) - 1) * stride + reach + 1 - size)
        return total // 2, total - total // 2
    return None


def _used(size: int, reach: int, stride: int, before: int, behind: int) -> tuple[int, int, int]:
    """The padding before, the padding behind that is read at all, and the number of outputs."""
    outputs = max(0, (size + before + behind - reach - 1) // stride + 1)
    return before, max(0, (outputs - 1) * stride + reach + 1 - size - before), outputs


def _activation(expected: Expected, layer: HnLayer) -> Iterator[Difference]:
    given = activation_of(layer)
    wanted = expected.activation
    if layer.type == "activation" and wanted == "linear":  # the anchor is the activation itself
        return
    if given != wanted:
        yield Difference("activation", f"activation {given!r} instead of {wanted!r}")


def activation_of(layer: HnLayer) -> str:
    """A layer's activation, by the name that is used here."""
    name = layer.params.get("activation")
    text = name.lower() if isinstance(name, str) else "linear"
    return ALIASES.get(text, text)


def _reduced_axes(view: GraphView, expected: Expected, layer: HnLayer, layout: Layout) -> Iterator[Difference]:
    rank = len(view.shape(expected.anchor.inputs[0]))
    turn = list(expected.turned.attributes.get("perm", [])) if expected.turned is not None else list(range(rank))
    first = int(expected.anchor.attributes.get("axis", -1)) % rank
    place = {0: 0, 1: 3, 2: 1, 3: 2} if not layout.swapped else {0: 0, 1: 3, 2: 2, 3: 1}
    if rank != 4 or len(turn) != 4:
        wanted = [3] if first == rank - 1 else []
    else:
        wanted = sorted(place[turn[axis]] for axis in range(first, rank))
    given = sorted(_numbers(layer.params.get("reduce_axes", [3])))
    if wanted and given != wanted:
        yield Difference("axes", f"normalises over {axes_text(given)} instead of {axes_text(wanted)}")


def axes_text(axes: list[int]) -> str:
    """Axes of an NHWC tensor, in words."""
    names = {0: "batch", 1: "height", 2: "width", 3: "channels"}
    return f"axes {axes} ({', '.join(names.get(axis, '?') for axis in axes)})"


def _resize(expected: Expected, layer: HnLayer) -> Iterator[Difference]:
    method, mode = layer.params.get("method"), expected.anchor.attributes.get("mode", "nearest")
    known = {"nearest": "nearest", "linear": "bilinear"}.get(str(mode), str(mode))
    if isinstance(method, str) and known not in method.lower():
        yield Difference("resize", f"method {method!r} instead of {mode!r}")


def _weights(
    expected: Expected, layer: HnLayer, weights: Mapping[str, np.ndarray], layout: Layout
) -> Iterator[Difference]:
    assert expected.kernel is not None
    assert expected.bias is not None
    if "kernel" not in weights:
        yield Difference("weights", "the archive has no kernel for it")
        return
    given = weights["kernel"]
    depthwise = layer.type == "dw"
    folded = bool(np.any(expected.kernel != expected.plain_kernel))
    candidates = [expected.kernel]
    if folded and layer.params.get("batch_norm") and expected.plain_kernel is not None:
        candidates.append(expected.plain_kernel)  # the normalisation is kept beside it
    wanted = [layout.kernel(kernel, depthwise) for kernel in candidates]
    if layer.type == "dense":
        wanted = [kernel.reshape(given.shape) if kernel.size == given.size else kernel for kernel in wanted]
    said = [difference(kernel, given, "kernel") for kernel in wanted]
    if all(said):
        yield Difference("weights", str(said[0]))
    if len(candidates) > 1 and said[0]:
        return
    bias = weights.get("bias", np.zeros(len(expected.bias)))
    if text := difference(expected.bias, bias.reshape(-1), "bias"):
        yield Difference("bias", text)


def difference(wanted: np.ndarray, given: np.ndarray, what: str) -> str:
    """How two arrays differ, in words; empty if they do not."""
    if wanted.shape != given.shape:
        return f"{what} of shape {_text(given.shape)} instead of {_text(wanted.shape)}"
    if given.dtype.kind not in "fiu":
        return f"{what} is of type {given.dtype}"
    if not np.isfinite(given).all():
        return f"{what} holds values that are not finite"
    largest = float(np.abs(wanted).max(initial=0.0))
    apart = np.abs(given.astype(np.float64) - wanted)
    wrong = apart > RELATIVE * np.abs(wanted) + ABSOLUTE * max(largest, 1e-6)
    if not wrong.any():
        return ""
    at = [int(index) for index in np.unravel_index(int(apart.argmax()), apart.shape)]
    return (
        f"{what} differs in {int(wrong.sum())} of {wrong.size} values, most by {apart.max():.3g} at {at} "
        f"(the largest value is {largest:.3g})"
    )


def _numbers(value: Any) -> list[int]:
    """The whole numbers of a nested list; empty for anything else."""
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []


def _elements(sizes: tuple[int, ...]) -> int:
    return int(np.prod([size for size in sizes if size > 0], dtype=np.int64))


def _text(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, list | tuple) else repr(value)
