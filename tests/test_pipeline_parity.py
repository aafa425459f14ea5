"""The ASR pipeline on our model says to the letter what it says on stock Whisper with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from conftest import speech_like
from transformers import Pipeline, WhisperForConditionalGeneration, WhisperProcessor, pipeline

from whisper_hailo_hf import WhisperHailoForConditionalGeneration

# stock Transformers on word timestamps: a word of one token, and numpy.repeat of a tensor
pytestmark = [
    pytest.mark.filterwarnings("ignore:std.*degrees of freedom:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

TASK = "automatic-speech-recognition"
# all of Whisper's fallback (Radford et al. 2022, section 4.5), with thresholds on both sides of what this model gives
FALLBACK = {
    "temperature": (0.0, 0.4, 0.8),
    "compression_ratio_threshold": 1.0,
    "logprob_threshold": -1.4,
    "no_speech_threshold": 1e-5,
    "condition_on_prev_tokens": True,
}


@dataclass
class Case:
    """One call of the pipeline, and what the stock answer must have for the comparison to mean something."""

    seconds: float | list[float]
    call: dict[str, Any] = field(default_factory=dict)
    generate: dict[str, Any] = field(default_factory=dict)
    meaningful: Callable[[Any], bool] = lambda answer: len(answer["text"].split()) > 1
    prompt: str | None = None
    seed: int = 0
    silent: bool = False

    def audio(self) -> np.ndarray | list[np.ndarray]:
        if self.silent:
            return np.zeros(round(self.seconds * 16_000), dtype=np.float32)
        if isinstance(self.seconds, list):
            return [speech_like(seconds, self.seed + index) for index, seconds in enumerate(self.seconds)]
        return speech_like(self.seconds, self.seed)

    def ask(self, asr: Pipeline, processor: WhisperProcessor, seed: int = 0, **generate: Any) -> Any:
        settings = self.generate | generate
        if self.prompt is not None:
            settings["prompt_ids"] = processor.get_prompt_ids(self.prompt, return_tensors="pt")
        torch.manual_seed(seed)
        return asr(self.audio(), **self.call, generate_kwargs=settings)


def ends(answer: dict[str, Any]) -> list[float]:
    return [chunk["timestamp"][1] for chunk in answer["chunks"] if chunk["timestamp"][1] is not None]


def segments(least: int, until: float = 0.0) -> Callable[[dict[str, Any]], bool]:
    """At least so many chunks, most of which end at a time of their own, the last one late enough."""

    def enough(answer: dict[str, Any]) -> bool:
        different = len(set(ends(answer)))
        return len(answer["chunks"]) >= least and different >= least - 1 and max(ends(answer)) > until

    return enough


def several(answers: list[dict[str, Any]]) -> bool:
    return len({answer["text"] for answer in answers}) == len(answers)


def speaks(code: str) -> Callable[[dict[str, Any]], bool]:
    return lambda answer: {chunk["language"] for chunk in answer["chunks"]} == {code}


SEGMENTS, WORDS = {"return_timestamps": True}, {"return_timestamps": "word"}
CASES = {
    "short": Case(12.0),
    "segments": Case(25.0, SEGMENTS, meaningful=segments(3)),
    "words": Case(12.0, WORDS, meaningful=segments(4)),
    "language": Case(12.0, generate={"language": "de"}),
    "translate": Case(12.0, generate={"language": "french", "task": "translate"}),
    "malayalam": Case(20.0, SEGMENTS | {"return_language": True}, seed=3, meaningful=speaks("malayalam")),
    "faroese": Case(20.0, SEGMENTS | {"return_language": True}, seed=4, meaningful=speaks("faroese")),
    "long": Case(70.0, SEGMENTS, meaningful=segments(5, until=60.0), seed=2),
    "long_words": Case(70.0, WORDS, meaningful=segments(10, until=60.0), seed=4),
    "fallback": Case(70.0, SEGMENTS, FALLBACK, segments(4, until=40.0), seed=2),
    "fallback_batch": Case([65.0, 65.0], SEGMENTS | {"batch_size": 2}, FALLBACK, several),
    "chunks_of_10_s": Case(32.0, SEGMENTS | {"chunk_length_s": 10, "batch_size": 2}, meaningful=segments(4, 30.0)),
    "chunks_of_30_s": Case(70.0, WORDS | {"chunk_length_s": 30, "batch_size": 2}, meaningful=segments(4, 30.0)),
    "unequal_batch": Case([3.0, 25.0, 0.4, 12.0, 8.0], {"batch_size": 3}, meaningful=several),
    "unequal_words": Case([29.0, 2.0, 15.0], WORDS | {"batch_size": 3}, meaningful=several),
    "beams": Case(12.0, generate={"num_beams": 3}),
    "beams_segments": Case(65.0, SEGMENTS, {"num_beams": 3}, segments(4, until=30.0)),
    "prompt": Case(12.0, prompt="the lazy dog"),
    "prompt_all_segments": Case(
        70.0,
        SEGMENTS,
        {"prompt_condition_type": "all-segments", "condition_on_prev_tokens": True},
        segments(4, until=30.0),
        prompt="one two three",
    ),
    "a_twentieth_of_a_second": Case(0.05, SEGMENTS, meaningful=segments(1)),
    "silence": Case(5.0, silent=True),
    "long_silence": Case(40.0, WORDS, silent=True, meaningful=segments(2)),
}
# for the second layout: one of each kind of forward
SOME = ["short", "long_words", "fallback", "unequal_batch", "chunks_of_10_s"]


@pytest.fixture(scope="module")
def stock(stock_whisper: str, multilingual_processor: WhisperProcessor) -> Pipeline:
    model = WhisperForConditionalGeneration.from_pretrained(stock_whisper)
    model.generation_config.num_beams = 1  # before the pipeline takes it, which Transformers before 5.20 does at once
    parts = {
        "tokenizer": multilingual_processor.tokenizer,
        "feature_extractor": multilingual_processor.feature_extractor,
    }
    asr = pipeline(TASK, model=model, **parts)
    assert type(asr.model) is WhisperForConditionalGeneration
    return asr


@pytest.fixture(scope="module")
def stock_answer(stock: Pipeline, multilingual_processor: WhisperProcessor) -> Callable[[str], Any]:
    known: dict[str, Any] = {}

    def answer(name: str) -> Any:
        if name not in known:
            known[name] = CASES[name].ask(stock, multilingual_processor)
        return known[name]

    return answer


@pytest.fixture(scope="module")
def folders(stock_whisper, multilingual_processor, tmp_path_factory) -> dict[str, str]:
    """Our folder for each time axis, graph included."""
    made = {}
    for axis in ("width", "height"):
        model = WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention", time_axis=axis)
        model.set_encoder_backend("onnx")
        folder = tmp_path_factory.mktemp("ours") / axis
        model.save_pretrained(folder)
        multilingual_processor.save_pretrained(folder)
        made[axis] = str(folder)
    return made


@pytest.fixture(scope="module")
def ours(folders: dict[str, str]) -> Callable[[str, str], Pipeline]:
    known: dict[tuple[str, str], Pipeline] = {}

    def load(backend: str, axis: str) -> Pipeline:
        if (backend, axis) not in known:
            asr = pipeline(TASK, model=folders[axis], model_kwargs={"encoder_backend": backend})
            assert type(asr.model) is WhisperHailoForConditionalGeneration
            assert asr.model.encoder_backend == backend
            assert asr.model.config.time_axis == axis
            known[backend, axis] = asr
        return known[backend, axis]

    return load


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_same_text_and_timestamps(name, backend, stock_answer, ours, multilingual_processor):
    expected = stock_answer(name)
    assert CASES[name].meaningful(expected), expected
    assert CASES[name].ask(ours(backend, "width"), multilingual_processor) == expected


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_same_with_time_on_the_height(name, backend, stock_answer, ours, multilingual_processor):
    assert CASES[name].ask(ours(backend, "height"), multilingual_processor) == stock_answer(name)


def test_ours_saves_one_beam_where_the_stock_pipeline_takes_five(stock_whisper, ours, multilingual_processor):
    case = CASES["short"]
    stock = pipeline(TASK, model=stock_whisper)
    assert stock.model.generation_config.num_beams is None
    unasked = case.ask(stock, multilingual_processor)
    assert unasked == case.ask(stock, multilingual_processor, num_beams=5)
    assert unasked != case.ask(stock, multilingual_processor, num_beams=1)
    model = ours("torch", "width")
    assert model.model.generation_config.num_beams == 1
    assert case.ask(model, multilingual_processor) == case.ask(stock, multilingual_processor, num_beams=1)
    assert case.ask(model, multilingual_processor, num_beams=5) == unasked


def test_settings_of_the_cases_change_what_is_said(stock, stock_answer, multilingual_processor):
    """What the cases above compare would be worth nothing if the settings had no effect on this model."""
    short = {name: stock_answer(name)["text"] for name in ("short", "language", "translate", "beams", "prompt")}
    assert len(set(short.values())) == len(short)
    fallback = CASES["fallback"]
    known = str(stock_answer("fallback"))
    assert str(fallback.ask(stock, multilingual_processor, seed=1)) != known  # something was sampled
    for setting, neutral in {
        "temperature": (0.0,),
        "compression_ratio_threshold": None,
        "no_speech_threshold": None,
        "condition_on_prev_tokens": False,
        "logprob_threshold": -100.0,
    }.items():
        assert str(fallback.ask(stock, multilingual_processor, **{setting: neutral})) != known, setting
