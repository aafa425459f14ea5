"""Error rates: jiwer's own numbers, through Whisper's normalisers, as metrics and evaluator of `evaluate`."""

import random
import socket

import jiwer
import numpy as np
import pytest
from helpers_audio import write
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

pytest.importorskip("evaluate")

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.evaluation import CharacterErrorRate, SpeechRecognitionEvaluator, WordErrorRate
from whisper_hailo_hf.evaluation.error_counts import ErrorCounts, count_errors
from whisper_hailo_hf.evaluation.normalizers import NORMALIZERS, get_normalizer
from whisper_hailo_hf.evaluation.outcomes import compression_ratio, judge

PARTS = ("hits", "substitutions", "deletions", "insertions")
WORDS = ["a", "the", "one", "two", "cat", "can't", "sat", "où", "дом", "語", "é", "it's", "Mr.", "42"]


def random_pairs(number: int) -> list[tuple[str, str]]:
    """References and hypotheses with all kinds of errors; some empty, some with odd spaces."""
    draw = random.Random(7)
    pairs = []
    for _ in range(number):
        said = draw.choices(WORDS, k=draw.randrange(0, 15))
        heard = [word for word in said if draw.random() > 0.15]
        for _ in range(draw.randrange(0, 5)):
            heard.insert(draw.randint(0, len(heard)), draw.choice(WORDS))
        heard = [draw.choice(WORDS) if draw.random() < 0.2 else word for word in heard]
        space = draw.choice([" ", " ", " ", "  ", "   "])
        pairs.append((space.join(said), draw.choice(["", " "]) + " ".join(heard)))
    return pairs


def same_as_jiwer(references: list[str], hypotheses: list[str]) -> None:
    for metric, process in (
        (WordErrorRate(), jiwer.process_words),
        (CharacterErrorRate(), jiwer.process_characters),
    ):
        theirs = process(references, hypotheses)
        ours = metric.compute(predictions=hypotheses, references=references)
        assert ours[metric.rate] == getattr(theirs, metric.rate)
        assert {part: ours[part] for part in PARTS} == {part: getattr(theirs, part) for part in PARTS}
        assert ours["reference_length"] == theirs.hits + theirs.substitutions + theirs.deletions


def test_examples_that_jiwer_publishes():
    # jiwer 4.0, README and documentation of visualize_alignment
    counts = count_errors(
        ["short one here", "quite a bit of longer sentence"],
        ["shoe order one", "quite bit of an even longest sentence here"],
    )
    assert counts == ErrorCounts(hits=5, substitutions=2, deletions=2, insertions=4)
    assert f"{counts.rate:.2%}" == "88.89%"
    assert count_errors(["hello world"], ["hello duck"]).rate == 0.5
    for heard, words, characters in (("", 0, 0), ("silence", 1, 7), ("peaceful silence", 2, 16)):
        assert count_errors([""], [heard]).rate == words
        assert count_errors([""], [heard], "character").rate == characters
    assert count_errors([""], ["now defined behaviour"]).insertions == 3
    # and the example on the card of evaluate's own "wer" and "cer"
    said, heard = (
        ["this is the reference", "there is another one"],
        ["this is the prediction", "there is an other sample"],
    )
    assert WordErrorRate().compute(references=said, predictions=heard)["wer"] == 0.5
    assert CharacterErrorRate().compute(references=said, predictions=heard)["cer"] == 0.34146341463414637


def test_a_thousand_random_pairs_one_by_one_and_together():
    pairs = random_pairs(1000)
    assert sum(not said for said, _ in pairs) > 20
    for said, heard in pairs:
        for unit, process in (("word", jiwer.process_words), ("character", jiwer.process_characters)):
            ours, theirs = count_errors([said], [heard], unit), process(said, heard)
            assert tuple(getattr(ours, part) for part in PARTS) == tuple(getattr(theirs, part) for part in PARTS)
            assert ours.rate == (theirs.wer if unit == "word" else theirs.cer)
    references, hypotheses = map(list, zip(*pairs, strict=True))
    same_as_jiwer(references, hypotheses)
    single = [count_errors([said], [heard]) for said, heard in pairs]
    assert sum(single, ErrorCounts()) == count_errors(references, hypotheses)


def test_metrics_of_evaluate_take_batches_and_combine():
    evaluate = pytest.importorskip("evaluate")
    pairs = random_pairs(40)
    metric = evaluate.combine([WordErrorRate(), CharacterErrorRate()])
    for first in range(0, 40, 10):
        some = pairs[first : first + 10]
        metric.add_batch(predictions=[heard for _, heard in some], references=[said for said, _ in some])
    found = metric.compute()
    assert found["wer"] == jiwer.wer([said for said, _ in pairs], [heard for _, heard in pairs])
    assert found["cer"] == jiwer.cer([said for said, _ in pairs], [heard for _, heard in pairs])
    assert "substitutions" in WordErrorRate().inputs_description


def test_no_metric_asks_the_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked for")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for metric in (WordErrorRate(), CharacterErrorRate()):
        found = metric.compute(predictions=["Colour, two"], references=["color 2"], normalizer="english")
        assert found[metric.rate] == 0


def test_normalizers_are_whispers():
    # examples of the tests of openai/whisper, v20250625 (tests/test_normalizer.py)
    english = get_normalizer("english")
    for text, wanted in (
        ("Let's", "let us"),
        ("he's like", "he is like"),
        ("she's been like", "she has been like"),
        ("10km", "10 km"),
        ("10mm", "10 mm"),
        ("RC232", "rc 232"),
        ("Mr. Park visited Assoc. Prof. Kim Jr.", "mister park visited associate professor kim junior"),
        ("mobilisation of the tyre", "mobilization of the tire"),
        ("one million two hundred and five", "1000205"),
    ):
        assert english(text) == wanted
    assert english("colour") == "color"
    assert EnglishTextNormalizer({})("colour") == "colour"  # what Transformers has without a checkpoint's spellings
    basic = get_normalizer("basic")
    assert basic(" Hello, [noise] (aside) WORLD!\n") == "hello world"
    assert basic("one two three") == "one two three"
    assert english("one two three") == "123"
    assert get_normalizer("letters")("今日は") == "今 日 は"
    assert get_normalizer("none")("  A,  b ") == "  A,  b "
    for name in NORMALIZERS:
        assert get_normalizer(name)("") == ""
    with pytest.raises(RequestError, match="unknown normalizer 'german': choose basic"):
        get_normalizer("german")


def test_wrong_requests_have_one_line():
    with pytest.raises(RequestError, match="2 references but 1 hypotheses"):
        count_errors(["a", "b"], ["a"])
    with pytest.raises(RequestError, match="unknown unit 'phone': choose word or character"):
        count_errors(["a"], ["a"], "phone")


def test_what_counts_as_empty_and_as_hallucination():
    def found(said: str, heard: str) -> tuple[bool, tuple[str, ...]]:
        one = judge("x", said, heard, "basic", 1.0, 0.1)
        return one.empty, one.hallucinations

    assert found("one two", "one two") == (False, ())
    assert found("one two", " ...! ") == (True, ())  # nothing is left of it
    assert found("", "") == (False, ())
    assert found("[music]", "thank you") == (False, ("on_silence",))
    assert found("(laughs)", "...") == (False, ())
    # at the edge: five inserted words, more than half of the reference
    ten = "a b c d e f g h i j"
    assert found(ten, f"{ten} v w x y z") == (False, ())
    assert found(ten, f"{ten} u v w x y z") == (False, ("insertions",))
    assert found("a b", "a b w x y z") == (False, ())
    assert found("one two three", "thank you for watching bye") == (False, ("unrelated",))
    assert found("one two three", "thank you bye") == (False, ())
    loop = "and so on " * 30
    assert compression_ratio(loop) > 2.4
    assert found("and so on it went for a while until it stopped", loop) == (False, ("repetition", "insertions"))
    assert found(loop, loop) == (False, ())  # it was said like that


def test_evaluator_runs_a_pipeline_over_a_dataset(stock_whisper, make_speech, tmp_path):
    datasets = pytest.importorskip("datasets")
    from transformers import pipeline

    pipe = pipeline("automatic-speech-recognition", model=stock_whisper)
    pipe.model.generation_config.num_beams = 1
    audio = [make_speech(2.0, seed) for seed in range(3)]
    settings = {"max_new_tokens": 8, "language": "en"}
    raw = [{"raw": one, "sampling_rate": 16_000} for one in audio]
    wanted = [one["text"].strip() for one in pipe(raw, generate_kwargs=settings)]
    assert all(wanted)
    files = [str(write(tmp_path / f"{number}.wav", one, subtype="FLOAT")) for number, one in enumerate(audio)]
    data = datasets.Dataset.from_dict({"audio": files, "text": ["the fox", wanted[1], ""]})
    stored = [{"array": one, "sampling_rate": 16_000} for one in audio]
    evaluator = SpeechRecognitionEvaluator(normalizer="basic")
    columns = {"input_column": "audio", "label_column": "text", "generation_kwargs": settings}
    for one in (
        data,
        data.cast_column("audio", datasets.Audio()),
        datasets.Dataset.from_dict({"audio": stored, "text": data["text"]}),
    ):
        found = evaluator.compute(pipe, one, **columns)
        assert (
            found["wer"]
            == WordErrorRate().compute(predictions=wanted, references=list(data["text"]), normalizer="basic")["wer"]
        )
        assert found["total_time_in_seconds"] > 0
    assert evaluator.PIPELINE_KWARGS["generate_kwargs"] == settings
    assert not SpeechRecognitionEvaluator().PIPELINE_KWARGS
    both = evaluator.compute(pipe, data, metric=CharacterErrorRate(), **columns)
    assert both["cer"] == pytest.approx(
        CharacterErrorRate().compute(predictions=wanted, references=list(data["text"]), normalizer="basic")["cer"]
    )
    with pytest.raises(RequestError, match="name the model"):
        evaluator.compute(None, data, **columns)
    assert np.isfinite(found["wer"])
