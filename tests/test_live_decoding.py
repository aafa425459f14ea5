"""Window and decoder against Transformers: the same features, states, tokens, languages and attention."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_hailo_hf import WhisperHailoForConditionalGeneration
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.live.decoding import GreedyDecoder
from whisper_hailo_hf.live.window import Window
from whisper_hailo_hf.transcription import SpeechModel, load_speech_model


@pytest.fixture(scope="module")
def multilingual(stock_whisper, multilingual_processor):
    return load_speech_model(stock_whisper)


@pytest.fixture(scope="module")
def heard(multilingual, make_speech):
    """(features, states, samples) of 6 s."""
    samples = make_speech(6.0, 3)
    window = Window(multilingual)
    features = window.features(samples)
    return features, window.encode(features, len(samples)), samples


@pytest.mark.parametrize("seconds", [0.05, 1.0, 7.3, 29.99, 30.0])
def test_features_are_those_of_the_whole_window(multilingual, make_speech, seconds):
    samples = make_speech(seconds, 1)
    whole = multilingual.feature_extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
    found = Window(multilingual).features(samples)
    assert found.shape == whole.shape
    assert torch.allclose(found, whole, atol=2e-5)


def test_silence_has_the_features_of_silence(multilingual):
    samples = np.zeros(16_000, np.float32)
    whole = multilingual.feature_extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
    assert torch.equal(Window(multilingual).features(samples), whole)


@pytest.mark.parametrize("timestamps", [True, False])
def test_tokens_are_those_of_generate(multilingual, heard, timestamps):
    features, states, _ = heard
    decoder = GreedyDecoder(multilingual, language="de")
    decoder.timestamps = timestamps
    found = decoder.decode(states, budget=60)
    wanted = multilingual.model.generate(
        features, language="de", task="transcribe", return_timestamps=timestamps, max_new_tokens=60, num_beams=1,
        force_unique_generate_call=True, return_segments=False,
    )[0].tolist()  # fmt: skip
    kept = [token for token in wanted if token not in range(decoder.end, decoder.timestamp_begin)]
    assert found.tokens == kept[: len(found.tokens)]
    assert len(found.tokens) >= min(60, len(kept))
    assert len({*found.tokens}) > 5  # it talks


def test_the_language_is_that_of_detect_language(multilingual, make_speech):
    window, decoder = Window(multilingual), GreedyDecoder(multilingual)
    codes = []
    for seed in range(3):
        features = window.features(make_speech(5.0, seed))
        states = window.encode(features, 80_000)
        found = decoder.decode(states, budget=3)
        token = int(multilingual.model.detect_language(input_features=features)[0])
        assert found.language == multilingual.tokenizer.convert_ids_to_tokens(token).strip("<|>")
        told = decoder.decode(states, budget=3, language=found.language)
        assert told.tokens == found.tokens
        assert told.no_speech == pytest.approx(found.no_speech, rel=1e-3)
        codes.append(found.language)
    assert len(set(codes)) > 1


@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_draft_saves_work_and_changes_nothing(multilingual, heard, data):
    decoder = GreedyDecoder(multilingual, language="en")
    plain = decoder.decode(heard[1], budget=30)
    draft = list(plain.tokens)
    wrong = data.draw(st.lists(st.integers(0, len(draft) - 1), max_size=3), label="wrong")
    for place in wrong:
        draft[place] = data.draw(st.integers(0, 400), label="token")
    draft = draft[: data.draw(st.integers(0, len(draft)), label="length")]
    found = decoder.decode(heard[1], budget=30, draft=draft)
    assert found.tokens == plain.tokens
    assert np.allclose(found.logprobs, plain.logprobs, atol=1e-3)
    assert np.allclose(found.attention, plain.attention, atol=1e-3)
    right = next((i for i, token in enumerate(draft) if token != plain.tokens[i]), len(draft))
    assert found.reused >= right


def test_what_is_forced_stays_and_the_rest_goes_on_from_it(multilingual, heard):
    decoder = GreedyDecoder(multilingual, language="en")
    plain = decoder.decode(heard[1], budget=30)
    rest = decoder.decode(heard[1], forced=plain.tokens[:12], budget=18)
    assert rest.tokens == plain.tokens[12:]
    assert np.allclose(rest.attention, plain.attention, atol=1e-3)
    prompted = decoder.decode(heard[1], prompt=plain.tokens[1:9], budget=30)
    assert prompted.tokens != plain.tokens


def test_attention_is_that_of_the_alignment_heads(multilingual, heard):
    decoder = GreedyDecoder(multilingual, language="en")
    found = decoder.decode(heard[1], budget=10)
    settings_ = multilingual.model.generation_config
    head = [decoder.start, settings_.lang_to_id["<|en|>"], settings_.task_to_id["transcribe"], decoder.no_timestamps]
    eager = type(multilingual.model).from_pretrained(multilingual.name, attn_implementation="eager").eval()
    with torch.no_grad():
        output = eager.model.decoder(
            input_ids=torch.tensor([[*head, *found.tokens]]), encoder_hidden_states=heard[1], output_attentions=True
        )
    chosen = [output.cross_attentions[layer][0, i] for layer, i in settings_.alignment_heads]
    wanted = torch.stack(chosen).mean(0)[len(head) - 1 :]
    assert found.attention.shape == (11, 1500)
    assert np.allclose(found.attention, wanted.numpy(), atol=1e-4)


def test_a_budget_and_a_stop_end_the_pass(multilingual, heard):
    decoder = GreedyDecoder(multilingual, language="en")
    assert len(decoder.decode(heard[1], budget=4).tokens) == 4
    rows = []
    stopped = decoder.decode(heard[1], budget=30, stop=lambda row: rows.append(row) or len(rows) == 5)
    assert len(rows) == 5
    assert len(stopped.tokens) < 30
    assert np.allclose(rows[-1], stopped.attention[-2], atol=1e-4)
    # a window that is full of committed text has room for nothing more, and says so by saying nothing
    assert decoder.decode(heard[1], forced=[5] * 123, budget=30).tokens == []


def test_a_short_window_gives_the_states_of_the_whole_one(stock_whisper, multilingual, make_speech):
    tiled = WhisperHailoForConditionalGeneration.from_whisper(
        stock_whisper, family="attention", encoder_options={"window_seconds": 10}
    )
    speech = SpeechModel("tiled", tiled, multilingual.tokenizer, multilingual.feature_extractor)
    for seconds, positions in ((3.0, 500), (9.4, 500), (9.8, 1000), (25.0, 1500)):
        samples = make_speech(seconds, 2)
        whole, short = Window(speech), Window(speech, "short")
        features = whole.features(samples)
        states = short.encode(features, len(samples))
        assert states.shape[1] == positions
        assert torch.allclose(states, whole.encode(features, len(samples))[:, :positions], atol=1e-5)
    for other in (multilingual, load_speech_model(None, "torch")):
        with pytest.raises(RequestError, match="cannot use a shorter window"):
            Window(other, "short")


def test_what_the_model_cannot_do_is_said_in_one_line(multilingual):
    for settings_, says in (
        ({"language": "klingon"}, "unknown language 'klingon'"),
        ({"task": "sing"}, "unknown task"),
    ):
        with pytest.raises(RequestError, match=says) as error:
            GreedyDecoder(multilingual, **settings_)
        assert "\n" not in str(error.value)
