"""What a model of ours takes from a stock Whisper checkpoint, and how a student's encoder gets its decoder."""

import logging
import os
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, WhisperConfig, WhisperForConditionalGeneration

from whisper_hailo_hf.artefacts import fingerprint
from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig
from whisper_hailo_hf.encoders import get_family
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.hub.explain import hub_error
from whisper_hailo_hf.hub.fetch import ANYWHERE

logger = logging.getLogger(__name__)

# the preset that suits a decoder of up to this d_model; "small" beyond
PRESET_UP_TO = {"micro": 128, "tiny": 384, "base": 512}


def load_stock(name_or_path: str | os.PathLike, **kwargs: Any) -> WhisperForConditionalGeneration:
    """The stock model of a Hub id or folder, in its own dtype; a `RequestError` for anything else."""
    config_dict, _ = WhisperConfig.get_config_dict(name_or_path, **kwargs)
    kind = config_dict.get("model_type")
    if kind == WhisperHailoConfig.model_type:
        raise RequestError(
            f"{name_or_path} already has a pluggable encoder: load it with "
            "WhisperHailoForConditionalGeneration.from_pretrained()"
        )
    if kind != WhisperConfig.model_type:
        raise RequestError(f"{name_or_path} is a {kind} checkpoint, no Whisper: name a stock Whisper")
    return WhisperForConditionalGeneration.from_pretrained(name_or_path, **kwargs)


def source_of(name_or_path: str | os.PathLike, revision: str | None) -> dict[str, str]:
    """Which checkpoint a model was built from: its Hub id and commit, or no more than the name of its folder.

    Args:
        name_or_path: Hub id or folder.
        revision: from `pinned_revision`.
    """
    if os.path.isdir(name_or_path):
        return {"checkpoint": os.path.basename(os.path.abspath(name_or_path))}  # the rest is nobody's business
    commit = getattr(revision, "resolved", revision)
    return {"checkpoint": os.fspath(name_or_path)} | ({"revision": str(commit)} if commit else {})


def config_from_stock(
    stock: WhisperConfig,
    family: str | None,
    preset: str | None,
    time_axis: str | None,
    encoder_layers: int | None,
    encoder_options: dict[str, Any] | None,
) -> WhisperHailoConfig:
    """The config of a model of ours with a stock model's decoder and the family's encoder."""
    family, time_axis = family or "conv", time_axis or "width"
    kind = get_family(family)
    if time_axis not in ("width", "height"):
        raise RequestError(f"time_axis is 'width' or 'height', not {time_axis!r}")
    if preset is None and kind.presets:
        preset = next((name for name, width in PRESET_UP_TO.items() if stock.d_model <= width), "small")
    options = (kind.preset(preset) if preset is not None else {}) | (encoder_options or {})
    layers = options.pop("encoder_layers", stock.encoder_layers)
    if encoder_layers is not None and not kind.presets:
        raise RequestError(f"the {family} family keeps the stock encoder's {layers} layers: leave encoder_layers out")
    kind.parse_options(options)
    return _config(
        stock,
        encoder_layers=layers if encoder_layers is None else encoder_layers,
        encoder_family=family,
        encoder_options=options,
        encoder_preset=preset,
        time_axis=time_axis,
    )


def _config(stock: WhisperConfig, **encoder: Any) -> WhisperHailoConfig:
    known = stock.to_dict()
    for name in ("model_type", "architectures", "transformers_version", "auto_map", "dtype"):
        known.pop(name, None)
    return WhisperHailoConfig(**known | encoder)


# what a student's config says of its encoder alone
_OF_THE_ENCODER = (
    *("encoder_family", "encoder_options", "encoder_preset", "encoder_layers", "time_axis"),
    *("encoder_attention_heads", "encoder_ffn_dim", "artefacts", "distilled_from"),
)
_MUST_AGREE = {"d_model": "d_model", "num_mel_bins": "mel bins", "max_source_positions": "positions"}


def load_student(student: str | os.PathLike, encoder_class: type[PreTrainedModel], **kwargs: Any) -> Any:
    """A distilled encoder that was saved alone.

    Args:
        student: folder or Hub id.
        encoder_class: the class it is of.
        kwargs: what was given for the stock model; `dtype` and what holds for any repository is used.

    Raises:
        RequestError: no such folder, something else in it, or its weights are not complete.
    """
    where = {name: value for name, value in kwargs.items() if name in ANYWHERE}
    _check_student_folder(student, encoder_class.__name__, where)
    where |= {"dtype": kwargs.get("dtype"), "encoder_backend": "torch", "output_loading_info": True}
    try:
        loaded: Any = encoder_class.from_pretrained(student, **where)
    except WhisperHailoError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RequestError(f"cannot load the student {student}: {first_line(error)}") from error
    encoder, info = loaded
    if info["missing_keys"]:
        raise RequestError(f"the student {student} lacks {min(info['missing_keys'])}: fetch or save it again")
    return encoder


def _check_student_folder(student: str | os.PathLike, encoder_class: str, where: dict[str, Any]) -> None:
    want = "name a folder or Hub id that holds a distilled encoder"
    try:
        known, _ = WhisperConfig.get_config_dict(student, **where)
    except OSError as error:
        said = hub_error(error, os.fspath(student)) or first_line(error)
        raise RequestError(f"no student at {student}: {said}; {want}") from error
    kind, saved_as = known.get("model_type"), known.get("architectures") or []
    if kind != WhisperHailoConfig.model_type:
        found = f"holds a {kind} checkpoint" if kind else "has no config.json of a model"
        raise RequestError(f"no student at {student}: it {found}; {want}")
    if encoder_class not in saved_as:
        raise RequestError(
            f"{student} holds a whole model with a decoder of its own: load it with from_pretrained(), or save its "
            "get_encoder() as the student"
        )


def config_with_student(
    stock: WhisperForConditionalGeneration,
    student: WhisperHailoConfig,
    name: str | os.PathLike,
    student_name: str | os.PathLike,
) -> WhisperHailoConfig:
    """The config of a model with a stock model's decoder and a student's encoder.

    A student whose record names a teacher with another encoder is warned about, no more: a decoder that was tuned
    further, its encoder with it, may still read the student well.

    Raises:
        RequestError: their shapes do not agree.
    """
    teacher = student.distilled_from.get("name")
    for field, words in _MUST_AGREE.items():
        ours, theirs = getattr(student, field), getattr(stock.config, field)
        if ours != theirs:
            raise RequestError(
                f"the student {student_name} has {words} {ours}, the Whisper {name} {theirs}: they must agree, name "
                f"the Whisper that the student was distilled from{f' ({teacher})' if teacher else ''}"
            )
    known = student.distilled_from.get("fingerprint")
    # in another dtype the weights may have been rounded
    if known and stock.dtype == torch.float32 and fingerprint(stock.model.encoder) != known:
        logger.warning(
            "the student %s was distilled from %s, and the encoder of %s is another one: the decoder may misread it",
            *(student_name, teacher or "a teacher without a name", name),
        )
    return _config(stock.config, **{field: getattr(student, field) for field in _OF_THE_ENCODER})


def first_line(error: BaseException) -> str:
    """What an error of another library says, as part of a line of ours."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
