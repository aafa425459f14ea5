"""What the package uses of HailoRT's Python package, `hailo_platform`: one table, to be compared with the real one.

As documented for HailoRT 4.20 to 4.23 (hailo-ai/hailort, branch hailo8: pyhailort.py, and the pybind11 module behind
it). On a machine that has the package, from the repository's folder:

    python tests/hailo_api.py

lists what differs, and exits with 1 if anything does.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

# dotted name -> parameters that the package passes (positional by place, keyword by "name="), or None where it is read
USED: dict[str, tuple[str, ...] | None] = {
    "__version__": None,
    "Device": ("device_id",),
    "Device.scan": (),
    "Device.__enter__": ("self",),
    "Device.__exit__": None,
    "VDevice": ("params",),
    "VDevice.create_params": (),
    "VDevice.create_infer_model": ("self", "hef_source"),
    "VDevice.release": ("self",),
    "FormatType.UINT8": None,
    "FormatType.UINT16": None,
    "FormatType.FLOAT32": None,
    "FormatOrder.NHWC": None,
    "FormatOrder.NC": None,
    "FormatOrder.FCR": None,
    "HailoSchedulingAlgorithm.ROUND_ROBIN": None,
    "pyhailort.pyhailort.InferModel.inputs": None,
    "pyhailort.pyhailort.InferModel.outputs": None,
    "pyhailort.pyhailort.InferModel.set_batch_size": ("self", "batch_size"),
    "pyhailort.pyhailort.InferModel.configure": ("self",),
    "pyhailort.pyhailort.InferModel.InferStream.name": None,
    "pyhailort.pyhailort.InferModel.InferStream.shape": None,
    "pyhailort.pyhailort.InferModel.InferStream.format": None,
    "pyhailort.pyhailort.InferModel.InferStream.quant_infos": None,
    "pyhailort.pyhailort.InferModel.InferStream.set_format_type": ("self", "type"),
    "pyhailort.pyhailort.InferModel.InferStream.set_format_order": ("self", "order"),
    "pyhailort.pyhailort.ConfiguredInferModel.__exit__": ("self", "exc_type", "exc_value", "traceback"),
    "pyhailort.pyhailort.ConfiguredInferModel.create_bindings": ("self",),
    "pyhailort.pyhailort.ConfiguredInferModel.wait_for_async_ready": ("self", "timeout_ms=", "frames_count="),
    "pyhailort.pyhailort.ConfiguredInferModel.run_async": ("self", "bindings"),
    "pyhailort.pyhailort.ConfiguredInferModel.shutdown": ("self",),
    "pyhailort.pyhailort.ConfiguredInferModel.Bindings.input": ("self", "name"),
    "pyhailort.pyhailort.ConfiguredInferModel.Bindings.output": ("self", "name"),
    "pyhailort.pyhailort.AsyncInferJob.wait": ("self", "timeout_ms"),
}
# What objects are made of that exist only with a device, or inside the extension: (what gives them, attribute).
OF_OBJECTS = {
    "VDevice.create_params()": ("scheduling_algorithm", "group_id", "multi_process_service"),
    "Device(...)": ("control",),
    "Device(...).control": ("identify", "get_chip_temperature"),
    "Device(...).control.identify()": (
        "device_architecture", "firmware_version", "board_name", "product_name", "serial_number",
    ),
    "Device(...).control.get_chip_temperature()": ("ts0_temperature", "ts1_temperature"),
    "InferStream.format": ("type", "order"),
    "InferStream.quant_infos[0]": ("qp_zp", "qp_scale", "limvals_min", "limvals_max"),
    "Bindings.input(name)": ("set_buffer",),
}  # fmt: skip
# Exceptions that are told by their names; those with a release are missing from older ones.
EXCEPTIONS = {
    "HailoRTException": "", "HailoRTTimeout": "", "HailoRTInvalidArgumentException": "",
    "HailoRTInvalidOperationException": "", "HailoRTInvalidProtocolVersionException": "",
    "HailoRTFirmwareControlFailedException": "", "HailoRTInvalidFrameException": "", "HailoRTInvalidHEFException": "",
    "HailoRTDriverOperationFailedException": "4.20", "HailoRTUnsupportedOpcodeException": "",
    "HailoRTNotFoundException": "", "HailoCommunicationClosedException": "", "HailoRTStreamAborted": "",
    "HailoRTStreamAbortedByUser": "", "HailoRTHEFNotCompatibleWithDevice": "4.21",
}  # fmt: skip


def find(package: str, dotted: str) -> Any:
    """An attribute of a package, its modules imported on the way."""
    found, path = importlib.import_module(package), package
    for part in dotted.split("."):
        path = f"{path}.{part}"
        if not hasattr(found, part):
            importlib.import_module(path)
        found = getattr(found, part)
    return found


def misfit(found: Any, parameters: tuple[str, ...]) -> str:
    """Why something cannot be called so; "" if it can."""
    if inspect.isclass(found):
        found, parameters = found.__init__, ("self", *parameters)
    try:
        signature = inspect.signature(found)
    except ValueError:  # from the extension: it has none
        return ""
    names = list(signature.parameters)
    positional = [name for name in parameters if not name.endswith("=")]
    keywords = {name[:-1]: None for name in parameters if name.endswith("=")}
    try:
        signature.bind(*positional, **keywords)
    except TypeError as error:
        return str(error)
    if names[: len(positional)] != positional:
        return f"it takes {', '.join(names)}, and {', '.join(positional)} were expected"
    return ""


def differences(package: str = "hailo_platform") -> list[str]:
    """What the package lacks of the table."""
    lines = []
    for dotted, parameters in USED.items():
        try:
            found = find(package, dotted)
        except (ImportError, AttributeError):
            lines.append(f"{dotted} is not there")
            continue
        if parameters is not None and (line := misfit(found, parameters)):
            lines.append(f"{dotted}: {line}")
    version = tuple(map(int, find(package, "__version__").split(".")[:2]))
    for name, since in EXCEPTIONS.items():
        if since and version < tuple(map(int, since.split("."))):
            continue
        try:
            found = find(package, f"pyhailort.pyhailort.{name}")
        except (ImportError, AttributeError):
            lines.append(f"the exception {name} is not there")
            continue
        if not issubclass(found, find(package, "pyhailort.pyhailort.HailoRTException")):
            lines.append(f"{name} is no HailoRTException")
    return lines


if __name__ == "__main__":
    found = differences()
    print("\n".join(found) or "all that is used is there")
    sys.exit(bool(found))
