"""What a benchmark found, as data: times with their spread, ratios, and what has changed since another run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from whisper_hailo_hf.errors import RequestError, WhisperHailoError

FORMAT = 1
SHOWN = {
    "encoder": "encoder",
    "first_token": "first token",
    "per_token": "per token",
    "end_to_end": "end to end",
}


@dataclass(frozen=True)
class Spread:
    """Values of several turns: their median, and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of values, one or more."""
        low, middle, high = np.percentile(values, (10, 50, 90))
        return cls(float(middle), float(low), float(high))


@dataclass(frozen=True)
class SystemTimes:
    """One system.

    Attributes:
        name, kind, info: what it is, and what it says it runs on.
        seconds: by measure, of each turn: `encoder`, from features to states; `first_token`, from features to the
            first token; `prefill` and `decoding`, from states to the first and to the last token; `end_to_end`, from
            samples to text.
        tokens: how many tokens that were.
        loading_seconds: for loading the model.
        before_mib, peak_mib: memory of its process before the model was loaded, and at its peak; None: not known.
        joules: of each turn's end to end, where the system tells.
    """

    name: str
    kind: str
    info: dict[str, Any]
    seconds: dict[str, list[float]]
    tokens: int
    loading_seconds: float
    before_mib: float | None
    peak_mib: float | None
    joules: list[float]

    def values(self, measure: str) -> list[float]:
        """Seconds of each turn; `per_token` is what each token after the first took."""
        if measure != "per_token":
            return self.seconds[measure]
        pairs = zip(self.seconds["decoding"], self.seconds["prefill"], strict=True)
        return [(all_of_them - first) / (self.tokens - 1) for all_of_them, first in pairs]

    def spread(self, measure: str) -> Spread:
        """Seconds: median and spread over the turns."""
        return Spread.of(self.values(measure))


@dataclass(frozen=True)
class BenchmarkReport:
    """What `run_benchmark` found.

    Attributes:
        name: of what was measured.
        systems: the first is what the others are compared with.
        settings: turns, tokens, audio.
        provenance: machine, versions, load.
        energy_source: what told of energy; None: nothing.
        notes: what was not measured and why.
    """

    name: str
    systems: list[SystemTimes]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    energy_source: str | None
    notes: list[str]

    def speed_up(self, system: SystemTimes, measure: str) -> Spread | None:
        """How many times faster than the first system, turn by turn; None where a difference drowned in noise."""
        pairs = list(zip(self.systems[0].values(measure), system.values(measure), strict=True))
        if any(min(pair) <= 0 for pair in pairs):
            return None
        return Spread.of([theirs / ours for theirs, ours in pairs])

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON types, with all single values."""
        systems = []
        for system in self.systems:
            summary = {measure: asdict(system.spread(measure)) for measure in SHOWN}
            found = {measure: self.speed_up(system, measure) for measure in SHOWN}
            faster = {measure: None if one is None else asdict(one) for measure, one in found.items()}
            energy = asdict(Spread.of(system.joules)) if system.joules else None
            systems.append(asdict(system) | {"summary": summary, "times_faster": faster, "energy_joules": energy})
        return {
            "format": FORMAT,
            "kind": "whisper-hailo benchmark",
            "name": self.name,
            "settings": self.settings,
            "provenance": self.provenance,
            "energy_source": self.energy_source,
            "notes": self.notes,
            "compared_with": self.systems[0].name,
            "systems": systems,
        }

    @classmethod
    def from_dict(cls, data: Any) -> BenchmarkReport:
        """What `to_dict` gave.

        Raises:
            RequestError: it is something else.
        """
        if not isinstance(data, dict) or data.get("kind") != "whisper-hailo benchmark":
            raise RequestError("it is no benchmark of whisper-hailo")
        if data.get("format") != FORMAT:
            raise RequestError(f"it is a benchmark of form {data.get('format')}, this version reads {FORMAT}")
        fields = SystemTimes.__dataclass_fields__
        try:
            systems = [SystemTimes(**{name: one[name] for name in fields}) for one in data["systems"]]
            return cls(systems=systems, **{name: data[name] for name in cls.__dataclass_fields__ if name != "systems"})
        except (KeyError, TypeError) as error:
            raise RequestError(f"it is a damaged benchmark ({error} is missing or wrong)") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BenchmarkReport:
        """Reads what `save` wrote.

        Raises:
            RequestError: no such file, or something else in it.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise RequestError(f"{path}: cannot be read ({os.strerror(error.errno or 0)})") from error
        except ValueError as error:  # a RequestError is one too
            reason = str(error) if isinstance(error, RequestError) else "it is no JSON"
            raise RequestError(f"{path}: {reason}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_dict` into a file."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False, default=str)
        try:
            Path(path).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise WhisperHailoError(f"cannot write {path} ({os.strerror(error.errno or 0)})") from error


@dataclass(frozen=True)
class Change:
    """One measure of one system, now against then.

    Attributes:
        system, measure: which.
        before, after: seconds.
        ratio: median after / median before: below 1 it has become faster.
        clear: whether the spreads, 10th to 90th percentile, do not overlap.
    """

    system: str
    measure: str
    before: Spread
    after: Spread
    ratio: float
    clear: bool

    @property
    def verdict(self) -> str:
        """In a word."""
        return ("faster" if self.ratio < 1 else "slower") if self.clear else "no clear change"


def compare_reports(before: BenchmarkReport, after: BenchmarkReport) -> tuple[list[Change], list[str]]:
    """What has changed of the systems that both have, and, one line each, what speaks against comparing them.

    Args:
        before, after: two runs.
    """
    then = {system.name: system for system in before.systems}
    changes = []
    for system in after.systems:
        for measure in SHOWN if system.name in then else ():
            old, new = then[system.name].spread(measure), system.spread(measure)
            apart = new.p90 < old.p10 or new.p10 > old.p90
            changes.append(Change(system.name, measure, old, new, new.median / old.median, apart))
    return changes, _doubts(before, after)


def _doubts(before: BenchmarkReport, after: BenchmarkReport) -> list[str]:
    def facts(report: BenchmarkReport) -> dict[str, Any]:
        known = report.provenance
        machine = {
            name: known["machine"].get(name) for name in ("board", "cpu", "governor", "cores_for_us", "throttled")
        }
        versions = {f"version of {name}": version for name, version in known["versions"].items()}
        return {"what": report.name, "threads": known["threads"], **report.settings, **machine, **versions}

    old, new = facts(before), facts(after)
    return [
        f"another {name}: {old.get(name)} then, {new.get(name)} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
