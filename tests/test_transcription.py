"""Recordings to transcripts: finding files, windows and times, batches, what a model cannot do, and files written."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_audio import cut, noise, write
from helpers_live import TEXT, Loudness, clip
from transformers import LogitsProcessor, pipeline

from whisper_hailo_hf import WhisperHailoForConditionalGeneration
from whisper_hailo_hf.audio import AudioError
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.transcript import Transcript, format_transcript
from whisper_hailo_hf.transcription import (
    Observer,
    SpeechModel,
    Transcriber,
    TranscriptionOptions,
    find_audio,
    load_speech_model,
    transcribe,
)
from whisper_hailo_hf.transcription import transcriber as transcriber_module


@pytest.fixture(scope="module")
def speech(stock_whisper) -> SpeechModel:
    return load_speech_model(stock_whisper)


@pytest.fixture(scope="module")
def english_only(stock_whisper, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "english"
    shutil.copytree(stock_whisper, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    del settings["lang_to_id"], settings["task_to_id"]
    settings["is_multilingual"] = False
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return str(folder)


class Script(LogitsProcessor):
    """Makes the decoder say what is written, `{call: tokens}`; all else of `generate()` is as ever."""

    def __init__(self, speech: SpeechModel, *passes: str) -> None:
        # "<|0.00|> one<|1.00|>" for each call of generate(); of a batch, every member says the same
        self.passes = [speech.tokenizer(text, add_special_tokens=False).input_ids for text in passes]
        self.end = speech.model.generation_config.eos_token_id
        self.prompt = 0
        self.calls = -1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.prompt == 0 or input_ids.shape[1] <= self.prompt:
            self.calls, self.prompt = self.calls + 1, input_ids.shape[1]
        position = input_ids.shape[1] - self.prompt
        tokens = self.passes[self.calls]
        scores = torch.full_like(scores, -1e9)
        scores[:, tokens[position] if position < len(tokens) else self.end] = 0.0
        return scores


def say(speech: SpeechModel, samples: np.ndarray, *passes: str, timestamps: str = "segment"):
    script = Script(speech, *passes)
    transcriber = Transcriber(
        speech,
        timestamps=timestamps,
        language="en",
        generate_kwargs={"logits_processor": [script], "suppress_tokens": []},
    )
    transcript = transcriber(samples)
    assert script.calls == len(passes) - 1
    return [(segment.text, segment.start, segment.end) for segment in transcript.segments]


# Windows and times


def test_segments_get_the_times_that_were_said(speech):
    said = "<|0.50|> one two<|1.00|><|1.20|> three<|2.00|>"
    assert say(speech, noise(5.0), said) == [("one two", 0.5, 1.0), ("three", 1.2, 2.0)]


def test_the_next_window_begins_where_the_last_whole_segment_ended(speech):
    first = "<|0.00|> one<|20.00|><|20.00|> two<|28.00|><|28.00|>"
    assert say(speech, noise(40.0), first, "<|0.50|> three<|2.00|>") == [
        ("one", 0.0, 20.0),
        ("two", 20.0, 28.0),
        ("three", 28.5, 30.0),
    ]


def test_times_are_right_after_a_window_that_ends_in_silence(speech):
    # 5.00 of the second window is later than 2.00 of the first: token after token, they could be of one window
    first, second = "<|0.00|> one<|2.00|>", "<|5.00|> two<|7.00|>"
    assert say(speech, noise(60.0), first, second) == [("one", 0.0, 2.0), ("two", 35.0, 37.0)]


def test_windows_without_a_sound_are_passed_over(speech):
    samples = np.concatenate([np.zeros(60 * 16_000, np.float32), noise(10.0), np.zeros(50 * 16_000, np.float32)])
    assert say(speech, samples, "<|1.00|> one<|2.00|>") == [("one", 61.0, 62.0)]
    assert say(speech, np.zeros(16_000, np.float32)) == []


def test_text_without_an_end_lasts_to_the_end_of_the_audio(speech):
    assert say(speech, noise(4.0), "<|1.00|> one") == [("one", 1.0, 4.0)]
    assert say(speech, noise(4.0), "<|1.00|> one<|9.00|>") == [("one", 1.0, 4.0)]


def test_text_that_the_window_cuts_is_decoded_again_in_the_next(speech):
    first = "<|0.00|> one<|20.00|><|27.00|> two thr"
    assert say(speech, noise(40.0), first, "<|0.00|> two three<|4.00|>") == [
        ("one", 0.0, 20.0),
        ("two three", 27.0, 31.0),
    ]
    # nothing whole before it: it is kept
    assert say(speech, noise(40.0), "<|1.00|> one", "<|0.00|> two<|1.00|>") == [
        ("one", 1.0, 30.0),
        ("two", 30.0, 31.0),
    ]


def test_a_checkpoint_may_decode_with_timestamps_by_itself(speech, monkeypatch):
    def decoded_with_timestamps() -> bool:
        seen = []
        generate = speech.model.generate
        with monkeypatch.context() as patch:
            patch.setattr(
                speech.model, "generate", lambda *a, **k: seen.append(k["return_timestamps"]) or generate(*a, **k)
            )
            Transcriber(speech, language="en")(noise(3.0))
        return seen[0]

    assert not decoded_with_timestamps()
    monkeypatch.setattr(speech.model.generation_config, "return_timestamps", True)
    assert decoded_with_timestamps()


def test_a_pass_that_says_nothing_ends(speech):
    assert say(speech, noise(31.0), "<|0.00|><|0.00|>", "<|0.00|> one<|1.00|>") == [("one", 30.0, 31.0)]


def test_a_short_rest_is_not_asked_for_words(speech):
    assert say(speech, noise(5.05), "<|0.00|> one<|5.00|><|5.00|>") == [("one", 0.0, 5.0)]


def test_words_lie_in_order_within_the_audio(speech, make_speech):
    samples = make_speech(50.0)
    transcript = Transcriber(speech, timestamps="word", language="en")(samples)
    assert transcript.duration == pytest.approx(50.0)
    words = [word for segment in transcript.segments for word in segment.words]
    assert words
    for segment in transcript.segments:
        assert "".join(word.text for word in segment.words).split() == segment.text.split()
        for word in segment.words:
            assert 0 <= word.start <= word.end <= 50.0


def test_segments_and_words_say_the_same(speech, make_speech):
    samples = make_speech(40.0, seed=3)
    settings = {"language": "en", "generate_kwargs": {"max_new_tokens": 30}}
    segments = Transcriber(speech, timestamps="segment", **settings)(samples)
    words = Transcriber(speech, timestamps="word", **settings)(samples)
    untimed = Transcriber(speech, **settings)(samples)
    assert segments.text == words.text == untimed.text
    assert untimed.segments == ()


@pytest.mark.parametrize(
    ("seconds", "language"), [(0.05, None), (2.0, "en"), (2.0, "<|fr|>"), (29.9, "german"), (30.0, None)]
)
def test_short_audio_reads_as_in_the_pipeline(speech, make_speech, seconds, language):
    samples = make_speech(seconds, seed=round(seconds))
    asr = pipeline(
        "automatic-speech-recognition",
        model=speech.model,
        tokenizer=speech.tokenizer,
        feature_extractor=speech.feature_extractor,
    )
    settings = {
        "num_beams": 1,
        "max_new_tokens": 60,
        "language": language and language.strip("<|>"),
        "task": "transcribe",
    }
    # Random weights also say timestamps where none are wanted, which no trained model does.
    begin = speech.model.generation_config.no_timestamps_token_id + 1
    settings["suppress_tokens"] = [*speech.model.generation_config.suppress_tokens, *range(begin, begin + 1501)]
    ours = Transcriber(
        speech,
        language=language,
        task="transcribe",
        generate_kwargs={"max_new_tokens": 60} | {"suppress_tokens": settings["suppress_tokens"]},
    )(samples)
    assert ours.text.split() == asr(samples, generate_kwargs=settings)["text"].split()
    expected = {None: ours.language, "en": "en", "german": "de", "<|fr|>": "fr"}[language]
    assert ours.language == expected
    assert ours.language is not None


def test_language_is_detected_once_and_kept(speech, make_speech, monkeypatch):
    asked = []
    detect = speech.model.detect_language

    def counting(*args, **kwargs):
        asked.append(kwargs["input_features"].shape[0])
        return detect(*args, **kwargs)

    monkeypatch.setattr(speech.model, "detect_language", counting)
    transcript = Transcriber(speech, timestamps="segment")(make_speech(70.0, seed=5))
    assert asked == [1]
    token = detect(
        input_features=speech.feature_extractor(
            make_speech(70.0, seed=5)[: 30 * 16_000], sampling_rate=16_000, return_tensors="pt"
        ).input_features
    )
    codes = {number: code for code, number in speech.model.generation_config.lang_to_id.items()}
    assert transcript.language == codes[token.item()].strip("<|>")


@pytest.mark.parametrize("timestamps", ["none", "segment", "word"])
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # Transformers hands a tensor to np.repeat
def test_a_batch_says_what_each_says_alone(speech, make_speech, timestamps):
    recordings = {seed: make_speech(length, seed=seed) for seed, length in enumerate([3.0, 0.2, 34.0])}
    settings = {"timestamps": timestamps, "generate_kwargs": {"max_new_tokens": 30}}
    alone = {key: Transcriber(speech, **settings)(samples) for key, samples in recordings.items()}
    transcriber = Transcriber(speech, batch_size=2, **settings)
    steps: list[float] = []
    # Blocks of another size than the windows, as from a file.
    given = ((key, None, iter(np.array_split(samples, 7))) for key, samples in recordings.items())
    together = dict(transcriber.run(given, steps.append))
    assert {key: transcript.text for key, transcript in together.items()} == {k: t.text for k, t in alone.items()}
    assert {key: transcript.language for key, transcript in together.items()} == {
        k: t.language for k, t in alone.items()
    }
    assert {k: [(s.start, s.end) for s in t.segments] for k, t in together.items()} == {
        k: [(s.start, s.end) for s in t.segments] for k, t in alone.items()
    }
    assert sum(steps) == pytest.approx(sum(len(samples) for samples in recordings.values()) / 16_000)


def test_a_model_without_timestamps_reads_long_audio_window_by_window(stock_whisper, make_speech):
    speech = load_speech_model(stock_whisper)
    speech.model.generation_config.suppress_tokens += list(
        range(speech.tokenizer.convert_tokens_to_ids("<|0.00|>"), len(speech.tokenizer))
    )
    del speech.model.generation_config.no_timestamps_token_id
    samples = make_speech(45.0)
    halves = [
        Transcriber(speech, language="en")(part).text for part in (samples[: 30 * 16_000], samples[30 * 16_000 :])
    ]
    assert Transcriber(speech, language="en")(samples).text == " ".join(half for half in halves if half)
    with pytest.raises(RequestError, match="knows no timestamps"):
        Transcriber(speech, timestamps="segment")


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros((2, 100)), np.array([0.1, np.nan])])
def test_wrong_samples_are_refused(speech, samples):
    with pytest.raises(RequestError, match="finite samples of shape"):
        Transcriber(speech)(samples)


# Stretches of speech


@pytest.fixture
def loudness(monkeypatch):
    monkeypatch.setattr(transcriber_module, "make_vad", lambda name: Loudness())


def spoken(speech: SpeechModel, samples: np.ndarray, *passes: str, **settings) -> Transcript:
    script = Script(speech, *passes)
    kwargs = {"logits_processor": [script], "suppress_tokens": []}
    transcript = Transcriber(speech, vad="auto", language="en", generate_kwargs=kwargs, **settings)(samples)
    assert script.calls == len(passes) - 1
    return transcript


def test_with_a_detector_each_stretch_is_a_window_of_its_own(speech, loudness):
    quiet = np.zeros(20 * 16_000, np.float32)
    samples = np.concatenate([quiet, noise(4.0), quiet, noise(3.0), quiet])
    said = "<|0.50|> one<|2.00|>", "<|0.32|> two<|1.00|>"
    transcript = spoken(speech, samples, *said, timestamps="segment")
    # stretches begin 0.29 s before the voice, at a frame of 32 ms
    assert [(s.text, s.start, s.end) for s in transcript.segments] == [
        ("one", pytest.approx(20.21, abs=0.033), pytest.approx(21.71, abs=0.033)),
        ("two", pytest.approx(44.03, abs=0.033), pytest.approx(44.71, abs=0.033)),
    ]
    assert transcript.duration == 67.0


def test_a_stretch_is_decoded_to_its_end(speech, loudness):
    # the model ends a segment at 2 s and begins another there: what follows is decoded anew
    said = "<|0.00|> one<|2.00|><|2.00|> two", "<|0.00|> two<|1.00|>"
    transcript = spoken(speech, noise(5.0), *said, timestamps="segment")
    assert [(s.text, s.start, s.end) for s in transcript.segments] == [("one", 0.0, 2.0), ("two", 2.0, 3.0)]


def test_with_a_detector_text_needs_no_timestamps(speech, loudness):
    # 40 s without a pause are two stretches, each in one window
    assert spoken(speech, noise(40.0), " one", " two").text == "one two"


def test_nobody_speaks(speech, loudness):
    transcript = Transcriber(speech, vad="auto")(np.zeros(50 * 16_000, np.float32))
    assert (transcript.text, transcript.duration, transcript.language) == ("", 50.0, None)


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
def test_a_batch_with_a_detector_says_what_each_says_alone(speech, loudness):
    quiet = np.zeros(3 * 16_000, np.float32)
    recordings = {
        0: np.concatenate([noise(2.0), quiet, noise(3.0), quiet, noise(1.0)]),
        1: np.concatenate([quiet, noise(4.0), quiet]),
        2: noise(33.0),
    }
    settings = {"vad": "auto", "timestamps": "segment", "generate_kwargs": {"max_new_tokens": 12}}
    alone = {key: Transcriber(speech, **settings)(samples) for key, samples in recordings.items()}
    steps: list[float] = []
    given = ((key, None, iter(np.array_split(samples, 5))) for key, samples in recordings.items())
    together = dict(Transcriber(speech, batch_size=2, **settings).run(given, steps.append))
    assert together == alone
    assert sum(steps) == pytest.approx(14 + 10 + 33 - 2)


def test_a_recording_that_breaks_off_is_an_error_with_a_detector_too(speech, loudness):
    def broken():
        yield noise(3.0)
        yield np.zeros(5 * 16_000, np.float32)
        raise AudioError("talk.wav: broken")

    runs = dict(
        Transcriber(speech, vad="auto", language="en").run([("a", None, broken()), ("b", None, iter([noise(1.0)]))])
    )
    assert str(runs["a"]) == "talk.wav: broken"
    assert isinstance(runs["b"], Transcript)


def test_pauses_do_not_cost_the_demo_a_word():
    pytest.importorskip("silero_vad")
    pytest.importorskip("onnxruntime")
    pause = np.zeros(round(3.3 * 16_000), np.float32)
    samples = np.concatenate(
        [clip(), pause, clip(3.2), pause, pause, clip(), np.zeros(40 * 16_000, np.float32), clip()]
    )
    demo = load_speech_model(encoder_backend="torch")
    heard = Transcriber(demo, vad="silero", timestamps="word")(samples)
    beginning = " ".join(TEXT.split()[: len(Transcriber(demo)(clip(3.2)).text.split())])
    assert heard.text == f"{TEXT} {beginning} {TEXT} {TEXT}"
    starts = [word.start for segment in heard.segments for word in segment.words]
    first = [word.start for segment in heard.segments[:1] for word in segment.words]
    last = len(samples) / 16_000 - len(clip()) / 16_000
    assert min(start for start in starts if start > last - 1) - last == pytest.approx(first[0], abs=0.1)


# What a model cannot do


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"language": "klingon"}, "unknown language 'klingon'"),
        ({"language": "xx"}, "knows af, am, ar"),
        ({"task": "sing"}, "choose transcribe, translate"),
        ({"timestamps": "letter"}, "choose none, segment, word"),
        ({"batch_size": 0}, "batch size must be 1 or more"),
        ({"vad": "loud"}, "choose auto, silero, webrtc, none"),
    ],
)
def test_wrong_options(speech, options, words):
    with pytest.raises(RequestError, match=words) as caught:
        Transcriber(speech, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"language": "en"}, {"task": "transcribe"}, {"task": "translate"}])
def test_an_english_model_takes_no_language_or_task(english_only, options):
    with pytest.raises(RequestError, match="knows one language only: leave out --"):
        Transcriber(load_speech_model(english_only), **options)


def test_an_english_model_transcribes(english_only, make_speech):
    transcript = Transcriber(load_speech_model(english_only), timestamps="segment")(make_speech(3.0))
    assert transcript.language is None
    assert transcript.text


def test_words_need_alignment_heads(stock_whisper):
    speech = load_speech_model(stock_whisper)
    speech.model.generation_config.alignment_heads = None
    with pytest.raises(RequestError, match="no alignment_heads"):
        Transcriber(speech, timestamps="word")


@pytest.mark.parametrize(
    ("settings", "language", "task"),
    [
        ({"language": "german", "task": "translate"}, "de", None),
        ({"forced_decoder_ids": [[1, "<|fr|>"], [2, "<|translate|>"]]}, "fr", "translate"),
        ({"forced_decoder_ids": [[1, None], [2, "<|transcribe|>"]]}, None, "transcribe"),
    ],
)
def test_what_a_checkpoint_fixes_is_kept(stock_whisper, settings, language, task):
    speech = load_speech_model(stock_whisper)
    ids = speech.tokenizer.convert_tokens_to_ids
    for name, value in settings.items():
        if name == "forced_decoder_ids":
            value = [[place, token and ids(token)] for place, token in value]
        setattr(speech.model.generation_config, name, value)
    transcriber = Transcriber(speech)
    assert (transcriber.language, transcriber.task) == (language, task)


# Loading


def test_a_model_of_ours_runs_on_the_backend_asked_for(stock_whisper, tmp_path, make_speech):
    stock = load_speech_model(stock_whisper)
    WhisperHailoForConditionalGeneration.from_whisper(stock_whisper, family="attention").save_pretrained(tmp_path)
    stock.tokenizer.save_pretrained(tmp_path)
    stock.feature_extractor.save_pretrained(tmp_path)
    samples = make_speech(4.0)
    expected = Transcriber(stock, timestamps="segment")(samples)
    for backend in ("torch", "onnx"):
        speech = load_speech_model(tmp_path, backend)
        assert speech.encoder_backend == backend
        assert Transcriber(speech, timestamps="segment")(samples) == expected


def broken_copy(stock_whisper: str, folder: Path, **changes) -> Path:
    shutil.copytree(stock_whisper, folder)
    for name, change in changes.items():
        path = folder / {"weights": "model.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"}[name]
        if change is None:
            path.unlink()
        elif isinstance(change, bytes):
            path.write_bytes(change)
        else:
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": None}, "has no weights"),
        ({"weights": b"nothing"}, "cannot load the weights"),
        ({"weights": b""}, "cannot load the weights"),
        ({"config": None}, "has no config.json"),
        ({"config": b"{"}, "cannot load the config"),
        ({"config": {"model_type": "wav2vec2"}}, "of type 'wav2vec2', not a Whisper"),
        ({"config": {"model_type": "whisperer"}}, "cannot load the config"),
        ({"config": {"decoder_layers": 4}}, "do not fit its config"),
        ({"tokenizer": None}, "has no tokenizer"),
        ({"tokenizer": b"{}"}, "cannot load the tokenizer"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_broken_model_folder_is_one_line(stock_whisper, tmp_path, changes, words):
    folder = broken_copy(stock_whisper, tmp_path / "model", **changes)
    with pytest.raises(RequestError, match=words) as caught:
        load_speech_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-such-folder", "no model folder no-such-folder"),
        ("./a/b", "no model folder"),
        ("/none/of/it", "no model folder"),
    ],
)
def test_a_missing_model_folder(name, words):
    with pytest.raises(RequestError, match=words):
        load_speech_model(name)


def test_a_file_is_no_model_folder(stock_whisper):
    with pytest.raises(RequestError, match="is a file: name the model's folder"):
        load_speech_model(f"{stock_whisper}/model.safetensors")


def test_unknown_backend(stock_whisper):
    with pytest.raises(RequestError, match="unknown encoder backend 'tpu': choose auto, hef, onnx, torch"):
        load_speech_model(stock_whisper, "tpu")


def test_a_stock_model_runs_on_torch_only(stock_whisper):
    assert load_speech_model(stock_whisper, "torch").encoder_backend == "torch"
    with pytest.raises(RequestError, match="from_whisper"):
        load_speech_model(stock_whisper, "onnx")


# Finding files


@pytest.fixture
def recordings(tmp_path) -> Path:
    for name in ("a.wav", "sub/b.flac", "sub/deeper/C.OGG", "sub/.hidden.wav", ".cache/d.wav", "x[1].wav"):
        write(tmp_path / name, noise(0.1))
    (tmp_path / "sub/notes.txt").write_text("no audio")
    return tmp_path


def names(found) -> list[str]:
    return [str(file.name) for file in found.files]


def test_a_folder_is_searched_to_any_depth(recordings):
    found = find_audio([recordings])
    assert names(found) == ["a.wav", "x[1].wav", "sub/b.flac", "sub/deeper/C.OGG"]
    assert [file.path for file in found.files] == [recordings / file.name for file in found.files]
    assert not found.errors


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.wav", ["a.wav", "x[1].wav"]),
        ("**/*.flac", ["sub/b.flac"]),
        ("sub/*.flac", ["b.flac"]),
        ("s*/*/*", ["sub/deeper/C.OGG"]),
        ("x[1].wav", ["x[1].wav"]),
        ("[ab].wav", ["a.wav"]),
    ],
)
def test_patterns(recordings, pattern, expected):
    assert names(find_audio([recordings / pattern])) == expected


def test_patterns_in_the_working_folder(recordings, monkeypatch):
    monkeypatch.chdir(recordings)
    assert names(find_audio(["*.wav", "sub"])) == ["a.wav", "x[1].wav", "b.flac", "deeper/C.OGG"]


def test_each_file_is_found_once(recordings, monkeypatch):
    monkeypatch.chdir(recordings)
    os.symlink(recordings / "a.wav", recordings / "link.wav")
    assert names(find_audio(["a.wav", recordings / "a.wav", "./sub/../a.wav", "link.wav", "*.wav"])) == [
        "a.wav",
        "x[1].wav",
    ]


def test_what_gives_nothing_is_said(recordings):
    (recordings / "empty").mkdir()
    found = find_audio([recordings / "empty", recordings / "*.mp3", "", recordings / "none.wav"])
    assert [message for _, message in found.errors] == [
        f"{recordings}/empty: no audio files in this folder",
        f"{recordings}/*.mp3: no file matches this pattern",
        "an empty name is no audio file",
    ]
    assert names(found) == ["none.wav"]  # said when it is read


# Files in, files out


def test_good_files_are_transcribed_beside_bad_ones(speech, tmp_path, make_speech):
    good = [write(tmp_path / f"{number}.wav", make_speech(2.0, seed=number)) for number in range(3)]
    (tmp_path / "text.wav").write_text("no audio")
    bad = [tmp_path / "text.wav", cut(write(tmp_path / "whole.flac", make_speech(3.0)), 0.5), tmp_path / "none.wav"]
    order = [good[0], bad[0], good[1], bad[1], good[2], bad[2]]
    events: list[tuple[str, str]] = []

    class Recorder(Observer):
        def failed(self, name, message):
            events.append(("failed", name))

        def finished(self, transcript, written):
            events.append(("finished", transcript.file))

    report = transcribe(order, speech, TranscriptionOptions(batch_size=2), observer=Recorder())
    assert [transcript.file for transcript in report.transcripts] == [str(path) for path in good]
    assert list(report.failures) == [str(path) for path in bad]
    assert events == [("failed", str(path)) for path in bad] + [("finished", str(path)) for path in good]
    assert report.exit_status == 2
    assert report.audio_seconds == pytest.approx(6.0)
    assert report.real_time_factor == pytest.approx(report.seconds / 6.0)
    for path, transcript in zip(good, report.transcripts, strict=True):
        (alone,) = transcribe([path], speech).transcripts
        assert transcript.text == alone.text


def test_results_come_in_the_order_of_the_inputs(speech, tmp_path, make_speech):
    long, short = write(tmp_path / "a.wav", make_speech(70.0)), write(tmp_path / "b.wav", make_speech(1.0))
    seen = []

    class Recorder(Observer):
        def finished(self, transcript, written):
            seen.append(transcript.file)

    report = transcribe([long, short], speech, TranscriptionOptions(batch_size=2), observer=Recorder())
    assert seen == [str(long), str(short)] == [transcript.file for transcript in report.transcripts]
    assert report.exit_status == 0


def test_a_file_that_breaks_between_check_and_reading_is_a_failure(speech, tmp_path, make_speech):
    first, second = write(tmp_path / "a.wav", make_speech(1.0)), write(tmp_path / "b.wav", make_speech(1.0))

    class Breaker(Observer):
        def started(self, files, seconds):
            second.write_text("gone")

    report = transcribe([first, second], speech, observer=Breaker())
    assert [transcript.file for transcript in report.transcripts] == [str(first)]
    assert list(report.failures) == [str(second)]


@pytest.mark.parametrize("output_format", ["text", "json", "srt", "vtt", "tsv"])
def test_written_files_hold_the_transcripts(speech, tmp_path, make_speech, output_format):
    for name in ("in/a.wav", "in/sub/a.wav", "in/sub/a.flac"):
        write(tmp_path / name, make_speech(2.0, seed=len(name)))
    out = tmp_path / "new" / "out"
    report = transcribe([tmp_path / "in"], speech, output_format=output_format, output_dir=out)
    suffix = {"text": "txt"}.get(output_format, output_format)
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert written == [f"a.{suffix}", f"sub/a.flac.{suffix}", f"sub/a.wav.{suffix}"]
    assert sorted(report.written) == sorted(out / name for name in written)
    for transcript, path in zip(report.transcripts, report.written, strict=True):
        assert path.read_text(encoding="utf-8") == format_transcript(transcript, output_format)
        assert bool(transcript.segments) == (output_format != "text")


def test_equal_names_in_different_folders_do_not_meet(speech, tmp_path, make_speech, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [write(Path(name), make_speech(1.0, seed=len(name))) for name in ("p/x.wav", "qq/x.wav", "X.wav", "y.wav")]
    report = transcribe(paths, speech, output_dir="out")
    assert [str(path) for path in report.written] == [
        "out/p/x.wav.txt",
        "out/qq/x.wav.txt",
        "out/X.wav.txt",
        "out/y.txt",
    ]
    for transcript, path in zip(report.transcripts, report.written, strict=True):
        assert path.read_text(encoding="utf-8") == transcript.text + "\n"


def test_a_file_of_an_earlier_run_is_replaced_whole(speech, tmp_path, make_speech):
    path = write(tmp_path / "a.wav", make_speech(1.0))
    (tmp_path / "a.txt").write_text("old " * 10_000)
    transcribe([path], speech, output_dir=tmp_path)
    assert "old" not in (tmp_path / "a.txt").read_text()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.txt", "a.wav"]


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, make_speech):
    path = write(tmp_path / "a.wav", make_speech(1.0))
    with pytest.raises(RequestError, match=r"cannot write to the folder .*a\.wav/out"):
        transcribe([path], "no-such-model", output_dir=path / "out")


def test_a_write_that_fails_is_no_fault_of_the_request(speech, tmp_path, make_speech):
    path = write(tmp_path / "a.wav", make_speech(1.0))
    (tmp_path / "out" / "a.txt").mkdir(parents=True)
    with pytest.raises(WhisperHailoError, match="cannot write") as caught:
        transcribe([path], speech, output_dir=tmp_path / "out")
    assert caught.value.exit_status == 1
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"output_format": "docx"}, "unknown format 'docx': choose text, json, srt, vtt, tsv"),
        ({"output_format": "srt", "options": TranscriptionOptions(timestamps="none")}, "srt is made of timestamps"),
        ({"options": TranscriptionOptions(timestamps="line")}, "unknown timestamps 'line'"),
    ],
)
def test_wrong_requests_cost_no_work(settings, words):
    with pytest.raises(RequestError, match=words):
        transcribe(["none.wav"], "no-such-model", **settings)


def test_nothing_to_transcribe():
    with pytest.raises(RequestError, match="nothing to transcribe"):
        transcribe([])


def test_with_nothing_readable_no_model_is_loaded(tmp_path):
    report = transcribe([tmp_path / "none.wav"], "no-such-model")
    assert report.failures == {f"{tmp_path}/none.wav": f"{tmp_path}/none.wav: no such file"}
    assert report.exit_status == 2
    assert report.real_time_factor is None


def test_the_report_is_json(speech, tmp_path, make_speech):
    path = write(tmp_path / "a.wav", make_speech(1.0))
    report = transcribe([path, tmp_path / "none.wav"], speech, TranscriptionOptions(timestamps="word"))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["files"] == 1
    assert data["audio_seconds"] == 1.0
    assert data["transcripts"][0]["text"] == report.transcripts[0].text
    assert data["failures"] == [{"input": f"{tmp_path}/none.wav", "error": f"{tmp_path}/none.wav: no such file"}]
