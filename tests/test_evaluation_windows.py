"""Real windows for the ladder: what is read, what is cut, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_audio import write
from helpers_models import features_for, small_config
from transformers import WhisperFeatureExtractor

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.evaluation import load_windows

CONFIG = small_config()  # 30 positions of 20 ms: a window has 9600 samples


def tone(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.normal(size=round(16_000 * seconds))).astype(np.float32)


def test_features_at_hand(tmp_path: Path) -> None:
    features = features_for(CONFIG, batch=3)
    found = load_windows(features, CONFIG, limit=2)
    assert found.features.shape == (2, 8, 60)
    assert np.array_equal(found.features, features[:2].numpy())
    assert found.heard.all()
    np.save(tmp_path / "features.npy", features.numpy())
    assert np.array_equal(load_windows(tmp_path / "features.npy", CONFIG).features, features.numpy())
    assert load_windows([features[0], features[1:]], CONFIG).features.shape == (3, 8, 60)


def test_a_short_and_a_long_recording() -> None:
    short, long = tone(0.3), tone(1.5, 1)
    found = load_windows([short, long], CONFIG)
    assert len(found) == 4  # one of the short one, three of the long one
    assert found.heard.sum(1).tolist() == [15, 30, 30, 15]
    expected = WhisperFeatureExtractor(feature_size=8)(
        [short, long[:9600], long[9600:19200]],
        sampling_rate=16_000,
        padding="max_length",
        max_length=9600,
        return_tensors="np",
    ).input_features
    assert np.allclose(found.features[:3], expected, atol=1e-5)


def test_each_gives_its_first_window_before_any_its_second() -> None:
    found = load_windows([tone(1.5), tone(1.5, 1)], CONFIG, limit=3)
    assert found.names == ("samples", "samples", "samples from 0.6 s")


def test_many_recordings_are_thinned_out_evenly(tmp_path: Path) -> None:
    for index in range(9):
        write(tmp_path / f"{index}.wav", tone(0.1, index))
    assert load_windows(tmp_path, CONFIG, limit=3).names == ("0.wav", "4.wav", "8.wav")


def test_a_table_brings_texts(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", tone(0.2))
    write(tmp_path / "b.wav", tone(0.9))
    (tmp_path / "t.tsv").write_text("path\ttext\na.wav\tgood morning\nb.wav\ttoo long for a window\n")
    found = load_windows(tmp_path / "t.tsv", CONFIG)
    assert found.texts == ("good morning", None, None)


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros((2, 80, 60), np.float32), r"shape \(windows, 8, 60\) for this encoder, not \(2, 80, 60\)"),
        (torch.full((1, 8, 60), torch.nan), "not finite"),
        ([], "no audio to compare"),
        ("nowhere.wav", "no such file"),
        ("nowhere.tsv", "cannot be read as a table"),
        ("nowhere.npy", "cannot be read as an array"),
        ([np.zeros((1, 8, 60), np.float32), np.zeros(500, np.float32)], "either features or recordings"),
    ],
)
def test_refused(audio: object, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        load_windows(audio, CONFIG)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_folders_and_tables_without_audio(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no audio files in this folder"):
        load_windows(tmp_path, CONFIG)
    (tmp_path / "t.tsv").write_text("file\na.wav\n")
    with pytest.raises(RequestError, match="a column 'path'"):
        load_windows(tmp_path / "t.tsv", CONFIG)
    with pytest.raises(RequestError, match="1 or more"):
        load_windows(tone(0.1), CONFIG, limit=0)
