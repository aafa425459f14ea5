"""The decoder's steps on its backends: the same tokens, probabilities and attention, whatever runs them."""

import numpy as np
import pytest
import torch

from whisper_hailo_hf import WhisperHailoForConditionalGeneration
from whisper_hailo_hf.live.decoding import GreedyDecoder
from whisper_hailo_hf.live.steps import BackendSteps, TorchSteps, decoder_steps
from whisper_hailo_hf.live.window import Window
from whisper_hailo_hf.transcription import SpeechModel, load_speech_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def speech(stock_whisper, multilingual_processor):
    stock = load_speech_model(stock_whisper)
    model = WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention").eval()
    model.generation_config = stock.model.generation_config
    return SpeechModel(stock_whisper, model, stock.tokenizer, stock.feature_extractor)


@pytest.fixture(scope="module")
def states(speech, make_speech):
    window, samples = Window(speech), make_speech(6.0, 3)
    return window.encode(window.features(samples), len(samples))


@pytest.fixture
def on(speech):
    """Chooses the decoder backend, until the test ends."""
    yield speech.model.set_decoder_backend
    speech.model.set_decoder_backend("torch")


@pytest.mark.parametrize("language", ["en", None])
@pytest.mark.parametrize("timestamps", [True, False])
def test_onnx_decodes_as_torch_does(speech, states, on, language, timestamps):
    decoder = GreedyDecoder(speech, language=language)
    decoder.timestamps = timestamps
    plain = decoder.decode(states, budget=30)
    half_right = [*plain.tokens[:20], 7, 8, 9]
    cases = [
        {"budget": 30},
        {"budget": 30, "draft": half_right},
        {"budget": 26, "forced": half_right[:4], "draft": half_right[4:], "prompt": [5, 6, 7]},
    ]
    wanted = [decoder.decode(states, **case) for case in cases]
    assert wanted[1].reused >= min(20, len(plain.tokens))
    on("onnx")
    for expected, case in zip(wanted, cases, strict=True):
        found = decoder.decode(states, **case)
        for name in ("tokens", "ended", "language", "reused"):
            assert getattr(found, name) == getattr(expected, name)
        assert np.allclose(found.logprobs, expected.logprobs, atol=1e-3)
        assert found.no_speech == pytest.approx(expected.no_speech, rel=1e-3, abs=1e-7)
        assert found.attention.shape == expected.attention.shape
        assert np.allclose(found.attention, expected.attention, atol=1e-4)


def test_a_stop_sees_the_same_attention(speech, states, on):
    decoder, rows = GreedyDecoder(speech, language="en"), {"torch": [], "onnx": []}
    for name, kept in rows.items():
        on(name)
        decoder.decode(states, budget=12, stop=lambda row, kept=kept: kept.append(row) or len(kept) == 5)
    assert len(rows["torch"]) == len(rows["onnx"]) == 5
    assert np.allclose(rows["torch"], rows["onnx"], atol=1e-4)


def test_which_steps_are_taken(speech, states, on, stock_whisper):
    heads = {0: [0]}

    def taken(model, found):
        with torch.no_grad(), decoder_steps(model, found, heads) as steps:
            return type(steps)

    assert taken(speech.model, states) is TorchSteps
    on("onnx-int8")
    assert taken(speech.model, states) is BackendSteps
    assert taken(speech.model, states.half()) is TorchSteps  # which the graphs do not know
    assert taken(load_speech_model(stock_whisper).model, states) is TorchSteps
    assert not any(layer.encoder_attn.q_proj._forward_hooks for layer in speech.model.get_decoder().layers)
