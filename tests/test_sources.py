"""Sources of speech: tables, folders and data sets become utterances, and bad ones one clear line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from whisper_hailo_hf.audio import AudioError, read_audio
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.sources.hub import DatasetStream, load_hub_dataset, read_dataset
from whisper_hailo_hf.sources.utterances import (
    Utterance,
    open_source,
    read_audio_folder,
    read_part,
    read_tsv,
    split_long,
)


@pytest.fixture
def clips(tmp_path: Path, make_speech) -> Path:
    """Three short recordings in three formats and rates."""
    for number, (name, rate) in enumerate([("a.wav", 16_000), ("sub/b.flac", 8_000), ("sub/c.ogg", 16_000)]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, make_speech(1.0 + number, seed=number), rate)
    return tmp_path


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_tsv(clips: Path) -> None:
    table = clips / "train.tsv"
    table.write_text(
        "\ufeffid\tpath\tseconds\tspeaker\ttext\n"
        'one\ta.wav\t1.000\tx\the said "no\n'
        f"two\t{clips / 'sub' / 'b.flac'}\t\ty\t\n",
        encoding="utf-8",
    )
    one, two = read_tsv(table, language="en")
    assert (one.id, one.text, one.language, one.seconds) == ("one", 'he said "no', "en", 1.0)
    assert (two.text, two.seconds) == (None, None)
    np.testing.assert_array_equal(one.load(), read_audio(clips / "a.wav"))
    np.testing.assert_array_equal(two.load(), read_audio(clips / "sub" / "b.flac"))
    assert open_source(table, language="en") == [one, two]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id\tpath\n", "empty"),
        ("id\tfile\nx\ta.wav\n", "no column 'path' but id, file"),
        ("id\tpath\nx\ta.wav\ny\tgone.wav\n", "1 of its 2 audio files are missing"),
        ("id\tpath\nx\t\n", "line 2 names no audio file"),
        ("path\tseconds\na.wav\tlong\n", "line 2 has 'long' for seconds"),
        ("path\tseconds\na.wav\t-1\n", "no positive number"),
    ],
)
def test_bad_tsv(clips: Path, content: str, says: str) -> None:
    (clips / "bad.tsv").write_text(content, encoding="utf-8")
    with pytest.raises(RequestError) as error:
        read_tsv(clips / "bad.tsv")
    assert says in one_line(error)


def test_tsv_that_is_not_there_or_not_text(clips: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_tsv(clips / "none.tsv")
    (clips / "binary.tsv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(RequestError, match="UTF-8"):
        read_tsv(clips / "binary.tsv")


def test_audio_folder(clips: Path) -> None:
    (clips / "notes.txt").write_text("no audio")
    (clips / "metadata.csv").write_text('file_name,transcription,language\nsub/b.flac,"yes, indeed",fr\na.wav,,\n')
    found = read_audio_folder(clips, language="en")
    assert [(u.id, u.text, u.language) for u in found] == [
        ("a.wav", None, "en"),
        ("sub/b.flac", "yes, indeed", "fr"),
        ("sub/c.ogg", None, "en"),
    ]
    assert [u.seconds for u in found] == pytest.approx([1.0, 4.0, 3.0], abs=0.01)  # b: 2 s of samples at half the rate
    assert open_source(clips, language="en") == found


def test_bad_audio_folder(clips: Path) -> None:
    with pytest.raises(RequestError, match="no such folder"):
        read_audio_folder(clips / "none")
    (clips / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no audio file"):
        read_audio_folder(clips / "empty")
    (clips / "metadata.tsv").write_text("file_name\ttext\nz.wav\thello\n")
    with pytest.raises(RequestError) as error:
        read_audio_folder(clips)
    assert "names 1 files that are not there, first z.wav" in one_line(error)
    (clips / "metadata.csv").write_text("name,text\na.wav,hello\n")
    with pytest.raises(RequestError, match="no column 'file_name' but name, text"):
        read_audio_folder(clips)


@pytest.mark.parametrize("name", ["long.wav", "long.flac"])
def test_long_recordings_become_parts(tmp_path: Path, make_speech, name: str) -> None:
    audio = make_speech(7.0)
    soundfile.write(tmp_path / name, audio, 16_000)
    whole = Utterance("long", tmp_path / name, text="many words", seconds=7.0)
    parts = split_long([whole], max_seconds=3.0)
    assert [part.id for part in parts] == ["long@0.00", "long@2.33", "long@4.67"]
    assert all(part.text is None and part.seconds == pytest.approx(7 / 3) for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.load() for part in parts]), read_audio(tmp_path / name))
    assert split_long([whole], None) == split_long([whole], 7.0) == [whole]


def test_part_of_other_rates_and_beyond_the_end(clips: Path) -> None:
    whole = read_audio(clips / "sub" / "b.flac")
    part = read_part(clips / "sub" / "b.flac", 1.0, 2.0)
    # Cut before resampling, not after it: equal but for the resampler's edges.
    assert part.size == 32_000
    np.testing.assert_allclose(part[800:-800], whole[16_800:47_200], atol=2e-3)
    with pytest.raises(AudioError, match=r"ends before 9\.00 s"):
        read_part(clips / "a.wav", 9.0, 1.0)


def test_open_source_tells_what_it_cannot_take(clips: Path) -> None:
    with pytest.raises(RequestError, match=r"neither a \.tsv table"):
        open_source(clips / "a.wav")
    with pytest.raises(RequestError, match="no such table or folder"):
        open_source(clips / "none.tsv")


@pytest.fixture
def rows(clips: Path):
    """A data set as the Hub has them: the files' bytes in an `Audio` column."""
    datasets = pytest.importorskip("datasets")
    names = ["a.wav", "sub/b.flac", "sub/c.ogg"]
    cells = [{"bytes": (clips / name).read_bytes(), "path": name} for name in names]
    table = datasets.Dataset.from_dict({"audio": cells, "sentence": ["one", "", "three"]})
    return table.cast_column("audio", datasets.Audio())


def test_dataset(rows, clips: Path) -> None:
    utterances = read_dataset(rows, language="fr")
    assert [(u.id, u.text, u.language) for u in utterances] == [
        ("0", "one", "fr"),
        ("1", None, "fr"),
        ("2", "three", "fr"),
    ]
    for utterance, name in zip(utterances, ["a.wav", "sub/b.flac", "sub/c.ogg"], strict=True):
        np.testing.assert_array_equal(utterance.load(), read_audio(clips / name))
    assert "torchcodec" not in sys.modules


def test_streaming_dataset(rows, clips: Path) -> None:
    stream = read_dataset(rows.to_iterable_dataset(num_shards=3).shuffle(seed=1), id_column="sentence")
    assert isinstance(stream, DatasetStream)
    first = {u.id: u.load() for u in stream}
    assert sorted(first) == ["", "one", "three"]
    np.testing.assert_array_equal(first["one"], read_audio(clips / "a.wav"))
    orders = set()
    for epoch in range(8):
        stream.set_epoch(epoch)
        orders.add(tuple(u.id for u in stream))
    assert len(orders) > 1
    assert [u.id for u in stream] == [u.id for u in stream]  # can be walked through again


def test_dataset_of_arrays_and_of_paths(clips: Path, make_speech) -> None:
    datasets = pytest.importorskip("datasets")
    audio = make_speech(0.5)
    arrays = datasets.Dataset.from_dict({"audio": [{"array": audio.tolist(), "sampling_rate": 16_000}]})
    np.testing.assert_allclose(read_dataset(arrays)[0].load(), audio, atol=1e-6)
    paths = datasets.Dataset.from_dict({"file": [str(clips / "a.wav")]})
    np.testing.assert_array_equal(read_dataset(paths, audio_column="file")[0].load(), read_audio(clips / "a.wav"))
    words = datasets.Dataset.from_dict({"audio": [5]})
    with pytest.raises(AudioError, match="utterance 0: its audio column holds int"):
        read_dataset(words)[0].load()


def test_bad_datasets(rows) -> None:
    datasets = pytest.importorskip("datasets")
    with pytest.raises(RequestError, match="no column 'sound' but audio, sentence"):
        read_dataset(rows, audio_column="sound")
    with pytest.raises(RequestError, match="no column 'words'"):
        read_dataset(rows.to_iterable_dataset(), text_column="words")
    with pytest.raises(RequestError, match="has splits, name one: train"):
        read_dataset(datasets.DatasetDict({"train": rows}))
    with pytest.raises(RequestError, match="is empty"):
        read_dataset(rows.select([]))


def test_damaged_bytes_name_their_utterance() -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"audio": [{"bytes": b"no audio at all", "path": "x.wav"}], "id": ["clip-7"]})
    with pytest.raises(AudioError) as error:
        read_dataset(table, id_column="id")[0].load()
    assert one_line(error).startswith("utterance clip-7: ")


@pytest.mark.parametrize("streaming", [False, True])
def test_dataset_from_disk(rows, clips: Path, tmp_path: Path, streaming: bool) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")
    utterances = list(load_hub_dataset(str(folder), streaming=streaming))
    assert [u.text for u in utterances] == ["one", None, "three"]
    np.testing.assert_array_equal(utterances[1].load(), read_audio(clips / "sub" / "b.flac"))
    with pytest.raises(RequestError) as error:
        load_hub_dataset(str(folder), split="validation", streaming=streaming)
    assert "cannot be loaded" in one_line(error)


def test_heavy_libraries_stay_away_until_needed() -> None:
    script = (
        "import sys, json, whisper_hailo_hf.distillation.dataset, whisper_hailo_hf.distillation.cache_builder;"
        "print(json.dumps([m for m in ('datasets', 'audiomentations', 'librosa', 'scipy') if m in sys.modules]))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout.splitlines()[-1]) == []
