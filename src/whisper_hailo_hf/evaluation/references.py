"""Utterances with what is said in them, from a table, a folder of audio or `datasets`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.sources.utterances import Utterance, is_saved_dataset, open_source


@dataclass(frozen=True)
class References:
    """What is to be recognised.

    Attributes:
        name: where it comes from.
        utterances: those whose text is known; an empty text says that nothing is spoken.
        without_text: how many were left out since nobody knows what is said in them.
    """

    name: str
    utterances: list[Utterance]
    without_text: int = 0


def load_references(
    data: Any,
    *,
    limit: int | None = None,
    config: str | None = None,
    split: str | None = None,
    columns: dict[str, str] | None = None,
    streaming: bool = False,
) -> References:
    """Utterances with references.

    Args:
        data: a `.tsv` table with columns `path` and `text` (and perhaps `id`, `language`); an "audiofolder" with its
            `metadata.csv`; a folder that `datasets` saved; a data set of the Hub; a `datasets.Dataset`; `Utterance`s.
            An empty text is silence; a recording that the metadata does not name is left out.
        limit: at most so many, the first.
        config, split: of a data set; the split is `test` by default.
        columns: of a data set: `audio_column`, `text_column`, `id_column`, `language_column`, `seconds_column`.
        streaming: take a data set of the Hub as a stream, which needs a limit or an end.

    Raises:
        RequestError: nothing there, no references in it, an id twice, or settings that do not apply.
    """
    if limit is not None and limit < 1:
        raise RequestError(f"the limit is a positive number, not {limit}")
    if isinstance(data, References):
        return data
    name, found = _open(data, config, split, dict(columns or {}), streaming)
    utterances = list(islice(found, limit))
    known = [one for one in utterances if one.text is not None]
    if not known:
        raise RequestError(f"{name}: says of no recording what is said in it; an evaluation needs references (text)")
    twice = [one for one, count in Counter(one.id for one in known).items() if count > 1]
    if twice:
        raise RequestError(f"{name}: has {len(twice)} ids more than once, the first {twice[0]!r}: give each its own")
    return References(name, known, len(utterances) - len(known))


def _open(
    data: Any, config: str | None, split: str | None, columns: dict[str, str], streaming: bool
) -> tuple[str, Iterable[Utterance]]:
    if isinstance(data, str | os.PathLike):
        name, path = os.fspath(data), Path(data).expanduser()
        settings: dict[str, Any] = {"empty_is_silence": True}
        if is_saved_dataset(path):
            settings |= columns | {"split": split or "test"}
        elif path.exists():
            given = {"config": config, "split": split, "streaming": streaming or None, **columns}
            if wrong := [key for key, value in given.items() if value is not None]:
                raise RequestError(f"{name} is no data set: leave out {', '.join(wrong)}")
            settings["max_seconds"] = None
        else:
            settings |= columns | {"config": config, "split": split or "test", "streaming": streaming}
        return name, open_source(path if path.exists() else name, **settings)
    if isinstance(data, list | tuple):
        return "utterances", data
    from whisper_hailo_hf.sources.hub import read_dataset

    return "a data set in memory", read_dataset(data, empty_is_silence=True, **columns)
