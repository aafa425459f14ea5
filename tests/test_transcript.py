"""The written forms of a transcript, read back by readers that know only the formats' specifications."""

import csv
import html
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_hailo_hf.transcript import FORMATS, SUFFIXES, Segment, Transcript, Word, format_transcript, join_texts

SEGMENTS = (
    Segment("One, two.", 0.0, 1.5),
    Segment("a --> b & <c>\nnext\tline", 59.9996, 61.25),
    Segment("späť 三", 3_599.5, 366_000.001),
)
TRANSCRIPT = Transcript("One, two. …", 366_001.0, "en", SEGMENTS, "talk.wav")

seconds = st.floats(0, 500_000, allow_nan=False).map(lambda value: round(value, 3))
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)
segments = st.lists(st.builds(Segment, texts, seconds, seconds), max_size=8)


def read_clock(text: str, decimal_mark: str) -> int:
    match = re.fullmatch(rf"(\d\d+):([0-5]\d):([0-5]\d){re.escape(decimal_mark)}(\d\d\d)", text)
    assert match, text
    hours, minutes, seconds, milliseconds = map(int, match.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds


def read_srt(text: str) -> list[tuple[int, int, str]]:
    cues = []
    for number, block in enumerate(text.split("\n\n")[:-1], start=1):
        index, timing, content = block.split("\n")
        assert index == str(number)
        start, end = timing.split(" --> ")
        cues.append((read_clock(start, ","), read_clock(end, ","), content))
    return cues


def read_vtt(text: str) -> list[tuple[int, int, str]]:
    header, _, rest = text.partition("\n")
    assert header == "WEBVTT"
    cues = []
    for block in rest.split("\n\n"):
        if not block.strip():
            continue
        timing, content = block.strip("\n").split("\n")
        assert "-->" not in content
        assert "<" not in content
        assert not re.search(r"&(?!amp;|lt;|gt;)", content)
        start, end = timing.split(" --> ")
        cues.append((read_clock(start, "."), read_clock(end, "."), html.unescape(content)))
    return cues


def read_tsv(text: str) -> list[tuple[int, int, str]]:
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n"))
    assert rows[0] == ["start", "end", "text"]
    return [(int(start), int(end), content) for start, end, content in rows[1:]]


READERS = {"srt": read_srt, "vtt": read_vtt, "tsv": read_tsv}
EXPECTED = [
    (0, 1_500, "One, two."),
    (60_000, 61_250, "a --> b & <c> next line"),
    (3_599_500, 366_000_001, "späť 三"),
]


@pytest.mark.parametrize("name", READERS)
def test_cues_read_back(name):
    expected = EXPECTED
    if name == "srt":  # has no escapes
        expected = [(start, end, text.replace("-->", "->")) for start, end, text in EXPECTED]
    assert READERS[name](format_transcript(TRANSCRIPT, name)) == expected


@pytest.mark.parametrize("name", READERS)
@given(segments=segments)
def test_any_segments_read_back(name, segments):
    cues = READERS[name](format_transcript(Transcript("", 0.0, segments=tuple(segments)), name))
    kept = [segment for segment in segments if segment.text.split()]
    assert len(cues) == len(kept)
    latest = 0
    for (start, end, text), segment in zip(cues, kept, strict=True):
        assert start == max(latest, round(segment.start * 1000))
        assert end > start
        assert end >= round(segment.end * 1000)
        expected = " ".join(segment.text.split())
        assert text == (expected.replace("-->", "->") if name == "srt" else expected)
        latest = start


@pytest.mark.parametrize("name", READERS)
def test_words_are_cues_of_their_own(name):
    words = (Word(" One,", 0.0, 0.4), Word(" two.", 0.5, 0.9))
    transcript = Transcript("One, two.", 1.0, segments=(Segment("One, two.", 0.0, 1.0, words),))
    assert READERS[name](format_transcript(transcript, name)) == [(0, 400, "One,"), (500, 900, "two.")]


@pytest.mark.parametrize(
    ("name", "text"), [("text", "\n"), ("srt", ""), ("vtt", "WEBVTT\n"), ("tsv", "start\tend\ttext\n")]
)
def test_silence_is_well_formed(name, text):
    assert format_transcript(Transcript("", 2.0), name) == text


def test_exact_forms():
    transcript = Transcript("Hi <b>", 2.0, "en", (Segment("Hi <b>", 0.25, 1.0),), "a.wav")
    assert format_transcript(transcript, "text") == "Hi <b>\n"
    assert format_transcript(transcript, "srt") == "1\n00:00:00,250 --> 00:00:01,000\nHi <b>\n\n"
    assert format_transcript(transcript, "vtt") == "WEBVTT\n\n00:00:00.250 --> 00:00:01.000\nHi &lt;b&gt;\n"
    assert format_transcript(transcript, "tsv") == "start\tend\ttext\n250\t1000\tHi <b>\n"


def test_json_holds_everything():
    words = (Word(" 三", 0.0, 0.4),)
    transcript = Transcript("三 b", 1.0, "zh", (Segment("三", 0.0, 0.4, words), Segment("b", 0.5, 1.0)), "a.wav")
    written = format_transcript(transcript, "json")
    assert "三" in written
    assert json.loads(written) == {
        "file": "a.wav",
        "duration": 1.0,
        "language": "zh",
        "text": "三 b",
        "segments": [
            {"text": "三", "start": 0.0, "end": 0.4, "words": [{"text": " 三", "start": 0.0, "end": 0.4}]},
            {"text": "b", "start": 0.5, "end": 1.0},
        ],
    }


def test_every_format_has_a_suffix():
    assert FORMATS.keys() == SUFFIXES.keys()
    assert len(set(SUFFIXES.values())) == len(SUFFIXES)


def test_texts_are_joined_as_the_language_is_written():
    assert join_texts([" one", "two ", "", " three"], "en") == "one two three"
    assert join_texts(["one", "two"], None) == "one two"
    assert join_texts(["一", " 二"], "zh") == "一二"
