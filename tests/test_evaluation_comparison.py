"""Fidelity of one stage against another: known damage gives the figures that theory says."""

import json
import math

import numpy as np
import pytest

from whisper_hailo_hf.evaluation import Gates, compare_states
from whisper_hailo_hf.fidelity import cosines, decibels

WINDOWS, POSITIONS, WIDTH = 5, 60, 16


def states(seed: int = 0) -> np.ndarray:
    """Random states, each channel with a mean and a deviation of its own."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(WINDOWS, POSITIONS, WIDTH))
    return (values * rng.uniform(0.5, 2, WIDTH) + rng.normal(size=WIDTH)).astype(np.float32)


def everywhere() -> np.ndarray:
    return np.ones((WINDOWS, POSITIONS), bool)


def test_nothing_lost() -> None:
    found = compare_states(states(), states(), everywhere())
    assert found.metrics["snr_db"] == 200
    assert found.metrics["cosine_min"] == pytest.approx(1)
    assert found.metrics["whitened_cosine_mean"] == pytest.approx(1)
    assert found.metrics["drift_db"] == 0
    assert found.metrics["channel_mean_drift_max"] == pytest.approx(0, abs=1e-6)
    assert found.scale == pytest.approx(np.ones(WIDTH), abs=1e-6)
    assert not Gates().failures(found.metrics)


def test_noise_of_a_known_level() -> None:
    clean = states()
    noise = np.random.default_rng(9).normal(size=clean.shape) * np.sqrt(np.square(clean).mean() / 100)
    found = compare_states(clean, (clean + noise).astype(np.float32), everywhere()).metrics
    assert found["snr_db"] == pytest.approx(20, abs=0.15)
    # two vectors at 20 dB: the cosine is 1 / sqrt(1 + 1/100) on average, and all frames take part in it
    a, b = clean.astype(np.float64), (clean + noise).astype(np.float32).astype(np.float64)
    by_hand = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert found["cosine_mean"] == pytest.approx(by_hand.mean(), abs=1e-9)
    assert found["cosine_min"] == pytest.approx(by_hand.min(), abs=1e-9)
    assert found["cosine_p5"] == pytest.approx(np.percentile(by_hand, 5), abs=1e-9)


def test_the_positional_mean_flatters_the_plain_snr() -> None:
    rng = np.random.default_rng(1)
    content = rng.normal(size=(WINDOWS, POSITIONS, WIDTH))
    clean = content + 10 * rng.normal(size=(POSITIONS, WIDTH))
    found = compare_states(clean, clean + 0.5 * rng.normal(size=clean.shape), everywhere()).metrics
    # the mean over five windows takes a fifth of the content's energy with it
    assert found["content_snr_db"] == pytest.approx(decibels(0.8, 0.25), abs=0.3)
    assert found["snr_db"] > found["content_snr_db"] + 15
    assert "content_snr_db" not in compare_states(clean[:3], clean[:3], everywhere()[:3]).metrics


def test_a_shifted_and_a_stretched_channel() -> None:
    clean = states()
    deviation = clean.astype(np.float64).std((0, 1))
    spoiled = clean.copy()
    spoiled[..., 3] += 0.5 * deviation[3]
    spoiled[..., 7] = (spoiled[..., 7] - spoiled[..., 7].mean()) * 2 + spoiled[..., 7].mean()
    found = compare_states(clean, spoiled, everywhere())
    assert found.mean_drift[3] == pytest.approx(0.5, abs=1e-4)
    assert found.metrics["channel_mean_drift_max"] == pytest.approx(0.5, abs=1e-4)
    assert found.scale[7] == pytest.approx(2, abs=1e-4)
    assert found.metrics["channel_scale_max"] == pytest.approx(2, abs=1e-4)
    assert found.metrics["worst_channel"] == 7
    assert np.isclose(found.snr_by_channel, 200).sum() == WIDTH - 2


def test_an_error_that_grows_along_the_window() -> None:
    clean = states()
    growing = np.random.default_rng(2).normal(size=clean.shape) * np.linspace(0.01, 1, POSITIONS)[None, :, None]
    found = compare_states(clean, clean + growing, everywhere())
    assert found.metrics["snr_db_start"] > found.metrics["snr_db_middle"] > found.metrics["snr_db_end"]
    assert found.metrics["drift_db"] == pytest.approx(found.metrics["snr_db_start"] - found.metrics["snr_db_end"])
    assert len(found.snr_by_time) == 60
    assert found.snr_by_time[:10].mean() > found.snr_by_time[-10:].mean() + 10


def test_what_padding_would_hide() -> None:
    clean, heard = states(), np.zeros((WINDOWS, POSITIONS), bool)
    heard[:, :3] = True
    spoiled = clean.copy()
    spoiled[:, :3] = np.random.default_rng(3).normal(size=spoiled[:, :3].shape) * 0.3 + 0.8 * spoiled[:, :3]
    found = compare_states(clean, spoiled, heard)
    assert found.metrics["snr_db"] > 20
    assert found.metrics["snr_db_heard"] < 15
    (failure,) = Gates(cosine=0.5).failures(found.metrics)
    assert "on frames of the recordings" in failure


def test_values_that_are_no_numbers() -> None:
    spoiled = states()
    spoiled[1, 5, 2] = np.nan
    spoiled[2, 6] = np.inf
    found = compare_states(states(), spoiled, everywhere())
    assert found.metrics["bad_frames"] == 2
    assert found.metrics["snr_db"] == 200
    assert Gates().failures(found.metrics) == ["2 frames with values that are not finite numbers"]
    spoiled[:] = np.nan
    found = compare_states(states(), spoiled, everywhere())
    assert found.metrics["bad_frames"] == WINDOWS * POSITIONS
    assert "snr_db" not in found.metrics


def test_silent_states_are_no_division_by_zero() -> None:
    zeros = np.zeros((WINDOWS, POSITIONS, WIDTH), np.float32)
    found = compare_states(zeros, states(), everywhere())
    assert "snr_db" not in found.metrics
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["snr_by_channel"] == [None] * WIDTH


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="not one"):
        compare_states(states(), states()[:, :-1], everywhere())


def test_decibels_and_cosines() -> None:
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(1.0, 0.0) == 200
    assert math.isnan(decibels(0.0, 1.0))
    assert cosines(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])) == pytest.approx(
        [math.sqrt(0.5), 0]
    )
