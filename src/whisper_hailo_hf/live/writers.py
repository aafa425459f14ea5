"""Events to files and lines: SubRip that is whole at every moment, and JSON, one event a line."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TextIO

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.live.events import Committed, EndOfPhrase, Event, LiveWord
from whisper_hailo_hf.transcript import Segment, Transcript, format_transcript

# Two lines of 42 characters and 7 seconds are the most that a viewer can read (Netflix' and the BBC's guidelines).
_LONGEST_TEXT = 84
_LONGEST_S = 7.0
_LONGEST_GAP_S = 1.5


class SrtWriter:
    """Appends SubRip cues to a file as words are committed.

    The cue that is being spoken is written anew with each of its words, so that the file holds everything committed
    at every moment, and is whole if the program is killed.

    Args:
        path: a file; one that exists is written over.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file = self.path.open("w+b")
        except io.UnsupportedOperation as error:
            raise RequestError(f"cannot write subtitles to {path}: it is no ordinary file") from error
        except OSError as error:
            raise RequestError(f"cannot write {path} ({os.strerror(error.errno or 0)})") from error
        self._place, self._number = 0, 1
        self._cue: list[LiveWord] = []

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, EndOfPhrase):
            self._next_cue()
        if not isinstance(event, Committed):
            return
        for word in event.words:
            if self._cue and (
                word.end - self._cue[0].start > _LONGEST_S
                or word.start - self._cue[-1].end > _LONGEST_GAP_S
                or sum(len(item.text) for item in (*self._cue, word)) > _LONGEST_TEXT
            ):
                self._write()
                self._next_cue()
            self._cue.append(word)
        self._write()

    def _write(self) -> None:
        text = "".join(word.text for word in self._cue)
        segment = Segment(text, self._cue[0].start, self._cue[-1].end)
        cue = format_transcript(Transcript("", 0.0, segments=(segment,)), "srt").split("\n", 1)[1]
        data = f"{self._number}\n{cue}".encode()
        self._file.seek(self._place)
        self._file.write(data)
        self._file.truncate()
        self._file.flush()

    def _next_cue(self) -> None:
        if self._cue:
            self._place, self._number, self._cue = self._file.tell(), self._number + 1, []

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JsonLines:
    """Writes each event as one line of JSON, at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: Event) -> None:
        """Take an event."""
        self._stream.write(json.dumps(event.to_dict(), ensure_ascii=False) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """The stream is not ours to close."""
