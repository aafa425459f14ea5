"""Blocks to chunks: the same whatever the blocks, and a clock that goes on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.live.intake import Gap, Intake, as_mono

RATES = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000)


def run(samples, sizes, rate, at=None):
    intake, pieces, place, turn = Intake(), [], 0, 0
    while place < len(samples):
        size = sizes[turn % len(sizes)]
        pieces += intake.push(samples[place : place + size], rate)
        place, turn = place + size, turn + 1
    pieces += intake.flush()
    return intake, [piece.samples for piece in pieces]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(rate=st.sampled_from(RATES), sizes=st.lists(st.integers(50, 20_000), min_size=1, max_size=6))
def test_the_cut_into_blocks_makes_no_difference(rate, sizes):
    samples = np.random.default_rng(rate).standard_normal(rate).astype(np.float32) * 0.1
    _, whole = run(samples, [len(samples)], rate)
    intake, cut = run(samples, sizes, rate)
    assert np.array_equal(np.concatenate(whole), np.concatenate(cut))
    assert [len(piece) for piece in whole] == [len(piece) for piece in cut]
    assert intake.clock == pytest.approx(1.0)
    # a second in, a second out, whatever the rate
    assert sum(map(len, cut)) == pytest.approx(16_000, abs=2)


def test_a_tone_is_the_same_tone_at_16_khz():
    for rate in RATES:
        tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32) * 0.5
        found = np.concatenate(run(tone, [1000], rate)[1])
        wanted = np.sin(2 * np.pi * 440 * np.arange(len(found)) / 16_000) * 0.5
        assert np.abs(found - wanted)[500:-500].max() < 2e-3, rate


def test_kinds_of_samples_mean_the_same():
    wave = np.array([0.0, 0.5, -0.25, -1.0])
    for block in (wave, wave.astype(np.float32), (wave * 2**15).astype(np.int16), (wave * 2**31).astype(np.int32)):
        assert np.allclose(as_mono(block), wave)
    assert np.allclose(as_mono(np.stack([wave, -wave], axis=1)), 0)
    assert np.allclose(as_mono(wave[:, None]), wave)


@pytest.mark.parametrize(
    ("block", "rate", "says"),
    [
        (np.zeros((10, 3)), 16_000, "1 or 2 channels"),
        (np.zeros(10, np.uint8), 16_000, "float, int16 or int32"),
        (np.zeros((2, 2, 2)), 16_000, "a block is"),
        (np.zeros(10), 100, "sampling rate"),
    ],
)
def test_what_is_not_audio_is_refused_in_one_line(block, rate, says):
    with pytest.raises(RequestError, match=says) as error:
        list(Intake().push(block, rate))
    assert "\n" not in str(error.value)


def test_lost_audio_moves_the_clock():
    intake = Intake()
    list(intake.push(np.zeros(1600), 16_000))
    short = list(intake.push(np.zeros(1600), 16_000, at=0.4))  # 0.3 s are missing
    assert short[0] == Gap(pytest.approx(0.3), True)
    assert intake.clock == pytest.approx(0.5)
    long = list(intake.push(np.zeros(1600), 16_000, at=10.0))
    assert any(piece == Gap(pytest.approx(9.5), False) for piece in long)
    assert intake.clock == pytest.approx(10.1)
    # a clock that jitters, or goes back, is no gap
    assert not any(isinstance(piece, Gap) for piece in intake.push(np.zeros(1600), 16_000, at=10.12))
    assert not any(isinstance(piece, Gap) for piece in intake.push(np.zeros(1600), 16_000, at=3.0))
    assert intake.clock == pytest.approx(10.3)


def test_the_rate_may_change_and_nothing_is_lost():
    intake = Intake()
    pieces = [*intake.push(np.ones(4_000) * 0.1, 8_000), *intake.push(np.ones(24_000) * 0.1, 48_000), *intake.flush()]
    assert sum(len(piece.samples) for piece in pieces) == pytest.approx(16_000, abs=4)
    assert intake.clock == pytest.approx(1.0)


def test_faults_are_found():
    loud = np.clip(3 * np.sin(np.arange(1600) / 10), -1, 1).astype(np.float32)
    assert any(piece.clipped for piece in Intake().push(loud, 16_000))
    assert not any(piece.clipped for piece in Intake().push(0.9 * loud, 16_000))
    bad = np.zeros(1600, np.float32)
    bad[100] = np.nan
    pieces = list(Intake().push(bad, 16_000))
    assert [piece.broken for piece in pieces] == [True, False, False]
    assert all(np.isfinite(piece.samples).all() for piece in pieces)
