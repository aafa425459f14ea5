"""What a Linux system tells about a Hailo device without any of Hailo's software: PCIe, driver, library, holders.

Everything is read from files, each of which may be absent; nothing is run, nothing is opened for writing.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

VENDOR = "0x1e60"  # Hailo Technologies in the PCI ID database
_CHIPS = {"0x2864": "Hailo-8 or Hailo-8L", "0x45c4": "Hailo-10H"}
_SPEEDS = {"2.5": 1, "5": 2, "5.0": 2, "8": 3, "8.0": 3, "16": 4, "16.0": 4}
_SITE_PACKAGES = ("usr/lib/python3/dist-packages", "usr/local/lib/python3*/dist-packages")
_LIBRARIES = ("usr/lib", "usr/lib/*-linux-gnu", "usr/local/lib", "lib/*-linux-gnu")


@dataclass(frozen=True)
class PciLink:
    """A Hailo device on the PCIe bus.

    Attributes:
        address: such as "0001:01:00.0".
        chip: what its device id says.
        generation, width: of the link as it runs; 0 where the system does not say.
        driver: the kernel module that has it; "" if none has.
    """

    address: str
    chip: str
    generation: int
    width: int
    driver: str


@dataclass(frozen=True)
class Holder:
    """A process that has the device open."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


@dataclass(frozen=True)
class HailoSystem:
    """What the system shows.

    Attributes:
        links: Hailo devices on the bus.
        nodes: device files, "/dev/hailo0" and so on.
        driver: version of the loaded kernel driver; None if none is loaded.
        library: version of libhailort; None if there is none.
        holders: processes that have a device open, as far as this user may see.
        service: whether the hailort service runs.
        python_packages: folders of the system's Python that have `hailo_platform`.
        isolated: whether this Python runs in a virtual environment that does not see the system's packages.
        board: what the board calls itself; "" where it does not.
        gen3_asked: whether a Raspberry Pi's config.txt asks for PCIe generation 3; None where there is no such file.
    """

    links: tuple[PciLink, ...] = ()
    nodes: tuple[str, ...] = ()
    driver: str | None = None
    library: str | None = None
    holders: tuple[Holder, ...] = ()
    service: bool = False
    python_packages: tuple[str, ...] = ()
    isolated: bool = False
    board: str = ""
    gen3_asked: bool | None = None


def look_at_system(root: str | os.PathLike = "/") -> HailoSystem:
    """Looks at the system that lies under `root`."""
    base = Path(root)
    holders, service = _processes(base)
    return HailoSystem(
        links=_links(base),
        nodes=tuple(sorted(f"/dev/{path.name}" for path in _glob(base, "dev/hailo[0-9]*"))),
        driver=_read(base / "sys/module/hailo_pci/version") or None,
        library=_library(base),
        holders=holders,
        service=service,
        python_packages=tuple(
            f"/{path.parent.relative_to(base)}"
            for site in _SITE_PACKAGES
            for path in _glob(base, f"{site}/hailo_platform")
        ),
        isolated=sys.prefix != sys.base_prefix and not _sees_system(Path(sys.prefix)),
        board=_read(base / "proc/device-tree/model"),
        gen3_asked=_gen3_asked(base),
    )


def holders_of_device(root: str | os.PathLike = "/") -> tuple[Holder, ...]:
    """The processes besides this one that have a Hailo device open, as far as this user may see."""
    return tuple(holder for holder in _processes(Path(root))[0] if holder.pid != os.getpid())


def _links(base: Path) -> tuple[PciLink, ...]:
    found = []
    for path in sorted(_glob(base, "sys/bus/pci/devices/*")):
        if _read(path / "vendor").lower() != VENDOR:
            continue
        speed = _read(path / "current_link_speed").partition(" ")[0]
        width = _read(path / "current_link_width")
        found.append(
            PciLink(
                address=path.name,
                chip=_CHIPS.get(_read(path / "device").lower(), "a Hailo device"),
                generation=_SPEEDS.get(speed, 0),
                width=int(width) if width.isdecimal() and len(width) < 4 else 0,
                driver=_link_name(path / "driver"),
            )
        )
    return tuple(found)


def _library(base: Path) -> str | None:
    versions = [
        match.group(1)
        for folder in _LIBRARIES
        for path in _glob(base, f"{folder}/libhailort.so.*")
        if (match := re.search(r"\.so\.(\d+\.\d+\.\d+)$", path.name))
    ]
    return max(versions, key=lambda text: tuple(map(int, text.split("."))), default=None)


def _processes(base: Path) -> tuple[tuple[Holder, ...], bool]:
    """Who has a Hailo device open, and whether the hailort service is among all processes."""
    holders, service = [], False
    for process in _glob(base, "proc/[0-9]*"):
        name = _read(process / "comm")
        service = service or name == "hailort_service"
        try:
            with os.scandir(process / "fd") as entries:
                targets = [os.readlink(entry.path) for entry in entries]
        except OSError:  # another user's, or gone
            continue
        if process.name.isdecimal() and any(re.fullmatch(r"/dev/hailo\d+", target) for target in targets):
            holders.append(Holder(int(process.name), name or "a process"))
    return tuple(sorted(holders, key=lambda holder: holder.pid)), service


def _gen3_asked(base: Path) -> bool | None:
    for name in ("boot/firmware/config.txt", "boot/config.txt"):
        if (base / name).is_file():
            return bool(re.search(r"(?m)^\s*dtparam=pciex1_gen=3\b", _read(base / name, most=1 << 20)))
    return None


def _sees_system(prefix: Path) -> bool:
    return bool(re.search(r"(?mi)^include-system-site-packages\s*=\s*true", _read(prefix / "pyvenv.cfg")))


def _read(path: Path, most: int = 65536) -> str:
    try:
        with path.open("rb") as file:
            return file.read(most).decode("utf-8", errors="replace").strip("\0\n\t ")
    except OSError:
        return ""


def _link_name(path: Path) -> str:
    try:
        return Path(os.readlink(path)).name
    except OSError:
        return ""


def _glob(base: Path, pattern: str) -> list[Path]:
    try:
        return list(base.glob(pattern))
    except OSError:
        return []
