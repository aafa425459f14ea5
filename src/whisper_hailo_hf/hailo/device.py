"""The Hailo device as `hailo_platform` shows it, HailoRT's Python package.

The package comes from Hailo, not from an index, and fails to import in several ways (no such package, no extension
for this Python, an extension of another version), so that everything is caught.
"""

import importlib
import re
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.hailo.faults import explain

# DeviceArchitectureTypes, where its name is not to be had
_ARCHITECTURES = {
    0: "HAILO8_A0", 1: "HAILO8", 2: "HAILO8L", 3: "HAILO15H", 4: "HAILO15L", 5: "HAILO15M", 6: "HAILO10H",
}  # fmt: skip


@dataclass(frozen=True)
class HailoDevice:
    """A device that answered.

    Attributes:
        id: such as "0001:01:00.0".
        architecture: "HAILO8L", "HAILO8" and so on; "" if it did not say.
        firmware: its version; "" if it did not say.
        board, product, serial: what it says of itself; "" where it says nothing.
        temperature: of the chip, °C; None where it cannot be read.
        problem: why it could not be asked; "" if it could.
    """

    id: str
    architecture: str = ""
    firmware: str = ""
    board: str = ""
    product: str = ""
    serial: str = ""
    temperature: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class HailoRuntime:
    """HailoRT's Python package and the devices it finds.

    Attributes:
        version: of `hailo_platform`; None if it cannot be imported.
        problem: why it cannot be imported, or why no device could be looked for; "" otherwise.
        devices: those found.
    """

    version: str | None = None
    problem: str = ""
    devices: tuple[HailoDevice, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return asdict(self)


def import_platform() -> Any:
    """The module `hailo_platform`; a `WhisperHailoError` that says why it cannot be had."""
    if find_spec("hailo_platform") is None:
        raise WhisperHailoError(
            "hailo_platform is not installed: sudo apt install hailo-all, and a virtual environment with "
            "--system-site-packages"
        )
    try:
        platform = importlib.import_module("hailo_platform")
    except Exception as error:  # ImportError, MissingPyHRTLib, and whatever an extension throws
        text = " ".join(str(error).split())[:200]
        raise WhisperHailoError(f"hailo_platform cannot be imported ({type(error).__name__}: {text})") from error
    if not hasattr(platform, "VDevice"):
        raise WhisperHailoError(f"hailo_platform at {platform.__path__} is not HailoRT's: it has no VDevice")
    return platform


def device_ids(platform: Any) -> list[str]:
    """Ids of the devices on this machine, held by others or not."""
    return [str(one) for one in platform.Device.scan()]


def look_at_device(platform: Any, device_id: str) -> HailoDevice:
    """Asks one device what it is; what cannot be had is left empty."""
    try:
        with platform.Device(device_id) as device:
            board = device.control.identify()
            try:
                heat = device.control.get_chip_temperature()
                temperature = round(max(float(heat.ts0_temperature), float(heat.ts1_temperature)), 1)
            except Exception:  # boards without a sensor, and firmware that does not answer
                temperature = None
            return HailoDevice(
                id=device_id,
                architecture=_architecture(board.device_architecture),
                firmware=_version(board.firmware_version),
                board=_clean(board.board_name),
                product=_clean(board.product_name),
                serial=_clean(board.serial_number),
                temperature=temperature,
            )
    except Exception as error:  # held by another process, or gone
        return HailoDevice(id=device_id, problem=explain(error).line)


def look_at_runtime() -> HailoRuntime:
    """HailoRT's version here and its devices, without an exception."""
    try:
        platform = import_platform()
    except WhisperHailoError as error:
        return HailoRuntime(problem=str(error))
    version = str(getattr(platform, "__version__", "of an unknown version"))
    try:
        devices = tuple(look_at_device(platform, one) for one in device_ids(platform))
    except Exception as error:
        return HailoRuntime(version, explain(error).line)
    return HailoRuntime(version, devices=devices)


def _architecture(value: Any) -> str:
    name = getattr(value, "name", None)
    if isinstance(name, str):
        return name
    try:
        return _ARCHITECTURES.get(int(value), f"architecture {int(value)}")
    except (TypeError, ValueError):
        return ""


def _version(value: Any) -> str:
    text = _clean(value)  # an object that prints itself as "4.20.0 (release,app)"
    found = re.search(r"\d+\.\d+\.\d+", text)
    return found.group() if found else text


def _clean(value: Any) -> str:
    text = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
    text = "".join(one for one in text if one.isprintable()).strip()
    return "" if text == "<N/A>" else text
