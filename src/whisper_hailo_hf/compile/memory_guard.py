"""How much memory a group of processes holds, how much it may hold, and the end of it when it takes more.

Linux only, as is the compiler that is guarded; read from /proc, see proc(5).
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from whisper_hailo_hf.errors import RequestError

GIB = 2**30
_UNITS = {"%": None, "m": 2**20, "g": GIB, "t": 2**40}
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_PATIENCE = 10  # seconds
_LEAST_AVAILABLE = 0.03  # of all memory: below, the machine is about to kill or to crawl


@dataclass(frozen=True)
class Ceiling:
    """What a group of processes may hold.

    Attributes:
        limit: bytes.
        total: bytes of the machine's RAM, or of the control group that this process is in, if that is less.
    """

    limit: int
    total: int

    def exceeded(self, held: int) -> str | None:
        """What is wrong when a group holds so many bytes, in words; None if nothing is."""
        if held > self.limit:
            return f"held {gib(held)} of memory, where {gib(self.limit)} are allowed (of {gib(self.total)})"
        available = _meminfo("MemAvailable")
        if held > self.total // 10 and available is not None and available < _LEAST_AVAILABLE * self.total:
            return f"held {gib(held)} of memory and left the machine {gib(available)}"
        return None


def ceiling(text: str | float) -> Ceiling:
    """A ceiling from a share (0.8, "80%") of the RAM, or from a size ("24G", "900M").

    Raises:
        RequestError: not of this form, or more than there is.
    """
    total = total_memory()
    if isinstance(text, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[MGT])(?:i?B)?\s*", text, re.IGNORECASE)
        if match is None:
            raise RequestError(f"{text!r} is no amount of memory: write it as 80% or 24G")
        unit = _UNITS[match[2].lower()]
        limit = float(match[1]) * (total / 100 if unit is None else unit)
    else:
        limit = text * total
    if not 0 < limit <= total:
        raise RequestError(f"a memory ceiling of {gib(limit)} makes no sense here: there are {gib(total)}")
    return Ceiling(int(limit), total)


def total_memory() -> int:
    """Bytes of RAM, or of the control group's limit if that is less."""
    total = _meminfo("MemTotal") or 0
    for path in _limits():
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal() and 0 < int(text) < total:
            total = int(text)
    return total


def _limits() -> Iterator[Path]:
    """Files that may hold a limit on this process: of its control group (version 2) and of those above it, or v1's."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (_CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (_CGROUPS, "memory.max")
        inner = Path(path.lstrip("/"))
        for folder in (inner, *inner.parents):
            yield root / folder / name


def _meminfo(name: str) -> int | None:
    try:
        text = (_PROC / "meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    match = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
    return 1024 * int(match[1]) if match else None


def members(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    found = []
    for entry in os.scandir(_PROC):
        fields = _stat(int(entry.name)) if entry.name.isdecimal() else None
        if fields and fields[2] == str(group) and fields[0] not in ("Z", "X"):
            found.append(int(entry.name))
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name, which may hold anything: state, parent, group and so on."""
    try:
        return (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None  # it has ended


def memory_of(group: int) -> int:
    """Bytes of RAM that a process group has for its own; what is mapped from files can be dropped and is not counted.

    Of one process, the resident pages less the shared ones. Of several, what they share is counted once, which takes
    the kernel longer to tell.
    """
    pids = members(group)
    if len(pids) == 1:
        return _resident(pids[0])
    return sum(_proportional(pid) for pid in pids)


def _resident(pid: int) -> int:
    try:
        _, resident, shared, *_ = (_PROC / str(pid) / "statm").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE


def _proportional(pid: int) -> int:
    try:
        text = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return _resident(pid)
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE))
    if "Pss_Anon" in sizes:
        return 1024 * (int(sizes["Pss_Anon"]) + int(sizes.get("Pss_Shmem", 0)))
    return 1024 * int(sizes.get("Pss", 0)) or _resident(pid)


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process that leads its own group, with all that it has started, at once; waits until they have gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + _PATIENCE
    while members(process.pid) and time.monotonic() < deadline:  # much memory takes a while to be given back
        time.sleep(0.02)


def gib(size: float) -> str:
    """A size for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
