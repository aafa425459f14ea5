"""What a system heard, one line of JSON for each utterance, written as it goes: no work is ever done twice.

The first line says what made the others: system, weights, settings. A last line that a kill has cut off is dropped; an
utterance whose reference or audio is another than then is decoded anew.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from whisper_hailo_hf.errors import RequestError, WhisperHailoError


class DecodingLog:
    """The log of one system; use it as a context.

    Args:
        path: of the file; None keeps nothing.
        head: what must be the same for lines to be used again.

    Raises:
        RequestError: the file holds results of something else, is damaged, or another process writes it.
        WhisperHailoError: it cannot be written.
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any]) -> None:
        self.path, self.head = path, dict(head)
        self.lines: dict[str, dict[str, Any]] = {}
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if self.path is None:
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        except OSError as error:
            raise WhisperHailoError(f"cannot write {self.path} ({os.strerror(error.errno or 0)})") from error
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def known(self, utterance: str, identity: str, reference: str) -> dict[str, Any] | None:
        """The line of an utterance, if it was decoded and is still the same."""
        line = self.lines.get(utterance)
        same = line is not None and line["audio"] == identity and line["reference"] == reference
        return line if same else None

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes lines, each with `id`, `audio` and `reference`."""
        lines = [dict(line) for line in lines]
        self.lines |= {line["id"]: line for line in lines}
        self._write(lines)

    def _write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        if self._file is None:
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            self._file.write(text.encode())
            self._file.flush()
        except OSError as error:
            raise WhisperHailoError(f"cannot write {self.path} ({os.strerror(error.errno or 0)})") from error

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RequestError(f"another process writes {self.path}: wait for it, or name another folder") from error

    def _read(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # cut off by a kill
            self._file.truncate(whole)
        lines = []
        for number, text in enumerate(content[:whole].splitlines(), start=1):
            try:
                line = json.loads(text)
                if not isinstance(line, dict) or (number > 1 and not {"id", "audio", "reference"} <= line.keys()):
                    raise ValueError
            except ValueError as error:
                raise RequestError(f"{self.path}: line {number} is damaged; remove the file to begin anew") from error
            lines.append(line)
        if not lines:
            self._write([self.head])
            return
        if lines[0] != self.head:
            other = next((key for key in self.head if lines[0].get(key) != self.head[key]), "form")
            raise RequestError(
                f"{self.path} holds results with another {other}: name another folder, or remove the file"
            )
        self.lines = {line["id"]: line for line in lines[1:]}
