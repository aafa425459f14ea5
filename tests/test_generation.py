"""`generate()` in all its modes: the same as stock Whisper with the same weights, and no window encoded twice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import make_stock_whisper, speech_like
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from whisper_hailo_hf import WhisperHailoForConditionalGeneration

ENGLISH = {"language": "en", "max_new_tokens": 24}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "detected language": {"language": None},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sample": {"do_sample": True, "temperature": 0.7, "top_k": 20},
    "beam sample": {"do_sample": True, "num_beams": 2, "temperature": 1.3},
    "timestamps": {"return_timestamps": True},
    "no repeats": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}
# what a mode takes for one recording at a time
ONE_BY_ONE: dict[str, dict[str, Any]] = {"prompt lookup": {"prompt_lookup_num_tokens": 3}}


@pytest.fixture(scope="module")
def features(multilingual_processor) -> Tensor:
    audio = [speech_like(seconds, seed) for seconds, seed in ((12.0, 0), (28.0, 3))]
    return multilingual_processor(audio, sampling_rate=16_000, return_tensors="pt").input_features


@pytest.fixture(scope="module")
def loaded_stock(stock_whisper: str) -> WhisperForConditionalGeneration:
    model = WhisperForConditionalGeneration.from_pretrained(stock_whisper)
    model.generation_config.num_beams = 1
    return model


@pytest.fixture(scope="module")
def converted(stock_whisper: str) -> WhisperHailoForConditionalGeneration:
    return WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention")


@pytest.fixture
def stock(loaded_stock) -> WhisperForConditionalGeneration:
    return copy.deepcopy(loaded_stock)


@pytest.fixture
def ours(converted) -> WhisperHailoForConditionalGeneration:
    return copy.deepcopy(converted)


@pytest.fixture(params=["torch", "onnx"])
def ours_on_each(request, ours) -> WhisperHailoForConditionalGeneration:
    ours.set_encoder_backend(request.param)
    return ours


def seeded(model: Any, features: Tensor, **settings: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(features, **ENGLISH | settings)


def assert_same(ours: Any, theirs: Any) -> None:
    """Tensors, and tuples of them, to float32 rounding."""
    if isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    else:
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("mode", MODES)
def test_modes_give_the_same_tokens(mode, stock, ours_on_each, features):
    expected = seeded(stock, features, **MODES[mode])
    assert len(set(expected.flatten().tolist())) > 5
    assert seeded(ours_on_each, features, **MODES[mode]).tolist() == expected.tolist()


@pytest.mark.parametrize("mode", ONE_BY_ONE)
def test_modes_for_one_recording(mode, stock, ours_on_each, features):
    expected = seeded(stock, features[:1], **ONE_BY_ONE[mode])
    assert seeded(ours_on_each, features[:1], **ONE_BY_ONE[mode]).tolist() == expected.tolist()


def test_assisted_generation(stock, ours_on_each, features, multilingual_processor):
    other = make_stock_whisper(multilingual_processor, seed=1)  # proposes other words: most are refused
    twin = copy.deepcopy(stock)  # proposes the same words: all are taken
    plain = seeded(stock, features[:1])
    for assistant in (other, twin):
        theirs = seeded(stock, features[:1], assistant_model=copy.deepcopy(assistant))
        assert seeded(ours_on_each, features[:1], assistant_model=copy.deepcopy(assistant)).tolist() == theirs.tolist()
        # begin_suppress_tokens is off in assisted generation, else the answer is the plain one
        assert set(plain.flatten().tolist()) & set(theirs.flatten().tolist())


def test_ours_as_the_assistant(stock, ours_on_each, features):
    theirs = seeded(stock, features[:1], assistant_model=copy.deepcopy(stock))
    assert seeded(stock, features[:1], assistant_model=ours_on_each).tolist() == theirs.tolist()


@pytest.mark.parametrize("beams", [1, 2])
def test_returned_dictionary(beams, stock, ours, features):
    wanted = {
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "output_attentions": True,
        "output_hidden_states": True,
        "num_beams": beams,
    }
    for model in (stock, ours):
        model.set_attn_implementation("eager")
    theirs, mine = seeded(stock, features, **wanted), seeded(ours, features, **wanted)
    assert mine.sequences.tolist() == theirs.sequences.tolist()
    for name in ("scores", "logits", "decoder_attentions", "cross_attentions", "decoder_hidden_states"):
        assert theirs[name], name
        assert_same(mine[name], theirs[name])
    assert_same(mine.encoder_hidden_states, theirs.encoder_hidden_states)
    assert not mine.encoder_attentions


def test_encoder_hidden_states(stock, ours, features):
    theirs = stock.model.encoder(features, output_hidden_states=True)
    mine = ours.model.encoder(features, output_hidden_states=True)
    assert len(mine.hidden_states) == ours.config.encoder_layers + 1
    assert_same(mine.hidden_states, theirs.hidden_states)
    assert_same(mine.last_hidden_state, theirs.last_hidden_state)
    ours.config.output_hidden_states = True
    assert_same(ours.model.encoder(features).hidden_states, theirs.hidden_states)
    as_tuple = ours.model.encoder(features, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert_same(as_tuple[0], theirs.last_hidden_state)


def test_long_recordings_of_unequal_length(stock, ours_on_each, multilingual_processor):
    audio = [speech_like(seconds, seed) for seconds, seed in ((64.0, 2), (7.0, 1), (38.0, 0))]
    inputs = multilingual_processor(
        audio,
        sampling_rate=16_000,
        return_tensors="pt",
        truncation=False,
        padding="longest",
        return_attention_mask=True,
    )
    settings = {"return_timestamps": True, "return_segments": True, "condition_on_prev_tokens": True, "language": "en"}
    theirs, mine = stock.generate(**inputs, **settings), ours_on_each.generate(**inputs, **settings)
    assert len(theirs["segments"][0]) > 3
    assert mine["sequences"].tolist() == theirs["sequences"].tolist()
    for one, other in zip(mine["segments"], theirs["segments"], strict=True):
        assert [(s["start"], s["end"], s["tokens"].tolist()) for s in one] == [
            (s["start"], s["end"], s["tokens"].tolist()) for s in other
        ]


def test_encoder_outputs_may_be_given(stock, ours, features):
    encoded = ours.model.encoder(features)
    given = ours.generate(encoder_outputs=encoded, **ENGLISH)
    assert given.tolist() == seeded(stock, features).tolist()


def test_resized_embeddings(stock, ours, features, tmp_path):
    for model in (stock, ours):
        torch.manual_seed(0)
        model.resize_token_embeddings(model.config.vocab_size + 7, mean_resizing=False)
        assert model.proj_out.weight is model.get_input_embeddings().weight
    expected = seeded(stock, features)
    assert seeded(ours, features).tolist() == expected.tolist()
    ours.save_pretrained(tmp_path)
    again = WhisperHailoForConditionalGeneration.from_pretrained(tmp_path, encoder_backend="torch")
    assert again.proj_out.weight.shape[0] == stock.config.vocab_size
    assert seeded(again, features).tolist() == expected.tolist()


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("part", ["model", "encoder"])
def test_compiled(part, backend, stock, ours, features):
    """Traced and partitioned as for any compiler; its code generation is not ours to test."""
    ours.set_encoder_backend(backend)
    expected = seeded(stock, features).tolist()
    module = ours if part == "model" else ours.model.encoder
    module.forward = torch.compile(module.forward, backend="aot_eager")
    assert seeded(ours, features, max_new_tokens=8).tolist() == seeded(stock, features, max_new_tokens=8).tolist()
    del module.forward
    assert seeded(ours, features).tolist() == expected


# How often the encoder runs


def count_windows(model: WhisperHailoForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of windows at each run of the network."""
    windows: list[int] = []
    encoder = model.model.encoder
    if model.encoder_backend == "torch":
        encoder.core.register_forward_hook(lambda module, args, output: windows.append(len(output)))
    else:
        run = encoder.backend.run
        monkeypatch.setattr(encoder.backend, "run", lambda window: windows.append(len(window)) or run(window))
    return windows


def test_language_detection_does_not_encode_again(stock, ours_on_each, features, monkeypatch):
    calls: list[int] = []
    stock.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    expected = stock.generate(features, max_new_tokens=8)
    assert len(calls) == 2  # once to detect the language: otherwise this test means nothing
    windows = count_windows(ours_on_each, monkeypatch)
    assert ours_on_each.generate(features, max_new_tokens=8).tolist() == expected.tolist()
    assert sum(windows) == len(features)


def test_fallback_does_not_encode_again(ours_on_each, features, monkeypatch):
    windows = count_windows(ours_on_each, monkeypatch)
    settings = {"temperature": (0.0, 0.5, 1.0), "logprob_threshold": 0.0, "compression_ratio_threshold": 0.01}
    ours_on_each.generate(features[:1], max_new_tokens=8, no_speech_threshold=0.5, **settings)
    assert sum(windows) == 1


def test_the_remembered_window_is_safe(ours_on_each, features):
    encoder = ours_on_each.model.encoder
    with torch.no_grad():
        first = encoder(features).last_hidden_state
        kept = first.clone()
        first.zero_()  # what the caller does with it is not remembered
        again = encoder(features).last_hidden_state
        assert torch.equal(again, kept)
        again.zero_()
        assert torch.equal(encoder(features).last_hidden_state, kept)
        changed = features.clone()
        encoder(changed)
        changed[0, 0, 0] += 1.0  # in place: the same tensor, another sound
        assert not torch.equal(encoder(changed).last_hidden_state, kept)


def test_the_remembered_window_does_not_outlive_the_weights(ours, features):
    encoder = ours.model.encoder
    with torch.no_grad():
        before = encoder(features).last_hidden_state
        encoder.host.layer_norm.bias.add_(1.0)
        torch.testing.assert_close(encoder(features).last_hidden_state, before + 1.0)
        encoder.load_state_dict({name: value * 0.5 for name, value in encoder.state_dict().items()})
        halved = encoder(features).last_hidden_state
        assert not torch.allclose(halved, before)
        encoder.half().float()  # rounded: new storage, the dtype of before
        assert not torch.equal(encoder(features).last_hidden_state, halved)
        encoder.core.conv1 = copy.deepcopy(encoder.core.conv1)
        encoder.core.conv1.weight.data = -encoder.core.conv1.weight
        assert not torch.allclose(encoder(features).last_hidden_state, halved, atol=1e-2)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.5)
    encoder(features).last_hidden_state.square().mean().backward()
    with torch.no_grad():
        trained_from = encoder(features).last_hidden_state
        optimizer.step()
        assert not torch.equal(encoder(features).last_hidden_state, trained_from)


def test_the_remembered_window_does_not_outlive_batch_statistics(stock_whisper, features):
    """Training passes change the statistics of a frozen encoder, and no parameter."""
    model = WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, preset="micro")
    encoder = model.model.encoder
    with torch.no_grad():
        before = encoder(features).last_hidden_state
    encoder.train()
    encoder(features)
    encoder.eval()
    with torch.no_grad():
        assert not torch.equal(encoder(features).last_hidden_state, before)


def test_the_remembered_window_does_not_outlive_the_backend(ours, features):
    encoder = ours.model.encoder
    with torch.no_grad():
        on_torch = encoder(features).last_hidden_state
        ours.set_encoder_backend("onnx")
        on_onnx = encoder(features).last_hidden_state
        assert not torch.equal(on_torch, on_onnx)
        torch.testing.assert_close(on_onnx, on_torch, atol=1e-4, rtol=0)
        ours.set_encoder_backend("torch")
        assert torch.equal(encoder(features).last_hidden_state, on_torch)


def test_exporting_for_onnx_leaves_the_random_numbers_alone(ours, features):
    ours.set_encoder_backend("onnx")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    ours.model.encoder(features[:1])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_inference_mode(backend, ours, stock, features, tmp_path):
    """Parameters made in inference mode have no version counter."""
    expected = seeded(stock, features)
    ours.save_pretrained(tmp_path)
    with torch.inference_mode():
        model = WhisperHailoForConditionalGeneration.from_pretrained(tmp_path, encoder_backend=backend)
        assert seeded(model, features).tolist() == expected.tolist()
