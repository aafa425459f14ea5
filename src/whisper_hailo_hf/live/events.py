"""What comes out of a stream: the words that stand, the words that may still change, and what else there is to say.

`clock` is the time of the stream, in seconds of audio since its beginning, at which an event was produced. The delay
of a word in audio time is hence the `clock` of the event that committed it less the word's own end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class LiveWord:
    """One word as the tokenizer spells it, often with a leading space, from `start` to `end` seconds of the stream.

    `confidence` is the geometric mean of its tokens' probabilities, 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Event:
    """Something that happened at `clock` seconds of the stream."""

    kind: ClassVar[str] = ""
    clock: float

    def to_dict(self) -> dict[str, Any]:
        """The event as plain JSON types, its kind under `event`."""
        return {"event": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Partial(Event):
    """The text beyond what is committed, as the latest pass has it; it replaces the partial text before it."""

    kind = "partial"
    text: str


@dataclass(frozen=True)
class Committed(Event):
    """Words that stand from now on. Nothing ever takes them back; they follow those of the event before in time."""

    kind = "committed"
    words: tuple[LiveWord, ...]
    language: str | None = None

    @property
    def text(self) -> str:
        """The words as they are joined: their own spaces are all that is between them."""
        return "".join(word.text for word in self.words)


@dataclass(frozen=True)
class EndOfPhrase(Event):
    """The speaker has paused: all words between `start` and `end` are committed, and nothing is tentative."""

    kind = "end_of_phrase"
    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Silence(Event):
    """Nobody has spoken since `start`; said once for each silence."""

    kind = "silence"
    start: float


@dataclass(frozen=True)
class Dropped(Event):
    """No audio came between `start` and `end`: the clock goes on as if it had."""

    kind = "dropped"
    start: float
    end: float


@dataclass(frozen=True)
class Pace(Event):
    """The machine is `behind` seconds late; from now on a pass is made every `step` seconds of audio."""

    kind = "pace"
    behind: float
    step: float


@dataclass(frozen=True)
class Notice(Event):
    """One line about the stream, the microphone or the encoder that is no reason to stop."""

    kind = "notice"
    message: str
