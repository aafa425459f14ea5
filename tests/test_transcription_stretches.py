"""Stretches of speech: where they begin and end, how long ones are cut, and what of a recording is left out."""

import numpy as np
import pytest
from helpers_live import Loudness
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_hailo_hf.transcription.stretches import SpeechStretches
from whisper_hailo_hf.voice_activity import FRAME

RATE = 16_000
LONGEST = 30 * RATE
MARGIN = 9 * FRAME  # 0.29 s


def recording(*parts: float) -> np.ndarray:
    """Seconds of voice, and of silence where negative."""
    rng = np.random.default_rng(0)
    pieces = [rng.uniform(0.1, 0.3, round(abs(s) * RATE)) * (s > 0) for s in parts]
    return np.concatenate(pieces).astype(np.float32)


def stretches(samples: np.ndarray, sizes=(RATE,), longest: int = LONGEST) -> list[tuple[int, int]]:
    """The (start, stop) of each; what they hold is the recording's own."""
    places = np.cumsum(np.resize(sizes, len(samples) // min(sizes) + 1))
    reader = SpeechStretches(iter(np.split(samples, places[places < len(samples)])), Loudness(), longest)
    found = []
    for start, part in reader:
        assert start <= reader.heard
        assert 0 < len(part) <= longest
        assert np.array_equal(part, samples[start : start + len(part)])
        found.append((start, start + len(part)))
    assert reader.heard == len(samples)
    return found


def test_long_pauses_are_left_out_but_for_a_margin():
    (start, stop), (again, end) = stretches(recording(-5, 3, -2.2, 1, -7))
    assert 0 <= 5 * RATE - MARGIN - start < FRAME
    assert 0 <= stop - (8 * RATE + MARGIN) < FRAME
    assert 0 <= 10.2 * RATE - MARGIN - again < FRAME
    assert 0 <= end - (11.2 * RATE + MARGIN) < FRAME


def test_short_pauses_stay():
    assert len(stretches(recording(1, -1.8, 1, -0.3, 1))) == 1


def test_margins_end_where_the_recording_does():
    samples = recording(2.01)
    assert stretches(samples) == [(0, len(samples))]


@pytest.mark.parametrize("parts", [(-40.0,), (-0.992, 0.032, -4.0), (-0.01,)])
def test_where_nobody_speaks_there_is_none(parts):
    # one frame of 32 ms is a click
    assert stretches(recording(*parts)) == []


def test_a_long_stretch_is_cut_in_its_longest_late_pause():
    # the pause at 10 s is longer, but a window of 10 s would be a waste
    found = stretches(recording(10, -0.5, 9, -0.2, 5, -0.4, 20))
    (first, stop), (start, _) = found
    assert first == 0
    assert stop <= start
    assert abs((stop + start) / 2 - 24.9 * RATE) < 2 * FRAME


def test_without_a_pause_the_cut_is_where_there_is_least_speech():
    class Doubtful(Loudness):
        heard = 0

        def __call__(self, frame: np.ndarray) -> float:
            self.heard += 1
            return 0.6 if self.heard == 701 else 0.9

    reader = SpeechStretches(iter([recording(40)]), Doubtful(), LONGEST)
    (start, first), (again, rest) = reader
    assert (start, len(first)) == (0, 700 * FRAME)
    assert (again, again + len(rest)) == (700 * FRAME, 40 * RATE)


def test_a_pause_at_the_limit_is_no_stretch_of_its_own():
    # cut in the pause from 29.5 s on: what is left is that pause, and then an end
    (_, stop), *rest = stretches(recording(29.5, -8))
    assert not rest
    assert abs(stop - 29.5 * RATE - MARGIN) < 2 * FRAME


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.floats(0.02, 9), min_size=1, max_size=9),
    sizes=st.lists(st.integers(300, 40_000), min_size=1, max_size=4),
    longest=st.integers(3 * RATE, 12 * RATE),
)
def test_all_speech_is_in_one_stretch_whatever_the_blocks(parts, sizes, longest):
    samples = recording(*(s if i % 2 else -s for i, s in enumerate(parts)))
    found = stretches(samples, sizes, longest)
    assert found == stretches(samples, (RATE,), longest)
    inside = np.zeros(len(samples), int)
    for start, stop in found:
        inside[start:stop] += 1
    assert inside.max(initial=0) <= 1
    # frames of voice that have a neighbour of voice are in a stretch
    whole = len(samples) // FRAME
    loud = (np.abs(samples[: whole * FRAME]).reshape(whole, FRAME) > 0).all(axis=1)
    kept = inside[: whole * FRAME].reshape(whole, FRAME).all(axis=1)
    runs = np.flatnonzero(loud[1:] & loud[:-1])
    lost = [run for run in runs if not kept[run] and not (run + 1 < whole and kept[run + 1])]
    assert not lost
