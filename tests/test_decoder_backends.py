"""Where the decoder runs: in ONNX Runtime all that `generate()` does gives the same tokens; 8 bits; falling back."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_stock_whisper, speech_like
from torch import Tensor, nn
from transformers import pipeline
from typer.testing import CliRunner

from whisper_hailo_hf import RequestError, WhisperHailoError, WhisperHailoForConditionalGeneration
from whisper_hailo_hf.cli.main import app
from whisper_hailo_hf.decoders import OnnxDecoder, choice, decoder_backend_names, graph
from whisper_hailo_hf.speech_model import SpeechModel, load_speech_model
from whisper_hailo_hf.transcription import TranscriptionOptions, transcribe

RECORDING = Path(__file__).resolve().parents[1] / "examples" / "digits_theo.flac"
ENGLISH = {"language": "en", "max_new_tokens": 20}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "detected language": {"language": None},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sample": {"do_sample": True, "temperature": 0.7, "top_k": 20},
    "beam sample": {"do_sample": True, "num_beams": 2, "temperature": 1.3},
    "timestamps": {"return_timestamps": True},
    "prompt": {"prompt_ids": torch.tensor([3, 260, 261, 270])},
    "no cache": {"use_cache": False},
}


@pytest.fixture(scope="module")
def loaded(stock_whisper: str) -> WhisperHailoForConditionalGeneration:
    return WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention")


@pytest.fixture
def model(loaded) -> WhisperHailoForConditionalGeneration:
    return copy.deepcopy(loaded)


@pytest.fixture(scope="module")
def features(multilingual_processor) -> Tensor:
    audio = [speech_like(seconds, seed) for seconds, seed in ((12.0, 0), (28.0, 3))]
    return multilingual_processor(audio, sampling_rate=16_000, return_tensors="pt").input_features


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Grows by the number of tokens at each call of the decoder in ONNX Runtime."""
    found: list[int] = []
    original = OnnxDecoder.forward

    def forward(self: OnnxDecoder, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append(input_ids.shape[1])
        return original(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(OnnxDecoder, "forward", forward)
    choice._say.cache_clear()
    return found


def answers(model: Any, features: Tensor, **settings: Any) -> tuple[Any, Any]:
    """What torch gives, and what ONNX Runtime gives."""
    found = []
    for name in ("torch", "onnx"):
        model.set_decoder_backend(name)
        torch.manual_seed(0)
        found.append(model.generate(features, **copy.deepcopy(ENGLISH | settings)))
    return found[0], found[1]


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


# What `generate()` does


@pytest.mark.parametrize("mode", MODES)
def test_modes_give_the_same_tokens(mode, model, features, calls):
    theirs, ours = answers(model, features, **MODES[mode])
    assert len(set(theirs.flatten().tolist())) > 5
    assert ours.tolist() == theirs.tolist()
    assert len(calls) > 5
    if mode == "no cache":
        assert max(calls) > 10  # all anew for each token
    else:
        assert calls.count(1) > 5  # token by token
    if mode == "prompt":
        assert max(calls) > 4  # but the prompt at once


def test_candidates_are_checked_together(model, features, calls, multilingual_processor):
    theirs, ours = answers(model, features[:1], prompt_lookup_num_tokens=3)
    assert ours.tolist() == theirs.tolist()
    calls.clear()
    other = make_stock_whisper(multilingual_processor, seed=1)  # most of what it proposes is refused
    theirs, ours = answers(model, features[:1], assistant_model=other, max_new_tokens=8)
    assert ours.tolist() == theirs.tolist()
    assert max(calls) > 1


def test_long_recordings_with_what_was_said_before(model, calls, multilingual_processor):
    audio = [speech_like(seconds, seed) for seconds, seed in ((33.0, 2), (7.0, 1))]
    inputs = multilingual_processor(
        audio,
        sampling_rate=16_000,
        return_tensors="pt",
        truncation=False,
        padding="longest",
        return_attention_mask=True,
    )
    settings = {"return_timestamps": True, "condition_on_prev_tokens": True, "max_new_tokens": None}
    settings |= {"attention_mask": inputs.attention_mask, "temperature": (0.0, 0.4), "logprob_threshold": -1.0}
    settings |= {"no_speech_threshold": 0.6}
    theirs, ours = answers(model, inputs.input_features, **settings)
    assert ours.tolist() == theirs.tolist()
    assert max(calls) > 10  # prompts, padded on the left to one length


def test_times_of_words(model, features, calls):
    theirs, ours = answers(model, features, return_token_timestamps=True, return_timestamps=True)
    assert ours["sequences"].tolist() == theirs["sequences"].tolist()
    assert theirs["token_timestamps"].max() > 1
    close(ours["token_timestamps"], theirs["token_timestamps"])
    assert calls


def test_attentions_and_scores(model, features, calls):
    model.set_attn_implementation("eager")
    wanted = {"return_dict_in_generate": True, "output_attentions": True, "output_scores": True, "num_beams": 2}
    theirs, ours = answers(model, features, **wanted)
    assert calls
    for name in ("scores", "decoder_attentions", "cross_attentions", "past_key_values"):
        close(_tensors(ours[name]), _tensors(theirs[name]))
        assert _tensors(theirs[name])


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if value is None or isinstance(value, int | bool):
        return []
    return [tensor for part in value for tensor in _tensors(part)]


def test_a_window_is_projected_once(model, features):
    """Keys and values of the encoder states: not again for each beam, nor after the language was detected."""
    model.set_decoder_backend("onnx")
    model.generate(features, **ENGLISH)
    decoder = model._decoder_backend
    step, cross = decoder._sessions
    windows: list[int] = []

    class Counting:
        def run(self, names: Any, feed: dict[str, Any]) -> Any:
            windows.append(len(feed["states"]))
            return cross.run(names, feed)

    decoder._sessions = step, Counting()
    other = features.flip(0) * 0.5
    model.generate(other, num_beams=3, max_new_tokens=4)  # detects the language first
    model.generate(other, language="en", max_new_tokens=4)
    assert windows == [2]


# One call


@pytest.mark.parametrize("keep", [0, 1, 2, torch.tensor([0, 2])])
def test_logits(keep, model, features):
    ids = torch.tensor([[5, 6, 7], [8, 9, 5]])
    with torch.no_grad():
        whole = model(features, decoder_input_ids=ids).logits
        expected = whole[:, keep if isinstance(keep, Tensor) else slice(-keep, None)]
        close(model(features, decoder_input_ids=ids, logits_to_keep=keep).logits, expected)
        model.set_decoder_backend("onnx")
        output = model(features, decoder_input_ids=ids, logits_to_keep=keep)
        close(output.logits, expected)
        assert output.past_key_values.get_seq_length() == 3
        assert isinstance(model(features, decoder_input_ids=ids, return_dict=False), tuple)
        model.set_decoder_backend("onnx-int8")
        coarse = model(features, decoder_input_ids=ids, logits_to_keep=keep).logits
    assert not torch.allclose(coarse, expected, atol=1e-3)
    assert (coarse - expected).norm() < 0.1 * expected.norm()


def test_each_call_where_it_can_run(model, features, calls):
    """A cache goes from one backend to the other and back in mid-sentence."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    encoded = model.model.encoder(features[:1])
    with torch.no_grad():
        expected = model(encoder_outputs=encoded, decoder_input_ids=ids).logits
        cache, found = None, []
        for index, name in enumerate(["onnx", "torch", "onnx", "torch", "torch", "onnx"]):
            model.set_decoder_backend(name)
            one = ids[:, index : index + 1]
            output = model(encoder_outputs=encoded, decoder_input_ids=one, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
    close(torch.cat(found, 1), expected)
    assert calls == [1, 1, 1]


def test_changed_weights_are_heard_of(model, features):
    ids = torch.tensor([[5, 6, 7]])
    model.set_decoder_backend("onnx")
    with torch.no_grad():
        before = model(features[:1], decoder_input_ids=ids).logits
        for weight in (model.model.decoder.layers[1].fc2.weight, model.proj_out.weight):
            weight.mul_(1.5)
        after = model(features[:1], decoder_input_ids=ids).logits
        model.set_decoder_backend("torch")
        close(after, model(features[:1], decoder_input_ids=ids).logits)
    assert (after - before).norm() > 0.1 * before.norm()


# What falls back to torch


def test_changed_weights_behind_a_call_that_fell_back(model, features, calls):
    """The first call runs on torch, so that the graphs come in with a cache that is filled already."""
    encoded = model.model.encoder(features[:1])
    model.set_decoder_backend("onnx")
    found = []
    with torch.no_grad():
        for _ in range(2):
            first = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([[5, 6]]), output_hidden_states=True)
            given = {"past_key_values": first.past_key_values, "decoder_input_ids": torch.tensor([[7]])}
            found.append(model(encoder_outputs=encoded, **given).logits)
            model.model.decoder.layers[1].fc2.weight.mul_(1.5)
        assert calls == [1, 1]
        model.model.decoder.layers[1].fc2.weight.div_(1.5)
        whole = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([[5, 6, 7]])).logits
    close(found[1], whole[:, 2:])
    assert (found[1] - found[0]).norm() > 0.1 * found[0].norm()


def test_training(model, features, calls):
    labels = torch.tensor([[5, 6, 7], [8, 9, 5]])
    theirs = model(features, labels=labels).loss
    model.set_decoder_backend("onnx")
    close(model(features, labels=labels).loss, theirs)
    model.train()
    model(features, labels=labels).loss.backward()
    assert model.model.decoder.layers[0].fc1.weight.grad.norm() > 0
    assert not calls


FALLBACKS: dict[str, tuple[dict[str, Any], str]] = {
    "static cache": ({"cache_implementation": "static"}, "the cache is"),
    "inner states": ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
}


@pytest.mark.parametrize("case", FALLBACKS)
def test_calls_that_fall_back(case, model, features, calls, caplog):
    settings, said = FALLBACKS[case]
    with caplog.at_level(logging.WARNING, logger="whisper_hailo_hf"):
        theirs, ours = answers(model, features, **settings)
    if case == "inner states":
        theirs, ours = theirs.sequences, ours.sequences
    assert ours.tolist() == theirs.tolist()
    assert not calls
    lines = [record.message for record in caplog.records if "decoder runs on torch" in record.message]
    assert len(lines) == 1
    assert said in lines[0]


def test_half_precision(model, features, calls, caplog):
    model.to(torch.bfloat16)
    with caplog.at_level(logging.WARNING, logger="whisper_hailo_hf"):
        theirs, ours = answers(model, features.to(torch.bfloat16), max_new_tokens=4)
    assert ours.tolist() == theirs.tolist()
    assert not calls
    assert "the model is in bfloat16 on cpu" in caplog.text


def test_layers_that_are_not_stock(model, features, calls, caplog):
    class Adapted(nn.Linear):
        pass

    old = model.model.decoder.layers[1].self_attn.q_proj
    model.model.decoder.layers[1].self_attn.q_proj = Adapted(old.in_features, old.out_features)
    with caplog.at_level(logging.WARNING, logger="whisper_hailo_hf"):
        theirs, ours = answers(model, features, max_new_tokens=4)
    assert ours.tolist() == theirs.tolist()
    assert not calls
    assert "a part of it is a Adapted" in caplog.text


# The setting


def test_names_and_options(model):
    assert decoder_backend_names() == ["torch", "onnx", "onnx-int8"]
    assert model.decoder_backend == "torch"
    model.set_decoder_backend("onnx-int8", threads=1)
    assert model.decoder_backend == "onnx-int8"
    assert model._decoder_backend.info()["threads"] == 1
    with pytest.raises(RequestError, match="unknown decoder backend 'tflite': choose torch, onnx, onnx-int8"):
        model.set_decoder_backend("tflite")
    with pytest.raises(RequestError, match="has no option thread: it has threads"):
        model.set_decoder_backend("onnx", thread=1)
    with pytest.raises(RequestError, match="'torch' has no option threads"):
        model.set_decoder_backend("torch", threads=1)
    with pytest.raises(RequestError, match="positive number, not 0"):
        model.set_decoder_backend("onnx", threads=0)
    assert model.decoder_backend == "onnx-int8"  # as it was


def test_without_onnxruntime(model, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "whisper_hailo_hf.decoders.onnx.find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    with pytest.raises(RequestError, match=r"'onnx' cannot run here: onnxruntime not installed: pip install 'wh"):
        model.set_decoder_backend("onnx")


def test_too_large_for_one_file(model, features, monkeypatch):
    monkeypatch.setattr(graph, "_LIMIT", 1000)
    model.set_decoder_backend("onnx")
    with pytest.raises(WhisperHailoError, match="exceed the 2 GiB of one ONNX file: keep the decoder backend 'torch'"):
        model.generate(features, **ENGLISH)


def test_the_graphs_are_valid(model):
    import onnx

    for int8 in (False, True):
        for built in (
            graph.step_graph(model.model.decoder, model.proj_out, int8),
            graph.cross_graph(model.model.decoder, int8),
        ):
            onnx.checker.check_model(built, full_check=True)


def test_loaded_saved_copied(model, features, tmp_path):
    model.set_decoder_backend("onnx")
    expected = model.generate(features, **ENGLISH).tolist()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.decoder_backend == "onnx"
        assert twin.generate(features, **ENGLISH).tolist() == expected
    model.save_pretrained(tmp_path)
    assert "decoder_backend" not in (tmp_path / "config.json").read_text()
    cls = WhisperHailoForConditionalGeneration
    assert cls.from_pretrained(tmp_path).decoder_backend == "torch"
    again, report = cls.from_pretrained(
        tmp_path, decoder_backend="onnx", decoder_backend_options={"threads": 1}, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert again.decoder_backend == "onnx"
    assert again.generate(features, **ENGLISH).tolist() == expected
    with pytest.raises(RequestError, match="unknown decoder backend"):
        cls.from_pretrained(tmp_path / "none", decoder_backend="jax")


def test_pipeline(loaded, multilingual_processor, tmp_path, calls):
    loaded.save_pretrained(tmp_path)
    multilingual_processor.save_pretrained(tmp_path)
    audio = speech_like(32.0, 2)
    texts = []
    for name in ("torch", "onnx"):
        asr = pipeline("automatic-speech-recognition", model=tmp_path, model_kwargs={"decoder_backend": name})
        texts.append(asr(audio.copy(), return_timestamps=True, generate_kwargs=dict(ENGLISH)))
    assert texts[0] == texts[1]
    assert texts[0]["chunks"]
    assert calls


# The bundled demo, and the command line


@pytest.fixture(scope="module")
def demo() -> SpeechModel:
    return load_speech_model(None, "torch")


@pytest.mark.parametrize("timestamps", ["none", "segment", "word"])
def test_the_demo_says_the_same(timestamps, demo, calls):
    said = {}
    for name in decoder_backend_names():
        demo.model.set_decoder_backend(name)
        report = transcribe([str(RECORDING)], demo, TranscriptionOptions(timestamps=timestamps))
        assert report.decoder_backend == name
        said[name] = report.transcripts[0]
    assert said["onnx"].to_dict() == said["torch"].to_dict()
    assert said["torch"].text == RECORDING.with_suffix(".txt").read_text().strip()
    assert said["onnx-int8"].text == said["torch"].text
    assert calls


def test_the_command_line(stock_whisper):
    run = CliRunner().invoke
    result = run(app, ["transcribe", str(RECORDING), "--decoder-backend", "onnx-int8", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["decoder_backend"] == "onnx-int8"
    assert report["transcripts"][0]["text"] == RECORDING.with_suffix(".txt").read_text().strip()
    with pytest.raises(RequestError, match="whose decoder runs on torch only"):
        load_speech_model(stock_whisper, decoder_backend="onnx")
    with pytest.raises(RequestError, match="unknown decoder backend 'x': choose torch, onnx, onnx-int8"):
        load_speech_model(stock_whisper, decoder_backend="x")
