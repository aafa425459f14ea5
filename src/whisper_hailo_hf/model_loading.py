"""Which model is meant: one in memory, or the folder or Hub id of one; and the encoder of it."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.hub.explain import hub_error
from whisper_hailo_hf.modeling_whisper_hailo import (
    HailoWhisperEncoder,
    WhisperHailoForConditionalGeneration,
    WhisperHailoModel,
    WhisperHailoPreTrainedModel,
)


def encoder_of(model_or_folder: str | os.PathLike | PreTrainedModel) -> HailoWhisperEncoder:
    """The encoder of a model, or of the checkpoint in a folder or on the Hub; on `torch`, in float32 if loaded here.

    Raises:
        RequestError: a model without a pluggable encoder, or a checkpoint that cannot be loaded.
    """
    encoder: Any = model_or_folder
    if isinstance(model_or_folder, str | os.PathLike):
        encoder = open_model(model_or_folder)
    if not isinstance(encoder, HailoWhisperEncoder) and hasattr(encoder, "get_encoder"):
        encoder = encoder.get_encoder()
    if not isinstance(encoder, HailoWhisperEncoder):
        raise RequestError(
            f"a {type(model_or_folder).__name__} has no pluggable encoder: build one with "
            "WhisperHailoForConditionalGeneration.from_whisper(...)"
        )
    return encoder


def open_model(folder_or_id: str | os.PathLike) -> WhisperHailoPreTrainedModel:
    """What was saved in a folder or on the Hub, a whole model or an encoder alone: on `torch`, in float32, evaluating.

    Raises:
        RequestError: no such folder, no checkpoint of ours in it, or weights that do not fit its config.
    """
    name = os.fspath(folder_or_id)
    folder = Path(name).expanduser()
    if folder.is_file():
        raise RequestError(f"{name} is a file: name the model's folder")
    if folder.is_dir():
        name = str(folder)
    elif len(Path(name).parts) != 2 or Path(name).is_absolute() or name.startswith((".", "~")):
        raise RequestError(f"no model folder {name} here, and a name on the Hub would be of the form owner/model")
    try:
        config = AutoConfig.from_pretrained(name)
        if type(config).model_type != "whisper_hailo":
            raise RequestError(
                f"{name} is a {config.model_type} checkpoint without a pluggable encoder: make one of it with "
                "whisper-hailo init"
            )
        classes = {cls.__name__: cls for cls in (HailoWhisperEncoder, WhisperHailoModel)}
        cls: Any = classes.get((config.architectures or [""])[0], WhisperHailoForConditionalGeneration)
        settings: dict[str, Any] = {"dtype": torch.float32, "encoder_backend": "torch", "output_loading_info": True}
        model, loaded = cls.from_pretrained(name, **settings)
    except WhisperHailoError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if not folder.is_dir() and (found := hub_error(error, name)) is not None:
            raise found from error
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RequestError(f"cannot load the model {name}: {first}") from error
    if unfit := sorted(map(str, {*loaded["missing_keys"], *loaded["mismatched_keys"]})):
        raise RequestError(f"the weights of {name} do not fit its config: {len(unfit)} missing, the first {unfit[0]}")
    return model.eval()
