"""Registration with Transformers' Auto classes and, through them, with the ASR pipeline.

Importing the Auto classes costs the import of torch, so each registration waits until somebody else has imported the
module that it concerns, and happens at once where that is so already. It may then run in the middle of a chain of
imports, where importing our classes could close a circle. `register()` of the Auto classes wants the classes
themselves; so names go into the tables that `_LazyConfigMapping` and `_LazyAutoMapping` resolve at their first use
(transformers/models/auto/configuration_auto.py and auto_factory.py, read in 5.23).
"""

import importlib
from types import ModuleType
from typing import Any

from wrapt import when_imported

_MODEL_TYPE = "whisper_hailo"  # WhisperHailoConfig.model_type, without importing it


class _Names:
    """Stands where the tables expect the module of a model type: our names first, then stock Whisper's."""

    def __getattr__(self, name: str) -> Any:
        for module in (__package__, "transformers.models.whisper"):
            try:
                return getattr(importlib.import_module(module), name)
            except AttributeError:
                continue
        raise AttributeError(name)


_NAMES = _Names()


def _add(mapping: Any, names: dict[str, Any], value: Any) -> None:
    names[_MODEL_TYPE] = value
    mapping._reverse_config_mapping["WhisperHailoConfig"] = _MODEL_TYPE
    mapping._modules[_MODEL_TYPE] = _NAMES


@when_imported("transformers.models.auto.configuration_auto")
def _add_config(auto: ModuleType) -> None:
    auto.CONFIG_MAPPING_NAMES[_MODEL_TYPE] = "WhisperHailoConfig"
    auto.CONFIG_MAPPING._modules[_MODEL_TYPE] = _NAMES


@when_imported("transformers.models.auto.modeling_auto")
def _add_models(auto: ModuleType) -> None:
    _add(auto.MODEL_MAPPING, auto.MODEL_MAPPING_NAMES, "WhisperHailoModel")
    _add(
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        "WhisperHailoForConditionalGeneration",
    )


# a folder's own tokenizer and preprocessor files come first; these serve where they do not name a class


@when_imported("transformers.models.auto.feature_extraction_auto")
def _add_feature_extractor(auto: ModuleType) -> None:
    names = auto.FEATURE_EXTRACTOR_MAPPING_NAMES
    _add(auto.FEATURE_EXTRACTOR_MAPPING, names, names["whisper"])


@when_imported("transformers.models.auto.tokenization_auto")
def _add_tokenizer(auto: ModuleType) -> None:
    names = auto.TOKENIZER_MAPPING_NAMES
    _add(auto.TOKENIZER_MAPPING, names, names["whisper"])


@when_imported("transformers.models.auto.processing_auto")
def _add_processor(auto: ModuleType) -> None:
    names = auto.PROCESSOR_MAPPING_NAMES
    _add(auto.PROCESSOR_MAPPING, names, names["whisper"])
