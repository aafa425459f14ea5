"""The stock Whisper decoder as ONNX graphs, built node by node from its weights.

Two graphs, because one runs once a window and the other once a token: the keys and values of the cross-attention from
the encoder states, and one step of the decoder over them and over the keys and values of the tokens before. The maths
is that of `WhisperDecoder` in transformers/models/whisper/modeling_whisper.py (read in 5.23). They are built rather
than traced: it takes a fraction of the time, and at every load of a model it counts.

In 8 bits, every matrix is signed with one scale for each output channel, and what it is multiplied with is quantized
when it comes, with one scale for the whole tensor: the pattern of `onnxruntime.quantization.quantize_dynamic`, which
ONNX Runtime fuses. Attention, normalisation and the embeddings stay in float32.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoder, WhisperDecoderLayer

from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.version import __version__

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET, IR_VERSION = 20, 10  # what ONNX Runtime 1.20 reads; Gelu is an operator from 20 on
_LIMIT = 2**31 - 2**24  # bytes: one protobuf message holds 2 GiB, and some is needed for the graph itself
_FLOAT, _INT64 = 1, 7  # onnx.TensorProto's numbers


def cross_names(layers: int) -> list[str]:
    """Keys and values of the cross-attention, layer after layer: outputs of one graph, inputs of the other."""
    return [f"cross_{what}_{layer}" for layer in range(layers) for what in ("key", "value")]


def past_names(layers: int) -> list[str]:
    """Keys and values of the tokens before."""
    return [f"past_{what}_{layer}" for layer in range(layers) for what in ("key", "value")]


def new_names(layers: int) -> list[str]:
    """Keys and values of this step's tokens."""
    return [f"new_{what}_{layer}" for layer in range(layers) for what in ("key", "value")]


def attention_names(layers: int) -> list[str]:
    """Attention weights: those of all layers over the tokens, then those of all layers over the encoder states."""
    return [f"{which}_attention_{layer}" for which in ("self", "cross") for layer in range(layers)]


def why_not_stock(decoder: Any, proj_out: Any) -> str | None:
    """None if the graphs say what these modules compute, otherwise what they hold that stock Whisper's do not."""
    if type(decoder) is not WhisperDecoder:
        return f"the decoder is a {type(decoder).__name__}"
    if decoder.config.activation_function not in ("gelu", "relu"):
        return f"its activation is {decoder.config.activation_function}"
    known = (WhisperDecoderLayer, WhisperAttention, nn.LayerNorm, nn.Linear)
    for layer in decoder.layers:
        parts = (layer, layer.self_attn, layer.encoder_attn, layer.self_attn_layer_norm, layer.encoder_attn_layer_norm)
        attentions = (layer.self_attn, layer.encoder_attn)
        projections = [getattr(part, f"{name}_proj", None) for part in attentions for name in ("q", "k", "v", "out")]
        for part in (*parts, layer.final_layer_norm, layer.fc1, layer.fc2, *projections):
            if type(part) not in known:
                return f"a part of it is a {type(part).__name__}"
    if type(proj_out) is not nn.Linear:
        return f"its output projection is a {type(proj_out).__name__}"
    return None


def cross_graph(decoder: Any, int8: bool) -> "ModelProto":
    """`states` (batch, positions, d_model) -> `cross_names`, each (batch, heads, positions, head size)."""
    graph = _Graph(decoder, int8)
    outputs = []
    for index, layer in enumerate(decoder.layers):
        attention = layer.encoder_attn
        for what, projection in (("key", attention.k_proj), ("value", attention.v_proj)):
            name = f"layers.{index}.encoder_attn.{what}"
            outputs.append(graph.op("Identity", graph.heads(graph.linear("states", projection, name), attention)))
    sizes = ["batch", decoder.config.decoder_attention_heads, "positions", _head_size(decoder)]
    return graph.model(
        [("states", _FLOAT, ["batch", "positions", decoder.config.d_model])],
        [(name, sizes) for name in cross_names(len(decoder.layers))],
        outputs,
    )


def step_graph(decoder: Any, proj_out: Any, int8: bool) -> "ModelProto":
    """One step of the decoder.

    Inputs: `embedded` (batch, tokens, d_model), tokens and positions embedded; `mask`, added to the attention over
    tokens, broadcast to (batch, heads, tokens, past + tokens); `keep` (kept), int64, the positions whose logits are
    wanted; `past_names` and `cross_names`, each (batch, heads, any, head size).
    Outputs: `logits` (batch, kept, vocabulary); `new_names`, each (batch, heads, tokens, head size);
    `attention_names`, each (batch, heads, tokens, past + tokens or positions).
    """
    graph, layers = _Graph(decoder, int8), len(decoder.layers)
    hidden, new = "embedded", []
    attentions: dict[str, list[str]] = {"self": [], "cross": []}
    for index, layer in enumerate(decoder.layers):
        name = f"layers.{index}"
        part = layer.self_attn
        normed = graph.norm(hidden, layer.self_attn_layer_norm, f"{name}.self_attn_layer_norm")
        key = graph.heads(graph.linear(normed, part.k_proj, f"{name}.self_attn.k_proj"), part)
        value = graph.heads(graph.linear(normed, part.v_proj, f"{name}.self_attn.v_proj"), part)
        new += [key, value]
        keys = graph.op("Concat", f"past_key_{index}", key, axis=2)
        values = graph.op("Concat", f"past_value_{index}", value, axis=2)
        query = graph.query(normed, part, f"{name}.self_attn")
        given, weights = graph.attention(query, keys, values, part, f"{name}.self_attn", "mask")
        attentions["self"].append(weights)
        hidden = graph.op("Add", hidden, given)
        part = layer.encoder_attn
        normed = graph.norm(hidden, layer.encoder_attn_layer_norm, f"{name}.encoder_attn_layer_norm")
        query = graph.query(normed, part, f"{name}.encoder_attn")
        cross = f"cross_key_{index}", f"cross_value_{index}"
        given, weights = graph.attention(query, *cross, part, f"{name}.encoder_attn")
        attentions["cross"].append(weights)
        hidden = graph.op("Add", hidden, given)
        normed = graph.norm(hidden, layer.final_layer_norm, f"{name}.final_layer_norm")
        inner = graph.activation(graph.linear(normed, layer.fc1, f"{name}.fc1"))
        hidden = graph.op("Add", hidden, graph.linear(inner, layer.fc2, f"{name}.fc2"))
    last = graph.norm(graph.op("Gather", hidden, "keep", axis=1), decoder.layer_norm, "layer_norm")
    logits = graph.linear(last, proj_out, "proj_out")
    heads, size = decoder.config.decoder_attention_heads, _head_size(decoder)
    inputs = [("embedded", _FLOAT, ["batch", "tokens", decoder.config.d_model])]
    inputs += [("mask", _FLOAT, ["mask_batch", 1, "mask_tokens", "mask_all"]), ("keep", _INT64, ["kept"])]
    inputs += [(name, _FLOAT, ["batch", heads, "past", size]) for name in past_names(layers)]
    inputs += [(name, _FLOAT, ["batch", heads, "positions", size]) for name in cross_names(layers)]
    outputs = [("logits", ["batch", "kept", proj_out.out_features])]
    outputs += [(name, ["batch", heads, "tokens", size]) for name in new_names(layers)]
    over = ["all"] * layers + ["positions"] * layers
    outputs += [
        (name, ["batch", heads, "tokens", length]) for name, length in zip(attention_names(layers), over, strict=True)
    ]
    return graph.model(inputs, outputs, [logits, *new, *attentions["self"], *attentions["cross"]])


def _head_size(decoder: Any) -> int:
    return decoder.config.d_model // decoder.config.decoder_attention_heads


class _Graph:
    """Nodes and weights, named as they come."""

    def __init__(self, decoder: Any, int8: bool) -> None:
        try:
            import onnx
        except ImportError as error:
            raise RequestError("the decoder's graphs need onnx: pip install 'whisper-hailo-hf[onnx]'") from error
        self.onnx: Any = onnx
        self.int8 = int8
        self.activation_function = decoder.config.activation_function
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.bytes = 0
        self.quantized: dict[str, list[str]] = {}  # the 8 bits of a tensor that several matrices take

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        names = [f"{kind}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, names, names[0], **attributes))
        return names

    def constant(self, name: str, value: "Tensor | np.ndarray") -> str:
        if name not in self.constants:
            array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
            self.bytes += array.nbytes
            if self.bytes > _LIMIT:
                raise WhisperHailoError(
                    "this decoder's weights exceed the 2 GiB of one ONNX file: keep the decoder backend 'torch'"
                )
            self.constants[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def linear(self, hidden: str, module: Any, name: str) -> str:
        weight = module.weight.detach().float().cpu().numpy().T
        if self.int8:
            if hidden not in self.quantized:
                self.quantized[hidden] = self.ops("DynamicQuantizeLinear", 3, hidden)
            integers, scale, zero = self.quantized[hidden]
            scales = np.maximum(np.abs(weight).max(axis=0), 1e-12) / 127
            rounded = np.rint(weight / scales).astype(np.int8)
            product = self.op("MatMulInteger", integers, self.constant(f"{name}.weight_int8", rounded), zero)
            both = self.op("Mul", scale, self.constant(f"{name}.weight_scale", scales.astype(np.float32)))
            result = self.op("Mul", self.op("Cast", product, to=_FLOAT), both)
        else:
            result = self.op("MatMul", hidden, self.constant(f"{name}.weight", weight))
        if module.bias is None:
            return result
        return self.op("Add", result, self.constant(f"{name}.bias", module.bias))

    def norm(self, hidden: str, module: Any, name: str) -> str:
        scale, bias = self.constant(f"{name}.weight", module.weight), self.constant(f"{name}.bias", module.bias)
        return self.op("LayerNormalization", hidden, scale, bias, axis=-1, epsilon=module.eps)

    def activation(self, hidden: str) -> str:
        return self.op({"gelu": "Gelu", "relu": "Relu"}[self.activation_function], hidden)

    def heads(self, hidden: str, part: WhisperAttention) -> str:
        """(batch, tokens, d_model) -> (batch, heads, tokens, head size)."""
        shape = self.constant("heads", np.array([0, 0, part.num_heads, part.head_dim]))
        return self.op("Transpose", self.op("Reshape", hidden, shape), perm=[0, 2, 1, 3])

    def query(self, hidden: str, part: WhisperAttention, name: str) -> str:
        scaling = self.constant("scaling", np.array(part.scaling, dtype=np.float32))
        return self.heads(self.op("Mul", self.linear(hidden, part.q_proj, f"{name}.q_proj"), scaling), part)

    def attention(
        self, query: str, keys: str, values: str, part: WhisperAttention, name: str, mask: str | None = None
    ) -> tuple[str, str]:
        """What the attention gives, projected, and its weights."""
        scores = self.op("MatMul", query, self.op("Transpose", keys, perm=[0, 1, 3, 2]))
        if mask is not None:
            scores = self.op("Add", scores, mask)
        weights = self.op("Softmax", scores, axis=-1)
        joined = self.op("Transpose", self.op("MatMul", weights, values), perm=[0, 2, 1, 3])
        shape = self.constant("joined", np.array([0, 0, part.embed_dim]))
        return self.linear(self.op("Reshape", joined, shape), part.out_proj, f"{name}.out_proj"), weights

    def model(self, inputs: list[Any], outputs: list[Any], results: list[str]) -> "ModelProto":
        helper = self.onnx.helper
        renamed = dict(zip(results, (name for name, _ in outputs), strict=True))
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(name, name) for name in names]
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
            [helper.make_tensor_value_info(name, _FLOAT, shape) for name, shape in outputs],
            list(self.constants.values()),
        )
        return helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="whisper_hailo_hf",
            producer_version=__version__,
        )
