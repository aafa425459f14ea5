"""Data sets of windows: Whisper's own features, the same windows for any number of workers, labels where known."""

import logging
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from whisper_hailo_hf.audio import AudioError
from whisper_hailo_hf.distillation.audio_store import AudioStore
from whisper_hailo_hf.distillation.augmentation import AugmentationConfig, Augmenter
from whisper_hailo_hf.distillation.dataset import (
    DistillationDataset,
    EvaluationDataset,
    LogMel,
    StreamingDistillationDataset,
)
from whisper_hailo_hf.distillation.windows import WindowMix
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.sources.hub import read_dataset
from whisper_hailo_hf.sources.utterances import Utterance, read_tsv

POSITIONS = 100  # 2 s
SINGLE = WindowMix.only("single")


@pytest.fixture(scope="module")
def utterances(make_speech) -> list[Utterance]:
    rng = np.random.default_rng(0)
    return [
        Utterance(f"u{n}", make_speech(float(rng.uniform(0.3, 1.2)), seed=n), text=f"word {n}", language="en")
        for n in range(12)
    ]


def small(utterances, **settings) -> DistillationDataset:
    return DistillationDataset(utterances, n_mels=8, positions=POSITIONS, **settings)


def same(one: dict, other: dict) -> bool:
    return (
        one["id"] == other["id"]
        and one.get("labels") == other.get("labels")
        and torch.equal(one["input_features"], other["input_features"])
        and torch.equal(one["speech_mask"], other["speech_mask"])
    )


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("seconds", [30.0, 29.99, 2.7, 0.0])
def test_features_are_those_of_transformers(make_speech, n_mels: int, seconds: float) -> None:
    audio = make_speech(seconds) if seconds else np.zeros(0, np.float32)
    expected = WhisperFeatureExtractor(feature_size=n_mels)(audio, sampling_rate=16_000).input_features[0]
    window = np.zeros(480_000, np.float32)
    window[: audio.size] = audio
    features = LogMel(n_mels)(window)
    assert features.dtype == torch.float32
    assert features.shape == (n_mels, 3000)
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-5, rtol=0)


def test_features_of_shorter_windows(make_speech) -> None:
    audio = make_speech(2.0)
    expected = WhisperFeatureExtractor(chunk_length=2)(audio, sampling_rate=16_000).input_features[0]
    np.testing.assert_allclose(LogMel(80, POSITIONS)(audio).numpy(), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="32000 samples"):
        LogMel(80, POSITIONS)(audio[:-1])


def test_item(utterances) -> None:
    dataset = small(utterances, augmenter=Augmenter())
    assert len(dataset) == len(utterances)
    for index in range(len(dataset)):
        item = dataset[index]
        assert set(item) == {"input_features", "speech_mask", "id"}
        assert item["input_features"].shape == (8, 2 * POSITIONS)
        assert item["input_features"].dtype == torch.float32
        assert item["speech_mask"].shape == (POSITIONS,)
        assert item["speech_mask"].dtype == torch.bool
        assert torch.isfinite(item["input_features"]).all()
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_windows_do_not_depend_on_the_workers(utterances) -> None:
    dataset = small(utterances, augmenter=Augmenter(), seed=4, windows_per_epoch=16)
    dataset.set_epoch(2)
    alone = [item for batch in DataLoader(dataset, batch_size=3, collate_fn=list) for item in batch]
    shared = [item for batch in DataLoader(dataset, batch_size=5, num_workers=2, collate_fn=list) for item in batch]
    assert all(same(one, other) for one, other in zip(alone, shared, strict=True))
    again = small(utterances, augmenter=Augmenter(), seed=4, windows_per_epoch=16)
    assert all(same(again.window_item(2, index), alone[index]) for index in reversed(range(16)))
    changed = small(utterances, augmenter=Augmenter(), seed=5, windows_per_epoch=16)
    assert not any(same(changed.window_item(2, index), alone[index]) for index in range(16))


def test_workers_that_stay_see_the_epoch(utterances) -> None:
    dataset = small(utterances, windows_per_epoch=6)
    loader = DataLoader(dataset, batch_size=3, num_workers=1, persistent_workers=True, collate_fn=list)
    for epoch in (0, 1, 5):
        dataset.set_epoch(epoch)
        items = [item for batch in loader for item in batch]
        assert all(same(item, dataset.window_item(epoch, index)) for index, item in enumerate(items))
        assert items[0]["id"].startswith(f"{epoch}-0-")
    assert dataset.epoch == 5


def test_an_epoch_opens_a_window_with_every_utterance(utterances) -> None:
    dataset = small(utterances, mix=SINGLE, windows_per_epoch=24)
    heard = [dataset.window(7, index).utterances[0] for index in range(24)]
    assert Counter(heard) == dict.fromkeys(range(12), 2)
    assert heard[:12] != heard[12:]
    assert heard[:12] != [dataset.window(8, index).utterances[0] for index in range(12)]


def test_kept_or_decoded_anew_is_the_same_audio(tmp_path: Path, make_speech) -> None:
    lines = ["id\tpath\tseconds"]
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.ogg", make_speech(1.0, seed=number), 16_000)
        lines.append(f"{number}\t{number}.ogg\t" + ("1.0" if number else ""))
    (tmp_path / "t.tsv").write_text("\n".join(lines) + "\n")
    found = read_tsv(tmp_path / "t.tsv")
    kept, lazy = AudioStore(found), AudioStore(found, memory_gb=1e-7)
    assert kept.kept is not None
    assert lazy.kept is None
    assert AudioStore(found, memory_gb=65e-6).kept is None  # what is known of the lengths fits, all of it does not
    for index in range(3):
        np.testing.assert_array_equal(kept[index], lazy[index])
        np.testing.assert_allclose(kept[index], found[index].load(), atol=2**-15)  # also beyond full scale
    one, other = small(kept), small(lazy)
    assert all(same(one[index], other[index]) for index in range(3))
    assert one.fingerprint() == other.fingerprint()


def test_bad_data_are_told_at_once(tmp_path: Path, utterances) -> None:
    with pytest.raises(RequestError, match="the data set is empty"):
        small([])
    with pytest.raises(RequestError, match="windows_per_epoch is 0"):
        small(utterances, windows_per_epoch=0)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    with pytest.raises(AudioError, match=r"bad\.wav: is not audio"):
        small([Utterance("bad", tmp_path / "bad.wav")])


def test_evaluation(utterances, make_speech) -> None:
    long = Utterance("long", make_speech(3.0))
    dataset = EvaluationDataset([*utterances, long], n_mels=80, positions=POSITIONS)
    extractor = WhisperFeatureExtractor(chunk_length=2)
    assert len(dataset) == 13
    for index, utterance in enumerate([*utterances, long]):
        item = dataset[index]
        assert item["id"] == utterance.id
        expected = extractor(dataset.store[index], sampling_rate=16_000).input_features[0]
        np.testing.assert_allclose(item["input_features"].numpy(), expected, atol=1e-5, rtol=0)
        covered = min(int(np.ceil(dataset.store[index].size / 320)), POSITIONS)
        assert 0 < item["speech_mask"].sum() <= covered
        assert not item["speech_mask"][covered:].any()
    dataset.set_epoch(3)
    assert same(dataset[2], dataset.window_item(0, 2))


def test_labels(utterances, multilingual_tokenizer: WhisperTokenizer) -> None:
    tokenizer = multilingual_tokenizer
    ids = tokenizer.convert_tokens_to_ids
    before = list(tokenizer.prefix_tokens)
    unknown = Utterance("x", np.full(4_000, 0.1, np.float32), language="en")
    french = Utterance("f", np.full(4_000, 0.1, np.float32), text="l'été", language="french")
    silent = Utterance("s", np.full(4_000, 0.1, np.float32), text="", language="en")
    dataset = EvaluationDataset(
        [*utterances, unknown, french, silent], n_mels=8, positions=POSITIONS, tokenizer=tokenizer
    )
    start = [ids("<|en|>"), ids("<|transcribe|>"), ids("<|notimestamps|>")]
    labels = dataset[3]["labels"]
    assert labels[:3] == start
    assert labels[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(labels[3:-1]) == " word 3"
    assert "labels" not in dataset[12]
    assert dataset[13]["labels"][0] == ids("<|fr|>")
    assert tokenizer.decode(dataset[13]["labels"], skip_special_tokens=True) == " l'été"
    assert dataset[14]["labels"] == [*start, tokenizer.eos_token_id]
    assert list(tokenizer.prefix_tokens) == before  # the caller's tokenizer is left alone
    # Packed: the texts in the order in which they are heard; none where one is cut, overlapped or unknown.
    packed = DistillationDataset(
        utterances, n_mels=8, positions=300, mix=WindowMix.only("sequence"), tokenizer=tokenizer, windows_per_epoch=30
    )
    with_text = 0
    for index in range(30):
        window, item = packed.window(0, index), packed[index]
        assert ("labels" in item) == window.intact
        if window.intact:
            with_text += len(window.utterances) > 1
            words = " ".join(f"word {n}" for n in window.utterances)
            assert tokenizer.decode(item["labels"][3:-1]) == " " + words
    assert with_text > 3
    mixed = DistillationDataset(
        [utterances[0], french],
        n_mels=8,
        positions=300,
        mix=WindowMix.only("sequence"),
        tokenizer=tokenizer,
        windows_per_epoch=20,
    )
    for index in range(20):
        assert "labels" not in mixed[index] or len(set(mixed.window(0, index).utterances)) == 1
    wrong = Utterance("w", np.full(4_000, 0.1, np.float32), text="a", language="klingon")
    with pytest.raises(RequestError, match="'klingon' is no language"):
        EvaluationDataset([wrong], n_mels=8, positions=POSITIONS, tokenizer=tokenizer)[0]


def test_fingerprint(utterances) -> None:
    base = small(utterances)
    assert base.fingerprint() == small(utterances).fingerprint()
    base.set_epoch(4)
    assert base.fingerprint() == small(utterances).fingerprint()
    others = [
        small(utterances, seed=1),
        small(utterances, mix=SINGLE),
        small(utterances, augmenter=Augmenter()),
        small(utterances, augmenter=Augmenter(AugmentationConfig(noise=0.9))),
        small(utterances, windows_per_epoch=5),
        small(utterances[:-1]),
        DistillationDataset(utterances, n_mels=9, positions=POSITIONS),
        EvaluationDataset(utterances, n_mels=8, positions=POSITIONS),
    ]
    assert len({dataset.fingerprint() for dataset in [base, *others]}) == len(others) + 1


def stream(source, **settings) -> StreamingDistillationDataset:
    return StreamingDistillationDataset(source, n_mels=8, positions=POSITIONS, **settings)


def test_streaming(utterances) -> None:
    dataset = stream(utterances, buffer_size=5, augmenter=Augmenter())
    first = list(dataset)
    assert len(first) == len(utterances)
    assert all(same(one, other) for one, other in zip(first, dataset, strict=True))
    dataset.set_epoch(1)
    assert not any(same(one, other) for one, other in zip(first, dataset, strict=True))
    singles = [item["id"] for item in stream(utterances, mix=SINGLE, buffer_size=1)]
    assert singles == [f"0-{n}-single" for n in range(12)]
    # A buffer of one keeps the order, a larger one does not; either way each utterance comes once.
    in_order = [item["input_features"] for item in stream(utterances, mix=SINGLE, buffer_size=1)]
    shuffled = [item["input_features"] for item in stream(utterances, mix=SINGLE, buffer_size=6)]
    places = [next(n for n, known in enumerate(in_order) if torch.equal(known, other)) for other in shuffled]
    assert sorted(places) == list(range(12))
    assert places != list(range(12))


def test_streaming_in_workers(utterances) -> None:
    dataset = stream(utterances, mix=SINGLE, buffer_size=3)
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    items = list(loader)
    assert sorted(item["id"] for item in items) == sorted(f"0-{n}-single" for n in range(12))
    alone = [item["input_features"] for item in dataset]
    assert all(any(torch.equal(item["input_features"], known) for known in alone) for item in items)
    assert all(same(one, other) for one, other in zip(items, loader, strict=True))


def test_streaming_from_datasets(tmp_path: Path, make_speech) -> None:
    datasets = pytest.importorskip("datasets")
    cells = []
    for number in range(4):
        soundfile.write(tmp_path / "x.flac", make_speech(0.5, seed=number), 16_000)
        cells.append({"bytes": (tmp_path / "x.flac").read_bytes(), "path": None})
    table = datasets.Dataset.from_dict({"audio": cells}).cast_column("audio", datasets.Audio())
    source = read_dataset(table.to_iterable_dataset(num_shards=2))
    dataset = stream(source, mix=SINGLE, buffer_size=2)
    items = list(DataLoader(dataset, batch_size=None, num_workers=2))
    assert len(items) == 4
    assert len({tuple(item["input_features"].flatten().tolist()) for item in items}) == 4


def test_streaming_leaves_out_what_cannot_be_read(utterances, tmp_path: Path, caplog) -> None:
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    bad = Utterance("bad", tmp_path / "bad.wav")
    with caplog.at_level(logging.WARNING, "whisper_hailo_hf"):
        assert len(list(stream([utterances[0], bad, utterances[1]]))) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "bad.wav" in caplog.text
    for nothing in ([], [bad]):
        with pytest.raises(RequestError, match="the data set is empty"):
            list(stream(nothing))


def test_data_sets_can_be_pickled(utterances) -> None:
    """As for workers on macOS and Windows, which are not forked."""
    dataset = small(utterances, augmenter=Augmenter(), windows_per_epoch=6)
    dataset.set_epoch(3)
    expected = [dataset[index] for index in range(6)]  # the library's transforms are made at first use
    again = pickle.loads(pickle.dumps(dataset))
    assert all(same(again[index], item) for index, item in enumerate(expected))
