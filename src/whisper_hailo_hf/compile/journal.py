"""The journal of a compilation: what was done, when, with which versions, what it took, and what need not be redone.

JSON lines, each with `time` (UTC) and `event`:

* `run`: a call of the driver, with versions and settings.
* `started`: a stage, with `key`, the hash of all that it depends on.
* `finished`: with `key`, `seconds`, `peak_memory` (bytes), `outputs` (sha256 and size by name), what it found, and for
  a file that others are made from `made_from`: the files (name: sha256) or the weights (their fingerprint) behind it.
* `kept`: a stage that an earlier run had finished.
* `failed`, `stopped`: with `reason`.
* `done`: the whole, with what was put where.

A line is on the disk before the next thing is done; one that was cut off by a crash is left out when read.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whisper_hailo_hf.artefacts import sha256_of
from whisper_hailo_hf.errors import WhisperHailoError

Event = dict[str, Any]


def key_of(stage: str, **facts: Any) -> str:
    """SHA-256 over a stage's name and all that its result depends on, as hex."""
    return hashlib.sha256(json.dumps([stage, facts], sort_keys=True).encode()).hexdigest()


class Journal:
    """The journal in a work folder; made where there is none.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events = list(_read(path))
        self.run = 1 + sum(event["event"] == "run" for event in self.events)

    def write(self, event: str, **facts: Any) -> Event:
        """Adds a line."""
        line: Event = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
        text = json.dumps(line, ensure_ascii=False)
        # behind a line that a crash cut off, a new one begins
        start = "" if not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n") else "\n"
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{start}{text}\n")
            file.flush()
            os.fsync(file.fileno())
        self.events.append(line)
        return line

    def finished(self, stage: str) -> Event | None:
        """The last time that a stage was finished."""
        events = (event for event in reversed(self.events) if event["event"] == "finished")
        return next((event for event in events if event.get("stage") == stage), None)

    def maker(self, name: str, sha256: str) -> Event | None:
        """The stage, as it was last finished, that wrote a file of this name and content."""
        events = (event for event in reversed(self.events) if event["event"] == "finished")
        return next(
            (event for event in events if event.get("outputs", {}).get(name, {}).get("sha256") == sha256), None
        )

    def reusable(self, stage: str, key: str, folder: Path) -> Event | None:
        """What a stage found when it was finished, if it need not be done again.

        That is if it was finished with the same key, and its outputs are in the folder as it left them.
        """
        event = self.finished(stage)
        if event is None or event.get("key") != key:
            return None
        for name, output in event.get("outputs", {}).items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != output["size"] or sha256_of(path) != output["sha256"]:
                return None
        return event

    def copy_to(self, path: Path, hidden: Mapping[str, str]) -> None:
        """Writes the journal elsewhere, with words for what shall not leave this machine, paths say."""
        text = self.path.read_text(encoding="utf-8")
        for word, instead in sorted(hidden.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(json.dumps(word, ensure_ascii=False)[1:-1], instead)
        path.write_text(text, encoding="utf-8")


def outputs_of(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Hash and size of a stage's files, by name; they are on the disk afterwards."""
    found = {}
    for name in names:
        path = folder / name
        if not path.is_file():
            raise WhisperHailoError(f"the compiler wrote no {name}")
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        found[name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    return found


def _read(path: Path) -> list[Event]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WhisperHailoError(f"the journal {path} cannot be read: {error.strerror}") from error
    found = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            found.append(event)
    return found
