"""The engine on the bundled clip and model: what it says, that it takes nothing back, that blocks do not matter."""

import re
import tracemalloc

import numpy as np
import pytest
from helpers_live import CLIP, RATE, TEXT, Loudness, clip, play, text_of, words_of
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.live import POLICIES, Dropped, EndOfPhrase, LiveTranscriber, Notice, Pace, Partial, Silence
from whisper_hailo_hf.transcription import load_speech_model


@pytest.fixture(scope="module")
def speech():
    return load_speech_model(None, "torch")


@pytest.fixture
def make(speech):
    def build(**changes):
        return LiveTranscriber(speech, **{"vad": Loudness(), "min_chunk": 1.0} | changes)

    return build


def check_order(events):
    """What holds for every stream: words in order, each once, and phrases that hold exactly their words."""
    words, pending, latest = [], [], 0.0
    for event in events:
        assert event.clock >= latest
        latest = event.clock
        if event.kind == "committed":
            for word in event.words:
                assert 0 <= word.start <= word.end <= event.clock + 1e-6
                assert not words or word.start >= words[-1].start
                assert 0 < word.confidence <= 1
                words.append(word)
                pending.append(word)
        elif event.kind == "end_of_phrase":
            assert event.text == "".join(word.text for word in pending).strip()
            assert (event.start, event.end) == (pending[0].start, pending[-1].end)
            pending = []
    assert not pending


@pytest.mark.parametrize("policy", POLICIES)
def test_the_clip_is_written_down_while_it_is_spoken(speech, make, policy):
    pytest.importorskip("silero_vad")
    pytest.importorskip("onnxruntime")
    transcriber = make(policy=policy, vad="silero", min_chunk=0.5)
    events = play(transcriber, clip(), [1600])
    assert text_of(events) == TEXT
    check_order(events)
    words = words_of(events)
    assert all(word.confidence > 0.5 for word in words)
    # in pieces and early, not all at the end
    committed = [event for event in events if event.kind == "committed"]
    delays = [event.clock - event.words[-1].end for event in committed]
    assert len(committed) > 8
    assert np.median(delays) < 1.0
    assert next(event.text for event in events if isinstance(event, EndOfPhrase)).startswith("one eight")
    assert sum(isinstance(event, Partial) for event in events) > 5
    work = transcriber.work
    assert work.audio == pytest.approx(9.86, abs=0.04)
    assert 0 < work.reused < work.tokens
    assert transcriber.clock == pytest.approx(len(clip()) / RATE)
    assert transcriber.finish() == []
    with pytest.raises(RequestError, match="has been finished"):
        transcriber.feed(np.zeros(10))


@pytest.fixture(scope="module")
def at_rates(speech):
    """The beginning of the clip at several rates, and what one whole block of it gives."""
    import soxr

    found = {}
    for rate in (8_000, 16_000, 44_100):
        samples = soxr.resample(clip(3.2), RATE, rate).astype(np.float32)
        transcriber = LiveTranscriber(speech, vad=Loudness(), min_chunk=1.0)
        found[rate] = samples, [transcriber.feed(samples, rate), transcriber.finish()]
    return found


@settings(max_examples=6, deadline=None, derandomize=True)
@given(rate=st.sampled_from((8_000, 16_000, 44_100)), sizes=st.lists(st.integers(1, 30_000), min_size=1, max_size=4))
def test_the_same_events_whatever_the_block_size(speech, at_rates, rate, sizes):
    samples, (first, last) = at_rates[rate]
    transcriber = LiveTranscriber(speech, vad=Loudness(), min_chunk=1.0)
    sizes = [max(size, 400) if max(sizes) < 400 else size for size in sizes]  # a sample a block is slow, not different
    assert play(transcriber, samples, sizes, rate) == first + last
    assert text_of(first + last) == "one eight zero nine"


def test_what_is_committed_first_is_what_stands_at_the_end(make):
    transcriber, samples, shown = make(policy="align-att", min_chunk=0.5), clip(6.0), ""
    for place in range(0, len(samples), 4000):
        for event in transcriber.feed(samples[place : place + 4000]):
            if event.kind == "committed":
                shown += event.text
    assert text_of(transcriber.finish()) in TEXT
    assert TEXT.startswith(shown.strip())
    assert shown.count(" ") >= 4


def test_the_encoder_may_run_beside_the_decoder(make):
    # the same events: decisions never depend on which of the two is done first
    alone = play(make(overlap=False), clip(5.0), [1600])
    beside = make(overlap=True)
    assert beside.feed(clip(5.0)) + beside.finish() == alone


@pytest.mark.parametrize("policy", POLICIES)
def test_a_long_phrase_goes_on_over_several_windows(make, policy):
    samples = np.concatenate([clip(), clip(), clip()])  # 29.5 s, and for this detector all of it is one phrase
    transcriber = make(policy=policy, min_chunk=2.0, vad="none")
    longest = []
    write = transcriber._scribe.write
    transcriber._scribe.write = lambda item, *rest: longest.append(item.seconds) or write(item, *rest)
    events = play(transcriber, samples, [8000])
    assert max(longest) < 21
    assert min(longest[8:]) < 14  # it was cut
    assert text_of(events) == " ".join([TEXT] * 3)
    check_order(events)


def test_silence_noise_and_hum_say_nothing(make):
    pytest.importorskip("silero_vad")
    pytest.importorskip("onnxruntime")
    rng, time = np.random.default_rng(0), np.arange(4 * RATE) / RATE
    hum = sum(np.sin(2 * np.pi * 50 * k * time) / k for k in (1, 2, 3, 5)) * 0.05
    for samples in (np.zeros(4 * RATE), rng.standard_normal(4 * RATE) * 0.03, hum):
        events = play(make(vad="silero"), samples.astype(np.float32), [1600])
        assert words_of(events) == []
        assert [event.kind for event in events] == ["silence"]
        assert events[0].start == 0.0
    # and without a detector, which leaves it to the guards
    for samples in (np.zeros(2 * RATE), rng.standard_normal(2 * RATE) * 0.03):
        assert words_of(play(make(vad="none"), samples.astype(np.float32), [1600])) == []


def test_a_stream_that_ends_in_mid_word_is_committed_to_its_end(make):
    events = play(make(min_chunk=5.0), clip(2.6), [700])  # in the middle of "nine"
    assert text_of(events).startswith("one eight zero")
    assert isinstance(events[-1], EndOfPhrase)
    check_order(events)


def test_lost_audio_keeps_the_clock(make):
    transcriber, samples = make(), clip()
    first = transcriber.feed(samples[: 3 * RATE])
    gap = transcriber.feed(samples[3 * RATE :], at=63.0)  # a minute is missing
    rest = transcriber.finish()
    lost = [event for event in gap if isinstance(event, Dropped)]
    assert [(event.start, event.end) for event in lost] == [(3.0, 63.0)]
    assert text_of(first + gap + rest) == TEXT
    times = {word.text.strip(): word.start for word in words_of(gap + rest)}
    assert times["seven"] > 63.0
    plain = {word.text.strip(): word.start for word in words_of(play(make(), samples, [1600]))}
    assert times["seven"] == pytest.approx(plain["seven"] + 60.0, abs=0.1)
    assert transcriber.clock == pytest.approx(60.0 + len(samples) / RATE)
    # a short gap is filled, and the phrase goes on
    transcriber = make()
    transcriber.feed(samples[:8000])
    assert [event.end - event.start for event in transcriber.lost(0.25)] == [pytest.approx(0.25)]
    assert transcriber.clock == pytest.approx(0.75)


def test_a_slow_machine_lengthens_the_step_and_says_so(make):
    transcriber = make(min_chunk=0.5)
    assert transcriber.set_pace(0.9) == []
    (pace,) = transcriber.set_pace(1.5)
    assert isinstance(pace, Pace)
    assert (pace.behind, pace.step) == (1.5, 0.75)
    for _ in range(20):
        transcriber.set_pace(100.0)
    assert transcriber.step == 5.0
    back = [event for _ in range(60) for event in transcriber.set_pace(0.0)]
    assert [event.step for event in back] == [0.5]  # said once it is as it was
    transcriber.set_pace(10.0)
    play(transcriber, clip(4.0), [1600])
    assert transcriber.work.passes <= 5  # every 0.75 s, and the last


class Trouble:
    """An encoder that fails for some of its calls, as one does whose chip another process holds."""

    def __init__(self, encode, fails):
        self.encode, self.fails, self.calls = encode, fails, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.fails(self.calls):
            raise WhisperHailoError("another process holds the Hailo device: stop it")
        return self.encode(*arguments)


def test_an_encoder_that_is_busy_for_a_while_loses_nothing(make):
    transcriber = make(patience=2.0)
    transcriber._window.encode = Trouble(transcriber._window.encode, lambda call: 2 <= call <= 4)
    events = play(transcriber, clip(), [1600])
    assert text_of(events) == TEXT
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert notices
    assert all(line == "another process holds the Hailo device: stop it; trying again" for line in notices)


def test_an_encoder_that_stays_away_ends_the_stream_with_its_own_line(make):
    transcriber = make(patience=0.2)
    transcriber._window.encode = Trouble(transcriber._window.encode, lambda call: call > 3)
    samples, events = clip(), []

    def feed():
        for place in range(0, len(samples), 1600):
            events.extend(transcriber.feed(samples[place : place + 1600]))

    with pytest.raises(WhisperHailoError, match=r"^another process holds the Hailo device: stop it$"):
        feed()
    assert text_of(events)
    assert TEXT.startswith(text_of(events))
    assert transcriber.finish() == []
    with pytest.raises(WhisperHailoError):
        transcriber.check()
    busy = make()
    busy._window.encode = Trouble(None, lambda call: True)
    with pytest.raises(WhisperHailoError, match="another process holds"):
        busy.warm_up()


def test_an_encoder_that_is_away_for_long_fills_no_memory(make):
    transcriber = make(patience=0.1, vad="none", min_chunk=5.0)
    transcriber._window.encode = Trouble(None, lambda call: True)
    noise = np.random.default_rng(0).standard_normal(20 * RATE).astype(np.float32) * 0.01
    assert len(transcriber.feed(noise)) == 1  # that it is tried again
    transcriber.feed(noise)
    with pytest.raises(WhisperHailoError, match="another process"):
        transcriber.feed(noise)
    assert sum(map(len, transcriber._frames)) < 28 * RATE


def test_clipped_and_broken_audio_is_said_once_and_heard_all_the_same(make):
    samples = np.clip(clip() * 40, -1, 1)
    events = play(make(), samples, [1600])
    assert len([event for event in events if isinstance(event, Notice) and "clipped" in event.message]) == 1
    assert len(words_of(events)) > 8
    broken = clip(2.0)
    broken[100:110] = np.inf
    events = play(make(), broken, [1600])
    assert [event.message for event in events if isinstance(event, Notice)] == [
        "the audio has samples that are not numbers: they were taken as silence"
    ]


def test_hours_of_silence_take_no_memory(make):
    transcriber = make()
    silence = np.zeros(10 * RATE, np.float32)
    transcriber.feed(silence)
    tracemalloc.start()
    events = [event for _ in range(60) for event in transcriber.feed(silence)]
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 200_000  # ten minutes would be 38 MB
    assert transcriber.clock == 610.0
    assert [event for event in events if not isinstance(event, Silence)] == []


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"policy": "guess"}, "choose local-agreement, align-att"),
        ({"vad": "ears"}, "choose auto, silero, webrtc, none"),
        ({"min_chunk": 0.0}, "min_chunk is between"),
        ({"language": "fr"}, "unknown language"),
        ({"window": "short"}, "cannot use a shorter window"),
        ({"window": "tall"}, "choose full, short"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(make, settings_, says):
    with pytest.raises(RequestError, match=says) as error:
        make(**settings_)
    assert "\n" not in str(error.value)


def test_a_stock_whisper_in_another_language_works_too(stock_whisper, make_speech):
    transcriber = LiveTranscriber(load_speech_model(stock_whisper), vad=Loudness(), min_chunk=2.0, guarded=False)
    events = play(transcriber, make_speech(4.0, 1), [4000])
    check_order(events)
    committed = [event for event in events if event.kind == "committed"]
    assert len(words_of(events)) > 3
    assert all(event.language for event in committed)


def test_the_program_of_the_manual_runs(capsys, monkeypatch):
    pytest.importorskip("silero_vad")
    pytest.importorskip("onnxruntime")
    root = CLIP.parent.parent
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs" / "live.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(root)
    exec(compile(code, "docs/live.md", "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert out.startswith(" one eight zero nine")
    assert "EndOfPhrase(" in out
