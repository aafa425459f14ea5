"""What the compiler's worker uses of `hailo_sdk_client` (Dataflow Compiler 3.33), as one table.

    python tests/hailo_sdk_api.py

in an environment that has the real package says what of it is not as it was taken to be. Needs nothing else, and runs
in Python 3.8.
"""

from __future__ import annotations

import importlib
import inspect
import sys

RUNNER = "hailo_sdk_client:ClientRunner"
CONTEXT = "hailo_sdk_client:InferenceContext"

# what is called: where, how many positional arguments, names of the others
CALLS = (
    (RUNNER, 0, ("hw_arch",)),
    (RUNNER, 0, ("har",)),
    (RUNNER + ".translate_onnx_model", 2, ()),
    (RUNNER + ".save_har", 1, ()),
    (RUNNER + ".load_model_script", 1, ()),
    (RUNNER + ".optimize", 1, ("work_dir",)),
    (RUNNER + ".infer_context", 1, ()),
    (RUNNER + ".infer", 2, ("batch_size",)),
    (RUNNER + ".analyze_noise", 1, ("batch_size", "data_count", "analyze_mode")),
    (RUNNER + ".compile", 0, ()),
)
# what is looked up
ATTRIBUTES = (CONTEXT + ".SDK_NATIVE", CONTEXT + ".SDK_QUANTIZED")
# what an instance has
INSTANCE = ("state",)
# what is told apart by name when it is thrown
EXCEPTIONS = (
    "hailo_sdk_client.model_translator.exceptions:ParsingWithRecommendationException",
    "hailo_sdk_common.hailo_nn.exceptions:UnsupportedModelError",
    "hailo_sdk_client.sdk_backend.sdk_backend_exceptions:BackendAllocatorException",
    "hailo_sdk_client.sdk_backend.sdk_backend_exceptions:BackendScriptParserException",
    "hailo_sdk_client.sdk_backend.sdk_backend_exceptions:AllocatorScriptParserException",
    "hailo_sdk_client.sdk_backend.sdk_backend_exceptions:BackendRuntimeException",
    "hailo_sdk_client.sdk_backend.sdk_backend_exceptions:BackendValueError",
    "hailo_sdk_client.sdk_backend.sdk_backend_exceptions:NMSConfigPostprocessException",
    "hailo_model_optimization.acceleras.utils.acceleras_exceptions:BadInputsShape",
    "hailo_model_optimization.acceleras.utils.acceleras_exceptions:NegativeSlopeExponentNonFixable",
    "hailo_model_optimization.acceleras.utils.acceleras_exceptions:AccelerasResourceError",
)


def find(place):
    """What stands at "module:name.name"."""
    module, _, names = place.partition(":")
    found = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def problems():
    """A line for everything that is not as in the table."""
    lines = []
    for place in [*ATTRIBUTES, *EXCEPTIONS, *dict.fromkeys(call[0] for call in CALLS)]:
        try:
            find(place)
        except (ImportError, AttributeError) as error:
            lines.append(f"{place}: {error}")
    if lines:
        return lines
    for place, positional, names in CALLS:
        method = "." in place.partition(":")[2]
        try:
            arguments = [None] * (positional + method)
            inspect.signature(find(place)).bind(*arguments, **dict.fromkeys(names))
        except TypeError as error:
            lines.append(f"{place} with {positional} arguments and {names}: {error}")
    for place in EXCEPTIONS:
        if not issubclass(find(place), Exception):
            lines.append(f"{place} is no exception")
    runner = find(RUNNER)(hw_arch="hailo8l")
    lines += [f"a ClientRunner has no {name}" for name in INSTANCE if not hasattr(runner, name)]
    return lines


if __name__ == "__main__":
    found = problems()
    print("\n".join(found) or f"all of {len(CALLS) + len(ATTRIBUTES) + len(INSTANCE) + len(EXCEPTIONS)} entries hold")
    sys.exit(bool(found))
