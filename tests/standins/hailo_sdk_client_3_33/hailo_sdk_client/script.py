"""Model scripts, as far as the stand-in heeds them."""

import re
from fnmatch import fnmatchcase

from hailo_sdk_client.sdk_backend.sdk_backend_exceptions import BackendScriptParserException

_ASSIGNED = {"normalization"}
_PLAIN = {
    "allocator_param",
    "change_output_activation",
    "context_switch_param",
    "model_optimization_config",
    "model_optimization_flavor",
    "performance_param",
    "platform_param",
    "post_quantization_optimization",
    "pre_quantization_optimization",
    "quantization_param",
    "remove_node",
    "resources_param",
    "set_seed",
}


class Script:
    """What a script says: `bits` of layers by pattern, and settings."""

    def __init__(self, text: str, layers: "list[str]") -> None:
        self.text, self.layers = text, layers
        self.modes: dict[str, str] = {}
        self.calibset_size = 64
        self.checker = True
        for line in text.splitlines():
            if line.strip():
                self._command(line.strip())

    def _command(self, line: str) -> None:
        match = re.fullmatch(r"(\w+\s*=\s*)?(\w+)\((.*)\)", line)
        known = match and ((match[2] in _ASSIGNED and match[1]) or (match[2] in _PLAIN and not match[1]) or False)
        if not known:
            raise BackendScriptParserException(f"Invalid model script\nParsing failed at:\n>!<{line}")
        name, arguments = match[2], match[3]
        if name == "quantization_param":
            target, _, rest = arguments.rpartition(", precision_mode=")
            for one in target.strip("[]").split(","):
                pattern = one.strip().strip("{}")
                matching = [layer for layer in self.layers if fnmatchcase(layer, pattern)]
                if not matching:
                    raise BackendScriptParserException(f"no layer {pattern}\nParsing failed at:\n>!<{line}")
                self.modes.update(dict.fromkeys(matching, rest.strip()))
        if found := re.search(r"calibset_size=(\d+)", arguments):
            self.calibset_size = int(found[1])
        if arguments.startswith("checker_cfg"):
            self.checker = "policy=enabled" in arguments

    def bits(self, layer: str) -> "tuple[int, int]":
        """Of a layer's activations and weights."""
        activations, weights = re.fullmatch(r"a(\d+)_w(\d+)", self.modes.get(layer, "a8_w8")).groups()
        return int(activations), int(weights)
