"""The command lines in README and docs: every one is run by a test, or stands in a list that says why not."""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from docs_not_run import ELSEWHERE, NOT_RUN
from helpers_docs import PAGES, ROOT, Piece, Reader, is_run_elsewhere, pieces, script_settings, spans

from whisper_hailo_hf.cli.main import app

HERE = Path(__file__).resolve().parent
VERBS = typer.main.get_command(app).commands
ALL = [piece for page in PAGES for piece in pieces(page)]
COMMANDS = [piece for piece in ALL if piece.kind == "command"]
TESTS = {path.name: path.read_text(encoding="utf-8") for path in HERE.glob("test_*.py") if path != Path(__file__)}


def test_there_are_some() -> None:
    verbs = [piece for piece in COMMANDS if piece.text.startswith("whisper-hailo ")]
    assert len(verbs) > 70
    assert {piece.text.split()[1] for piece in verbs if piece.page == "README.md"} == set(VERBS)
    assert len([piece for piece in ALL if piece.kind == "program"]) > 20


def readers(page: str) -> list[str]:
    """The tests that read a page to its end."""
    return [name for name, text in TESTS.items() if re.search(rf'\bReader\(\s*"{re.escape(page)}"', text)]


@pytest.mark.parametrize("page", sorted({piece.page for piece in ALL}))
def test_every_command_is_run(page: str) -> None:
    """A `Reader` runs all of its page but what stands in the lists; a page without one has nothing else."""
    if not readers(page):
        left = [piece for piece in pieces(page) if piece.text not in NOT_RUN.get(page, {})]
        assert [str(piece) for piece in left if not is_run_elsewhere(piece)] == [], "by which test is this run?"


def test_what_is_not_run_stands_on_its_page() -> None:
    for page, lines in NOT_RUN.items():
        there = [piece.text for piece in pieces(page) if piece.kind == "command"]
        assert [line for line in lines if line not in there] == [], f"no longer on {page}"
        for line, reason in lines.items():
            assert reason, line
            mine = re.match(r"(whisper-hailo|optimum-cli|python) ", line)
            assert not mine or "no whole command" in reason, f"{line}: one of ours is run"


def test_what_is_run_elsewhere_stands_on_its_page() -> None:
    for page, starts in ELSEWHERE.items():
        found = pieces(page)
        for start, test in starts.items():
            kind = "program" if start == "```python" else "command"
            fitting = [p for p in found if p.kind == kind and (kind == "program" or p.text.startswith(start))]
            assert fitting, f"{start} is no longer on {page}"
            assert Path(page).stem in TESTS[test], f"{test} does not read {page}"


def test_a_new_command_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = """Say `whisper-hailo export model`, or `make help`; `whisper-hailo serve` serves, `model.onnx` is a file.

```bash
whisper-hailo init a b \\
    --json     # makes one
python - <<'PY'
print("one command")
PY
```

- Also:

  ```bash
  arecord -t raw | whisper-hailo listen -
  ```

```ini
[Service]
ExecStart=/opt/bin/whisper-hailo serve model
```

```text
whisper-hailo is in a drawing
```

```python
print("`whisper-hailo doctor --json` in a program is a part of it")
```
"""
    (tmp_path / "page.md").write_text(page)
    monkeypatch.setattr("helpers_docs.ROOT", tmp_path)
    assert [(piece.line, piece.kind, piece.text) for piece in pieces("page.md")] == [
        (1, "command", "whisper-hailo export model"),
        (1, "command", "make help"),
        (4, "command", "whisper-hailo init a b --json     # makes one"),
        (6, "command", "python - <<'PY'\nprint(\"one command\")\nPY"),
        (14, "command", "arecord -t raw | whisper-hailo listen -"),
        (19, "command", "/opt/bin/whisper-hailo serve model"),
        (27, "program", 'print("`whisper-hailo doctor --json` in a program is a part of it")\n'),
    ]
    (tmp_path / "page.md").write_text("```\nwhisper-hailo doctor\n```\n")
    with pytest.raises(AssertionError, match="what is this block"):
        pieces("page.md")


def test_a_command_that_fails_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("helpers_docs.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    page, said = tmp_path / "page.md", []

    def read(text: str, **settings: Any) -> None:
        page.write_text(f"```bash\n{text}\n```\n")
        Reader("page.md", monkeypatch, capsys, **settings).read()

    read("cp page.md copy.md", after={"cp": lambda done: said.append(Path("copy.md").stat().st_size)})
    assert said == [page.stat().st_size]
    read(
        "whisper-hailo check --help > help",
        after={"whisper-hailo": lambda done: said.append(Path("help").read_text())},
    )
    assert "--cost" in said[1]
    read("whisper-hailo check MODEL --json", here={"check MODEL": "check --help"})
    for text, settings, message in (
        ("whisper-hailo doctor nowhere.hef", {}, "exit status 2: error: nowhere.hef is no model folder"),
        ("cp nowhere.hef here.hef", {}, "exit status 1"),
        ("cp page.md copy.md", {"more": {"whisper-hailo": "--json"}}, "nothing of the kind on page.md"),
        ("cp page.md copy.md", {"here": {"pi.local": "localhost"}}, "nothing of the kind on page.md"),
        ("cat raw | whisper-hailo listen -", {}, "what does the first program of this pipe write"),
    ):
        with pytest.raises(AssertionError, match=message):
            read(text, **settings)


def scripts() -> dict[str, list[str]]:
    """What of `benchmarks/` the pages name as code, with the words behind it."""
    code = [span for page in PAGES for _, span in spans(page)]
    named = [re.fullmatch(r"(?:python )?(?:benchmarks/)?(\w+\.py)((?: [^ ]+)*)", span) for span in code]
    found: dict[str, list[str]] = {}
    for one in filter(None, named):
        if (ROOT / "benchmarks" / one[1]).is_file():
            words = [word for word in one[2].split() if re.fullmatch(r"--[a-z-]+|[a-z]{4,}", word)]
            found.setdefault(one[1], []).extend(words)
    return found


@pytest.mark.parametrize("script", sorted(scripts()))
def test_a_measurement_can_be_made_again(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most take hours, and speech that is not here: that they start, and know the words that the pages say."""
    path = ROOT / "benchmarks" / script
    with script_settings(monkeypatch, [str(path), "--help"]), pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert not end.value.code
    told = capsys.readouterr().out + path.read_text(encoding="utf-8")
    for word in scripts()[script]:
        assert re.search(rf"(?<![\w-]){word}(?![\w-])", told), word


@pytest.mark.parametrize("piece", COMMANDS, ids=str)
def test_a_verb_takes_it(piece: Piece) -> None:
    """Also those that only few can run; a test that runs them says more, but later."""
    found = re.search(r"\bwhisper-hailo ([a-z]+\b.*)", piece.text)
    if found is None or piece.text in NOT_RUN.get(piece.page, {}):
        return
    words = shlex.split(found[1], comments=True)
    VERBS[words[0]].make_context(words[0], words[1:]).close()  # raises what the command line would refuse
