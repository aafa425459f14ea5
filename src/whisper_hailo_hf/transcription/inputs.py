"""Files, patterns and folders to recordings, each once and with a name of its own."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

# What a folder is searched for; a file that is named outright may have any suffix.
AUDIO_SUFFIXES = frozenset(
    {
        *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".avi", ".caf", ".flac", ".m4a"),
        *(".m4b", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpg", ".oga", ".ogg", ".opus", ".rf64", ".snd"),
        *(".w64", ".wav", ".wave", ".webm", ".wma", ".wv"),
    }
)


@dataclass(frozen=True)
class AudioFile:
    """A file to read and the relative name that tells it from the others found with it (`sub/folder/talk.wav`)."""

    path: Path
    name: Path


@dataclass
class FoundAudio:
    """What `find_audio` found, and a line for each input that gave nothing."""

    files: list[AudioFile] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)


def find_audio(inputs: Iterable[str | os.PathLike[str]]) -> FoundAudio:
    """Expand files, glob patterns (`**` for any depth) and folders (searched to any depth) into files, each once.

    A folder gives the files with an audio suffix that are not hidden. What exists is taken as it is named, so that
    brackets in a file's name are no pattern. An input that gives nothing becomes an error line.
    """
    found = FoundAudio()
    seen: set[Path] = set()
    for entry in inputs:
        text = os.fspath(entry)
        path = Path(text).expanduser()
        if not text:
            found.errors.append((text, "an empty name is no audio file"))
        elif path.is_dir():
            _search(path, found, seen)
        elif not os.path.lexists(path) and glob.has_magic(text):
            matches = sorted(glob.glob(str(path), recursive=True))
            root = _fixed_part(path)
            for match in map(Path, matches):
                if not match.is_dir():
                    _add(found, seen, match, match.relative_to(root))
            if not any(not Path(match).is_dir() for match in matches):
                found.errors.append((text, f"{text}: no file matches this pattern"))
        else:
            _add(found, seen, path, Path(path.name))
    return found


def _search(folder: Path, found: FoundAudio, seen: set[Path]) -> None:
    any_audio = False
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_SUFFIXES:
                any_audio = True
                _add(found, seen, Path(parent, name), Path(parent, name).relative_to(folder))
    if not any_audio:
        found.errors.append((str(folder), f"{folder}: no audio files in this folder"))


def _add(found: FoundAudio, seen: set[Path], path: Path, name: Path) -> None:
    resolved = path.resolve()
    if resolved not in seen:
        seen.add(resolved)
        found.files.append(AudioFile(path, name))


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob pattern before its first wildcard."""
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
