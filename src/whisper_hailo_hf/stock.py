"""What a model of ours takes from a stock Whisper checkpoint."""

import os
from typing import Any

from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig
from whisper_hailo_hf.encoders import get_family
from whisper_hailo_hf.errors import RequestError

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


def config_from_stock(
    stock: WhisperConfig,
    family: str,
    preset: str | None,
    time_axis: str,
    encoder_layers: int | None,
    encoder_options: dict[str, Any] | None,
) -> WhisperHailoConfig:
    """The config of a model of ours with a stock model's decoder and the family's encoder."""
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
    known = stock.to_dict()
    for name in ("model_type", "architectures", "transformers_version", "auto_map", "dtype"):
        known.pop(name, None)
    return WhisperHailoConfig(
        **known
        | {
            "encoder_layers": layers if encoder_layers is None else encoder_layers,
            "encoder_family": family,
            "encoder_options": options,
            "encoder_preset": preset,
            "time_axis": time_axis,
        }
    )
