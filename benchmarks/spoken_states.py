"""Transcribed speech and its encoder states, for `text_instrument.py`.

States are cut to the speech and a second more, rounded up to half a second, so that a few hours of speech need one
gigabyte and utterances of equal length go into a batch without padding.
"""

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from whisper_hailo_hf.audio import read_audio
from whisper_hailo_hf.distillation.dataset import LogMel

POSITIONS_A_SECOND, STEP, MARGIN = 50, 25, 50  # positions: a second, the cut's grain, what is kept behind the speech


@dataclass(frozen=True)
class Spoken:
    """An utterance: its file, its words (lower case), who speaks, and the positions of its cut states."""

    id: str
    path: Path
    text: str
    speaker: str
    positions: int


def words_of(text: str) -> str:
    """Lower case, letters and apostrophes only."""
    return " ".join(re.sub(r"[^a-z']+", " ", text.lower()).split())


def read_table(tsv: Path, window: int) -> list[Spoken]:
    """The utterances of a table (path, seconds, text; perhaps id, speaker) whose words are known and fit a window.

    Texts with digits are left out, since nobody wrote down how they were read; so are further readings of a text.
    """
    found: dict[str, Spoken] = {}
    with tsv.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            text, seconds = words_of(row["text"] or ""), float(row["seconds"])
            if not text or re.search(r"\d", row["text"]) or text in found:
                continue
            positions = STEP * math.ceil((seconds * POSITIONS_A_SECOND + MARGIN) / STEP)
            if positions <= window:
                name = row.get("id") or row["path"]
                path, speaker = tsv.parent / row["path"], row.get("speaker") or name
                found[text] = Spoken(name, path, text, speaker, positions)
    if not found:
        raise SystemExit(f"{tsv}: no utterance has a text")
    return list(found.values())


def held_out(utterances: list[Spoken], wanted: int) -> set[str]:
    """Ids of some speakers' utterances, about as many as wanted; nobody who speaks a twentieth of all."""
    by_speaker: dict[str, list[str]] = {}
    for u in utterances:
        by_speaker.setdefault(u.speaker, []).append(u.id)
    chosen: set[str] = set()
    for speaker in sorted(by_speaker, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(chosen) < wanted and len(by_speaker[speaker]) * 20 < len(utterances):
            chosen.update(by_speaker[speaker])
    return chosen


def window_features(log_mel: LogMel, path: Path) -> Tensor:
    """Log-mel features of a file at the start of its window: (mel bins, 2 * positions)."""
    audio = read_audio(path)[: log_mel.samples]
    return log_mel(np.pad(audio, (0, log_mel.samples - audio.size)))


class States:
    """Encoder states of utterances, cut, in float16, in one file beside its index; what is there is not made again."""

    def __init__(self, folder: Path, utterances: list[Spoken], d_model: int) -> None:
        self.folder, self.utterances = folder, utterances
        self.starts = np.concatenate([[0], np.cumsum([u.positions for u in utterances])])
        shape, plan = (int(self.starts[-1]), d_model), folder / "plan.json"
        wanted = json.dumps([[u.id, u.positions] for u in utterances])
        folder.mkdir(parents=True, exist_ok=True)
        known = plan.is_file() and plan.read_text() == wanted
        if not known:
            (folder / "done").write_text("0")
            plan.write_text(wanted)
        self.rows = np.lib.format.open_memmap(folder / "states.npy", "r+" if known else "w+", np.float16, shape)

    @torch.no_grad()
    def make(self, encode: Callable[[Tensor], Tensor], log_mel: LogMel, batch: int = 4) -> None:
        done = int((self.folder / "done").read_text())
        for first in track(range(done, len(self.utterances), batch), "encoding"):
            some = self.utterances[first : first + batch]
            states = encode(torch.stack([window_features(log_mel, u.path) for u in some]))
            for i, u in enumerate(some):
                begin = self.starts[first + i]
                self.rows[begin : begin + u.positions] = states[i, : u.positions].half().numpy()
            (self.folder / "done").write_text(str(first + len(some)))

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[self.starts[index] : self.starts[index + 1]]
