"""The table of what is used of HailoRT's Python package, held to the stand-ins and to the package's own source."""

from __future__ import annotations

import ast
from pathlib import Path

import hailo_api
import pytest
from helpers_hef import Port, hailo_platform, make_hef

import whisper_hailo_hf

SOURCE = Path(whisper_hailo_hf.__file__).parent
MODULES = ["backends/hef.py", "backends/hef_device.py", "hailo/device.py"]
# what these modules call HailoRT's objects
OBJECTS = {
    "platform", "_vdevice", "_model", "_configured", "configured", "vdevice", "params", "stream", "info", "infos",
    "bindings", "board", "device", "heat", "job", "control", "order", "kinds", "VDevice", "Device", "FormatOrder",
    "FormatType", "HailoSchedulingAlgorithm", "format",
}  # fmt: skip


@pytest.fixture(params=["4.20", "4.23"])
def stand_in(request):
    with hailo_platform(request.param) as world:
        yield world


def test_the_stand_ins_have_all_that_is_used(stand_in):
    assert hailo_api.differences() == []


def test_objects_have_the_attributes_that_are_used(stand_in):
    import hailo_platform as hailo
    from hailo_chip import runtime

    device = hailo.Device("0001:01:00.0")
    content = make_hef([Port("a", (1, 2, 3))], [Port("b", (1, 2, 3))], version=1)
    stream = runtime.InferModel.InferStream(runtime._checked(content).networks[0].inputs[0], True)
    objects = {
        "VDevice.create_params()": hailo.VDevice.create_params(),
        "Device(...)": device,
        "Device(...).control": device.control,
        "Device(...).control.identify()": device.control.identify(),
        "Device(...).control.get_chip_temperature()": device.control.get_chip_temperature(),
        "InferStream.format": stream.format,
        "InferStream.quant_infos[0]": stream.quant_infos[0],
        "Bindings.input(name)": runtime._Bound(),
    }
    assert objects.keys() == hailo_api.OF_OBJECTS.keys()
    for name, attributes in hailo_api.OF_OBJECTS.items():
        for attribute in attributes:
            assert hasattr(objects[name], attribute), (name, attribute)


def test_nothing_is_used_that_the_table_lacks():
    """Every attribute of one of HailoRT's objects in the package's source is in the table."""
    known = {part for dotted in hailo_api.USED for part in dotted.split(".")}
    known |= {attribute for attributes in hailo_api.OF_OBJECTS.values() for attribute in attributes}
    ours = {
        "close", "run", "settings", "platform", "architecture", "dtype", "limits", "span", "temperature", "__path__",
        "inputs", "outputs", "id", "problem",
    }  # fmt: skip
    unknown = set()
    for module in MODULES:
        for node in ast.walk(ast.parse((SOURCE / module).read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if owner in OBJECTS and node.attr not in known | ours:
                unknown.add(f"{module}: {owner}.{node.attr}")
    assert unknown == set()


def test_the_table_sees_what_is_missing(stand_in, monkeypatch):
    from hailo_chip import runtime

    monkeypatch.delattr(runtime.VDevice, "release")
    monkeypatch.setattr(runtime.AsyncInferJob, "wait", lambda self, seconds: None)
    found = hailo_api.differences()
    assert "VDevice.release is not there" in found
    assert any(line.startswith("pyhailort.pyhailort.AsyncInferJob.wait: it takes self, seconds") for line in found)


def test_every_exception_of_the_table_is_explained(stand_in):
    """By its class and by its number alike."""
    from hailo_chip import runtime

    from whisper_hailo_hf.hailo.faults import explain, status_code

    for status, (cls, _) in runtime._CLASSES.items():
        if cls.__name__ in hailo_api.EXCEPTIONS:
            assert status_code(runtime.failure(status)) == status
            fault = explain(runtime.failure(status))
            assert fault.kind != "other"
            assert "\n" not in fault.line
    for status in (64, 73, 74, 76, 77, 91, 92, 13, 3):
        assert explain(runtime.failure(status)).code == status
    assert explain(runtime.failure(1234)).line.startswith("HailoRT failed: libhailort failed with error: 1234")
    assert explain(ValueError("array is not writeable")).line.startswith("HailoRT failed: array is not writeable")
    assert explain(runtime.failure(26)).kind == "damaged"
    assert explain(runtime.failure(26), configuring=True).kind == "architecture"
