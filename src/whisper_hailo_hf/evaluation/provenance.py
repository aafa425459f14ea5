"""What a figure was measured on: machine, load, versions, threads, and the state of the source."""

import datetime
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from whisper_hailo_hf.hailo.system import look_at_system
from whisper_hailo_hf.version import __version__

_DISTRIBUTIONS = (
    "torch", "transformers", "tokenizers", "numpy", "onnxruntime", "ctranslate2", "faster-whisper", "jiwer",
)  # fmt: skip


def provenance(threads: int, root: str | os.PathLike[str] = "/") -> dict[str, Any]:
    """As plain JSON types; what the system does not tell is None.

    Args:
        threads: that each system may use.
        root: where the system's files lie.
    """
    base = Path(root)
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"whisper-hailo-hf": __version__, "python": platform.python_version()} | _versions(),
        "git": _git(Path(__file__).resolve().parents[1]),
        "machine": {
            "board": look_at_system(root).board or None,
            "cpu": _cpu(base),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "cores_for_us": _cores(),
            "memory_gib": _memory_gib(base),
            "kernel": platform.release(),
            "governor": _read(base / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "max_khz": _number(_read(base / "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq")),
            "throttled": _throttled(),
        },
        "load_average": _load(),
        "threads": threads,
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _cpu(base: Path) -> str | None:
    text = _read(base / "proc/cpuinfo") or ""
    # ARM kernels give no name but a part number: 0xd0b is the Pi 5's Cortex-A76
    match = re.search(r"(?m)^model name\s*:\s*(.+)$", text) or re.search(r"(?m)^(CPU part\s*:\s*.+)$", text)
    return " ".join(match.group(1).split()) if match else platform.processor() or None


def _cores() -> int | None:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count()


def _memory_gib(base: Path) -> float | None:
    match = re.search(r"MemTotal:\s*(\d+) kB", _read(base / "proc/meminfo") or "")
    return round(int(match.group(1)) / 2**20, 2) if match else None


def _load() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def _throttled() -> str | None:
    """What a Raspberry Pi says of undervoltage and heat, "0x0" if there was none since it booted."""
    return (run_tool("vcgencmd", "get_throttled") or "").partition("=")[2] or None


def _git(folder: Path) -> dict[str, Any] | None:
    commit = run_tool("git", "-C", str(folder), "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = run_tool("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no", ".")
    return {"commit": commit, "changed": bool(changed)}


def run_tool(name: str, *arguments: str) -> str | None:
    """What a command of the system prints; None if it is not there or fails."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
