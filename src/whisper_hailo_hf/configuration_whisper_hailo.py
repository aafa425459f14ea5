"""Configuration of a Whisper whose encoder is pluggable.

Two facts about Transformers shape this file. Behaviour switches in the ASR pipeline and in `generate()` test
`config.model_type == "whisper"` on the *instance*; the Auto registries and what is written to disk read the *class*.
So the class says `whisper_hailo`, which stock Transformers refuses aloud, and each instance says `whisper`, which
keeps every Whisper feature (timestamps, language, long-form, prompts).
"""

import json
import os
from dataclasses import field
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import WhisperConfig

from whisper_hailo_hf.errors import RequestError

# Stock Whisper classes only warn about a foreign `model_type` and would go on with a random encoder. This text stands
# in config.json where they demand an integer that no speech recogniser uses: their own validation then stops them.
NEEDS_PLUGIN = (
    "this checkpoint has a whisper_hailo encoder: `pip install whisper-hailo-hf`, then `import whisper_hailo_hf` "
    "and load it with AutoModelForSpeechSeq2Seq"
)


@strict
class WhisperHailoConfig(WhisperConfig):
    r"""
    Settings of [`WhisperHailoForConditionalGeneration`]: those of [`~transformers.WhisperConfig`], of which the
    decoder's keep their meaning, and the encoder's own.

    Args:
        encoder_family (`str`, *optional*, defaults to `"conv"`):
            Name in the registry of encoder families: `"conv"` or `"attention"`. `encoder_layers` is the number of its
            blocks.
        encoder_options (`dict`, *optional*):
            Options of the family (`ConvOptions`, `AttentionOptions`); those not named keep the family's defaults.
        encoder_preset (`str`, *optional*):
            The preset that `encoder_options` came from; information only.
        time_axis (`"width"` or `"height"`, *optional*, defaults to `"width"`):
            Where time lies in the encoder's rank-4 tensors: (batch, channels, 1, time) or (batch, channels, time, 1).
            Changes the layout alone, never a weight.
        artefacts (`dict`, *optional*):
            Files beside the weights, by path: sha256, size in bytes, the fingerprint of the weights they were made
            from, and who made them; of a HEF also the chip, the compiler, the first HailoRT that reads it, its
            contexts, the integers of its input and output, and how close it is to the float encoder.
        source (`dict`, *optional*):
            The stock Whisper that the model was built from: `checkpoint`, and `revision`, its commit on the Hub.
        distilled_from (`dict`, *optional*):
            The teacher of a distilled encoder: `name`, and `fingerprint`, the SHA-256 over its encoder's weights.
    """

    model_type = "whisper_hailo"

    encoder_family: str = "conv"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    encoder_preset: str | None = None
    time_axis: Literal["width", "height"] = "width"
    artefacts: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    distilled_from: dict[str, Any] = field(default_factory=dict)
    classifier_proj_size: Any = 256  # NEEDS_PLUGIN on disk

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if isinstance(self.classifier_proj_size, str):
            self.classifier_proj_size = 256
        self.encoder_options = dict(self.encoder_options)  # the caller's own stays as it is
        # last, because the JSON's own model_type was put on the instance by then
        self.__dict__["model_type"] = WhisperConfig.model_type

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == WhisperConfig.model_type:
            name = os.fspath(pretrained_model_name_or_path)
            raise RequestError(
                f"{name} is a stock Whisper checkpoint: build from it with "
                f"WhisperHailoForConditionalGeneration.from_whisper({name!r}, family=...)"
            )
        return config_dict, kwargs

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        config_dict = json.loads(self.to_json_string(use_diff=use_diff))
        config_dict["classifier_proj_size"] = NEEDS_PLUGIN
        with open(json_file_path, "w", encoding="utf-8") as file:
            json.dump(config_dict, file, indent=2, sort_keys=True)
            file.write("\n")

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: after a load with remote code Transformers would otherwise copy this package into every saved
        folder. `save_pretrained` of the model writes its own `auto_map`."""
