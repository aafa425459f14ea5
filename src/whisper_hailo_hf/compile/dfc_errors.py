"""What Hailo's compiler throws, in one line each: what is wrong, and what to do.

Names, modules and messages as in DFC 3.33 and in public reports of its failures: `hailo_sdk_client`'s
model_translator.exceptions and sdk_backend.sdk_backend_exceptions, `hailo_sdk_common`'s hailo_nn.exceptions and
states, and `hailo_model_optimization`'s acceleras.utils.acceleras_exceptions. They are told by name, for none of them
can be imported here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """What an answer may need to know.

    Attributes:
        hw_arch: the target.
        time_axis: where time lies, `"width"` or `"height"`.
        script: name of the model script's file.
    """

    hw_arch: str = "hailo8l"
    time_axis: str = "width"
    script: str = "encoder.alls"


_SCRIPT = "correct {script} and give it with --model-script; the line that it stopped at follows '>!<'"
# by the name of the class: what is wrong, and what to do
ADVICE = {
    "ParsingWithRecommendationException": (
        "the parser does not take the graph",
        (
            "whisper-hailo check names such nodes and what to use instead; the encoder must end where the graph "
            "ends, so other end nodes are no way out"
        ),
    ),
    "UnsupportedModelError": (
        "the parser does not support this model",
        "whisper-hailo check names the nodes that the compiler is known not to take",
    ),
    "BackendAllocatorException": (
        "the network could not be placed on {hw_arch}",
        (
            "try --time-axis {other_axis}, a smaller preset, or a shorter window run as tiles (whisper-hailo init "
            "--option), or performance_param(compiler_optimization_level=max) in the model script"
        ),
    ),
    "BackendScriptParserException": ("the model script cannot be read", _SCRIPT),
    "AllocatorScriptParserException": ("the model script's allocation commands cannot be read", _SCRIPT),
    "BackendRuntimeException": (
        "the compiler could not go on",
        "if it misses quantized weights, the optimized HAR was not made by this driver: run again with --fresh",
    ),
    "BackendValueError": (
        "the compiler met values that it cannot use",
        (
            "NaN in the parameters comes from weights that diverged in training or in fine-tuning: look with "
            "whisper-hailo verify, then lower the learning rate of finetune or leave it out (--finetune-epochs 0)"
        ),
    ),
    "NMSConfigPostprocessException": (
        "the model script asks for post-processing of object detection",
        "take nms_postprocess out of {script}: an encoder has none",
    ),
    "BadInputsShape": (
        "the calibration set does not have the network's input shape",
        (
            "the compiler wants (windows, height, width, channels); run again with --fresh, and if it comes back "
            "report it with the log"
        ),
    ),
    "NegativeSlopeExponentNonFixable": (
        "a layer's range cannot be expressed in the chip's integers",
        (
            "typical of random or silent calibration data: calibrate with real speech; or give that layer 16 bits, or "
            "model_optimization_config(negative_exponent, layers={{*}}, rank=0) in {script}"
        ),
    ),
    "AccelerasResourceError": (
        "the GPU's memory was used up",
        (
            "lower batch_size of calibration and of finetune in {script} (--model-script), or hide the GPU with "
            "CUDA_VISIBLE_DEVICES= and take longer"
        ),
    ),
    "MemoryError": (
        "the memory was used up",
        "take fewer calibration windows (--windows), a smaller preset, or a machine with more RAM",
    ),
    "ModuleNotFoundError": (
        "the interpreter lacks a module",
        "name the Python of the environment in which the Dataflow Compiler's wheel is installed",
    ),
    "ImportError": (
        "the Dataflow Compiler cannot be imported",
        "its environment is broken or mixed: make a fresh one with nothing but the wheel (docs/compile.md)",
    ),
    "ResourceExhaustedError": (
        "TensorFlow ran out of memory",
        "lower batch_size of calibration and of finetune in {script} (--model-script)",
    ),
}
# messages of plain exceptions
_MESSAGES = (
    (
        re.compile(r"Unspecified inputs"),
        "the compiler missed data for an input of the network",
        "an encoder has one input: export it with whisper-hailo export",
    ),
    (
        re.compile(r"Agent infeasible|Mapping Failed|No successful assignment", re.IGNORECASE),
        *ADVICE["BackendAllocatorException"],
    ),
    (re.compile(r"No space left on device"), "the disk is full", "make room, and run the same command again"),
)
_STATES = "hailo_sdk_common.states"


def explain(types: Sequence[str], message: str, context: Context) -> str:
    """One line for an exception.

    Args:
        types: its class and the classes above it, with their modules.
        message: its text.
        context: of the compilation.
    """
    names = [name.rpartition(".")[2] for name in types]
    said = _gist(message)
    for pattern, what, advice in _MESSAGES:
        if pattern.search(message):
            return _line(what, said, advice, context)
    for name in names:
        if name in ADVICE:
            return _line(ADVICE[name][0], said, ADVICE[name][1], context)
    if any(name.startswith(_STATES) for name in types):
        return _line("the HAR is in another state than this stage needs", said, "run again with --fresh", context)
    return _line(names[0] if names else "an unknown error", said, "the log has the whole story", context)


def _line(what: str, said: str, advice: str, context: Context) -> str:
    words = {
        "hw_arch": context.hw_arch,
        "other_axis": "height" if context.time_axis == "width" else "width",
        "script": context.script,
    }
    return f"{what.format(**words)}{f' ({said})' * bool(said)}: {advice.format(**words)}"


def _gist(message: str) -> str:
    """The part of a message that says most, on one line."""
    lines = [" ".join(line.split()) for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"\b\w+Error in op\b|>!<|Agent infeasible|doesn't match", line)]
    text = "; ".join((telling or lines)[:2])
    return text if len(text) <= 300 else f"{text[:297]}..."
