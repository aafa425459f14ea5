"""The stand-in for Hailo's Dataflow Compiler in the processes that tests spawn, and a small model to compile."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

STANDIN = Path(__file__).with_name("standins") / "hailo_sdk_client_3_33"
PYTHON = sys.executable


def use_standin(monkeypatch) -> None:
    """Lets the workers of this test find the stand-in, and nothing else of this test's process."""
    monkeypatch.setenv("PYTHONPATH", str(STANDIN))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def fault(monkeypatch, method: str, **what: Any) -> None:
    """Makes a method of the stand-in's runner fail."""
    monkeypatch.setenv("STANDIN_FAULTS", json.dumps({method: what}))


def features(count: int = 160, bins: int = 8, frames: int = 60) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, bins, frames)).astype(np.float32)


def events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a journal."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["event"])]


def stages(folder: Path, kind: str) -> list[str]:
    """The stages of a journal's lines of a kind, in order."""
    return [line["stage"] for line in events(folder, kind)]


def alive(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"
