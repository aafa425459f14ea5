"""Sources, sessions and writers: what goes wrong gets one line, and nothing that was committed is lost."""

import io
import json
import os
import sys
import threading
import time

import numpy as np
import pytest
from helpers_audio import write
from helpers_live import CLIP, RATE, TEXT, FakeSoundDevice, Loudness, clip, install, text_of

from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.live import Committed, Dropped, EndOfPhrase, LiveTranscriber, LiveWord, Pace, Partial
from whisper_hailo_hf.live.session import LiveSession
from whisper_hailo_hf.live.sources import Block, FileSource, MicrophoneSource, PipeSource, input_devices
from whisper_hailo_hf.live.writers import JsonLines, SrtWriter
from whisper_hailo_hf.transcription import load_speech_model

BUILT_IN = ("Built-in microphone", 2, 48_000, (44_100, 48_000))
HEADSET = ("USB headset", 1, 16_000, (8_000, 16_000))
SPEAKERS = ("Speakers", 0, 48_000, ())


@pytest.fixture(scope="module")
def speech():
    return load_speech_model(None, "torch")


@pytest.fixture
def transcriber(speech):
    return LiveTranscriber(speech, vad=Loudness(), min_chunk=2.0)


class Pipe(io.BytesIO):
    """Raw bytes that come in odd pieces."""

    def read(self, size=-1):
        return super().read(min(size, 777))


def heard(source):
    return np.concatenate([np.asarray(block.samples, np.float32).reshape(len(block.samples), -1) for block in source])


def test_a_file_is_played_in_its_own_time_or_faster(tmp_path):
    path = write(tmp_path / "a.wav", clip(0.8))
    began = time.monotonic()
    samples = heard(FileSource(path, speed=2.0))
    assert 0.35 < time.monotonic() - began < 2.0
    assert len(samples) == round(0.8 * RATE)
    began = time.monotonic()
    heard(FileSource(CLIP, speed=0))
    assert time.monotonic() - began < 3.0
    source = FileSource(CLIP, speed=1.0)
    threading.Timer(0.3, source.close).start()
    assert len(heard(source)) < 2 * RATE


@pytest.mark.parametrize(("layout", "channels"), [("s16le", 1), ("f32le", 2), ("s32le", 1)])
def test_raw_samples_come_through_a_pipe_whole(layout, channels):
    wave = np.round(clip(0.5) * 2**15)
    frames = np.repeat(wave[:, None], channels, axis=1)
    data = {
        "s16le": frames.astype("<i2"),
        "s32le": frames.astype("<i8") * 2**16,
        "f32le": (frames / 2**15).astype("<f4"),
    }[layout]
    data = data.astype("<i4") if layout == "s32le" else data
    found = heard(PipeSource(Pipe(data.tobytes() + b"\x01"), RATE, channels, layout))  # cut off within a sample
    scale = {"s16le": 1.0, "s32le": 2.0**16, "f32le": 2.0**-15}[layout]
    assert np.allclose(found, frames * scale, rtol=1e-6)


def test_a_wrong_pipe_is_refused():
    class Terminal(io.BytesIO):
        def isatty(self):
            return True

    for arguments, says in (
        ((Terminal(),), "is a terminal"),
        ((Pipe(), RATE, 6), "one or two channels"),
        ((Pipe(), RATE, 1, "u8"), "choose s16le, s32le, f32le"),
    ):
        with pytest.raises(RequestError, match=says):
            PipeSource(*arguments)
    with pytest.raises(RequestError, match="no such file"):
        FileSource("nowhere.wav")
    with pytest.raises(RequestError, match="a speed is"):
        FileSource(CLIP, speed=-1)


def test_microphones_are_listed_and_chosen(monkeypatch):
    install(monkeypatch, FakeSoundDevice([BUILT_IN, SPEAKERS, HEADSET], clip()))
    found = input_devices()
    assert [(d["index"], d["name"], d["default"]) for d in found] == [(0, BUILT_IN[0], True), (2, HEADSET[0], False)]
    assert MicrophoneSource("USB").rate == 16_000
    assert MicrophoneSource("2").rate == 16_000
    assert MicrophoneSource(2, 8_000).rate == 8_000
    assert MicrophoneSource().rate == 48_000  # its own, for it cannot do 16 kHz
    for arguments, says in (
        (("Nonesuch",), r"no microphone 'Nonesuch': choose with --device from 0: Built-in microphone, 2: USB headset"),
        ((1,), "no microphone 1"),
        ((2, 44_100), r"USB headset cannot record at 44100 Hz \(Invalid sample rate"),
    ):
        with pytest.raises(RequestError, match=says) as error:
            MicrophoneSource(*arguments)
        assert "\n" not in str(error.value)
    install(monkeypatch, FakeSoundDevice([SPEAKERS], clip()))
    with pytest.raises(RequestError, match="this machine has no microphone"):
        MicrophoneSource()


def test_what_a_microphone_needs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(RequestError, match=r"pip install 'whisper-hailo-hf\[mic\]'"):
        input_devices()

    class NoPortAudio:
        def find_spec(self, name, path=None, target=None):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice")
    monkeypatch.setattr(sys, "meta_path", [NoPortAudio(), *sys.meta_path])
    with pytest.raises(RequestError, match="apt install libportaudio2"):
        input_devices()


@pytest.mark.parametrize("ends", ["stops", "silent"])
def test_a_microphone_that_is_unplugged_ends_in_one_line_and_loses_nothing(monkeypatch, transcriber, ends):
    import soxr

    from whisper_hailo_hf.live import sources

    monkeypatch.setattr(sources, "_GONE_S", 1.0)
    install(monkeypatch, FakeSoundDevice([BUILT_IN], soxr.resample(clip(3.2), RATE, 48_000), ends))
    session, events = LiveSession(transcriber, MicrophoneSource()), []

    def run():
        for event in session.run():
            events.append(event)  # what came before the error counts

    with pytest.raises(WhisperHailoError, match=r"Built-in microphone, 48000 Hz: .*plugged in\?$"):
        run()
    assert text_of(events) == "one eight zero nine"
    assert isinstance(events[-1], EndOfPhrase)


def test_the_converters_clock_tells_what_an_overflow_lost(monkeypatch):
    module = FakeSoundDevice([HEADSET], clip())
    install(monkeypatch, module)
    source = MicrophoneSource()
    clock = type("Clock", (), {"inputBufferAdcTime": 100.0})()
    for place, overflow in ((100.0, False), (100.1, False), (103.1, True)):
        clock.inputBufferAdcTime = place
        source._callback(np.zeros((1600, 1), np.float32), 1600, clock, type("S", (), {"input_overflow": overflow}))
    blocks = [source._blocks.get() for _ in range(3)]
    assert [block.at for block in blocks] == [None, None, pytest.approx(3.1)]


def test_a_session_writes_down_what_comes_and_ends_with_its_source(transcriber):
    events = list(LiveSession(transcriber, FileSource(CLIP, speed=0)).run())
    assert text_of(events) == TEXT
    assert not any(isinstance(event, Pace) for event in events)  # a file that comes all at once makes nobody late


def test_a_session_whose_encoder_goes_away_at_the_very_end_says_so(transcriber):
    transcriber._patience = 0.1
    original = transcriber._encode
    away = WhisperHailoError("the chip has gone")
    transcriber._encode = lambda samples: original(samples) if transcriber.work.passes < 4 else away
    events = []

    def run():
        for event in LiveSession(transcriber, FileSource(CLIP, speed=0)).run():
            events.append(event)  # what came before the error counts

    with pytest.raises(WhisperHailoError, match=r"^the chip has gone$"):
        run()
    assert TEXT.startswith(text_of(events))
    assert text_of(events)


class Burst:
    """A live source that delivers faster than anybody can work, and cannot wait."""

    name, speed, waits = "burst", 1e9, False

    def __init__(self, samples, copies):
        self.samples, self.copies, self.given = samples, copies, 0
        self.read = threading.Event()

    def __iter__(self):
        for _ in range(self.copies):
            self.given += len(self.samples)
            yield Block(self.samples, RATE)
        self.read.set()

    def close(self):
        pass


def test_what_cannot_be_kept_is_lost_by_the_clock_and_said(transcriber):
    source = Burst(np.zeros(RATE, np.float32), 60)
    session = LiveSession(transcriber, source)
    original = transcriber.feed

    def slow(*arguments):
        source.read.wait(10)  # everything comes in while the first block is worked on
        return original(*arguments)

    transcriber.feed = slow
    events = list(session.run())
    lost = [event for event in events if isinstance(event, Dropped)]
    paces = [event for event in events if isinstance(event, Pace)]
    assert paces[0].step > 2.0
    kept = transcriber.work.audio
    assert 29 < kept < 33
    assert kept + sum(event.end - event.start for event in lost) == pytest.approx(60.0, abs=0.1)
    assert transcriber.clock == pytest.approx(60.0, abs=0.1)


def test_a_session_that_is_stopped_commits_what_is_pending(transcriber):
    session, events = LiveSession(transcriber, FileSource(CLIP, speed=3.0)), []
    threading.Timer(0.9, session.stop).start()
    for event in session.run():
        events.append(event)
    assert text_of(events)
    assert TEXT.startswith(text_of(events))
    assert isinstance(events[-1], EndOfPhrase)


def words(*items):
    return tuple(LiveWord(f" {text}", start, end, 0.9) for text, start, end in items)


def test_subtitles_are_whole_after_every_word(tmp_path):
    path = tmp_path / "a.srt"
    path.write_text("older")
    srt = SrtWriter(path)
    assert path.read_text() == ""
    srt(Committed(1.0, words(("one", 0.5, 0.9))))
    assert path.read_text() == "1\n00:00:00,500 --> 00:00:00,900\none\n\n"
    srt(Partial(1.2, " two"))
    srt(Committed(1.5, words(("two", 1.0, 1.4))))
    assert path.read_text() == "1\n00:00:00,500 --> 00:00:01,400\none two\n\n"
    srt(EndOfPhrase(2.0, 0.5, 1.4, "one two"))
    srt(Committed(3.0, words(("three", 2.5, 2.9), ("far", 9.0, 9.5))))  # a pause, and more than 7 s
    srt(Committed(12.0, words(*[("word" * 5, 10 + i / 10, 10.05 + i / 10) for i in range(6)])))  # more than two lines
    srt.close()
    cues = path.read_text().strip().split("\n\n")
    assert [cue.split("\n")[0] for cue in cues] == ["1", "2", "3", "4"]
    assert cues[1].endswith("three")
    assert max(len(cue.split("\n")[2]) for cue in cues) <= 84
    with pytest.raises(RequestError, match="cannot write"):
        SrtWriter(tmp_path / "none" / "a.srt")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(RequestError, match="no ordinary file"):
        SrtWriter(tmp_path / "fifo")


def test_events_are_lines_of_json():
    stream = io.StringIO()
    JsonLines(stream)(Committed(1.0, words(("fünf", 0.5, 0.9)), "de"))
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line) == {
        "event": "committed",
        "clock": 1.0,
        "words": [{"text": " fünf", "start": 0.5, "end": 0.9, "confidence": 0.9}],
        "language": "de",
    }
