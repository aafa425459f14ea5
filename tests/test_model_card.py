"""Cards: the record, the text, what the Hub's own classes read in it, and those that this project ships."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from whisper_hailo_hf import RequestError
from whisper_hailo_hf.model_card import CardRecord, check_card, make_card, plain_card

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {
    "architectures": ["WhisperHailoForConditionalGeneration"],
    "encoder_family": "conv",
    "encoder_preset": "tiny",
    "encoder_layers": 12,
    "d_model": 384,
    "source": {"checkpoint": "openai/whisper-tiny.en"},
    "artefacts": {
        "onnx/encoder.onnx": {"size": 6_000_000, "producer": "torch 2.13.0"},
        "onnx/encoder_int8.onnx": {
            "size": 2_000_000,
            "producer": "whisper_hailo_hf",
            "fidelity": {"snr_db": 37.12, "cosine_mean": 0.9991},
        },
        "hailo8l/encoder.hef": {
            "size": 3_000_000,
            "hw_arch": "hailo8l",
            "compiler": "DFC 3.33.0",
            "runtime_since": "4.20",
            "contexts": 1,
            "fidelity": {"quantized": {"snr_db": 30.0, "cosine_mean": 0.99}},
        },
        "hailo8l/encoder.alls": {"size": 100},
    },
}
RECORD = {
    "title": "A model",
    "name": "user/model",
    "summary": "It writes down what it hears.",
    "license": "apache-2.0",
    "language": ["en"],
    "base_model": ["openai/whisper-tiny.en"],
    "datasets": ["openslr/librispeech_asr"],
    "tags": ["speech"],
    "training": "With patience.",
    "limits": "Many.",
    "data": [{"name": "LibriSpeech", "url": "https://www.openslr.org/12", "people": "P", "licence": "CC BY 4.0"}],
    "scores": [
        {
            "data": "LibriSpeech test-clean",
            "dataset": "librispeech_asr",
            "metric": "wer",
            "value": 7.5,
            "interval": [7.0, 8.1],
            "backend": "torch",
            "size": "2,620 utterances",
            "how": "whisper-hailo eval, once",
        }
    ],
    "fidelity": [
        {"stage": "int8", "against": "torch", "snr_db": 37.1, "cosine": 0.999, "over": "8 windows", "how": "emulated"}
    ],
    "measured": [
        {"what": "encoder", "value": 31.5, "unit": "ms", "machine": "2 cores", "runs": 20, "spread": "30.9–33.0"}
    ],
    "modelled": [{"what": "encoder on a Hailo-8L", "low": 2, "high": 9.5, "unit": "ms", "by": "check --cost"}],
}


def read(tmp_path: Path, **changes) -> CardRecord:
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (RECORD | changes).items() if v is not None}, allow_unicode=True))
    return CardRecord.read(path)


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_hub_reads_what_was_written(tmp_path):
    text = make_card(read(tmp_path), CONFIG, 37_000_000)
    assert check_card(text) == []
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "automatic-speech-recognition")
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["en"], ["openslr/librispeech_asr"])
    assert (data.base_model, data.get("base_model_relation")) == (["openai/whisper-tiny.en"], "finetune")
    assert {"whisper", "hailo", "hailo8l", "onnx", "speech"} <= set(data.tags)
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("wer", 7.5, "librispeech_asr")
    assert result.metric_args == {"interval_95": [7.0, 8.1]}


def test_what_the_text_says(tmp_path):
    text = make_card(read(tmp_path), CONFIG, 37_000_000)
    assert "Parameters: 37.00 million. Encoder family `conv`, preset `tiny`, 12 blocks, d_model 384." in text
    use = section(text, "Use")
    commands = use.split("```bash\n")[1].split("```")[0].splitlines()
    assert len(commands) == 3
    assert commands[2] == "whisper-hailo transcribe recording.wav --model user/model"
    assert "where a Hailo-8L answers" in use
    assert 'pipeline("automatic-speech-recognition", model="user/model")' in use
    beside = section(text, "Beside the weights")
    assert (
        "| `hailo8l/encoder.hef` | 3.0 MB | hailo8l, HailoRT 4.20 or later | DFC 3.33.0 | 1 | emulated: 30.0 dB |"
        in beside
    )
    assert "| 37.1 dB, cosine 0.9991 |" in beside
    assert "encoder.alls" not in beside
    measured, modelled = section(text, "Speed").split("Modelled, which is not measured:")
    assert "| encoder | 31.5 ms | 2 cores | 20 | 30.9–33.0 |" in measured
    assert "| encoder on a Hailo-8L | 2–9.5 ms | check --cost |" in modelled
    assert "| 7.50 | 7.00–8.10 | 2,620 utterances |" in section(text, "Error rates")
    assert "[LibriSpeech](https://www.openslr.org/12) | P | CC BY 4.0 |" in section(text, "Data and licence")
    assert "The weights are offered under Apache-2.0." in text


def test_nothing_known_is_said_to_be_nothing(tmp_path):
    bare = {"scores": None, "fidelity": None, "measured": None, "modelled": None}
    text = make_card(read(tmp_path, **bare), {"architectures": ["WhisperHailoForConditionalGeneration"]})
    assert section(text, "Error rates").strip() == "Nothing has been measured yet."
    assert section(text, "How close the stages are").strip() == "Nothing has been measured yet."
    assert "Measured: no figure on record" in text
    assert "Modelled: no figure on record" in text
    assert "No HEF lies beside the weights" in text
    assert "## Beside the weights" not in text
    assert "model-index" not in text
    assert check_card(text) == []


def test_an_encoder_alone_names_its_decoder(tmp_path):
    text = make_card(read(tmp_path), CONFIG | {"architectures": ["HailoWhisperEncoder"], "artefacts": {}})
    assert "whisper-hailo init openai/whisper-tiny.en my-whisper --student user/model" in text
    assert 'from_whisper(\n    "openai/whisper-tiny.en",\n    student="user/model",\n)' in text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"license": None}, "a CardRecord needs license"),
        ({"colour": "red"}, "a CardRecord has no colour: it has title"),
        ({"language": "en"}, "language"),
        ({"data": [{"name": "x"}]}, "a DataSource needs licence"),
        ({"data": ["x"]}, "'x' stands where a DataSource is wanted"),
        (
            {"data": [{"name": "D", "licence": "CC BY-SA 4.0"}]},
            "the license apache-2.0 is not one that D (CC BY-SA 4.0)",
        ),
        (
            {"data": [{"name": "D", "licence": "CC BY-NC 4.0"}]},
            "the license apache-2.0 is not one that D (CC BY-NC 4.0)",
        ),
        ({"base_model_relation": "child"}, "base_model_relation is one of"),
        ({"scores": [RECORD["scores"][0] | {"value": -1}]}, "a score is a wer or a cer of 0 % or more"),
        ({"scores": [RECORD["scores"][0] | {"metric": "bleu"}]}, "a score is a wer or a cer"),
        ({"scores": [RECORD["scores"][0] | {"interval": [8.0, 9.0]}]}, "does not hold the wer 7.5"),
        ({"measured": [RECORD["measured"][0] | {"runs": "many"}]}, "runs"),
    ],
)
def test_a_wrong_record_is_one_line(tmp_path, changes, line):
    with pytest.raises(RequestError) as raised:
        read(tmp_path, **changes)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "card.yaml: " in str(raised.value)


@pytest.mark.parametrize(("text", "line"), [("[", "is no YAML"), ("- a", "holds no record of a card")])
def test_a_file_that_is_no_record(tmp_path, text, line):
    (tmp_path / "card.yaml").write_text(text)
    with pytest.raises(RequestError, match=line):
        CardRecord.read(tmp_path / "card.yaml")


def test_json_is_a_record_too(tmp_path):
    (tmp_path / "card.json").write_text(json.dumps(RECORD))
    assert CardRecord.read(tmp_path / "card.json") == read(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("license: apache-2.0\n", "", "names no license"),
        ("library_name: transformers", "library_name: timm", "needs library_name transformers"),
        ("language:\n- en\n", "", "names no language"),
        ("base_model_relation: finetune", "base_model_relation: child", "base_model_relation 'child'"),
        ("value: 7.5", "value: good", "the wer on LibriSpeech test-clean is no number"),
        ("      type: librispeech_asr\n", "", "front matter cannot be read"),
        ("# A model", "# {{ title }}", "places that nobody filled in"),
    ],
)
def test_what_is_wrong_with_a_card(tmp_path, old, new, line):
    text = make_card(read(tmp_path), CONFIG)
    assert old in text
    assert any(line in problem for problem in check_card(text.replace(old, new)))


def test_a_card_of_the_config_alone():
    text = plain_card(CONFIG, ["mine"])
    data = ModelCard(text).data
    assert (data.license, data.base_model) == (None, "openai/whisper-tiny.en")
    assert "mine" in data.tags
    assert "`hailo8l/encoder.hef`" in text


# Those that are shipped


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "hub_cards" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["digits", "whisper-tiny.en-hailo"])
def test_shipped_cards_are_up_to_date(name):
    for path, text in generator().cards(name).items():
        assert path.read_text(encoding="utf-8") == text, "run python hub_cards/generate.py"
        assert check_card(text) == []


def test_the_demo_s_card_says_what_matters():
    text = (ROOT / "src" / "whisper_hailo_hf" / "demo" / "README.md").read_text(encoding="utf-8")
    for words in (
        "CC BY-SA 4.0",
        "Jackson",
        "theo",
        "yweweler",
        "never trained on",
        "decided after a look",
        "Ten words",
    ):
        assert words in text
    assert ModelCard(text).data.license == "cc-by-sa-4.0"
