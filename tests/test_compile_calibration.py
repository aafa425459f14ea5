"""Ranges from what was seen: streamed histograms, the four methods, windows from audio, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import soundfile
import torch
from helpers_models import small_model
from transformers import WhisperFeatureExtractor

from whisper_hailo_hf import RequestError, WhisperHailoError
from whisper_hailo_hf.arithmetic import affine
from whisper_hailo_hf.audio import read_audio
from whisper_hailo_hf.compile import calibration
from whisper_hailo_hf.compile.calibration import Calibration, Observed, check_count, choose_range
from whisper_hailo_hf.compile.quantize import quantize_encoder
from whisper_hailo_hf.compile.windows import calibration_windows

SHAPES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy tails": lambda rng, n: rng.standard_t(2.5, n),
    "behind a relu": lambda rng, n: np.maximum(rng.standard_normal(n), 0),
    "shifted": lambda rng, n: 3 + 0.1 * rng.standard_normal(n),
    "uniform": lambda rng, n: rng.uniform(-1, 2, n),
}


def drawn(shape: str, count: int = 40_000, seed: int = 0) -> np.ndarray:
    return SHAPES[shape](np.random.default_rng(seed), count).astype(np.float32)


def seen(*windows: np.ndarray, name: str = "value") -> Observed:
    observed = Observed(name)
    for window in windows:
        observed.add(torch.from_numpy(window))
    return observed


def error_of(x: np.ndarray, low: float, high: float) -> float:
    scale = affine(low, high)
    return float(np.square(x - scale.dequantize(scale.quantize(x))).mean())


# Histograms


@pytest.mark.parametrize("shape", SHAPES)
def test_a_histogram_grows_and_loses_nothing(shape):
    """Windows of rising level: the bins double again and again."""
    parts = [drawn(shape, 3000, seed) * 2.5**seed for seed in range(8)]
    observed, whole = seen(*parts), np.concatenate(parts)
    assert observed.counts.sum() == whole.size
    assert (observed.low, observed.high) == (whole.min(), whole.max())
    assert observed.width >= np.abs(whole).max() > observed.width / 2.01
    expected = np.histogram(whole, observed.edges())[0]
    assert np.abs(np.cumsum(expected) - np.cumsum(observed.counts)).max() <= 3  # values on a border


def test_memory_does_not_grow():
    observed = seen(drawn("normal"))
    size = observed.counts.nbytes
    for seed in range(20):
        observed.add(torch.from_numpy(drawn("normal", seed=seed) * 1.5**seed))
    assert observed.counts.nbytes == size


def test_zeros_before_anything_else():
    observed = seen(np.zeros(100, np.float32), drawn("normal", 100))
    assert observed.counts.sum() == 200
    assert observed.width > 0.5


def test_peaks_of_channels():
    window = np.zeros((1, 3, 1, 5), np.float32)
    window[0, 1, 0, 2], window[0, 2, 0, 0] = -4.0, 1.0
    assert seen(window, window / 2).peaks().tolist() == [0.0, 3.0, 0.75]


# Methods


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "kl"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_range_holds_zero_and_lies_within_what_was_seen(shape, method):
    observed = seen(drawn(shape))
    low, high = choose_range(observed, method)
    assert min(observed.low, 0) <= low <= 0 <= high <= max(observed.high, 0)
    assert high - low > 0.02 * (observed.high - min(observed.low, 0))


def test_minmax_is_exact():
    x = drawn("heavy tails")
    assert choose_range(seen(x), "minmax") == (x.min(), x.max())


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_is_numpy_s(percentile):
    x = drawn("heavy tails", 39_990)  # so that no value lies at the percentile itself
    observed = seen(x)
    low, high = choose_range(observed, "percentile", percentile)
    bin_width = 2 * observed.width / len(observed.counts)
    assert low == pytest.approx(np.percentile(x, 100 - percentile, method="lower"), abs=2 * bin_width)
    assert high == pytest.approx(np.percentile(x, percentile, method="higher"), abs=2 * bin_width)


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_has_the_least_error(shape):
    x = drawn(shape)
    observed = seen(x)
    ranges = {method: choose_range(observed, method, 99.9) for method in ("minmax", "percentile", "mse", "kl")}
    errors = {method: error_of(x, *ends) for method, ends in ranges.items()}
    assert errors["mse"] <= 1.05 * min(errors.values())
    if shape == "heavy tails":
        assert errors["mse"] < 0.95 * errors["minmax"]


def test_kl_cuts_a_long_tail_and_no_short_one():
    tail, flat = seen(drawn("heavy tails")), seen(drawn("uniform"))
    assert choose_range(tail, "kl")[1] < 0.6 * tail.high
    assert choose_range(flat, "kl")[1] > 0.95 * flat.high


def test_16_bits_take_the_whole_range():
    x = drawn("heavy tails")
    found = Calibration({"x": seen(x, name="x")}, "percentile", 99.9)
    wide, narrow = found.scale("x", 16), found.scale("x", 8)
    assert wide.high >= x.max() - wide.scale
    assert narrow.high < 0.3 * x.max()


@pytest.mark.parametrize(
    ("method", "percentile", "line"),
    [
        ("median", 99.9, "method is one of minmax, percentile, mse, kl, not 'median'"),
        ("percentile", 101, "percentile"),
    ],
)
def test_no_such_method(method, percentile, line):
    with pytest.raises(RequestError, match=line):
        Calibration({}, method, percentile)


# What is refused


def test_a_constant_activation_is_named():
    observed = {"/conv1/Relu_output_0": seen(np.zeros(50, np.float32), name="/conv1/Relu_output_0")}
    with pytest.raises(WhisperHailoError, match=r"^/conv1/Relu_output_0 is 0 everywhere in all 1 windows") as raised:
        Calibration(observed)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_activation_that_is_no_number_is_named(value):
    window = np.zeros(50, np.float32)
    window[7] = value
    with pytest.raises(WhisperHailoError, match=r"^/head has values that are not finite numbers in window 2"):
        seen(np.ones(3, np.float32), window, name="/head")


def test_a_dead_network_and_bad_features_in_one_line(tmp_path):
    model = small_model()
    with torch.no_grad():
        model.get_encoder().core.conv1.norm.bias.fill_(-1e3)  # its ReLU never fires
    features = np.random.default_rng(0).standard_normal((8, 8, 60)).astype(np.float32)
    with pytest.raises(WhisperHailoError, match=r"/conv1/act/Relu_output_0 is 0 everywhere"):
        quantize_encoder(model, features, output=tmp_path / "x.onnx")
    features[5, 3, 2] = np.nan
    with pytest.raises(WhisperHailoError, match="input_features has values that are not finite"):
        quantize_encoder(small_model(), features, output=tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_few_windows_warn_and_none_are_refused(caplog):
    caplog.set_level(logging.WARNING, logger="whisper_hailo_hf")
    check_count(calibration.FEW_WINDOWS)
    assert not caplog.records
    check_count(calibration.FEW_WINDOWS - 1)
    assert "calibrating with 63 windows" in caplog.records[0].getMessage()
    with pytest.raises(RequestError, match="no audio to calibrate with"):
        check_count(0)
    with pytest.raises(RequestError, match="no audio to calibrate with"):
        quantize_encoder(small_model(), [], output="x.onnx")


# Windows


def test_features_at_hand():
    rng = np.random.default_rng(0)
    array = rng.standard_normal((5, 8, 60)).astype(np.float32)
    for given in (array, list(array), torch.from_numpy(array), iter(array)):
        windows = calibration_windows(given, 8, 60, limit=4)
        assert len(windows) == 4
        assert np.array_equal(windows[3], array[3])
    with pytest.raises(RequestError, match=r"window 1 has the shape \(8, 60\): 80 x 3000 is needed"):
        calibration_windows(array, 80, 3000, limit=4)[0]
    with pytest.raises(RequestError, match="nothing to calibrate with"):
        calibration_windows(3, 8, 60, limit=4)
    with pytest.raises(RequestError, match="windows is a positive number"):
        calibration_windows(array, 8, 60, limit=0)


@pytest.fixture
def audio(tmp_path, make_speech):
    """Nine short utterances at two rates and a long recording."""
    folder = tmp_path / "audio"
    folder.mkdir()
    for index in range(9):
        rate = 16_000 if index % 2 else 8_000
        soundfile.write(folder / f"{index}.wav", make_speech(4, index)[:: 16_000 // rate], rate)
    soundfile.write(folder / "long.wav", make_speech(70, 20), 16_000)
    return folder


def test_windows_of_audio_are_those_of_use(audio):
    windows = calibration_windows(audio, 80, 3000, limit=100)
    lengths = [sum(1 for _ in plan) for plan in windows._windows]
    assert len(windows) == 2 + lengths.count(1) - 2 + sum(n > 1 for n in lengths)
    recordings = [part for plan in windows._windows for part in plan]
    assert len(set(recordings)) == len(recordings) == 11  # each once: nine short ones, two full windows of the long
    assert max(lengths) >= 5  # as many as fit
    assert lengths.count(1) >= 4  # some utterances alone, with silence behind them
    for index in range(len(windows)):
        assert windows[index].shape == (80, 3000)
    long = soundfile.read(audio / "long.wav", dtype="float32")[0]
    place = next(i for i, plan in enumerate(windows._windows) if plan == [(9, 1)])
    expected = WhisperFeatureExtractor()(long[480_000:960_000], sampling_rate=16_000, return_tensors="np")
    assert np.allclose(windows[place], expected.input_features[0], atol=1e-5)


def test_a_window_far_into_a_recording_is_sought(tmp_path, monkeypatch):
    """Of an hour of calibration speech, the last window must not cost the decoding of the hour."""
    rate, seconds, decoded, read = 8_000, 600, [], soundfile.SoundFile.read
    with soundfile.SoundFile(tmp_path / "long.flac", "w", rate, 1) as file:
        for seed in range(seconds // 20):
            file.write(0.1 * np.random.default_rng(seed).standard_normal(20 * rate).clip(-9, 9))
    windows = calibration_windows(tmp_path / "long.flac", 80, 3000, limit=100)
    whole = read_audio(tmp_path / "long.flac")

    def counted(self, *args, **kwargs):
        found = read(self, *args, **kwargs)
        decoded.append(len(found))
        return found

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    for index, ((_, part),) in enumerate(windows._windows):
        if part in (0, 1, 19):
            decoded.clear()
            found = windows._read(0, part)
            np.testing.assert_allclose(found, whole[480_000 * part :][:480_000], rtol=0, atol=1e-6)
            assert sum(decoded) <= 31 * rate
            assert windows[index].shape == (80, 3000)


def test_a_limit_takes_from_everywhere(audio):
    every, some = (calibration_windows(audio, 80, 3000, limit=limit) for limit in (100, 3))
    assert len(some) == 3
    assert some._windows[0] == every._windows[0]
    assert some._windows[-1] == every._windows[-1]


def test_a_table_of_audio_and_samples(audio, tmp_path, make_speech):
    table = tmp_path / "some.tsv"
    table.write_text("id\tpath\na\taudio/1.wav\nb\taudio/3.wav\n", encoding="utf-8")
    assert len(calibration_windows(table, 80, 3000, limit=10)) == 2
    assert len(calibration_windows([audio / "1.wav", audio / "3.wav"], 80, 3000, limit=10)) == 2
    assert len(calibration_windows([make_speech(3), make_speech(5)], 80, 3000, limit=10)) == 2
    table.write_text("id\tfile\na\taudio/1.wav\n", encoding="utf-8")
    with pytest.raises(RequestError, match="has no column 'path' but id, file"):
        calibration_windows(table, 80, 3000, limit=10)
    table.write_text("id\tpath\na\taudio/none.wav\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"names .*none.wav, which is not there"):
        calibration_windows(table, 80, 3000, limit=10)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.wav", "empty"])
def test_no_audio(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"no such file or folder of audio|holds no audio file"):
        calibration_windows(tmp_path / name, 80, 3000, limit=10)
