"""What importing the package does to Transformers' Auto classes and pipeline, whatever was imported first."""

import json
import os
import subprocess
import sys

import pytest
from helpers_models import SHAPES, small_model
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
    WhisperProcessor,
)
from transformers.models.auto import auto_factory, modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, MODEL_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

from whisper_hailo_hf import WhisperHailoConfig, WhisperHailoForConditionalGeneration, WhisperHailoModel

# what a fresh process has imported before it uses the Auto classes
IMPORT_ORDERS = {
    "ours first": "import whisper_hailo_hf",
    "transformers first": "import transformers\nimport whisper_hailo_hf",
    "stock config first": "from transformers import WhisperConfig\nimport whisper_hailo_hf",
    "tables in use already": (
        "from transformers import AutoConfig, AutoModel, AutoModelForSpeechSeq2Seq, WhisperConfig, pipeline\n"
        "AutoConfig.for_model('whisper'); AutoModelForSpeechSeq2Seq._model_mapping[WhisperConfig]\n"
        "list(AutoModel._model_mapping._model_mapping)\n"
        "import whisper_hailo_hf"
    ),
    "ours in the middle of an import": (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'transformers.models.whisper.modeling_whisper':\n"
        "            import whisper_hailo_hf\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from transformers import WhisperModel\n"
        "assert 'whisper_hailo_hf' in sys.modules"
    ),
}
_FIND = """
import json, sys, tempfile
from transformers import (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForSpeechSeq2Seq, AutoProcessor,
    AutoTokenizer, pipeline)
ours, stock = sys.argv[1:]
name = lambda thing: type(thing).__name__
found = {}
for key, folder in (("ours", ours), ("stock", stock)):
    config = AutoConfig.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    pipe = pipeline("automatic-speech-recognition", model=folder)
    found[key] = [
        name(config),
        name(AutoModel.from_config(config)),
        name(AutoModelForSpeechSeq2Seq.from_pretrained(folder)),
        name(processor),
        name(AutoTokenizer.from_pretrained(folder)),
        name(AutoFeatureExtractor.from_pretrained(folder)),
        name(pipe.model),
        pipe.type,
    ]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ours(tmp_path_factory, stock_whisper):
    """A folder of ours with a processor's files."""
    folder = tmp_path_factory.mktemp("ours")
    small_model().save_pretrained(folder)
    WhisperProcessor.from_pretrained(stock_whisper).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("order", IMPORT_ORDERS)
def test_classes_are_found_in_any_import_order(order, ours, stock_whisper):
    code = IMPORT_ORDERS[order] + _FIND
    command = [sys.executable, "-W", "ignore", "-c", code, str(ours), stock_whisper]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    shared = ["WhisperProcessor", found["stock"][4], "WhisperFeatureExtractor"]
    assert found["stock"][4].startswith("WhisperTokenizer")
    assert found["ours"] == [
        "WhisperHailoConfig",
        "WhisperHailoModel",
        "WhisperHailoForConditionalGeneration",
        *shared,
        "WhisperHailoForConditionalGeneration",
        "seq2seq_whisper",
    ]
    assert found["stock"] == [
        "WhisperConfig",
        "WhisperModel",
        "WhisperForConditionalGeneration",
        *shared,
        "WhisperForConditionalGeneration",
        "seq2seq_whisper",
    ]


def test_processor_classes_are_found_without_their_files_naming_them(ours, tmp_path, stock_whisper):
    processor = WhisperProcessor.from_pretrained(stock_whisper)
    small_model().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for path in tmp_path.glob("*.json"):
        known = json.loads(path.read_text())
        for key in ("processor_class", "feature_extractor_type", "tokenizer_class"):
            known.pop(key, None)
            known.get("feature_extractor", {}).pop(key, None)
        path.write_text(json.dumps(known))
    assert type(AutoProcessor.from_pretrained(tmp_path)) is WhisperProcessor
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path)) is WhisperFeatureExtractor
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is type(processor.tokenizer)


# The tables


def test_mappings_hold_both_ways():
    assert MODEL_MAPPING[WhisperHailoConfig] is WhisperHailoModel
    assert MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING[WhisperHailoConfig] is WhisperHailoForConditionalGeneration
    assert MODEL_MAPPING[WhisperConfig] is WhisperModel
    assert MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING[WhisperConfig] is WhisperForConditionalGeneration
    assert FEATURE_EXTRACTOR_MAPPING[WhisperHailoConfig] is FEATURE_EXTRACTOR_MAPPING[WhisperConfig]
    assert PROCESSOR_MAPPING[WhisperHailoConfig] is PROCESSOR_MAPPING[WhisperConfig] is WhisperProcessor
    assert TOKENIZER_MAPPING[WhisperHailoConfig] == TOKENIZER_MAPPING[WhisperConfig]
    for mapping in (MODEL_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, TOKENIZER_MAPPING, PROCESSOR_MAPPING):
        assert WhisperHailoConfig in mapping
        assert WhisperConfig in mapping


def test_mappings_can_be_walked():
    assert WhisperHailoConfig in list(CONFIG_MAPPING.values())
    assert ("whisper_hailo", WhisperHailoConfig) in list(CONFIG_MAPPING.items())
    assert "whisper_hailo" in list(CONFIG_MAPPING)
    for mapping in (MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, MODEL_MAPPING):
        assert WhisperHailoConfig in list(mapping.keys())
        assert WhisperHailoConfig in list(mapping)
    # the values of this one only: they cost the import of each model
    assert WhisperHailoForConditionalGeneration in list(MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING.values())
    pair = (WhisperHailoConfig, WhisperHailoForConditionalGeneration)
    assert pair in list(MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING.items())
    names = modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES
    assert "WhisperHailoForConditionalGeneration" in auto_factory.get_values(names)
    assert CONFIG_MAPPING_NAMES["whisper_hailo"] == "WhisperHailoConfig"


def test_our_classes_are_those_of_no_other_task():
    assert WhisperHailoConfig not in AutoModelForCTC._model_mapping
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForCTC.from_config(WhisperHailoConfig())


def test_auto_classes_build_from_a_config():
    config = small_model().config
    assert type(AutoModel.from_config(config)) is WhisperHailoModel
    assert type(AutoModelForSpeechSeq2Seq.from_config(config)) is WhisperHailoForConditionalGeneration
    stock = WhisperConfig(**SHAPES)
    assert type(AutoModel.from_config(stock)) is WhisperModel
    assert type(AutoModelForSpeechSeq2Seq.from_config(stock)) is WhisperForConditionalGeneration


def test_auto_class_passes_run_time_choices_on(ours):
    model = AutoModelForSpeechSeq2Seq.from_pretrained(ours, encoder_backend="onnx")
    assert model.encoder_backend == "onnx"
    assert "encoder_backend" not in model.config.to_dict()
