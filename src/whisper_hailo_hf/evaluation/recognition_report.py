"""What an evaluation found, as data: systems, comparisons, worst utterances, and files of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Self

from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.evaluation.bootstrap import Difference, Interval
from whisper_hailo_hf.evaluation.error_counts import ErrorCounts
from whisper_hailo_hf.evaluation.outcomes import HALLUCINATIONS, Outcome


@dataclass(frozen=True)
class SystemResult:
    """One model on one pair of backends.

    Attributes:
        name: short, unlike the others.
        model, encoder_backend, weights, decoder_backend: what it is; the weights by their fingerprint.
        words, characters: errors of all utterances in sum.
        wer_interval, cer_interval: of the rates, by bootstrap over the utterances.
        utterances: how many.
        without_error: how many have no word error.
        empty: how many have nothing where something was said.
        silent: how many have an empty reference.
        hallucinated: how many are a hallucination of any kind; `hallucinations`: of each.
        audio_seconds, seconds: length of the audio, and time that it took.
    """

    name: str
    model: str
    encoder_backend: str
    weights: str
    decoder_backend: str
    words: ErrorCounts
    characters: ErrorCounts
    wer_interval: Interval
    cer_interval: Interval
    utterances: int
    without_error: int
    empty: int
    silent: int
    hallucinated: int
    hallucinations: dict[str, int]
    audio_seconds: float
    seconds: float

    @classmethod
    def of(
        cls,
        name: str,
        facts: dict[str, str],
        outcomes: Sequence[Outcome],
        wer_interval: Interval,
        cer_interval: Interval,
    ) -> Self:
        """Sums up what became of the utterances; `facts` are what it is."""
        return cls(
            name,
            facts["model"],
            facts["encoder_backend"],
            facts["weights"],
            facts["decoder_backend"],
            reduce(add, (one.words for one in outcomes)),
            reduce(add, (one.characters for one in outcomes)),
            wer_interval,
            cer_interval,
            len(outcomes),
            sum(not one.words.errors for one in outcomes),
            sum(one.empty for one in outcomes),
            sum(not one.reference_normalized for one in outcomes),
            sum(bool(one.hallucinations) for one in outcomes),
            {kind: sum(kind in one.hallucinations for one in outcomes) for kind in HALLUCINATIONS},
            sum(one.audio_seconds for one in outcomes),
            sum(one.seconds for one in outcomes),
        )

    @property
    def wer(self) -> float:
        """Word errors per word of the references."""
        return self.words.rate

    @property
    def cer(self) -> float:
        """Character errors per character of the references."""
        return self.characters.rate

    @property
    def real_time_factor(self) -> float:
        """Time taken over duration of the audio, below 1 faster than real time."""
        return self.seconds / self.audio_seconds

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        rates = {"wer": self.wer, "cer": self.cer, "real_time_factor": self.real_time_factor}
        return asdict(self) | rates


@dataclass(frozen=True)
class Comparison:
    """The first system's word error rate less the second's, paired; `p_holm` is adjusted for the number of pairs."""

    first: str
    second: str
    difference: Difference
    p_holm: float

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {"first": self.first, "second": self.second, **asdict(self.difference), "p_holm": self.p_holm}


@dataclass(frozen=True)
class RecognitionReport:
    """What `evaluate_recognition` found.

    Attributes:
        data: where the utterances come from.
        systems: models on backends, in the order asked for.
        comparisons: of the word error rates of every two systems.
        outcomes: by system, of each utterance that all of them have heard.
        failures: by id, recordings that could not be read, one line each.
        without_text: recordings left out, since nobody knows what is said in them.
        options: that it was made with.
    """

    data: str
    systems: list[SystemResult]
    comparisons: list[Comparison]
    outcomes: dict[str, list[Outcome]]
    failures: dict[str, str]
    without_text: int
    options: dict[str, Any]

    @property
    def exit_status(self) -> int:
        """0 if every recording could be read, 2 if one or more could not."""
        return 2 if self.failures else 0

    def worst(self, number: int | None = None) -> list[dict[str, Any]]:
        """Utterances with the most word errors, over all systems; of equally many, first the shorter references.

        Args:
            number: at most so many, with an error at all; None is what the options say.
        """
        number = self.options["worst"] if number is None else number
        rows = []
        for several in zip(*self.outcomes.values(), strict=True):
            errors = [one.words.errors for one in several]
            if any(errors):
                texts = dict(zip(self.outcomes, (one.text for one in several), strict=True))
                counts = dict(zip(self.outcomes, errors, strict=True))
                row = {"id": several[0].id, "reference": several[0].reference, "word_errors": counts, "texts": texts}
                rows.append((-max(errors), several[0].words.length, row))
        return [row for _, _, row in sorted(rows, key=lambda entry: entry[:2])[:number]]

    def to_dict(self) -> dict[str, Any]:
        """All but the single utterances, for JSON."""
        return {
            "data": self.data,
            "utterances": len(next(iter(self.outcomes.values()))),
            "without_text": self.without_text,
            "options": self.options,
            "systems": [system.to_dict() for system in self.systems],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "worst": self.worst(),
            "failures": [{"id": name, "error": message} for name, message in self.failures.items()],
        }

    def lines(self) -> list[dict[str, Any]]:
        """Every utterance by every system, with its errors."""
        return [{"system": name, **one.to_dict()} for name, found in self.outcomes.items() for one in found]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `report.json` and `utterances.jsonl` into a folder."""
        folder = Path(folder)
        lines = (json.dumps(line, ensure_ascii=False) for line in self.lines())
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=2, allow_nan=False)
        for name, content in (("report.json", text), ("utterances.jsonl", "\n".join(lines))):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                part = folder / f".{name}.part"
                part.write_text(content + "\n", encoding="utf-8")
                part.replace(folder / name)
            except OSError as error:
                raise WhisperHailoError(f"cannot write {folder / name} ({os.strerror(error.errno or 0)})") from error
