"""What Hailo's Dataflow Compiler (DFC) does with a graph, as data: one rule for each operator, pattern or size.

Each rule says where that is known from: a public repository or table, and the version of the DFC. None of it was tried
here; a later DFC may do better. `docs/graph-rules.md` is written from this list.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["allowed", "fused", "risky", "rewritten", "rejected"]
SEVERITIES: tuple[Severity, ...] = ("allowed", "fused", "risky", "rewritten", "rejected")  # from best to worst
DEVICES = ("hailo8l", "hailo8", "hailo10h")
_EIGHT = ("hailo8l", "hailo8")

# The public sources. None of their code is used.
_ZOO = "hailo-ai/hailo_model_zoo 2.18, HAILO8L tables"
_SESAC = "SeSac01, docs/hardware/testcode: operators compiled one by one for Hailo-8"
_HAR = "1croyable/whisper-hailo8L 97dd1a3: a parsed HAR for hailo8l"
_CRO = "1croyable/whisper-hailo8L 6cec06f: its post-mortem and deploy/"
_HW = "hailocs/hailo-whisper ebe7a85"
_ALLS = "hailo-ai/hailo_model_zoo 2.18, whisper_tiny_10s_encoder.alls"
_PARSER = "exceptions of hailo_sdk_client's parser in public build logs and issues"
_OWN = "this project's caution: nothing public either way"
_KT = "ktomanek/huggingface_whisper_to_hailo_conversion fdf1aab"
_TASNET = "Hearable-Dongle/signal-processing-research, 2026-02: Conv-TasNet on Hailo-8"


@dataclass(frozen=True)
class Rule:
    """One thing that is known of the compiler.

    Attributes:
        id: short name.
        match: the operator, pattern or size that it is about.
        severity: `"allowed"`, `"fused"` (into the layer before it), `"risky"` (unproven, or known to have failed for
            some), `"rewritten"` (comes out as other layers than were trained) or `"rejected"`.
        compiler: what the compiler does with it.
        instead: what to use instead; empty where nothing needs to be.
        source: the public repository or table that shows it.
        dfc: version of the DFC that it was seen with.
        devices: chips that it holds for.
        bits: 16 where the public recipes give the layer 16-bit activations, else 8.
    """

    id: str
    match: str
    severity: Severity
    compiler: str
    instead: str
    source: str
    dfc: str
    devices: tuple[str, ...] = DEVICES
    bits: int = 8


@dataclass(frozen=True)
class ProvenSize:
    """A size of activations that a public network has been compiled with.

    Attributes:
        axis: `"width"` (one row of that many elements) or `"height"` (that many rows of width 1).
        length, channels: of the activation.
        source, dfc: as in `Rule`.
    """

    axis: Literal["width", "height"]
    length: int
    channels: int
    source: str
    dfc: str


PROVEN_SIZES = (
    ProvenSize("width", 500, 384, f"{_ZOO}: whisper_tiny_10s_encoder", "3.33.1"),
    ProvenSize("width", 1000, 384, f"{_ZOO}: whisper_tiny_10s_encoder, its first layer", "3.33.1"),
    ProvenSize("width", 500, 1536, f"{_ZOO}: whisper_tiny_10s_encoder, its feed-forward layers", "3.33.1"),
    ProvenSize("width", 500, 512, f"{_ZOO}: whisper_base_5s_encoder, its first layer", "3.33.1"),
    ProvenSize("width", 250, 2048, f"{_ZOO}: whisper_base_5s_encoder, its feed-forward layers", "3.33.1"),
    ProvenSize("height", 500, 768, _CRO, "3.33"),
    ProvenSize("height", 1000, 768, f"{_CRO}, its first layer", "3.33"),
)
PLAIN_ROW, PLAIN_COLUMN = 500 * 384, 500 * 768  # elements up to which no question is asked
LONG_ROW, LONG_ROW_CHANNELS = 1000, 64  # rows this long compile with as many channels at most
PROVEN_TAPS = 7  # along one axis
SMALL_DILATION = 8  # this project's own limit: the public tables show dilation, but not how much
ATTENTION_ELEMENTS = 6 * 500 * 500  # scores of whisper tiny at 10 s, which compile; base's, 8 * 500 * 500, do not
PARSED_OPSETS = range(13, 19)

RULES = (
    # Convolution
    Rule("conv", "Conv, rank 4, constant weights", "allowed", "one conv layer", "", _SESAC, "3.32"),
    Rule("conv-depthwise", "Conv with as many groups as channels, up to 7 taps along an axis", "allowed",
         "one dw layer", "", f"{_ZOO}: mobilenet_v2 (3x3), fastvit_sa12 (7x7)", "3.33.1"),
    Rule("conv-transposed", "ConvTranspose, rank 4", "allowed", "one deconv layer", "", _SESAC, "3.32"),
    Rule("conv-1d", "Conv or ConvTranspose, rank 3", "rejected",
         "the parser takes time for channels, or the compilation never ends",
         "Conv2d with a kernel of (1, taps) or (taps, 1)", f"{_SESAC}; {_KT}", "3.32"),
    Rule("conv-free-weights", "Conv, Gemm or BatchNormalization whose weights are computed in the graph", "rejected",
         "a layer's weights lie beside the parsed network, fixed", "constant weights", _HAR, "3.33.0"),
    Rule("kernel-long", "a kernel of more than 7 taps along an axis", "risky",
         "nothing public shows that one compiles",
         "several convolutions of up to 7 taps, or of 3 dilated ones, that see as far", _ZOO, "3.33.1"),
    Rule("dilation-large", "a dilation of more than 8", "risky",
         "dilated convolutions compile, but no public table says how far apart their taps were",
         "a level with fewer frames and a smaller dilation",
         f"{_OWN}; {_SESAC}; {_ZOO}: deeplab_v3_mobilenet_v2", "3.32"),
    Rule("conv-uneven-padding", "Conv that pads one end more than the other", "risky",
         "becomes an external_pad layer and a convolution", "equal padding at both ends, or none",
         "a causal depthwise (1, 4) on Hailo-10H, public build log", "5.4"),
    Rule("linear", "Gemm, or MatMul with a constant weight", "allowed", "a 1x1 conv layer or a dense one", "", _SESAC,
         "3.32"),
    # Normalisation
    Rule("batch-norm-folded", "BatchNormalization right behind a Conv", "fused", "folded into the convolution", "",
         _SESAC, "3.32"),
    Rule("batch-norm", "BatchNormalization anywhere else", "allowed", "a normalization layer", "", _SESAC, "3.32"),
    Rule("instance-norm", "InstanceNormalization, rank 4", "allowed", "compiles", "", _SESAC, "3.32"),
    Rule("layer-norm", "LayerNormalization, or the same in single operators, with the transposes around it",
         "rewritten",
         "split into several layers (layer_norm_decomposition), which need 16 bit and cost latency: vit_tiny runs at "
         "68 FPS with it and 193 with BatchNorm",
         "BatchNorm inside, one LayerNorm on the host behind the chip", f"{_ZOO}; {_KT}", "3.33.1", bits=16),
    Rule("group-norm", "GroupNormalization, or Reshape, InstanceNormalization, Reshape and a scale for each channel",
         "rewritten",
         "becomes layer_normalization over height, width and channels (reduce_axes [1, 2, 3]), time among them",
         "BatchNorm, which folds away", _HAR, "3.33.0", _EIGHT, bits=16),
    Rule("group-norm", "GroupNormalization, or Reshape, InstanceNormalization, Reshape and a scale for each channel",
         "risky", "networks with it (poolformer) are listed for Hailo-10 and 15 only", "BatchNorm, which folds away",
         "hailo-ai/hailo_model_zoo 2.18 / 5.x, HAILO10H tables", "5.x", ("hailo10h",), bits=16),
    # Activations
    Rule("activation-fused", "Relu, Clip, LeakyRelu, PRelu, Sigmoid, Tanh, Elu or HardSigmoid behind a Conv", "fused",
         "the convolution's own activation", "", _SESAC, "3.32"),
    Rule("activation", "Relu, Clip, LeakyRelu, PRelu, Sigmoid, Tanh, Elu or HardSigmoid anywhere else", "allowed",
         "an activation layer", "", _SESAC, "3.32"),
    Rule("silu", "x * Sigmoid(x)", "fused", "recognised and fused into the convolution before it (activation silu)",
         "", _HAR, "3.33.0"),
    Rule("soft-activation", "GELU (Mul, Erf), HardSwish or Mish", "risky",
         "recognised in the exporters' exact form and fused; loses more in 8 bits than ReLU (fastvit_sa12 with GELU "
         "79.8 to 76.7, levit128 with HardSwish 78.4 to 76.0, top-1)", "ReLU", f"{_SESAC}; {_ZOO}", "3.32"),
    Rule("erf", "Erf outside a GELU", "rejected", "the parser knows it in a GELU only", "ReLU", _PARSER, "3.x"),
    # Elementwise
    Rule("add-fused", "Add of two activations of one shape, one of them a Conv's", "fused",
         "the convolution's elementwise_add", "", _HAR, "3.33.0"),
    Rule("elementwise", "Add, Sub or Mul of two activations of one shape", "allowed", "ew_add, ew_sub or ew_mult", "",
         _SESAC, "3.32"),
    Rule("attention-residual", "the Add that joins an attention or LayerNorm branch to its residual stream", "risky",
         "needs 16-bit activations: the vendor's own recipe gives {ew_add*} a16_w16",
         "a residual stream of convolutions", _ALLS, "3.33.1", bits=16),
    Rule("constant-add", "Add, Sub or Mul of an activation and a constant of its very shape", "allowed",
         "const_input and ew_add, as for a position table", "", _HAR, "3.33.0"),
    Rule("gate", "Mul of an activation and one value for each channel out of a full average pool", "allowed",
         "ew_mult, as in squeeze and excitation", "", f"{_ZOO}: cas_vit_s, se_optimization", "3.33.1"),
    Rule("scalar", "Add, Sub, Mul or Div of an activation and one constant number", "rewritten",
         "the number is blown up to the activation's size: a resize layer and an ew_mult or ew_add",
         "fold it into the weights of a neighbouring convolution", _HAR, "3.33.0"),
    Rule("broadcast", "Add, Sub or Mul of activations or constants of different shapes", "rewritten",
         "broadcast by a resize layer, along axes that need not be the meant ones",
         "constants of the activation's full shape; gates out of a full average pool", f"{_HAR}; {_CRO}", "3.33.0"),
    Rule("denominator", "Div by an activation, and the sums that make it", "rewritten",
         "no division is among the layers of the parsed network: sums and quotients come back as reduce_sum, resize "
         "and ew_mult", "no normalisation by a sum: BatchNorm, gates", f"{_HAR}; {_CRO}", "3.33.0", bits=16),
    # Attention
    Rule("matmul", "MatMul of two activations", "risky",
         "compiles, but needs matmul_correction, matmul_equalization and 16-bit neighbours",
         "convolutions and gates", _ALLS, "3.33.1", bits=16),
    Rule("attention-window", "attention scores of more elements than 6 x 500 x 500", "rejected",
         "'decreases the input size to 5 seconds, otherwise the model will not compile', of whisper base at 10 s",
         "a shorter window: 10 s for tiny, 5 s for base", f"{_HW}, docs/Conversion.md", "3.31", _EIGHT),
    Rule("softmax", "Softmax", "rewritten",
         "split into ew_sub_softmax, reduce_sum_softmax and the like, with its denominator among them",
         "gates (sigmoid) instead of weights that sum to one", f"{_HAR}; {_ALLS}", "3.33.0", bits=16),
    Rule("head-shuffle", "Reshape and Transpose that split or merge heads beside a MatMul", "rewritten",
         "recognised as patterns and turned into layout changes of the compiler's own", "convolutions",
         f"{_HW}; {_PARSER}", "3.31"),
    # Shape
    Rule("shuffle", "any other Reshape, Transpose, Squeeze, Unsqueeze or Flatten", "rejected",
         "only known patterns parse; others end in UnsupportedShuffleLayerError, or were lost in the parsed network",
         "one layout from input to output; the host does the rest", f"{_PARSER}; {_CRO}", "3.x"),
    Rule("flatten", "Flatten, Squeeze or Reshape of 1 x 1 maps to (batch, channels)", "allowed", "no layer of its own",
         "", _SESAC, "3.32"),
    Rule("pad", "Pad with zeros", "risky", "an external_pad layer of its own, outside the convolution that it is for",
         "equal padding in the Conv itself", f"{_SESAC}; {_CRO}", "3.32"),
    Rule("pad-other", "Pad with anything but zeros", "rejected", "external_pad is of zeros", "zeros, equal at both "
         "ends, in the Conv itself", _OWN, "any"),
    Rule("resize-nearest", "Resize, nearest, by whole factors", "allowed", "a resize layer", "",
         f"{_SESAC}; {_ZOO}: yolov5m", "3.32"),
    Rule("resize-other", "Resize, linear or by other factors", "risky",
         "bilinear resizes compile; odd factors are unproven", "nearest, by whole factors", _SESAC, "3.32"),
    Rule("pool", "MaxPool, AveragePool or GlobalAveragePool", "allowed", "maxpool or avgpool", "", _SESAC, "3.32"),
    Rule("no-op", "Identity or Dropout", "fused", "no layer of its own", "", _SESAC, "3.32"),
    Rule("concat", "Concat", "allowed", "a concat layer", "", _SESAC, "3.32"),
    Rule("slice", "Slice", "allowed", "a slice layer", "", _HAR, "3.33.0"),
    Rule("split", "Split", "risky", "a feature_splitter layer; fails where a part is an output of the graph",
         "Slice, or two convolutions", _HAR, "3.33.0"),
    # Reductions
    Rule("reduce-sum", "ReduceSum over the channels", "allowed", "a reduce_sum layer", "", _HAR, "3.33.0"),
    Rule("reduce-sum-time", "ReduceSum over the width, or over several axes", "rewritten",
         "a reduce_sum layer whose axes follow the layout that the parser chose", "GlobalAveragePool",
         f"{_HAR}; {_CRO}", "3.33.0", bits=16),
    Rule("reduce-axis", "ReduceSum over the height, ReduceMean over any other axis", "rejected",
         "UnsupportedReduceSumLayerError, or 'Invalid kernel shape' for a mean",
         "GlobalAveragePool; convolutions for anything narrower", f"{_PARSER}; {_SESAC}", "3.32"),
    Rule("mean-pool", "ReduceMean over height and width", "risky",
         "'Invalid kernel shape' where a Linear follows", "GlobalAveragePool and a 1x1 convolution", _SESAC, "3.32"),
    # Everything else
    Rule("constant-folded", "what is computed from constants or fixed shapes alone", "fused",
         "folded by the compiler's simplifier before parsing", "export it folded",
         "translate_onnx_model(disable_onnx_simplifier=False) of hailo_sdk_client", "3.x"),
    Rule("problem-operator", "Where, Cast, Gather, Expand or TopK", "rejected",
         "not parsed, or only in patterns of other networks", "leave it to the host", _PARSER, "3.x"),
    Rule("quantised-graph", "QuantizeLinear, DequantizeLinear and integer operators", "rejected",
         "the compiler takes a float network and quantises it itself", "the float ONNX file",
         "hailo-ai/hailo_model_zoo 2.18, parse before optimize", "3.33.1"),
    Rule("unknown-operator", "any operator that no other rule names", "rejected",
         "nothing public shows that it compiles", "the operators of this list", _OWN, "any"),
    # The graph as a whole
    Rule("dynamic-shape", "a shape that is not fixed", "rejected", "shapes are fixed when the network is compiled",
         "export with fixed shapes, batch 1", f"{_HAR}, whose layers state them", "3.33.0"),
    Rule("rank", "an activation that is not of rank 4", "rejected",
         "the chip's tensors are (height, width, channels): other ranks are guessed at",
         "(1, channels, 1, time) or (1, channels, time, 1) throughout", f"{_HAR}, whose layers have that form; {_CRO}",
         "3.33.0"),
    Rule("output", "an output of the graph that is a Split's, an input, or known beforehand", "rejected",
         "an output layer needs a computing layer before it", "a convolution or Add before the output", _PARSER,
         "3.x"),
    Rule("opset", "an operator set other than 13 to 18", "risky",
         "Hailo's networks are exported with 13 to 17; 18 was seen to parse", "opset 17", f"{_HAR}; {_HW}", "3.33.0"),
    Rule("long-row", "a width of 1000 or more with more than 64 channels", "risky",
         "256 channels fail with BackendAllocatorException 'Agent infeasible' at 2000 and partly at 1024; 64 pass, "
         "and so does the first layer of whisper tiny, 1000 x 384",
         "time on the height; fewer frames inside", f"{_TASNET}; {_HW}", "3.x"),
    Rule("wide-activation", "a row, or a column of width 1, larger than public networks show", "risky",
         "unproven: more elements than 500 x 384 in a row or 500 x 768 in a column, and in none of the sizes below",
         "fewer frames or channels inside", f"{_ZOO}: whisper_tiny_10s_encoder; {_CRO}", "3.33"),
)  # fmt: skip


def rule(name: str, device: str) -> Rule | None:
    """The rule of that id for a device, or None where it has none."""
    return next((one for one in RULES if one.id == name and device in one.devices), None)


def markdown() -> str:
    """The rules as the page `docs/graph-rules.md`."""
    lines = [_PREFACE]
    for severity in reversed(SEVERITIES):
        lines.append(f"## {severity.capitalize()}\n")
        lines.append("| rule | what | what the compiler does | instead | 16 bit | seen in (DFC) | devices |")
        lines.append("| --- | --- | --- | --- | --- | --- | --- |")
        for one in RULES:
            if one.severity == severity:
                bits, devices = "yes" if one.bits == 16 else "", ", ".join(one.devices)
                seen = f"{one.source} ({one.dfc})"
                cells = (f"`{one.id}`", one.match, one.compiler, one.instead, bits, seen, devices)
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines.append("## Sizes that public networks were compiled with\n")
    lines.append("| time on | frames | channels | seen in (DFC) |\n| --- | --- | --- | --- |")
    lines += [f"| {p.axis} | {p.length} | {p.channels} | {p.source} ({p.dfc}) |" for p in PROVEN_SIZES]
    return "\n".join(lines) + "\n"


_PREFACE = """# What the Hailo compiler does with a graph

`whisper-hailo check FILE` judges every node of an ONNX graph by the rules below. They were gathered from public
repositories and tables; none was tried here against the Dataflow Compiler (DFC), which is proprietary. *Rewritten* and
*rejected* fail the check. *Risky* does not: it means that nothing public proves it, or that it failed for somebody.

This page is written from `src/whisper_hailo_hf/compile/rules.py`:
`python -m whisper_hailo_hf.compile.rules > docs/graph-rules.md`.
"""

if __name__ == "__main__":
    print(markdown(), end="")
