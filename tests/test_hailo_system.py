"""What is found of Hailo on a machine, and the advice on it: laptops with nothing, Pis with everything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers_hef import Port, hailo_platform, make_hef

from whisper_hailo_hf.hailo.advice import NOTE, OK, WRONG, advise
from whisper_hailo_hf.hailo.device import HailoDevice, HailoRuntime, look_at_runtime
from whisper_hailo_hf.hailo.hef import read_hef
from whisper_hailo_hf.hailo.system import HailoSystem, Holder, PciLink, holders_of_device, look_at_system

LINK = PciLink("0001:01:00.0", "Hailo-8 or Hailo-8L", 3, 1, "hailo")
WELL = HailoSystem(
    links=(LINK,), nodes=("/dev/hailo0",), driver="4.20.0", library="4.20.0", board="Raspberry Pi 5 Model B Rev 1.0",
    python_packages=("/usr/lib/python3/dist-packages",), gen3_asked=True,
)  # fmt: skip
DEVICE = HailoDevice("0001:01:00.0", "HAILO8L", "4.20.0", "Hailo-8", temperature=42.5)
RUNTIME = HailoRuntime("4.20.0", devices=(DEVICE,))


def write(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def pi(tmp_path) -> Path:
    """The files of a Raspberry Pi with a Hailo-8L, as far as they are looked at."""
    bus = "sys/bus/pci/devices/0001:01:00.0"
    for name, text in {
        f"{bus}/vendor": "0x1e60\n", f"{bus}/device": "0x2864\n", f"{bus}/current_link_speed": "5.0 GT/s PCIe\n",
        f"{bus}/current_link_width": "1\n", "sys/bus/pci/devices/0000:00:00.0/vendor": "0x14e4\n",
        "sys/module/hailo_pci/version": "4.20.0\n", "dev/hailo0": "",
        "usr/lib/aarch64-linux-gnu/libhailort.so.4.20.0": "", "usr/lib/aarch64-linux-gnu/libhailort.so": "",
        "usr/lib/python3/dist-packages/hailo_platform/__init__.py": "",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0", "boot/firmware/config.txt": "dtparam=audio=on\n",
        "proc/12/comm": "rpicam-hello\n", "proc/13/comm": "hailort_service\n",
    }.items():  # fmt: skip
        write(tmp_path, name, text)
    (tmp_path / "proc/12/fd").mkdir()
    os.symlink("/dev/hailo0", tmp_path / "proc/12/fd/7")
    os.symlink("/dev/null", tmp_path / "proc/12/fd/8")
    drivers = tmp_path / "sys/bus/pci/drivers/hailo"
    drivers.mkdir(parents=True)
    os.symlink(drivers, tmp_path / bus / "driver")
    return tmp_path


def test_a_raspberry_pi(pi):
    found = look_at_system(pi)
    assert found.links == (PciLink("0001:01:00.0", "Hailo-8 or Hailo-8L", 2, 1, "hailo"),)
    assert (found.nodes, found.driver, found.library) == (("/dev/hailo0",), "4.20.0", "4.20.0")
    assert found.holders == (Holder(12, "rpicam-hello"),)
    assert (found.service, found.gen3_asked) == (True, False)
    assert found.python_packages == ("/usr/lib/python3/dist-packages",)
    assert found.board == "Raspberry Pi 5 Model B Rev 1.0"
    write(pi, "boot/firmware/config.txt", "[all]\n  dtparam=pciex1_gen=3\n")
    assert look_at_system(pi).gen3_asked is True
    write(pi, "boot/firmware/config.txt", "#dtparam=pciex1_gen=3\n")
    assert look_at_system(pi).gen3_asked is False
    assert holders_of_device(pi) == (Holder(12, "rpicam-hello"),)


def test_a_machine_with_nothing_at_all(tmp_path):
    found = look_at_system(tmp_path)
    assert (found.links, found.nodes, found.driver, found.library, found.holders) == ((), (), None, None, ())
    (finding,) = advise(found, HailoRuntime(problem="hailo_platform is not installed"), "2.4.0")
    assert (finding.level, finding.remedy) == (NOTE, "")
    assert "encoders run on onnx or torch here" in finding.text


def test_files_that_say_nonsense(pi):
    bus = "sys/bus/pci/devices/0001:01:00.0"
    write(pi, f"{bus}/current_link_speed", "Unknown")
    write(pi, f"{bus}/current_link_width", "\xff" * 9)
    write(pi, "usr/lib/libhailort.so.new", "")
    (pi / "proc/x").mkdir()
    link = look_at_system(pi).links[0]
    assert (link.generation, link.width) == (0, 0)


def test_this_machine():
    """Whatever it is, looking at it fails at nothing."""
    look_at_system()
    assert isinstance(look_at_runtime(), HailoRuntime)


def levels(system=WELL, runtime=RUNTIME, numpy="1.26.4", hef=None):
    return {finding.name: finding for finding in advise(system, runtime, numpy, hef)}


def test_all_is_well():
    found = levels()
    assert {finding.level for finding in found.values()} == {OK}
    assert set(found) == {
        "device on PCIe", "PCIe link", "kernel driver", "libhailort", "hailo_platform", "versions", "NumPy",
        "device 0001:01:00.0", "in use",
    }  # fmt: skip
    assert found["device 0001:01:00.0"].text == "HAILO8L, firmware 4.20.0, Hailo-8, 42.5 °C"


def changed(system=WELL, **changes) -> HailoSystem:
    return HailoSystem(**vars(system) | changes)


SLOW = (PciLink("0001:01:00.0", "Hailo-8 or Hailo-8L", 2, 1, "hailo"),)
NONE = HailoRuntime(problem="hailo_platform is not installed")


GEN3, INSTALL = "dtparam=pciex1_gen=3", "sudo apt install hailo-all"
HELD = changed(holders=(Holder(9, "app"),))
FAULTS = [
    (changed(links=SLOW, gen3_asked=False), RUNTIME, "PCIe link", NOTE, "generation 2, 1 lane", GEN3),
    (changed(links=SLOW), RUNTIME, "PCIe link", NOTE, "half the speed", "reboot"),
    (changed(driver=None), RUNTIME, "kernel driver", WRONG, "not loaded", INSTALL),
    (changed(nodes=()), RUNTIME, "kernel driver", WRONG, "no /dev/hailo0", "dmesg"),
    (changed(library=None), RUNTIME, "libhailort", WRONG, "not installed", INSTALL),
    (changed(isolated=True), NONE, "hailo_platform", WRONG, "does not look", "--system-site-packages"),
    (WELL, NONE, "hailo_platform", WRONG, "and: hailo_platform is not", "system's own python3"),
    (changed(python_packages=()), NONE, "hailo_platform", WRONG, "not installed", "Developer Zone"),
    (changed(driver="4.19.0"), RUNTIME, "versions", WRONG, "driver 4.19.0, library 4.20.0", "full-upgrade"),
    (HELD, RUNTIME, "in use", NOTE, "by app (process 9)", "hailort.service"),
    (WELL, HailoRuntime("4.20.0"), "HailoRT", WRONG, "finds no device, and the bus has one", "reboot"),
    (WELL, HailoRuntime("4.20.0", "the Hailo driver"), "HailoRT", WRONG, "the Hailo driver", "dmesg"),
    (changed(links=()), RUNTIME, "device on PCIe", NOTE, "no Hailo device", "flat cable"),
]


def test_numpy_2_comes_with_a_remedy():
    finding = levels(numpy="2.1.0")["NumPy"]
    assert (finding.level, finding.remedy) == (WRONG, "pip install 'numpy<2'")


@pytest.mark.parametrize(("system", "runtime", "name", "level", "text", "remedy"), FAULTS)
def test_what_is_wrong_comes_with_a_remedy(system, runtime, name, level, text, remedy):
    finding = levels(system, runtime)[name]
    assert finding.level == level
    assert text in finding.text
    assert remedy in finding.remedy


def test_another_chip_than_this_package_is_for():
    runtime = HailoRuntime("4.20.0", devices=(HailoDevice("0", "HAILO10H"),))
    assert levels(runtime=runtime)["device 0"].level == WRONG
    busy = HailoRuntime("4.20.0", devices=(HailoDevice("0", problem="another process holds it"),))
    assert levels(runtime=busy)["device 0"].level == NOTE


@pytest.mark.parametrize(
    ("made", "name", "level"),
    [
        ({"arch": "hailo8l", "compiler": "3.30.0", "version": 1}, "HEF and device", OK),
        ({"arch": "hailo8l", "compiler": "3.30.0", "version": 1}, "HEF and HailoRT", OK),
        ({"arch": "hailo8", "version": 1}, "HEF and device", WRONG),
        ({"version": 3}, "HEF and HailoRT", WRONG),
        ({"version": 1, "compiler": "3.33.0"}, "HEF and HailoRT", NOTE),
    ],
)
def test_a_hef_is_held_to_device_and_runtime(made, name, level):
    hef = read_hef(make_hef([Port("a", (1, 2, 3))], [Port("b", (1, 2, 3))], **made))
    assert levels(hef=hef)[name].level == level


def test_the_runtime_as_the_stand_in_shows_it():
    with hailo_platform("4.20") as world:
        found = look_at_runtime()
        assert (found.version, found.problem) == ("4.20.0", "")
        assert found.devices == (
            HailoDevice("0001:01:00.0", "HAILO8L", "4.20.0", "Hailo-8", "", "HLDDLBB000000000", 42.5),
        )
        world.driver = "4.19.0"
        assert "not of one version" in look_at_runtime().devices[0].problem
        world.driver = None
        assert "driver is not loaded" in look_at_runtime().problem
