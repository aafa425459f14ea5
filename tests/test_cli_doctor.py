"""`whisper-hailo doctor` on HEFs, on folders that hold one, and on machines with and without a chip."""

from __future__ import annotations

import json

import pytest
from helpers_hef import Port, hailo_platform, make_hef

INPUT = Port("encoder/input_layer1", (1, 3000, 80), zero_point=12, scale=0.0123)
STATES = Port("encoder/conv9", (1, 1500, 384), data_bytes=2, zero_point=30_000, scale=0.001, limits=(-30.0, 34.5))


@pytest.fixture
def hef(tmp_path):
    path = tmp_path / "model.hef"
    path.write_bytes(make_hef([INPUT], [STATES], version=1, contexts=3, fps=44.3, compiler="3.30.0"))
    return path


def test_a_hef_on_a_machine_without_a_chip(cli, hef):
    status, out, err = cli("doctor", hef)
    assert (status, err) == (0, "")
    for words in (
        f"HEF {hef}", "compiled for  hailo8l", "DFC 3.30.0", "HailoRT 4.18 or later 4.x", "checksum ok",
        "3: weights are loaded anew for each frame", "44.3 frames a second",
        "encoder/input_layer1: 1x3000x80 NHCW, 8 bits, scale 0.0123, zero at 12, calibrated for -0.1476 to 2.989",
        "encoder/conv9: 1x1500x384 NHCW, 16 bits", "hailo_platform is not installed",
    ):  # fmt: skip
        assert words in out, words


def test_as_json(cli, hef):
    status, out, _ = cli("doctor", hef, "--json")
    data = json.loads(out)
    assert status == 0
    assert data["hef"]["architecture"] == "hailo8l"
    assert data["hef"]["networks"][0]["outputs"][0]["shape"] == [1, 1500, 384]
    assert data["hef"]["runtime_since"] == "4.18"
    assert data["runtime"]["version"] is None
    assert data["hailo"][0]["name"] == "device on PCIe"


def test_a_hef_for_another_chip_is_a_fault(cli, tmp_path):
    path = tmp_path / "model.hef"
    path.write_bytes(make_hef([INPUT], [STATES], version=1, arch="hailo8"))
    with hailo_platform("4.20"):
        status, out, _ = cli("doctor", path)
    assert status == 1
    assert "compiled for hailo8, and the device is a HAILO8L: compile it for hailo8l" in out
    assert "HAILO8L, firmware 4.20.0" in out
    assert "HailoRT 4.20.0, device 0001:01:00.0" in out


def test_a_damaged_hef_is_one_line(cli, hef):
    hef.write_bytes(hef.read_bytes()[:-3])
    status, out, err = cli("doctor", hef)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {hef} is cut short: its header promises")
    assert err.count("\n") == 1


def test_a_folder_with_a_hef(tmp_path, hef):
    from whisper_hailo_hf.diagnostics import diagnose

    (tmp_path / "model" / "hailo8l").mkdir(parents=True)
    hef.rename(tmp_path / "model" / "hailo8l" / "encoder.hef")
    found = {check.name: check for check in diagnose(tmp_path / "model").model}
    check = found["hailo8l/encoder.hef, content"]
    assert check.passed
    assert check.finding == "for hailo8l, DFC 3.30.0, 3 contexts"
    (tmp_path / "model" / "hailo8l" / "encoder.hef").write_bytes(b"\x01HEF")
    diagnosis = diagnose(tmp_path / "model", root=tmp_path)
    assert not diagnosis.sound
    assert "ends within" in " ".join(check.finding for check in diagnosis.model if not check.passed)
