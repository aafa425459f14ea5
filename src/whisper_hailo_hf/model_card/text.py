"""The text of a card: what a record says and what a model's `config.json` says, as the README.md of a repository.

The front matter is that of the Hub (https://huggingface.co/docs/hub/model-cards), made and read back by the Hub
client's own classes.
"""

import importlib.resources
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from whisper_hailo_hf.model_card.record import RELATIONS, CardRecord
from whisper_hailo_hf.version import __version__

_TASK = "automatic-speech-recognition"
_LICENCES = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "cc0-1.0": "CC0 1.0",
    "cc-by-4.0": "CC BY 4.0",
    "cc-by-sa-4.0": "CC BY-SA 4.0",
}
_CHIPS = {"hailo8": "Hailo-8", "hailo8l": "Hailo-8L", "hailo8r": "Hailo-8R"}


@dataclass(frozen=True)
class Beside:
    """What the card takes from a model folder."""

    encoder_alone: bool
    code: bool
    files: list[dict[str, str]]
    hefs: list[str]

    @property
    def chips(self) -> str:
        return " or ".join(dict.fromkeys(_CHIPS.get(name.partition("/")[0], name) for name in self.hefs))


def make_card(record: CardRecord, config: Mapping[str, Any], parameters: int | None = None) -> str:
    """The text of a README.md.

    Args:
        record: what is known of the model.
        config: its `config.json`.
        parameters: how many the model has.
    """
    here = _beside(config)
    kind = f"`{config['encoder_family']}`" if config.get("encoder_family") else "stock"
    preset = f", preset `{config['encoder_preset']}`" if config.get("encoder_preset") else ""
    sizes = f"Parameters: {parameters / 1e6:.2f} million. " if parameters else ""
    if config.get("encoder_family"):
        sizes += (
            f"Encoder family {kind}{preset}, {config.get('encoder_layers')} blocks, d_model {config.get('d_model')}."
        )
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    source = importlib.resources.files(__package__).joinpath("card.jinja").read_text(encoding="utf-8")
    text = environment.from_string(source).render(
        card=record,
        here=here,
        sizes=sizes,
        licence=record.license_name or _LICENCES.get(record.license, record.license),
        version=__version__,
        front_matter=_front_matter(record, here).to_yaml(),
    )
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text


def _front_matter(record: CardRecord, here: Beside) -> ModelCardData:
    tags = ["whisper", "whisper_hailo", "hailo", *record.tags]
    tags += ["onnx"] * any(file["name"].endswith(".onnx") for file in here.files)
    tags += [name.partition("/")[0] for name in here.hefs]
    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type=score.dataset,
            dataset_name=score.data,
            dataset_split=score.split,
            metric_type=score.metric,
            metric_name=f"{score.metric.upper()} (%), encoder on {score.backend}",
            metric_value=score.value,
            metric_args={"interval_95": score.interval} if score.interval else None,
        )
        for score in record.scores
    ]
    relation: dict[str, Any] = {"base_model_relation": record.base_model_relation} if record.base_model else {}
    return ModelCardData(
        language=record.language,
        license=record.license,
        license_name=record.license_name or None,
        license_link=record.license_link or None,
        library_name="transformers",
        pipeline_tag=_TASK,
        base_model=record.base_model or None,
        datasets=record.datasets or None,
        metrics=sorted({score.metric for score in record.scores}) or None,
        tags=tags,
        model_name=record.title if results else None,
        eval_results=results or None,
        **relation,
    )


def _beside(config: Mapping[str, Any]) -> Beside:
    records: Mapping[str, Mapping[str, Any]] = config.get("artefacts") or {}
    files = [_row(name, entry) for name, entry in sorted(records.items()) if name.endswith((".onnx", ".hef"))]
    reference = next(iter((config.get("auto_map") or {}).values()), "")
    return Beside(
        encoder_alone="HailoWhisperEncoder" in (config.get("architectures") or []),
        code="/" in reference.rpartition("--")[2],
        files=files,
        hefs=[file["name"] for file in files if file["name"].endswith(".hef")],
    )


def _row(name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    purpose = "ONNX Runtime, 8 bits" if "int8" in name else "ONNX Runtime"
    tool = entry.get("producer", "–")
    if name.endswith(".hef"):
        purpose = f"{entry.get('hw_arch', '–')}, HailoRT {entry.get('runtime_since', '4.18')} or later"
        tool = entry.get("compiler") or tool
    found = entry.get("fidelity") or {}
    parts = [f"emulated: {found['quantized']['snr_db']:.1f} dB"] if "quantized" in found else []
    parts += [f"{found['snr_db']:.1f} dB, cosine {found['cosine_mean']:.4f}"] if "snr_db" in found else []
    return {
        "name": name,
        "size": f"{entry.get('size', 0) / 1e6:.1f} MB",
        "purpose": purpose,
        "tool": tool,
        "contexts": str(entry.get("contexts", "–")),
        "fidelity": ", ".join(parts) or "–",
    }


def plain_card(config: Mapping[str, Any], tags: list[str] | None = None) -> str:
    """A card for a model of which nothing is known but its config: no licence, no figures."""
    here, source = _beside(config), (config.get("source") or {}).get("checkpoint", "")
    base = source or (config.get("distilled_from") or {}).get("name", "")
    relation: dict[str, Any] = {}
    if base.count("/") == 1:
        relation = {"base_model": base, "base_model_relation": "finetune"}
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=_TASK,
        tags=["whisper", "whisper_hailo", "hailo", *(tags or [])],
        **relation,
    )
    built = f" It was built from {base}." if base else ""
    files = "".join(f"- `{file['name']}`, {file['size']}: {file['purpose']}\n" for file in here.files)
    return (
        f"---\n{data.to_yaml()}\n---\n\n# A Whisper with a {config.get('encoder_family', 'pluggable')} encoder\n\n"
        f"Made with whisper_hailo_hf {__version__}: `pip install whisper-hailo-hf`, `import whisper_hailo_hf`, and "
        f"load it as any Whisper.{built}\n\n{files}\nNobody has said yet what it was trained on, under which licence "
        "it may be used, or how well it does.\n"
    )


def check_card(text: str) -> list[str]:
    """What is wrong with a card, a line each; nothing for a good one. The Hub itself checks once more."""
    try:
        data: Any = ModelCard(text).data
    except Exception as error:
        return [f"the card's front matter cannot be read: {' '.join(str(error).split())[:200]}"]
    found = []
    if not data.license:
        found.append("the card names no license: say under which the weights are offered")
    elif data.license == "other" and not (data.license_name and data.license_link):
        found.append("a license 'other' needs license_name and license_link in the card")
    if data.library_name != "transformers" or data.pipeline_tag != _TASK:
        found.append(f"the card needs library_name transformers and pipeline_tag {_TASK}")
    if not data.language:
        found.append("the card names no language")
    relation = data.get("base_model_relation")
    if relation is not None and (relation not in RELATIONS or not data.base_model):
        found.append(f"base_model_relation {relation!r} needs a base_model, and is one of {', '.join(RELATIONS)}")
    for result in data.eval_results or []:
        if not isinstance(result.metric_value, int | float) or not 0 <= result.metric_value < math.inf:
            found.append(f"the {result.metric_type} on {result.dataset_name} is no number")
    if "{{" in text or "[More Information Needed]" in text:
        found.append("the card has places that nobody filled in")
    return found
