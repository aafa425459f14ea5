"""What a recording says: text, segments and words with their times; written as text, JSON, SRT, VTT or TSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

# Languages that are written without spaces between words: their segments are joined as they are.
_UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my"})


@dataclass(frozen=True)
class Word:
    """One word as the tokenizer spells it (often with a leading space), from `start` to `end` seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech, `start` to `end` seconds from the beginning of the recording; `words` if asked for."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """What was said in one recording of `duration` seconds.

    `segments` is empty where no timestamps were asked for. `language` is Whisper's code (`en`), None where a model
    knows only one language. `file` is the path that was read, None for samples handed over in memory.
    """

    text: str
    duration: float
    language: str | None = None
    segments: tuple[Segment, ...] = field(default=())
    file: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The transcript as plain JSON types; `words` only in segments that have them."""
        data = asdict(self)
        data["segments"] = [asdict(segment) for segment in self.segments]
        for segment in data["segments"]:
            if segment["words"]:
                segment["words"] = list(segment["words"])
            else:
                del segment["words"]
        return {key: data[key] for key in ("file", "duration", "language", "text", "segments")}


def join_texts(texts: list[str], language: str | None) -> str:
    """Join the texts of segments to one line, with one space between them where the language has spaces."""
    lines = [" ".join(text.split()) for text in texts]
    return ("" if language in _UNSPACED else " ").join(line for line in lines if line)


def format_transcript(transcript: Transcript, output_format: str) -> str:
    """Write a transcript in one of `FORMATS`, ending in a newline unless it is empty.

    SRT, VTT and TSV have one cue for each segment, or for each word where the segments carry words.
    """
    return FORMATS[output_format](transcript)


def _text(transcript: Transcript) -> str:
    return transcript.text + "\n"


def _json(transcript: Transcript) -> str:
    return json.dumps(transcript.to_dict(), ensure_ascii=False, indent=2) + "\n"


def _srt(transcript: Transcript) -> str:
    """SubRip: numbered cues, a comma before the milliseconds. It has no escapes, so the arrow is shortened."""
    cues = (
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text.replace('-->', '->')}\n\n"
        for number, (start, end, text) in enumerate(_cues(transcript), start=1)
    )
    return "".join(cues)


def _vtt(transcript: Transcript) -> str:
    """WebVTT (W3C): `&`, `<` and `>` are escaped, which also breaks up an arrow in the text."""
    cues = []
    for start, end, text in _cues(transcript):
        escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{escaped}\n")
    return "WEBVTT\n" + "".join(cues)


def _tsv(transcript: Transcript) -> str:
    """Tab-separated start, end (milliseconds) and text, as openai-whisper writes it."""
    return "start\tend\ttext\n" + "".join(f"{start}\t{end}\t{text}\n" for start, end, text in _cues(transcript))


def _cues(transcript: Transcript) -> Iterator[tuple[int, int, str]]:
    """(start, end, text) in whole milliseconds and on one line; starts never go back and no cue has no length."""
    latest = 0
    for segment in transcript.segments:
        for item in segment.words or (segment,):
            text = " ".join(item.text.split())
            if text:
                latest = max(latest, round(item.start * 1000))
                yield latest, max(latest + 1, round(item.end * 1000)), text


def _clock(milliseconds: int, decimal_mark: str) -> str:
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{decimal_mark}{milliseconds:03}"


FORMATS: dict[str, Callable[[Transcript], str]] = {"text": _text, "json": _json, "srt": _srt, "vtt": _vtt, "tsv": _tsv}
SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "tsv": ".tsv"}
NEEDS_TIMESTAMPS = frozenset({"srt", "vtt", "tsv"})
