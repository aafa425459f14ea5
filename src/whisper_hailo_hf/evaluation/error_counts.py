"""Errors of transcripts, counted by jiwer: words or characters that are right, substituted, deleted and inserted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from whisper_hailo_hf.errors import RequestError

UNITS = ("word", "character")


@dataclass(frozen=True)
class ErrorCounts:
    """How a hypothesis differs from its reference, or several from theirs in sum.

    Attributes:
        hits: units of the reference that are right.
        substitutions, deletions, insertions: as in the alignment with the fewest errors.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> int:
        """Units of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per unit of the reference; where that is empty, the insertions, as jiwer has it."""
        return self.errors / self.length if self.length else float(self.insertions)


def count_errors(references: Sequence[str], hypotheses: Sequence[str], unit: str = "word") -> ErrorCounts:
    """Errors of all hypotheses in sum, exactly as `jiwer.process_words` or `process_characters` counts them.

    Args:
        references, hypotheses: texts, normalised already.
        unit: `"word"` or `"character"`; a space between words is a character.

    Raises:
        RequestError: no such unit, not as many hypotheses as references, or jiwer is not installed.
    """
    if len(references) != len(hypotheses):
        raise RequestError(
            f"there are {len(references)} references but {len(hypotheses)} hypotheses: give one for each"
        )
    if not references:
        return ErrorCounts()
    found = _process(unit)(list(references), list(hypotheses))
    return ErrorCounts(found.hits, found.substitutions, found.deletions, found.insertions)


def _process(unit: str) -> Callable[..., Any]:
    if unit not in UNITS:
        raise RequestError(f"unknown unit {unit!r}: choose {' or '.join(UNITS)}")
    try:
        import jiwer
    except ImportError as error:
        raise RequestError("error rates need jiwer: pip install 'whisper-hailo-hf[eval]'") from error
    return jiwer.process_words if unit == "word" else jiwer.process_characters
