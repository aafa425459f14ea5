"""Energy that work takes, where the system tells: the RAPL counters of Intel and AMD, or a Raspberry Pi 5's PMIC.

Either counts what the whole machine (RAPL: its processor packages) draws, with whatever else runs on it.
"""

import os
import re
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from whisper_hailo_hf.evaluation.provenance import run_tool


class EnergyMeter(ABC):
    """Measures the work between `with` and its end.

    Attributes:
        source: what tells.
        joules: that were used; None while it is not known.
    """

    source: str
    joules: float | None = None

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class RaplMeter(EnergyMeter):
    """Linux's powercap counters of processor packages (Documentation/power/powercap/powercap.rst): microjoules.

    Args:
        zones: folders of packages, each with `energy_uj` and `max_energy_range_uj`.
    """

    def __init__(self, zones: list[Path]) -> None:
        self.zones = zones
        self.source = "RAPL, processor packages: " + ", ".join((zone / "name").read_text().strip() for zone in zones)

    @classmethod
    def find(cls, root: str | os.PathLike[str] = "/") -> Self | None:
        """The meter of this system; None where there are no counters, or this user may not read them."""
        zones = []
        for zone in sorted(Path(root, "sys/class/powercap").glob("*-rapl:*")):
            try:
                if (zone / "name").read_text().startswith("package"):
                    int((zone / "energy_uj").read_text())
                    zones.append(zone)
            except (OSError, ValueError):
                continue
        return cls(zones) if zones else None

    def __enter__(self) -> Self:
        self._before = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        total = 0
        for zone, before, after in zip(self.zones, self._before, self._read(), strict=True):
            # the counters start again at zero now and then
            total += after - before if after >= before else after - before + self._range(zone)
        self.joules = total / 1e6

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self.zones]

    def _range(self, zone: Path) -> int:
        return int((zone / "max_energy_range_uj").read_text())


class PmicMeter(EnergyMeter):
    """A Raspberry Pi 5's power management chip: current times voltage of its rails, asked again and again meanwhile.

    The rails do not have what goes to USB and to the 5 V of the header and of the M.2 slot: a Hailo module's own draw
    is not in it.

    Args:
        interval: seconds between two readings.
    """

    source = "PMIC of the Raspberry Pi 5, without 5 V peripherals (a Hailo module's draw is not in it)"

    def __init__(self, interval: float = 0.05) -> None:
        self.interval = interval

    @classmethod
    def find(cls) -> Self | None:
        """The meter of this system; None where there is none."""
        return cls() if pmic_watts(run_tool("vcgencmd", "pmic_read_adc") or "") is not None else None

    def __enter__(self) -> Self:
        self._readings: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._began
        self._done.set()
        self._thread.join()
        watts = [reading for _, reading in self._readings]
        self.joules = seconds * sum(watts) / len(watts) if watts else None

    def _watch(self) -> None:
        while True:
            watts = pmic_watts(run_tool("vcgencmd", "pmic_read_adc") or "")
            if watts is not None:
                self._readings.append((time.perf_counter(), watts))
            if self._done.wait(self.interval):
                return


def pmic_watts(text: str) -> float | None:
    """Power of all rails that `vcgencmd pmic_read_adc` gives current and voltage of, W; None if there are none."""
    found = re.findall(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=([0-9.]+)[AV]", text)
    values = {(rail, unit): float(value) for rail, unit, value in found}
    rails = [rail for rail, unit in values if unit == "A" and (rail, "V") in values]
    return sum(values[rail, "A"] * values[rail, "V"] for rail in rails) if rails else None


def energy_meter() -> EnergyMeter | None:
    """What tells here; None where nothing does."""
    return RaplMeter.find() or PmicMeter.find()
