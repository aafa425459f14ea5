"""The command lines in README and docs: every one is a verb with options and arguments that it has."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from whisper_hailo_hf.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "hub_cards").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The lines of fenced blocks that begin with `whisper-hailo`, continued lines joined."""
    found = []
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        lines = block.replace("\\\n", " ").splitlines()
        found += [line.strip().removeprefix("$ ") for line in lines]
    return [line for line in found if line.startswith("whisper-hailo ") and "<--" not in line]  # no diagrams


VERBS = typer.main.get_command(app).commands
CASES = [(page, line) for page in PAGES for line in commands(page)]


def test_there_are_some() -> None:
    assert len(CASES) > 30
    assert len({line.split()[1] for page, line in CASES if page.name == "README.md"}) >= 15


@pytest.mark.parametrize(("page", "line"), CASES, ids=[f"{page.name}-{line}" for page, line in CASES])
def test_a_verb_takes_it(page: Path, line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[1 : next((i for i, word in enumerate(words) if word in ("&", "|", ">", "&&")), None)]
    verb = VERBS[words[0]]
    if "--help" not in words:
        verb.make_context(words[0], words[1:]).close()  # raises what the command line would refuse
