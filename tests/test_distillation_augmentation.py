"""Augmentation: each transform does what its name says, by how much was asked, and from its seed alone."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from whisper_hailo_hf.distillation.augmentation import (
    PROBABILITIES,
    AugmentationConfig,
    Augmenter,
    change_speed,
    codec_shares,
    coloured_noise,
    reverberate,
    synthetic_room,
    through_codec,
)
from whisper_hailo_hf.errors import RequestError

RATE = 16_000
PER_UTTERANCE = ("speed", "pitch", "tempo")


def only(name: str, **settings) -> Augmenter:
    return Augmenter(AugmentationConfig(**vars(AugmentationConfig.none()) | {name: 1.0} | settings))


def tone(frequency: float, seconds: float = 2.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def pitch_of(audio: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(audio.size)))
    return float(np.argmax(spectrum) * RATE / audio.size)


def rms(audio: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(audio))))


@pytest.fixture(scope="module")
def speech(make_speech) -> np.ndarray:
    return make_speech(2.0)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_each_transform(name: str, speech: np.ndarray) -> None:
    augmenter = only(name)

    def apply(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        if name in PER_UTTERANCE:
            return augmenter.utterance(speech, rng)
        return augmenter.recording(speech, rng, rms(speech), lambda: speech[::-1])

    before = speech.copy()
    global_state = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    one, same, other = apply(1), apply(1), apply(2)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == global_state  # noqa: NPY002
    np.testing.assert_array_equal(speech, before)  # its input is left alone
    np.testing.assert_array_equal(one, same)
    assert one.dtype == np.float32
    assert np.isfinite(one).all()
    assert one.shape != other.shape or not np.array_equal(one, other)
    assert one.shape != speech.shape or not np.array_equal(one, speech)
    if name not in PER_UTTERANCE:
        assert one.shape == speech.shape
        assert np.abs(one).max() <= 1


def test_nothing_is_done_where_nothing_is_asked(speech: np.ndarray) -> None:
    augmenter, rng = Augmenter(AugmentationConfig.none()), np.random.default_rng(0)
    assert augmenter.utterance(speech, rng) is speech
    np.testing.assert_array_equal(augmenter.recording(speech, rng, 0.1, lambda: speech), speech)
    empty = np.zeros(0, np.float32)
    everything = Augmenter(AugmentationConfig(**dict.fromkeys(PROBABILITIES, 1.0)))
    assert everything.utterance(empty, rng).size == everything.recording(empty, rng, 0.0).size == 0


def test_all_at_once_on_anything(speech: np.ndarray) -> None:
    everything = Augmenter(AugmentationConfig(**dict.fromkeys(PROBABILITIES, 1.0)))
    for audio in (speech, np.zeros(8_000, np.float32), speech[:50], np.ones(400, np.float32)):
        rng = np.random.default_rng(0)
        changed = everything.utterance(audio, rng)
        result = everything.recording(changed, rng, rms(changed), lambda: speech)
        assert result.shape == changed.shape
        assert result.dtype == np.float32
        assert np.isfinite(result).all()
        assert np.abs(result).max() <= 1


def test_speed_pitch_and_tempo() -> None:
    audio = tone(400)
    faster = change_speed(audio, 1.25)
    assert faster.size == pytest.approx(audio.size / 1.25, abs=2)
    assert pitch_of(faster) == pytest.approx(500, abs=2)
    higher = only("pitch", pitch_range=(2.0, 2.0)).utterance(audio, np.random.default_rng(0))
    assert higher.size == audio.size
    assert pitch_of(higher) == pytest.approx(400 * 2 ** (2 / 12), abs=4)
    slower = only("tempo", tempo_range=(0.8, 0.8)).utterance(audio, np.random.default_rng(0))
    assert slower.size == pytest.approx(audio.size / 0.8, rel=0.01)
    assert pitch_of(slower) == pytest.approx(400, abs=4)


@pytest.mark.parametrize("name", ["noise", "babble"])
def test_noise_and_babble_at_the_ratio_asked(name: str, make_speech) -> None:
    """The speech fills a quarter of the recording; the ratio is that of its own power."""
    audio = np.zeros(4 * RATE, np.float32)
    audio[:RATE] = make_speech(1.0) * 0.1
    level = rms(audio[:RATE])
    augmenter = only(name, **{f"{name}_snr": (12.0, 12.0)})
    noisy = augmenter.recording(audio, np.random.default_rng(0), level, lambda: make_speech(1.5, seed=9))
    assert 20 * np.log10(level / rms(noisy - audio)) == pytest.approx(12, abs=0.2)
    # Nothing to set it against: no noise.
    np.testing.assert_array_equal(augmenter.recording(audio, np.random.default_rng(0), 0.0, lambda: audio), audio)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_colour_of_noise(exponent: float) -> None:
    noise = coloured_noise(30 * RATE + 7, np.random.default_rng(0), exponent)
    assert noise.dtype == np.float32
    assert noise.size == 30 * RATE + 7
    assert rms(noise) == pytest.approx(1, abs=1e-3)
    power = np.abs(np.fft.rfft(noise)) ** 2
    frequency = np.fft.rfftfreq(noise.size, 1 / RATE)
    octaves = [(f, 2 * f) for f in (100, 200, 400, 800, 1600, 3200)]
    means = [np.log2(power[(frequency >= low) & (frequency < high)].mean()) for low, high in octaves]
    assert np.polyfit(range(len(means)), means, 1)[0] == pytest.approx(-exponent, abs=0.1)


def test_synthetic_room() -> None:
    room = synthetic_room(np.random.default_rng(0), rt60=0.5, direct_to_reverberant=6.0)
    assert room[0] == 1
    assert 10 * np.log10(1 / np.sum(room[1:] ** 2)) == pytest.approx(6, abs=0.01)
    # Schroeder's backward integral falls by 60 dB in 0.5 s: between 0.05 and 0.25 s by 24 dB.
    decay = 10 * np.log10(np.cumsum(room[::-1] ** 2)[::-1])
    assert decay[800] - decay[4000] == pytest.approx(24, abs=2)


def test_rooms_keep_time_level_and_length(speech: np.ndarray) -> None:
    late = np.concatenate([np.zeros(500, np.float32), synthetic_room(np.random.default_rng(0), 0.3, 10.0)])
    wet = reverberate(speech, late)  # its direct sound comes late, and is brought back in time
    assert wet.shape == speech.shape
    assert rms(wet) == pytest.approx(rms(speech), rel=1e-3)
    lags = range(-600, 601)
    middle = speech[1_000:-1_000]
    likeness = [float(np.dot(middle, wet[1_000 + lag : wet.size - 1_000 + lag])) for lag in lags]
    assert lags[int(np.argmax(likeness))] == 0
    np.testing.assert_array_equal(reverberate(np.zeros_like(speech), late), np.zeros_like(speech))


@pytest.mark.parametrize("codec", range(len(codec_shares())), ids=list(codec_shares()))
def test_codecs_keep_time_and_length(codec: int, make_speech) -> None:
    speech = make_speech(2.0, seed=4)[: 2 * RATE - 3]
    heard = through_codec(speech, np.random.default_rng(0), codec)
    assert heard.shape == speech.shape
    assert heard.dtype == np.float32
    assert not np.array_equal(heard, speech)
    lags = range(-400, 401)
    middle = speech[500:-500]
    likeness = [float(np.dot(middle, heard[500 + lag : heard.size - 500 + lag])) for lag in lags]
    assert abs(lags[int(np.argmax(likeness))]) <= 8  # half a millisecond; a position lasts 20
    assert max(likeness) / (np.linalg.norm(middle) * np.linalg.norm(heard[500:-500])) > 0.6


def test_band_limits_and_clipping(speech: np.ndarray) -> None:
    white = coloured_noise(RATE * 2, np.random.default_rng(0), 0.0) * np.float32(0.1)
    frequency = np.fft.rfftfreq(white.size, 1 / RATE)
    lost = []
    for seed in range(8):
        heard = only("band_limit").recording(white, np.random.default_rng(seed), 0.1)
        power = np.abs(np.fft.rfft(heard)) ** 2
        lost.append((power[frequency < 40].mean(), power[frequency > 7_500].mean()))
    full = float((np.abs(np.fft.rfft(white)) ** 2).mean())
    assert min(low for low, _ in lost) < 0.1 * full
    assert min(high for _, high in lost) < 0.1 * full
    clipped = only("clipping").recording(speech, np.random.default_rng(0), 0.1)
    peak = np.abs(clipped).max()
    assert peak == pytest.approx(np.abs(speech).max(), rel=1e-5)
    assert np.count_nonzero(np.abs(clipped) > 0.999 * peak) > 10 * np.count_nonzero(np.abs(speech) > 0.999 * peak)


def test_level(speech: np.ndarray) -> None:
    quiet = only("level", level_range=(-20.0, -20.0)).recording(speech, np.random.default_rng(0), 0.1)
    np.testing.assert_allclose(quiet, speech * 0.1, rtol=1e-5)
    loud = only("level", level_range=(40.0, 40.0)).recording(speech, np.random.default_rng(0), 0.1)
    assert np.abs(loud).max() == pytest.approx(1)
    np.testing.assert_allclose(loud, speech / np.abs(speech).max(), rtol=1e-4, atol=1e-6)  # turned down, not clipped


def test_folders_of_noise_and_rooms(tmp_path: Path, speech: np.ndarray) -> None:
    hum = tone(1_000, 0.5)
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "hum.wav", hum, RATE)
    (tmp_path / "rooms").mkdir()
    echo = np.zeros(4_000, np.float32)
    echo[[100, 3_100]] = 1.0, 0.5
    soundfile.write(tmp_path / "rooms" / "echo.wav", echo, RATE)
    augmenter = only("noise", noise_folder=str(tmp_path / "noise"), noise_snr=(0.0, 0.0))
    silent = np.zeros_like(speech)
    pitches = []
    for seed in range(12):
        added = augmenter.recording(silent, np.random.default_rng(seed), 0.1)
        assert rms(added) == pytest.approx(0.1, rel=0.01)
        pitches.append(pitch_of(added))
    assert 3 <= sum(abs(pitch - 1_000) < 5 for pitch in pitches) <= 11  # half and half
    augmenter = only("room", room_folder=str(tmp_path / "rooms"))
    click = np.zeros(RATE, np.float32)
    click[1_000] = 0.5
    echoes = [augmenter.recording(click, np.random.default_rng(seed), 0.1) for seed in range(12)]
    two = sum(bool(abs(heard[4_000] / heard[1_000] - 0.5) < 0.01) for heard in echoes)
    assert 3 <= two <= 9
    assert augmenter.settings()["files"] != only("room").settings()["files"]


def test_bad_settings_are_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"noise is 1\.5, a probability is between 0 and 1"):
        AugmentationConfig(noise=1.5)
    with pytest.raises(RequestError, match=r"speed_range is \(1\.2, 0\.8\)"):
        AugmentationConfig(speed_range=(1.2, 0.8))
    with pytest.raises(RequestError, match="holds no audio file"):
        Augmenter(AugmentationConfig(noise_folder=str(tmp_path)))
    assert AugmentationConfig(noise_snr=[0, 10]).noise_snr == (0, 10)  # as a config file has it


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "audiomentations", None)
    with pytest.raises(RequestError, match=r"pip install whisper-hailo-hf\[train\]"):
        Augmenter()
