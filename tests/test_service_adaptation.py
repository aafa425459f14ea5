"""Adaptation: what learns and what does not, that it repairs without forgetting, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_models import small_model
from transformers import GenerationConfig, WhisperFeatureExtractor

from whisper_hailo_hf import RequestError, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.cli.main import main
from whisper_hailo_hf.compile.quantize import quantize_encoder
from whisper_hailo_hf.service.adaptation import DecoderAdaptationArguments, _processor, _said, adapt
from whisper_hailo_hf.service.collection import CollectionSettings, collect
from whisper_hailo_hf.service.running import background_server
from whisper_hailo_hf.service.states import CollectedStates
from whisper_hailo_hf.wire.client import Connection

WORDS = ("zero", "one", "two", "three")


class Said:
    """A word, as noise of its own."""

    language = None
    audio = None
    seconds = 0.3

    def __init__(self, number: int, take: int) -> None:
        self.number, self.take = number, take
        self.id, self.text = f"{WORDS[number]} {take}", WORDS[number]

    def load(self) -> np.ndarray:
        time = np.arange(4800) / 16000
        tone = np.sin(2 * np.pi * 400 * (self.number + 1) * time)
        noise = np.random.default_rng(10 * self.take + self.number).normal(0, 0.02, 4800)
        return (0.3 * tone + noise).astype(np.float32)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory, multilingual_processor):
    """A model folder, and the states of some words from its encoder in integers and in float: `(model, integers,
    floats)`."""
    root = tmp_path_factory.mktemp("adaptation")
    tokenizer = multilingual_processor.tokenizer
    ids = tokenizer.convert_tokens_to_ids
    end, begin = ids("<|endoftext|>"), ids("<|startoftranscript|>")
    model = small_model(
        vocab_size=len(tokenizer),
        decoder_start_token_id=begin,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    model.generation_config = GenerationConfig(
        decoder_start_token_id=begin,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        no_timestamps_token_id=ids("<|notimestamps|>"),
        is_multilingual=True,
        lang_to_id={"<|en|>": ids("<|en|>")},
        task_to_id={"transcribe": ids("<|transcribe|>")},
        language="en",
        task="transcribe",
        max_length=24,
        return_timestamps=False,
    )
    calibration = np.random.default_rng(0).standard_normal((8, 8, 60)).astype(np.float32)
    quick = {"layer_windows": 0, "choices": False, "method": "minmax"}
    quantize_encoder(model, calibration, output=root / "x.onnx", **quick)
    model.save_pretrained(root / "model")
    multilingual_processor.save_pretrained(root / "model")
    said = [Said(number, take) for take in range(6) for number in range(4)]
    for name, backend, settings in (
        ("integers", "emulator", CollectionSettings()),
        ("floats", "torch", CollectionSettings(states="float16", send="float16")),
    ):
        with background_server(root / "model", backend=backend) as server:
            collect(said, root / name, [Connection(f"127.0.0.1:{server.port}")], settings)
    return root / "model", root / "integers", root / "floats"


def arguments(tmp_path, **changes) -> DecoderAdaptationArguments:
    quick = {
        "output_dir": str(tmp_path / "adapted"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "max_new_tokens": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return DecoderAdaptationArguments(**quick | changes)


def load(folder, **kwargs):
    return WhisperHailoForConditionalGeneration.from_pretrained(folder, **{"encoder_backend": "torch"} | kwargs)


def changed(before, after) -> set[str]:
    one, other = before.state_dict(), after.state_dict()
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_items_are_the_encoder_s_states(spoken):
    folder, integers, floats = spoken
    exact, rough = load(folder, encoder_backend="emulator"), load(folder)
    states, reference = CollectedStates(integers, exact.get_encoder()), CollectedStates(floats, rough.get_encoder())
    assert len(states) == 24
    assert not torch.equal(states[0]["states"], states[1]["states"])
    # what an encoder makes of the same features, from the service's own feature extraction
    extract = WhisperFeatureExtractor(feature_size=8)
    for index in (0, 13):
        number, take = WORDS.index(states[index]["text"]), int(states[index]["id"].split()[1])
        heard = extract(
            Said(number, take).load(), sampling_rate=16000, padding="max_length", max_length=9600, return_tensors="pt"
        ).input_features
        with torch.no_grad():
            assert torch.equal(states[index]["states"], exact.get_encoder()(heard)[0][0])
            place = reference.ids.index(states[index]["id"])
            torch.testing.assert_close(reference[place]["states"], rough.get_encoder()(heard)[0][0], atol=2e-2, rtol=0)


@pytest.mark.parametrize("part", ["full", "cross_attention", "lora"])
def test_only_the_decoder_learns(spoken, tmp_path, part):
    folder, integers, floats = spoken
    if part == "lora":
        pytest.importorskip("peft")
    metrics = adapt(folder, integers, arguments(tmp_path, part=part, max_steps=2), reference=floats)
    assert metrics["loss"] > 0
    names = changed(load(folder), load(tmp_path / "adapted"))
    assert names
    assert not any("encoder." in name and "decoder" not in name for name in names)
    if part == "cross_attention":
        assert all("encoder_attn" in name for name in names)
    if part == "lora":
        assert not any("layer_norm" in name or "embed" in name for name in names)
    # an ordinary model: its artefacts still fit its encoder
    assert load(tmp_path / "adapted", encoder_backend="emulator").encoder_backend == "emulator"


def test_it_learns_what_is_said(spoken, tmp_path):
    folder, integers, floats = spoken
    args = arguments(tmp_path, num_train_epochs=50, label_smoothing_factor=0.0, distillation_weight=0.0)
    args.retention_weight = 0.0
    metrics = adapt(folder, integers, args, reference=floats, eval_data=integers, eval_reference=floats)
    assert metrics["wer_before"] >= 0.9
    assert metrics["wer_after"] <= 0.5
    assert metrics["reference_wer_after"] <= 0.75


@torch.no_grad()
def drift(folder, adapted, floats) -> float:
    """KL from the original decoder to the adapted one, on reference states."""
    one, other = load(folder), load(adapted)
    states = CollectedStates(floats, one.get_encoder())
    heard = torch.stack([states[i]["states"] for i in range(len(states))])
    tokens = torch.full((len(heard), 3), one.config.decoder_start_token_id)
    logits = [
        model(encoder_outputs=(heard,), decoder_input_ids=tokens).logits.log_softmax(-1) for model in (one, other)
    ]
    return float((logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean())


def test_retention_keeps_what_was_known(spoken, tmp_path):
    folder, integers, floats = spoken
    kept = {}
    for weight in (0.0, 30.0):
        args = arguments(tmp_path / str(weight), max_steps=12, retention_weight=weight, distillation_weight=0.0)
        adapt(folder, integers, args, reference=floats)
        kept[weight] = drift(folder, tmp_path / str(weight) / "adapted", floats)
    assert kept[30.0] < 0.75 * kept[0.0]


def test_labels_of_the_original_decoder(spoken, tmp_path):
    folder, integers, floats = spoken
    args = arguments(tmp_path, labels="original", max_steps=2)
    assert np.isfinite(adapt(folder, integers, args, reference=floats)["loss"])
    with pytest.raises(RequestError, match="labels=original needs the states of the float encoder"):
        adapt(folder, integers, arguments(tmp_path, labels="original"))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"part": "encoder"}, "part is one of"),
        ({"labels": "none"}, "labels is one of"),
        ({"retention_weight": -1.0}, "retention_weight is 0 or more"),
        ({"lora_rank": 0}, "lora_rank is a positive number"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is a positive number"),
        ({"num_train_epochs": 0}, "num_train_epochs is a positive number"),
    ],
)
def test_wrong_settings(tmp_path, changes, line):
    with pytest.raises(RequestError, match=line):
        arguments(tmp_path, **changes)


def test_data_that_does_not_belong(spoken, tmp_path):
    folder, integers, floats = spoken
    with pytest.raises(RequestError, match="is no collected data set"):
        adapt(folder, tmp_path, arguments(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be written to"):
        adapt(folder, integers, arguments(tmp_path, output_dir=str(tmp_path / "file" / "x")))
    other = load(folder)
    with torch.no_grad():
        other.get_encoder().host.layer_norm.bias.add_(1.0)
    with pytest.raises(RequestError, match="another epilogue"):
        CollectedStates(integers, other.get_encoder())
    with pytest.raises(RequestError, match=r"lacks 1 of 2 samples, the first 'none'"):
        CollectedStates(floats, other.get_encoder()).select(["zero 0", "none"])


def test_the_verb(spoken, tmp_path, capsys):
    folder, integers, floats = spoken
    verb = ["adapt", folder, integers, "-o", tmp_path / "out", "--reference", floats, "--eval", integers, "--json"]
    quick = ["max_steps=2", "use_cpu=true", "max_new_tokens=5", "save_strategy=no"]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in verb] + [word for one in quick for word in ("--set", one)])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert set(json.loads(said.out)["metrics"]) == {"wer_before", "loss", "wer_after"}
    assert load(tmp_path / "out").config.d_model == 16


def test_decoders_that_give_time_stamps(spoken, tmp_path, monkeypatch):
    """Labels are one decoding of each window: Whisper's own would go on in audio that is not here, where the last
    segment of one row is not closed."""
    folder, _, floats = spoken
    stamped = Path(shutil.copytree(folder, tmp_path / "stamped"))
    settings = json.loads((stamped / "generation_config.json").read_text())
    (stamped / "generation_config.json").write_text(json.dumps(settings | {"return_timestamps": True}))
    model = load(stamped)
    whole = type(model)._retrieve_segment

    def unclosed(*args, **kwargs):
        segments, offset = whole(*args, **kwargs)
        return segments, 1 if kwargs["idx"] == 0 else offset

    monkeypatch.setattr(type(model), "_retrieve_segment", staticmethod(unclosed))
    states = CollectedStates(floats, model.get_encoder())
    tokenizer = _processor(stamped).tokenizer
    first_stamp = tokenizer.convert_tokens_to_ids("<|0.00|>")
    labels = _said(model, states, tokenizer, arguments(tmp_path, max_new_tokens=16))
    assert len(labels) == len(states)
    for label in labels:
        assert label[:2] == tokenizer.convert_tokens_to_ids(["<|en|>", "<|transcribe|>"])
        assert label[2] >= first_stamp
        assert label[-1] == tokenizer.eos_token_id
