"""What the ladder found, as data: stages, comparisons, gates, and the first stage that broke."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from whisper_hailo_hf.evaluation.comparison import Comparison
from whisper_hailo_hf.fidelity import Gates


@dataclass
class StageResult:
    """What became of a stage.

    Attributes:
        name: the stage.
        status: `"run"`, `"absent"` (cannot be had here) or `"failed"` (is there and does not work).
        why: why it is absent or has failed.
        info: what it is: runtime, file, threads.
        seconds_per_window: mean time of a window after the first batch, as it came: no benchmark.
        wer, word_errors, words, transcripts: what the decoder read from its states, if there is one and texts are
            known.
        layer_snr: SNR of its layers in dB, where it knows them.
    """

    name: str
    status: str
    why: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    seconds_per_window: float | None = None
    wer: float | None = None
    word_errors: int | None = None
    words: int | None = None
    transcripts: list[str] = field(default_factory=list)
    layer_snr: Mapping[str, float] = field(default_factory=dict)


@dataclass
class StageReport:
    """What `compare_stages` found.

    Attributes:
        model: what was compared.
        windows: names of the windows.
        gates: what neighbouring stages had to meet.
        stages: all stages asked for, in the order of the ladder.
        neighbours: each stage that ran against the one that ran before it; the gates hold for these.
        against_first: each stage that ran, from the third on, against the first.
        broken: for each stage that broke, in order, what is wrong; empty if all is well.
        wer_note: why there are no word error rates, or "".
    """

    model: str
    windows: list[str]
    gates: Gates
    stages: list[StageResult]
    neighbours: list[Comparison]
    against_first: list[Comparison]
    broken: dict[str, str]
    wer_note: str = ""

    @property
    def ok(self) -> bool:
        """Whether no stage broke."""
        return not self.broken

    @property
    def first_broken(self) -> str | None:
        """The first stage, in the order of the ladder, that failed or that the gates held back."""
        return next(iter(self.broken), None)

    def verdict(self) -> str:
        """The outcome in one line."""
        run = [stage.name for stage in self.stages if stage.status == "run"]
        if self.first_broken is None:
            return f"ok: {' → '.join(run)} agree over {len(self.windows)} windows"
        return f"broken at {self.first_broken}: {self.broken[self.first_broken]}"

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "model": self.model,
            "ok": self.ok,
            "first_broken": self.first_broken,
            "verdict": self.verdict(),
            "broken": self.broken,
            "gates": asdict(self.gates),
            "windows": self.windows,
            "stages": [asdict(stage) for stage in self.stages],
            "neighbours": [comparison.to_dict() for comparison in self.neighbours],
            "against_first": [comparison.to_dict() for comparison in self.against_first],
            "wer_note": self.wer_note,
        }

    def save_json(self, path: str | os.PathLike) -> None:
        """Writes `to_dict` into a file."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2, allow_nan=False, default=str)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def save_html(self, path: str | os.PathLike) -> None:
        """Writes a page with tables and plots into one file that needs no other.

        Raises:
            RequestError: matplotlib is not installed.
        """
        from whisper_hailo_hf.evaluation.html import render

        Path(path).write_text(render(self), encoding="utf-8")
