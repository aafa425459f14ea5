"""Windows: every kind is what its name says, its speech mask is true, and chance depends on the seed alone."""

from collections import Counter

import numpy as np
import pytest

from whisper_hailo_hf.distillation.augmentation import AugmentationConfig, Augmenter
from whisper_hailo_hf.distillation.windows import (
    SAMPLES_PER_POSITION,
    Window,
    WindowMix,
    WindowPacker,
    speech_extent,
)
from whisper_hailo_hf.errors import RequestError

POSITIONS = 200  # 4 s
SAMPLES = POSITIONS * SAMPLES_PER_POSITION


def utterances(count: int = 20, longest: int = 20_000) -> list[np.ndarray]:
    """Noise without a pause, never zero, so that what is heard can be counted."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3_000, longest, count)
    return [(rng.uniform(0.05, 0.2, n) * rng.choice([-1, 1], n)).astype(np.float32) for n in lengths]


def pack(kind: str, index: int = 0, *, epoch: int = 0, seed: int = 0, spoken=None, augmenter=None) -> Window:
    spoken = utterances() if spoken is None else spoken
    packer = WindowPacker(POSITIONS, WindowMix.only(kind), augmenter, seed)
    return packer.pack(packer.generator(epoch, index), index % len(spoken), len(spoken), spoken.__getitem__)


def covered(window: Window) -> np.ndarray:
    """Positions on which anything but zeros is heard."""
    return (window.audio.reshape(POSITIONS, -1) != 0).any(1)


@pytest.mark.parametrize("kind", list(WindowMix().weights()))
def test_shape_and_determinism(kind: str) -> None:
    for augmenter in (None, Augmenter()):
        one, same = (pack(kind, 7, epoch=3, seed=5, augmenter=augmenter) for _ in range(2))
        assert one.audio.dtype == np.float32
        assert one.audio.shape == (SAMPLES,)
        assert one.speech_mask.dtype == bool
        assert one.speech_mask.shape == (POSITIONS,)
        assert np.abs(one.audio).max() <= 1
        np.testing.assert_array_equal(one.audio, same.audio)
        np.testing.assert_array_equal(one.speech_mask, same.speech_mask)
        assert one.utterances == same.utterances
        if kind != "silent":  # half of those are all alike
            for other in ({"epoch": 4, "seed": 5}, {"epoch": 3, "seed": 6}):
                changed = pack(kind, 7, **other, augmenter=augmenter)
                assert (kind == "single" and augmenter is None) or not np.array_equal(one.audio, changed.audio)


def test_single() -> None:
    spoken = utterances()
    for index, audio in enumerate(spoken):
        window = pack("single", index, spoken=spoken)
        assert window.utterances == [index]
        assert window.intact
        np.testing.assert_array_equal(window.audio[: audio.size], audio)
        assert not window.audio[audio.size :].any()  # exact zeros, as the feature extractor pads
        np.testing.assert_array_equal(window.speech_mask, covered(window))


def test_single_that_outlasts_the_window_is_cut_anywhere() -> None:
    long = np.linspace(0.1, 0.9, 3 * SAMPLES // 2, dtype=np.float32)
    starts = [float(pack("single", i, spoken=[long]).audio[0]) for i in range(20)]
    assert min(starts) < 0.2
    assert max(starts) > 0.3
    window = pack("single", spoken=[long])
    assert not window.intact
    assert window.speech_mask.all()


def test_shifted() -> None:
    starts = []
    for index in range(40):
        window = pack("shifted", index)
        np.testing.assert_array_equal(window.speech_mask, covered(window))
        starts.append(int(np.argmax(window.speech_mask)))
    assert len(set(starts)) > 20
    assert max(starts) > POSITIONS // 2


def test_sequence() -> None:
    spoken = utterances()
    windows = [pack("sequence", index, spoken=spoken) for index in range(60)]
    full = sum(bool(window.speech_mask[-10:].any()) for window in windows)
    assert 20 <= full <= 50  # about half of them are full to the end, and some of the others by chance
    assert np.mean([len(window.utterances) for window in windows]) > 3
    for index, window in enumerate(windows):
        assert window.utterances[0] == index % len(spoken)
        np.testing.assert_array_equal(window.speech_mask, covered(window))
        heard = int(np.count_nonzero(window.audio))
        said = sum(spoken[i].size for i in window.utterances)
        assert (heard == said) == window.intact  # nothing is cut, nothing overlaps
    assert {window.intact for window in windows} == {True, False}
    gaps = [np.count_nonzero(~w.speech_mask[: np.flatnonzero(w.speech_mask)[-1]]) for w in windows]
    assert max(gaps) > 10
    assert sum(bool(window.speech_mask[:50].all()) for window in windows) > 5


def test_overlapped() -> None:
    spoken = utterances()
    more = 0
    for index in range(30):
        window = pack("overlapped", index, spoken=spoken)
        assert not window.intact
        np.testing.assert_array_equal(window.speech_mask, covered(window))
        more += sum(spoken[i].size for i in window.utterances) > np.count_nonzero(window.audio)
    assert more >= 25


@pytest.mark.parametrize("augmenter", [None, Augmenter()], ids=["plain", "augmented"])
def test_noise_and_silence_hold_no_speech(augmenter: Augmenter | None) -> None:
    levels = []
    for index in range(20):
        noise, silent = (pack(kind, index, augmenter=augmenter) for kind in ("noise", "silent"))
        assert noise.audio.any()
        assert not noise.speech_mask.any()
        assert not silent.speech_mask.any()
        assert noise.utterances == silent.utterances == []
        levels.append(float(np.sqrt(np.mean(silent.audio**2))))
    assert 0 in levels
    assert 0 < max(levels) < 10 ** (-60 / 20)


def test_noise_ends_with_the_recording() -> None:
    """After a short recording come exact zeros, whatever is done to the recording."""
    config = AugmentationConfig.none()
    noisy = Augmenter(AugmentationConfig(**vars(config) | {"noise": 1.0, "room": 1.0, "noise_snr": (5.0, 5.0)}))
    spoken = utterances()
    for index in range(10):
        window = pack("single", index, spoken=spoken, augmenter=noisy)
        last = int(np.flatnonzero(window.audio)[-1]) + 1
        assert spoken[index].size <= last <= spoken[index].size + 1.5 * 16_000
        assert np.count_nonzero(window.audio[:last]) > 0.99 * last


def test_mix() -> None:
    mix = WindowMix(single=6, sequence=3, shifted=0, overlapped=1, noise=0, silent=0)
    rng = np.random.default_rng(0)
    drawn = Counter(mix.draw(rng) for _ in range(3000))
    assert set(drawn) == {"single", "sequence", "overlapped"}
    assert drawn["single"] / 3000 == pytest.approx(0.6, abs=0.04)
    assert drawn["overlapped"] / 3000 == pytest.approx(0.1, abs=0.03)
    for weights in ({"single": -1.0}, {"single": float("nan")}, dict.fromkeys(mix.weights(), 0.0)):
        with pytest.raises(RequestError, match="window mix"):
            WindowMix(**weights)


def test_order_takes_every_utterance_once() -> None:
    packer = WindowPacker(POSITIONS, seed=3)
    first, second = packer.order(0, 50), packer.order(1, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, WindowPacker(POSITIONS, seed=3).order(0, 50))


def test_speech_extent() -> None:
    rng = np.random.default_rng(0)
    audio = np.zeros(32_000, np.float32)
    audio[8_000:16_000] = rng.normal(size=8_000) * 0.1
    audio[20_000:24_000] = rng.normal(size=4_000) * 0.01  # 20 dB below is speech still
    margin = 5 * SAMPLES_PER_POSITION
    assert speech_extent(audio) == (8_000 - margin, 24_000 + margin)
    faint = audio + rng.normal(size=audio.size).astype(np.float32) * 0.0001  # 60 dB below is not
    assert speech_extent(faint) == (8_000 - margin, 24_000 + margin)
    loud = audio + rng.normal(size=audio.size).astype(np.float32) * 0.01  # a noisy recording counts whole
    assert speech_extent(loud) == (0, audio.size)
    assert speech_extent(np.zeros(5_000, np.float32)) == (0, 0)
    assert speech_extent(np.full(100, 0.1, np.float32)) == (0, 100)
    assert speech_extent(np.zeros(0, np.float32)) == (0, 0)


def test_silent_edges_of_an_utterance_are_no_speech() -> None:
    audio = np.zeros(48_000, np.float32)
    audio[16_000:32_000] = np.random.default_rng(0).normal(size=16_000) * 0.1
    window = pack("single", spoken=[audio])
    np.testing.assert_array_equal(np.flatnonzero(window.speech_mask), np.arange(45, 105))
    evaluated = WindowPacker(POSITIONS).evaluation(0, audio)
    np.testing.assert_array_equal(evaluated.speech_mask, window.speech_mask)
    np.testing.assert_array_equal(evaluated.audio[:48_000], audio)
    assert not evaluated.audio[48_000:].any()
