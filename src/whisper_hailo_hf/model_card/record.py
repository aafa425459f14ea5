"""The record that a card is made of: facts and figures of a model, as YAML or JSON, checked when they are read.

A figure that nobody measured has no place in it, and what was modelled stands apart.
"""

import math
import os
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import yaml
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from whisper_hailo_hf.errors import RequestError

RELATIONS = ("adapter", "finetune", "merge", "quantized")  # that the Hub knows
_METRICS = ("cer", "wer")


@strict
@dataclass(kw_only=True)
class DataSource:
    """Data that the model was trained on.

    Attributes:
        name, url, people: what it is, where, and by whom.
        licence: of the data, such as "CC BY 4.0".
        note: how much of it, and for what.
    """

    name: str
    licence: str
    url: str = ""
    people: str = ""
    note: str = ""

    @property
    def link(self) -> str:
        return f"[{self.name}]({self.url})" if self.url else self.name


@strict
@dataclass(kw_only=True)
class Score:
    """An error rate.

    Attributes:
        data: what was transcribed, in words.
        dataset: its id on the Hub, or a name of that form.
        split: of it.
        metric: "wer" or "cer".
        value: in per cent.
        interval: 95 %, in per cent.
        backend: where the encoder ran.
        size: of what was transcribed, in utterances and words.
        how: script, machine, number of runs, date.
    """

    data: str
    dataset: str
    metric: str
    value: float | int
    backend: str
    size: str
    how: str
    split: str = "test"
    interval: list[float | int] | None = None

    def __post_init__(self) -> None:
        if self.metric not in _METRICS or not (math.isfinite(self.value) and self.value >= 0):
            raise RequestError(f"a score is a wer or a cer of 0 % or more, not {self.metric} {self.value}")
        if self.interval is not None and not (
            len(self.interval) == 2 and self.interval[0] <= self.value <= self.interval[1]
        ):
            raise RequestError(f"the interval {self.interval} does not hold the {self.metric} {self.value}")

    @property
    def interval_text(self) -> str:
        return "–".join(f"{end:.2f}" for end in self.interval) if self.interval else "–"


@strict
@dataclass(kw_only=True)
class Closeness:
    """How close one stage's encoder states are to another's.

    Attributes:
        stage, against: the two.
        snr_db: signal-to-noise ratio, dB.
        cosine: mean over frames.
        over: what was encoded.
        how: measured or emulated, by what.
    """

    stage: str
    against: str
    snr_db: float | int
    over: str
    how: str
    cosine: float | int | None = None


@strict
@dataclass(kw_only=True)
class Measurement:
    """A speed that was measured: what, in which unit, on which machine, how often, with which spread."""

    what: str
    value: float | int
    unit: str
    machine: str
    runs: int
    spread: str


@strict
@dataclass(kw_only=True)
class Estimate:
    """A speed that was modelled: what, from where to where, in which unit, by which model of the chip."""

    what: str
    low: float | int
    high: float | int
    unit: str
    by: str


@strict
@dataclass(kw_only=True)
class CardRecord:
    """What a card says that `config.json` does not. Texts are Markdown.

    Attributes:
        title, summary: what it is.
        name: what users load, `owner/model`; "" for a model that comes with the package.
        license: of the weights, as the Hub names it; "other" needs `license_name` and `license_link`.
        language: ISO 639 codes.
        base_model: Hub ids; `base_model_relation` says what the model is to them.
        datasets: Hub ids of those of `data` that are there.
        tags: beside those that every card has.
        data: what it was trained on.
        held_out: what it was not trained on, and what was seen of that before.
        training: how it was trained.
        scores, scores_note: error rates, and what to know about them.
        fidelity, measured, modelled: figures.
        limits: what it cannot do.

    Raises:
        RequestError: a licence that the data's licences do not allow; a relation to no model.
    """

    title: str
    summary: str
    license: str
    language: list[str]
    training: str
    limits: str
    data: list[DataSource]
    name: str = ""
    license_name: str = ""
    license_link: str = ""
    base_model: list[str] = field(default_factory=list)
    base_model_relation: str = "finetune"
    datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    held_out: str = ""
    scores: list[Score] = field(default_factory=list)
    scores_note: str = ""
    fidelity: list[Closeness] = field(default_factory=list)
    measured: list[Measurement] = field(default_factory=list)
    modelled: list[Estimate] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.base_model_relation not in RELATIONS:
            raise RequestError(f"base_model_relation is one of {', '.join(RELATIONS)}")
        for source in self.data:
            terms = _spdx(source.licence)
            if ("-sa-" in terms and terms != self.license) or ("-nc" in terms and "-nc" not in self.license):
                raise RequestError(
                    f"the license {self.license} is not one that {source.name} ({source.licence}) allows, which the "
                    "model was trained on"
                )

    @classmethod
    def read(cls, path: str | os.PathLike) -> Self:
        """The record in a YAML or JSON file; a `RequestError` says what is wrong with it."""
        try:
            known = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RequestError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from error
        if not isinstance(known, dict):
            raise RequestError(f"{path} holds no record of a card: see docs/hub.md")
        try:
            parts = {
                name: [_make(kind, one) for one in known[name]] for name, kind in _PARTS.items() if known.get(name)
            }
            return _make(cls, known | parts)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from error


_PARTS: dict[str, type] = {
    "data": DataSource,
    "scores": Score,
    "fidelity": Closeness,
    "measured": Measurement,
    "modelled": Estimate,
}


def _make(kind: type, known: Any) -> Any:
    if not isinstance(known, dict):
        raise RequestError(f"{known!r} stands where a {kind.__name__} is wanted")
    names = {one.name: one.default is MISSING and one.default_factory is MISSING for one in fields(kind)}
    if unknown := sorted(set(map(str, known)) - set(names)):
        raise RequestError(f"a {kind.__name__} has no {', '.join(unknown)}: it has {', '.join(names)}")
    if missing := [name for name, wanted in names.items() if wanted and name not in known]:
        raise RequestError(f"a {kind.__name__} needs {', '.join(missing)}")
    try:
        return kind(**{name: value.strip() if isinstance(value, str) else value for name, value in known.items()})
    except StrictDataclassError as error:
        if isinstance(error.__cause__, RequestError):
            raise error.__cause__ from None
        raise RequestError(" ".join(str(error).split())[:200]) from error


def _spdx(licence: str) -> str:
    return licence.lower().replace(" ", "-")
