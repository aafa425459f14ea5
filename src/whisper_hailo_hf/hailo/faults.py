"""What HailoRT throws, as one line with what to do about it.

Status codes and the exceptions that Python sees as in HailoRT 4.20 to 4.23 (include/hailo/hailort.h;
bindings/python/.../pyhailort.py, `ExceptionWrapper`). Exceptions are told by the names of their classes: half of them
are not at the top of `hailo_platform`, and some are missing from older releases.
"""

import re
from dataclasses import dataclass

# by kind: what happened, and what to do
_LINES = {
    "timeout": (
        "the Hailo device did not answer in time: another program keeps it busy (whisper-hailo doctor names it), or "
        "it hangs; if it stays so, power the machine off and on, or give timeout= more seconds"
    ),
    "busy": (
        "another process holds the Hailo device: stop it (whisper-hailo doctor names it), or share the chip through "
        "the hailort service: sudo systemctl enable --now hailort.service, and multi_process_service=True in every "
        "program"
    ),
    "absent": (
        "no Hailo device is free: none is connected, or another process holds it; whisper-hailo doctor looks which"
    ),
    "driver": "the Hailo driver is not loaded: sudo apt install hailo-all, then reboot",
    "version": (
        "the Hailo driver, library, firmware and Python package are not of one version: sudo apt update && sudo apt "
        "full-upgrade && sudo apt install hailo-all, then reboot"
    ),
    "service": (
        "the hailort service does not answer: sudo systemctl enable --now hailort.service, or leave "
        "multi_process_service out"
    ),
    "architecture": (
        "this HEF was compiled for another chip than the one here: compile it with --device hailo8l, which runs on a "
        "Hailo-8 too"
    ),
    "damaged": "HailoRT calls this HEF damaged: copy or compile it anew",
    "unsupported": (
        "this release of HailoRT cannot read this HEF: upgrade HailoRT (sudo apt full-upgrade) or compile with an "
        "older Dataflow Compiler"
    ),
    "file": "HailoRT cannot open the HEF: is it readable by this user?",
    "memory": "HailoRT has not enough memory: close other programs, or use a smaller model",
    "lost": (
        "the Hailo device stopped in the middle of its work: check its cable, power and temperature (whisper-hailo "
        "doctor; dmesg | grep hailo)"
    ),
    "request": "HailoRT refuses the request: its log, hailort.log, says why",
}
# What a fallback may stand in for: that the chip is not to be had, not that something is wrong with the file.
DEVICE_KINDS = frozenset({"timeout", "busy", "absent", "driver", "service", "memory", "lost"})
# hailo_status; those in 85 to 90 are the driver's own
_CODES = {
    2: "request", 3: "memory", 4: "timeout", 6: "request", 8: "lost", 13: "file", 15: "version", 16: "version",
    18: "lost", 25: "lost", 26: "damaged", 36: "lost", 48: "version", 61: "request", 62: "lost", 63: "lost",
    64: "driver", 73: "busy", 74: "absent", 76: "version", 77: "service", 78: "version", 79: "request", 82: "timeout",
    85: "lost", 86: "lost", 87: "lost", 88: "lost", 89: "lost", 90: "lost", 91: "damaged", 92: "unsupported",
    93: "architecture",
}  # fmt: skip
_CLASSES = {
    "HailoRTTimeout": 4,
    "HailoRTInvalidArgumentException": 2,
    "HailoRTInvalidOperationException": 6,
    "HailoRTInvalidProtocolVersionException": 15,
    "HailoRTFirmwareControlFailedException": 18,
    "HailoRTInvalidFrameException": 25,
    "HailoRTInvalidHEFException": 26,
    "HailoRTDriverOperationFailedException": 36,
    "HailoRTPCIeDriverException": 36,
    "HailoRTUnsupportedOpcodeException": 48,
    "HailoRTNotFoundException": 61,
    "HailoCommunicationClosedException": 62,
    "HailoRTStreamAborted": 63,
    "HailoRTStreamAbortedByUser": 63,
    "HailoRTHEFNotCompatibleWithDevice": 93,
}
_NUMBER = re.compile(r"failed with error: (\d+)")


@dataclass(frozen=True)
class Fault:
    """Attributes: the kind, one of those above or "other"; HailoRT's status code, None if it gave none; the line."""

    kind: str
    code: int | None
    line: str

    @property
    def of_device(self) -> bool:
        """Whether it is the chip that is not to be had, and not the file or the request that is wrong."""
        return self.kind in DEVICE_KINDS


def explain(error: BaseException, configuring: bool = False, holders: str = "") -> Fault:
    """What an exception out of `hailo_platform` means.

    Args:
        error: the exception.
        configuring: it came out of `InferModel.configure()`, where HailoRT up to 4.20 reports a HEF for another chip
            as an invalid HEF.
        holders: who is known to hold the device, for people.
    """
    code = status_code(error)
    kind = _CODES.get(code, "other") if code is not None else "other"
    if code == 26 and configuring:
        kind = "architecture"
    if kind == "absent" and holders:
        kind = "busy"
    text = " ".join(str(error).split())[:200]
    cause = f"HailoRT error {code}" if code is not None else type(error).__name__
    if kind == "other":
        return Fault(
            kind, code, f"HailoRT failed: {text or type(error).__name__}; whisper-hailo doctor looks at the rest"
        )
    line = _LINES[kind]
    if kind == "busy" and holders:
        line = line.replace("another process holds the Hailo device", f"the Hailo device is held by {holders}")
        line = line.replace(" (whisper-hailo doctor names it)", "")
    return Fault(kind, code, f"{line} ({cause})")


def status_code(error: BaseException) -> int | None:
    """HailoRT's status code of an exception; None where it has none."""
    for cls in type(error).__mro__:
        if cls.__name__ in _CLASSES:
            return _CLASSES[cls.__name__]
    if found := _NUMBER.search(str(error)):
        return int(found.group(1))
    if type(error).__name__ == "HailoRTStatusException" and error.args and str(error.args[0]).isdigit():
        return int(error.args[0])
    return None
