"""The config: what is written to disk, what an instance says, and what stops those who load it without the plugin."""

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from helpers_models import CONV_OPTIONS, features_for, small_config, small_model
from transformers import AutoConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from whisper_hailo_hf import RequestError, WhisperHailoConfig, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.configuration_whisper_hailo import NEEDS_PLUGIN

ROUND_TRIPS = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
    "to_dict": lambda config: WhisperHailoConfig.from_dict(config.to_dict()),
    "to_diff_dict": lambda config: WhisperHailoConfig.from_dict(config.to_diff_dict()),
    "json": lambda config: WhisperHailoConfig.from_dict(json.loads(config.to_json_string())),
    "for_model": lambda config: AutoConfig.for_model(**config.to_dict()),
}


@pytest.fixture
def saved(tmp_path):
    """A folder of a whole model."""
    small_model().save_pretrained(tmp_path)
    return tmp_path


def run_python(code, cwd, *arguments):
    """Runs code in a fresh process with a cache of its own; returns what it printed as JSON."""
    env = {**os.environ, "HF_HOME": str(cwd / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


# Class and instance


def test_class_and_instance_name_different_types():
    assert WhisperHailoConfig.model_type == "whisper_hailo"
    assert small_config().model_type == "whisper"
    assert WhisperConfig.model_type == WhisperConfig().model_type == "whisper"


def test_defaults_are_those_of_whisper():
    ours, stock = WhisperHailoConfig().to_dict(), WhisperConfig().to_dict()
    own = {"encoder_family", "encoder_options", "encoder_preset", "time_axis", "artefacts", "source", "distilled_from"}
    assert ours.keys() - stock.keys() == own
    assert {name for name in stock if ours[name] != stock[name]} == {"model_type"}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_survives(name):
    config = small_config("attention", time_axis="height", encoder_options={"window_seconds": 0.2}, dropout=0.2)
    again = ROUND_TRIPS[name](config)
    assert type(again) is WhisperHailoConfig
    assert again.model_type == "whisper"
    assert again.to_dict() == config.to_dict()
    assert again.to_dict()["model_type"] == "whisper_hailo"


def test_options_are_not_shared():
    options = dict(CONV_OPTIONS)
    first, second = small_config(encoder_options=options), small_config(encoder_options=options)
    first.encoder_options["width"] = 1
    assert options["width"] == second.encoder_options["width"] == CONV_OPTIONS["width"]
    assert WhisperHailoConfig().encoder_options is not WhisperHailoConfig().encoder_options


def test_auto_config_knows_the_type():
    assert CONFIG_MAPPING["whisper_hailo"] is WhisperHailoConfig
    assert CONFIG_MAPPING["whisper"] is WhisperConfig
    assert type(AutoConfig.for_model("whisper_hailo")) is WhisperHailoConfig


def test_time_axis_is_checked():
    with pytest.raises(Exception, match="'width', 'height'"):
        small_config(time_axis="depth")


# On disk


def test_saved_file_loads_back(tmp_path):
    config = small_config(time_axis="height", encoder_preset="micro")
    config.save_pretrained(tmp_path)
    on_disk = json.loads((tmp_path / "config.json").read_text())
    assert on_disk["model_type"] == "whisper_hailo"
    assert on_disk["classifier_proj_size"] == NEEDS_PLUGIN
    for load in (WhisperHailoConfig.from_pretrained, AutoConfig.from_pretrained):
        again = load(tmp_path)
        assert type(again) is WhisperHailoConfig
        assert again.model_type == "whisper"
        from_here = {"_name_or_path": "", "transformers_version": None}
        assert again.to_dict() | from_here == config.to_dict() | from_here


def test_saving_twice_gives_the_same_file(tmp_path):
    small_config().save_pretrained(tmp_path / "first")
    WhisperHailoConfig.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert first == second


def test_run_time_choices_are_not_saved(tmp_path):
    small_model().save_pretrained(tmp_path / "first")
    model = WhisperHailoForConditionalGeneration.from_pretrained(
        tmp_path / "first", encoder_backend="onnx", encoder_backend_options={"threads": 1}
    )
    assert model.encoder_backend == "onnx"
    model.save_pretrained(tmp_path / "second")
    assert "backend" not in (tmp_path / "second" / "config.json").read_text()
    assert not [name for name in vars(model.config) if "backend" in name]


def test_stock_folder_says_what_to_do(tmp_path):
    WhisperConfig(d_model=16).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"stock Whisper checkpoint: build from it with .*from_whisper\(") as caught:
        WhisperHailoConfig.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert type(AutoConfig.from_pretrained(tmp_path)) is WhisperConfig


def test_stock_checkpoint_in_our_class_says_what_to_do(stock_whisper):
    with pytest.raises(RequestError, match="from_whisper") as caught:
        WhisperHailoForConditionalGeneration.from_pretrained(stock_whisper)
    assert stock_whisper in str(caught.value)


def test_stock_classes_refuse_our_checkpoint_beside_the_plugin(saved):
    with pytest.raises(Exception, match="import whisper_hailo_hf"):
        WhisperForConditionalGeneration.from_pretrained(saved)


# Without the plugin, and with remote code

_REFUSED = """
import json, sys
import transformers as t
folder, said = sys.argv[1], {}
attempts = {
    "whisper": lambda: t.WhisperForConditionalGeneration.from_pretrained(folder),
    "base": lambda: t.WhisperModel.from_pretrained(folder),
    "config": lambda: t.WhisperConfig.from_pretrained(folder),
    "classifier": lambda: t.WhisperForAudioClassification.from_pretrained(folder),
    "causal": lambda: t.WhisperForCausalLM.from_pretrained(folder),
    "auto": lambda: t.AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=False),
    "auto_base": lambda: t.AutoModel.from_pretrained(folder, trust_remote_code=False),
    "auto_config": lambda: t.AutoConfig.from_pretrained(folder, trust_remote_code=False),
    "pipeline": lambda: t.pipeline("automatic-speech-recognition", model=folder, trust_remote_code=False),
}
for name, attempt in attempts.items():
    try:
        said[name] = "LOADED " + type(attempt()).__name__
    except Exception as error:
        said[name] = str(error)
assert "whisper_hailo_hf" not in sys.modules
print(json.dumps(said))
"""


def test_stock_transformers_refuses_aloud(saved, tmp_path_factory):
    said = run_python(_REFUSED, tmp_path_factory.mktemp("elsewhere"), saved)
    assert len(said) == 9
    for name, message in said.items():
        assert not message.startswith("LOADED"), f"{name}: {message}"
    for name in ("whisper", "base", "config", "classifier", "causal"):
        assert "pip install whisper-hailo-hf" in said[name], said[name]
    for name in ("auto", "auto_base", "auto_config", "pipeline"):
        assert "trust_remote_code" in said[name], said[name]


_TRUSTED = """
import json, os, sys
import torch
import transformers as t
folder, features, target = sys.argv[1:]
model = t.AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    states = model.get_encoder()(torch.load(features))[0]
model.save_pretrained(target)
model.config.save_pretrained(target + "-config")
again = t.AutoModelForSpeechSeq2Seq.from_pretrained(target, trust_remote_code=True)
print(json.dumps({
    "class": f"{type(model).__module__}.{type(model).__name__}",
    "again": type(again) is type(model),
    "states": states.flatten()[:50].tolist(),
    "files": sorted(os.listdir(target)),
    "config_files": sorted(os.listdir(target + "-config")),
}))
"""


def test_trusted_remote_code_finds_the_package(saved, tmp_path_factory):
    work = tmp_path_factory.mktemp("elsewhere")
    model = WhisperHailoForConditionalGeneration.from_pretrained(saved)
    torch.save(features_for(model.config), work / "features.pt")
    with torch.no_grad():
        states = model.get_encoder()(features_for(model.config))[0]
    seen = run_python(_TRUSTED, work, saved, work / "features.pt", work / "copy")
    assert seen["class"] == "whisper_hailo_hf.modeling_whisper_hailo.WhisperHailoForConditionalGeneration"
    assert seen["again"]
    assert seen["states"] == pytest.approx(states.flatten()[:50].tolist(), abs=1e-6)
    assert seen["files"] == sorted(path.name for path in saved.iterdir())
    assert [name for name in seen["files"] if name.endswith(".py")] == ["whisper_hailo_shim.py"]
    assert not [name for name in seen["config_files"] if name.endswith(".py")]
    config = json.loads((work / "copy" / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "whisper_hailo_shim.WhisperHailoConfig",
        "AutoModelForSpeechSeq2Seq": "whisper_hailo_shim.WhisperHailoForConditionalGeneration",
    }


def test_shim_without_the_package_names_what_to_install(saved, tmp_path_factory):
    code = (
        "import json, sys\n"
        "sys.modules['whisper_hailo_hf'] = None\n"  # as if it were not installed
        "import transformers as t\n"
        "try:\n"
        "    t.AutoModelForSpeechSeq2Seq.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "    said = 'LOADED'\n"
        "except ImportError as error:\n    said = str(error)\n"
        "print(json.dumps(said))"
    )
    assert "whisper_hailo_hf" in run_python(code, tmp_path_factory.mktemp("elsewhere"), saved)
