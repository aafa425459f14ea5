"""Reads README and docs as their reader does: every command and program of a page, in its order, really run.

A fenced block says what it is: `bash` is commands, `python` a program, of an `ini` the `ExecStart` is a command,
`text` is neither. A code span in the text is a command if it names a program and says what it shall do.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from docs_not_run import ELSEWHERE, NOT_RUN

from whisper_hailo_hf.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PAPERS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "hub_cards").glob("*.md"))]
PAGES = [paper.relative_to(ROOT).as_posix() for paper in PAPERS]
PROGRAMS = (
    "whisper-hailo", "optimum-cli", "accelerate", "python", "python3", "python3.10", "pip", "make", "jq", "cp", "cd",
    "sudo", "apt", "systemctl", "journalctl", "hailortcli", "hf", "ssh", "arecord", "ffmpeg", "docker", "git",
)  # fmt: skip
_SCRIPTS = (f"{ROOT}/benchmarks/", f"{ROOT}/examples/")
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Piece:
    """A command or a program on a page."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


def pieces(page: str) -> list[Piece]:
    """All commands and programs of a page, from its top to its end."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for block in _FENCE.finditer(text):
        kind, line = block[1], text.count("\n", 0, block.start()) + 2
        assert kind in ("bash", "python", "ini", "text"), f"{page}:{line - 1}: what is this block? say bash or text"
        if kind == "python":
            found.append(Piece(page, line, "program", block[2]))
        elif kind == "bash":
            found += [Piece(page, line + place, "command", said) for place, said in _lines(block[2])]
        elif kind == "ini":
            starts = re.finditer(r"^ExecStart=(.*)$", block[2], re.MULTILINE)
            found += [Piece(page, line + block[2].count("\n", 0, one.start()), "command", one[1]) for one in starts]
    for line, span in spans(page):
        words = span.split()
        if len(words) > (2 if words[:1] == ["whisper-hailo"] else 1) and words[0] in PROGRAMS:
            found.append(Piece(page, line, "command", span))
    return sorted(found, key=lambda piece: piece.line)


def spans(page: str) -> list[tuple[int, str]]:
    """The code in the text of a page, outside of blocks: line, and words with one blank between them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blank = _FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)
    found = re.finditer(r"`([^`]+)`", blank)
    return [(blank.count("\n", 0, span.start()) + 1, " ".join(span[1].split())) for span in found]


def _lines(block: str) -> Iterator[tuple[int, str]]:
    """The commands of a block, each with its place: continued lines and documents in place are parts of one."""
    lines = iter(enumerate(block.splitlines()))
    for place, line in lines:
        said = line.strip()
        while said.endswith("\\"):
            said = said[:-1] + next(lines)[1].strip()
        if end := re.search(r"<<'?(\w+)'?", said):
            for _, more in lines:
                said += "\n" + more
                if more.strip() == end[1]:
                    break
        if said and not said.startswith("#"):
            yield place, said


def is_run_elsewhere(piece: Piece) -> bool:
    starts = ELSEWHERE.get(piece.page, {})
    return any(piece.kind == "program" if start == "```python" else piece.text.startswith(start) for start in starts)


@dataclass
class Done:
    """What a command said, or what a program left behind."""

    out: str = ""
    err: str = ""
    names: dict[str, Any] = field(default_factory=dict)


class Reader:
    """Does all that a page says, in the folder that tests are in.

    Args:
        page: its name.
        here: what the page calls otherwise than it is called here, as an address, by what it is here.
        more: options added to the commands that begin so, for less work than the page's own.
        given: what standard input holds for commands that begin so; in a pipe, what the first program would write.
        after: called when a command or program that begins so is done, with what it said.
    """

    def __init__(
        self,
        page: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        *,
        here: dict[str, str | Callable[[], str]] | None = None,
        more: dict[str, str] | None = None,
        given: dict[str, bytes] | None = None,
        after: dict[str, Callable[[Done], None]] | None = None,
    ) -> None:
        self.page, self._patch, self._capsys = page, monkeypatch, capsys
        self._here, self._more, self._given, self._after = here or {}, more or {}, given or {}, after or {}
        self._used: set[str] = set()
        self._names: dict[str, Any] = {"__name__": "__main__"}

    def read(self) -> None:
        """All of the page, to its end.

        Raises:
            AssertionError: something on the page does not work, or a setting of this reader fits nothing on it.
        """
        run = 0
        for piece in pieces(self.page):
            if piece.text in NOT_RUN.get(self.page, {}) or is_run_elsewhere(piece):
                continue
            run += 1
            try:
                done = self._run(piece)
                for found in self._fitting(self._after, piece.text):
                    found(done)
            except BaseException as error:
                error.add_note(f"at {piece}")
                raise
        assert run, f"nothing on {self.page} is run"
        settings = [*self._here, *self._more, *self._given, *self._after]
        assert [one for one in settings if one not in self._used] == [], f"nothing of the kind on {self.page}"

    def _fitting(self, settings: dict[str, Any], text: str) -> list[Any]:
        """Values of those settings whose name the text begins with."""
        found = [name for name in settings if text.startswith(name)]
        self._used |= set(found)
        return [settings[name] for name in found]

    def _as_here(self, text: str) -> str:
        def ours(found: re.Match[str]) -> str:
            self._used.add(found[0])
            name = self._here[found[0]]
            return name if isinstance(name, str) else name()

        return re.sub("|".join(map(re.escape, self._here)), ours, text) if self._here else text

    def _run(self, piece: Piece) -> Done:
        text = self._as_here(piece.text)
        if piece.kind == "program":
            exec(compile(text, str(piece), "exec"), self._names)
            return Done(self._capsys.readouterr().out, names=self._names)
        given = self._fitting(self._given, piece.text)
        if " | whisper-hailo " in text:
            assert given, f"{piece}: what does the first program of this pipe write?"
            text = text.rpartition(" | ")[2]
        more = "".join(f" {added}" for added in self._fitting(self._more, piece.text))
        words = shlex.split(text, comments=True) + shlex.split(more)
        if set(words) & {"|", ">", "&&", "&", ";"}:
            return self._shell(text.partition("  #")[0] + more)
        if words[0] == "whisper-hailo":
            return self._verb(words[1:], given)
        if words[0] in ("accelerate", "optimum-cli"):
            return self._program(words)
        if words[0] == "python" and words[1].endswith(".py"):
            return self._script(words[1:])
        return self._shell(text.partition("  #")[0] + more)

    def _verb(self, words: list[str], given: list[bytes]) -> Done:
        words = [os.path.expanduser(word) for word in words]
        if not given:
            return self._ending(lambda: main(words))
        Path("given").write_bytes(given[0])
        with open("given", "rb") as stream, self._patch.context() as patch:
            patch.setattr(sys, "stdin", types.SimpleNamespace(buffer=stream))
            return self._ending(lambda: main(words))

    def _program(self, words: list[str]) -> Done:
        """What pip installed by that name, in this process; the script that it may launch is one of its own."""
        (program,) = [one for one in entry_points(group="console_scripts") if one.name == words[0]]

        def work() -> None:
            sys.exit(program.load()())

        with self._patch.context() as patch:
            patch.setattr(sys, "argv", [os.path.expanduser(word) for word in words])
            patch.setenv("HF_HUB_OFFLINE", "1")
            patch.setenv("OMP_NUM_THREADS", "1")
            return self._ending(work)

    def _ending(self, work: Callable[[], Any]) -> Done:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            work()
        said = self._capsys.readouterr()
        assert not end.value.code, f"exit status {end.value.code}: {said.err[-2000:]}"
        assert "Traceback" not in said.err
        return Done(said.out, said.err)

    def _script(self, words: list[str]) -> Done:
        """A script in this process, which has imported torch already."""
        self._capsys.readouterr()
        with script_settings(self._patch, words):
            names = runpy.run_path(words[0], run_name="__main__")
        said = self._capsys.readouterr()
        return Done(said.out, said.err, names)

    def _shell(self, text: str) -> Done:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment = {name: value for name, value in environment.items() if not name.startswith("MAKE")}  # make test
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
        return Done(done.stdout, done.stderr)


@contextmanager
def script_settings(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> Iterator[None]:
    """Arguments and import path as a script has them; what it changes in the whole process is changed back."""
    threads, path, modules = torch.get_num_threads(), list(sys.path), set(sys.modules)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", words)
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        try:
            yield
        finally:
            sys.path[:] = path
            torch.set_num_threads(threads)
            for name in set(sys.modules) - modules:
                if str(getattr(sys.modules[name], "__file__", None)).startswith(_SCRIPTS):
                    del sys.modules[name]
