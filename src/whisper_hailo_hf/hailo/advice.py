"""What was found of Hailo on a machine, judged: what is well, what is not, and what to do about it.

What belongs together as in HailoRT 4.20 to 4.23: kernel driver, library, firmware and Python package of one version
to the last number (src/vdma/driver/hailort_driver.cpp; hailo_platform/__init__.py), NumPy below 2 (platform/setup.py).
"""

from dataclasses import dataclass

from whisper_hailo_hf.hailo.device import HailoDevice, HailoRuntime
from whisper_hailo_hf.hailo.hef import Hef, version_of
from whisper_hailo_hf.hailo.system import HailoSystem

OK, NOTE, WRONG = "ok", "note", "WRONG"
_INSTALL = "sudo apt install hailo-all, then reboot"
_UPGRADE = "sudo apt update && sudo apt full-upgrade, then reboot"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        level: "ok", "note" (worth knowing) or "WRONG" (stands in the way of the chip).
        text: what was found.
        remedy: what to do; "" where nothing is to be done.
    """

    name: str
    level: str
    text: str
    remedy: str = ""


def advise(
    system: HailoSystem, runtime: HailoRuntime, numpy: str | None = None, hef: Hef | None = None
) -> list[Finding]:
    """Judges what was found.

    Args:
        system: what Linux shows.
        runtime: what HailoRT's Python package shows.
        numpy: its version; None if there is none.
        hef: a file to hold against device and runtime.
    """
    findings = [_bus(system)]
    if _nothing(system, runtime):
        if system.board.startswith("Raspberry Pi 5"):
            findings.append(
                Finding("software", NOTE, "nothing of Hailo's is installed", f"if there is a Hailo board: {_INSTALL}")
            )
    else:
        findings += [
            *_links(system),
            _driver(system),
            _library(system),
            _package(system, runtime),
            *_versions(system, runtime),
            *_numpy(runtime, numpy),
            *(_device(device, system) for device in runtime.devices),
            *_unseen(system, runtime),
            _holders(system),
        ]
    return findings + (_hef(hef, runtime) if hef is not None else [])


def _nothing(system: HailoSystem, runtime: HailoRuntime) -> bool:
    return not (
        system.links or system.nodes or system.driver or system.library or system.python_packages or runtime.version
    )


def _bus(system: HailoSystem) -> Finding:
    if system.links:
        found = ", ".join(f"{link.chip} at {link.address}" for link in system.links)
        return Finding("device on PCIe", OK, found)
    remedy = ""
    if system.board.startswith("Raspberry Pi"):
        remedy = "with a Hailo board: switch off, seat its flat cable anew at both ends, and look for it with lspci"
    return Finding("device on PCIe", NOTE, "no Hailo device: encoders run on onnx or torch here", remedy)


def _links(system: HailoSystem) -> list[Finding]:
    findings = []
    for link in system.links:
        if not link.generation:
            continue
        text = f"generation {link.generation}, {link.width or '?'} lane{'s' * (link.width != 1)}"
        if link.generation >= 3 or not system.board.startswith("Raspberry Pi"):
            findings.append(Finding("PCIe link", OK, text))
        elif system.gen3_asked:
            remedy = "dtparam=pciex1_gen=3 is in config.txt: reboot; if it stays so, seat the flat cable anew"
            findings.append(Finding("PCIe link", NOTE, f"{text}: half the speed that it could have", remedy))
        else:
            remedy = "add dtparam=pciex1_gen=3 to /boot/firmware/config.txt and reboot"
            findings.append(Finding("PCIe link", NOTE, f"{text}: half the speed that it could have", remedy))
    return findings


def _driver(system: HailoSystem) -> Finding:
    if system.driver is None:
        remedy = f"{_INSTALL}; after a kernel update, sudo apt install --reinstall hailo-dkms"
        return Finding("kernel driver", WRONG, "hailo_pci is not loaded", remedy)
    if system.links and not system.nodes:
        return Finding("kernel driver", WRONG, f"{system.driver}, but it made no /dev/hailo0", "dmesg | grep hailo")
    return Finding("kernel driver", OK, f"{system.driver}{', ' if system.nodes else ''}{', '.join(system.nodes)}")


def _library(system: HailoSystem) -> Finding:
    if system.library is None:
        return Finding("libhailort", WRONG, "is not installed", _INSTALL)
    return Finding("libhailort", OK, system.library)


def _package(system: HailoSystem, runtime: HailoRuntime) -> Finding:
    if runtime.version is not None:
        return Finding("hailo_platform", OK, runtime.version)
    if system.python_packages and system.isolated:
        return Finding(
            "hailo_platform",
            WRONG,
            f"lies in {system.python_packages[0]}, where this virtual environment does not look",
            "make the environment with: python3 -m venv --system-site-packages",
        )
    if system.python_packages:
        return Finding(
            "hailo_platform",
            WRONG,
            f"lies in {system.python_packages[0]}, and: {runtime.problem}",
            "run with the system's own python3, or a virtual environment of it with --system-site-packages",
        )
    remedy = f"{_INSTALL}; elsewhere than on Raspberry Pi OS, the wheel from Hailo's Developer Zone"
    return Finding("hailo_platform", WRONG, runtime.problem or "is not installed", remedy)


def _versions(system: HailoSystem, runtime: HailoRuntime) -> list[Finding]:
    known = {"driver": system.driver, "library": system.library, "Python package": runtime.version}
    known["firmware"] = next((device.firmware for device in runtime.devices if device.firmware), None)
    found = {name: version_of(text) for name, text in known.items() if text}
    numbers = {name: version[:3] for name, version in found.items() if version and len(version) >= 3}
    if len(numbers) < 2:
        return []
    if len(set(numbers.values())) == 1:
        return [Finding("versions", OK, f"{', '.join(numbers)} agree")]
    text = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in numbers.items())
    return [Finding("versions", WRONG, f"they must be the same: {text}", _UPGRADE)]


def _numpy(runtime: HailoRuntime, numpy: str | None) -> list[Finding]:
    version = version_of(numpy or "")
    if runtime.version is None or version is None:
        return []
    if version < (2,):
        return [Finding("NumPy", OK, f"{numpy}")]
    return [Finding("NumPy", WRONG, f"{numpy}, and HailoRT 4 was built for NumPy 1", "pip install 'numpy<2'")]


def _device(device: HailoDevice, system: HailoSystem) -> Finding:
    if device.problem:
        return Finding(f"device {device.id}", NOTE, device.problem)
    facts = [device.architecture, f"firmware {device.firmware}" * bool(device.firmware), device.board, device.product]
    facts.append("" if device.temperature is None else f"{device.temperature} °C")
    text = ", ".join(fact for fact in facts if fact)
    if device.architecture not in ("HAILO8", "HAILO8L", "HAILO8R"):
        return Finding(f"device {device.id}", WRONG, text, "this package is for the Hailo-8 family")
    return Finding(f"device {device.id}", OK, text)


def _unseen(system: HailoSystem, runtime: HailoRuntime) -> list[Finding]:
    """A device that the bus has and HailoRT does not find."""
    if runtime.version is None or runtime.devices or not (system.links or runtime.problem):
        return []
    return [
        Finding(
            "HailoRT",
            WRONG,
            runtime.problem or "finds no device, and the bus has one",
            "is this user allowed to open /dev/hailo0? otherwise reboot, then dmesg | grep hailo",
        )
    ]


def _holders(system: HailoSystem) -> Finding:
    service = "the hailort service runs" if system.service else "the hailort service does not run"
    if not system.holders:
        return Finding("in use", OK, f"by no process that this user may see; {service}")
    return Finding(
        "in use",
        NOTE,
        f"by {', '.join(map(str, system.holders))}; {service}",
        "stop it, or share the chip: sudo systemctl enable --now hailort.service, and multi_process_service=True in "
        "every program",
    )


def _hef(hef: Hef, runtime: HailoRuntime) -> list[Finding]:
    findings = []
    if runtime.version is not None:
        if reason := hef.why_not_read_by(runtime.version):
            findings.append(Finding("HEF and HailoRT", WRONG, reason, "or compile it with an older Dataflow Compiler"))
        elif advice := hef.advice_on(runtime.version):
            findings.append(Finding("HEF and HailoRT", NOTE, advice))
        else:
            findings.append(Finding("HEF and HailoRT", OK, f"HailoRT {runtime.version} reads it"))
    for device in runtime.devices:
        if not device.architecture:
            continue
        if reason := hef.why_not_run_on(device.architecture):
            findings.append(Finding("HEF and device", WRONG, reason))
        else:
            findings.append(Finding("HEF and device", OK, f"{device.architecture} runs a HEF for {hef.architecture}"))
    return findings
