"""The teacher cache: exact, resumable after kill -9 at any moment, and suspicious of everything that changed.

Run as a script, it builds the cache of the tests in its own process, to be killed there.
"""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from whisper_hailo_hf.distillation.augmentation import Augmenter
from whisper_hailo_hf.distillation.cache import MANIFEST, CachedDistillationDataset, CacheError, TeacherCache
from whisper_hailo_hf.distillation.cache_builder import build_teacher_cache, estimate_bytes
from whisper_hailo_hf.distillation.dataset import DistillationDataset, EvaluationDataset
from whisper_hailo_hf.distillation.teacher import Teacher
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.sources.utterances import Utterance, read_tsv

POSITIONS, MELS, WIDTH, UTTERANCES, PER_SHARD = 50, 8, 16, 10, 4
SHARDS = 5  # of two epochs of ten windows


class ToyTeacher:
    """A fixed linear map of two frames to one state; counts the windows that it has seen."""

    def __init__(self, seed: int = 0, slow: float = 0.0, width: int = WIDTH) -> None:
        self.matrix = torch.randn(2 * MELS, width, generator=torch.Generator().manual_seed(seed))
        self.fingerprint, self.slow, self.seen = f"teacher-{seed}", slow, 0
        self.d_model, self.n_mels, self.positions = width, MELS, POSITIONS
        self.device = torch.device("cpu")

    def encode(self, input_features: torch.Tensor) -> torch.Tensor:
        self.seen += len(input_features)
        time.sleep(self.slow)
        return input_features.transpose(1, 2).reshape(len(input_features), POSITIONS, -1) @ self.matrix


def write_speech(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = ["id\tpath\tseconds\ttext"]
    for number in range(UTTERANCES):
        audio = rng.normal(size=int(rng.integers(4_000, 12_000))) * np.float32(0.1)
        soundfile.write(folder / f"{number}.wav", audio, 16_000)
        lines.append(f"u{number}\t{number}.wav\t{audio.size / 16_000}\t")
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    return folder / "train.tsv"


def windows(table: Path, seed: int = 0, **settings: Any) -> DistillationDataset:
    return DistillationDataset(
        read_tsv(table), n_mels=MELS, positions=POSITIONS, augmenter=Augmenter(), seed=seed, **settings
    )


def build(table: Path, folder: Path, teacher: ToyTeacher | None = None, **settings: Any) -> TeacherCache:
    return build_teacher_cache(
        windows(table),
        teacher or ToyTeacher(),
        folder,
        **{"epochs": (0, 1), "batch_size": 3, "windows_per_shard": PER_SHARD} | settings,
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def finished(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache. Read only."""
    return build(table, tmp_path_factory.mktemp("cache") / "states").folder


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A finished cache to do harm to."""
    return Path(shutil.copytree(finished, tmp_path / "own"))


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_states_are_the_teachers(table: Path, finished: Path) -> None:
    teacher, dataset = ToyTeacher(), windows(table)
    cached = CachedDistillationDataset(finished, dataset, teacher.fingerprint)
    assert len(cached) == 20
    for index in (13, 0, 19, 7, 4, 13):  # any order
        item = cached[index]
        expected = dataset.window_item(index // 10, index % 10)
        assert set(item) == {"input_features", "speech_mask", "id", "teacher_states"}
        assert item["id"] == expected["id"]
        assert torch.equal(item["input_features"], expected["input_features"])
        assert torch.equal(item["speech_mask"], expected["speech_mask"])
        assert item["teacher_states"].dtype == torch.float16
        assert torch.equal(item["teacher_states"], teacher.encode(expected["input_features"][None])[0].half())
    with pytest.raises(IndexError):
        cached[20]


def test_states_of_a_real_teacher(table: Path, tmp_path: Path) -> None:
    config = {
        "d_model": WIDTH,
        "num_mel_bins": MELS,
        "max_source_positions": POSITIONS,
        "vocab_size": 20,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": 1,
    }
    torch.manual_seed(0)
    teacher = Teacher(WhisperEncoder(WhisperConfig(**config)), WhisperConfig(**config), "small")
    dataset = windows(table)
    cached = CachedDistillationDataset(build_teacher_cache(dataset, teacher, tmp_path / "c"), dataset)
    batch = torch.stack([cached[index]["input_features"] for index in range(UTTERANCES)])
    states = torch.stack([cached[index]["teacher_states"] for index in range(UTTERANCES)])
    torch.testing.assert_close(states.float(), teacher.encode(batch), atol=2e-3, rtol=1e-3)


def test_shuffled_in_workers(table: Path, finished: Path) -> None:
    cached = CachedDistillationDataset(finished, windows(table))
    cached[0]  # opens a shard here that the workers must open for themselves
    loader = DataLoader(cached, batch_size=4, shuffle=True, num_workers=2, collate_fn=list)
    items = {item["id"]: item for batch in loader for item in batch}
    assert len(items) == 20
    for index in range(20):
        expected = cached[index]
        assert torch.equal(items[expected["id"]]["teacher_states"], expected["teacher_states"])


def test_with_features_the_audio_is_not_needed(table: Path, tmp_path: Path, multilingual_tokenizer) -> None:
    utterances = [Utterance(u.id, u.audio, text="one two") for u in read_tsv(table)]
    dataset = EvaluationDataset(utterances, n_mels=MELS, positions=POSITIONS, tokenizer=multilingual_tokenizer)
    teacher = ToyTeacher()
    build_teacher_cache(dataset, teacher, tmp_path / "c", store_features=True, windows_per_shard=PER_SHARD)
    cached = CachedDistillationDataset(tmp_path / "c")
    assert len(cached) == UTTERANCES
    for index in range(UTTERANCES):
        item, expected = cached[index], dataset[index]
        assert item["id"] == f"u{index}"
        assert item["labels"] == expected["labels"]
        assert item["input_features"].dtype == torch.float32
        torch.testing.assert_close(item["input_features"], expected["input_features"], atol=1e-3, rtol=0)
        assert torch.equal(item["speech_mask"], expected["speech_mask"])
        assert torch.equal(item["teacher_states"], teacher.encode(expected["input_features"][None])[0].half())


def test_a_finished_cache_is_only_opened(table: Path, own: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in own.iterdir()}
    teacher = ToyTeacher()
    assert len(build(table, own, teacher)) == 20
    assert teacher.seen == 0
    assert {name: (own / name).stat().st_mtime_ns for name in before if name != ".lock"} == {
        name: time for name, time in before.items() if name != ".lock"
    }


def test_workers_make_the_same_cache(table: Path, finished: Path, tmp_path: Path) -> None:
    build(table, tmp_path / "c", num_workers=2, batch_size=4)
    for shard in finished.glob("*.safetensors"):
        assert (tmp_path / "c" / shard.name).read_bytes() == shard.read_bytes()


def killed_anywhere(table: Path, folder: Path) -> None:
    """A process of its own, killed from outside once it has finished two shards."""
    process = subprocess.Popen([sys.executable, __file__, str(table), str(folder)])
    deadline = time.monotonic() + 120
    while not (folder / "states-00001.safetensors").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(120) == -signal.SIGKILL


def killed_at(table: Path, folder: Path, moment: str) -> None:
    """A fork of this process that kills itself in the middle of a rename."""

    def dying(source: Any, target: Any) -> None:
        name = Path(target).name
        if moment == f"before renaming {name}":
            os.kill(os.getpid(), signal.SIGKILL)
        os.rename(source, target)
        if moment == f"after renaming {name}":
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        torch.set_num_threads(1)
        os.replace = dying
        build(table, folder)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("moment", "lost"),
    [
        ("anywhere", 20 - 2 * PER_SHARD),
        ("before renaming states-00002.safetensors", 20 - 2 * PER_SHARD),
        ("after renaming states-00002.safetensors", 20 - 3 * PER_SHARD),
    ],
)
def test_killed_and_resumed(table: Path, finished: Path, tmp_path: Path, moment: str, lost: int) -> None:
    """SIGKILL, then go on: finished shards are not touched again, and the end is the same to the byte."""
    folder = tmp_path / "c"
    if moment == "anywhere":
        killed_anywhere(table, folder)
    else:
        killed_at(table, folder, moment)
    with pytest.raises(RequestError, match=r"is not finished, [0-4] of 5 shards are there"):
        TeacherCache(folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(kept) == SHARDS - lost // PER_SHARD
    teacher = ToyTeacher()
    build(table, folder, teacher).verify()
    assert teacher.seen == lost
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert {path.name for path in folder.iterdir()} == {path.name for path in finished.iterdir()}
    for path in finished.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_killed_before_its_first_manifest(table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / f"{MANIFEST}.tmp").write_text("{")
    (folder / ".lock").touch()
    assert len(build(table, folder)) == 20


def test_damage_is_found(table: Path, own: Path) -> None:
    shard = own / "states-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    cached = CachedDistillationDataset(own, windows(table))
    cached[0]
    with pytest.raises(CacheError, match=r"states-00003\.safetensors: is damaged, .*SHA-256 differs"):
        cached[3 * PER_SHARD]
    with pytest.raises(CacheError, match="states-00003") as error:
        cached.cache.verify()
    one_line(error)
    shard.write_bytes(content[:-1])
    with pytest.raises(CacheError, match="of another size"):
        TeacherCache(own)
    shard.unlink()
    with pytest.raises(CacheError, match="missing"):
        TeacherCache(own)
    # Building again computes the one shard anew.
    shard.write_bytes(content)
    teacher = ToyTeacher()
    build(table, own, teacher).verify()
    assert teacher.seen == PER_SHARD


def test_a_changed_manifest_is_found(table: Path, own: Path) -> None:
    manifest = json.loads((own / MANIFEST).read_text())
    manifest["settings"]["teacher"] = "teacher-1"
    (own / MANIFEST).write_text(json.dumps(manifest))
    for use in (lambda: TeacherCache(own), lambda: build(table, own)):
        with pytest.raises(CacheError, match="has changed since it was written") as error:
            use()
        one_line(error)
    (own / MANIFEST).write_text("{")
    with pytest.raises(CacheError, match="is no manifest"):
        TeacherCache(own)


def test_another_teacher_or_other_windows(table: Path, finished: Path) -> None:
    with pytest.raises(RequestError, match=r"another teacher \(teacher-0, not teacher-1\)") as error:
        CachedDistillationDataset(finished, windows(table), "teacher-1")
    one_line(error)
    with pytest.raises(RequestError, match="another teacher"):
        build(table, finished, ToyTeacher(seed=1))
    with pytest.raises(RequestError, match=r"of other windows \(seed was 0, is 1\)") as error:
        CachedDistillationDataset(finished, windows(table, seed=1))
    one_line(error)
    with pytest.raises(RequestError, match=r"epochs was \[0, 1\], is \[0, 2\]"):
        build(table, finished, epochs=(0, 2))
    with pytest.raises(RequestError, match="was begun with features stored False, not True"):
        build(table, finished, store_features=True)
    with pytest.raises(RequestError, match="the data set that it was built from is needed"):
        CachedDistillationDataset(finished)


def test_audio_that_changed_is_found(table: Path, tmp_path: Path) -> None:
    """Same names, same sizes, other sound: no setting tells, the features do."""
    speech = tmp_path / "speech"
    shutil.copytree(table.parent, speech)
    cache = build(speech / "train.tsv", tmp_path / "c")
    for path in speech.glob("*.wav"):
        audio, _ = soundfile.read(path, dtype="int16")
        soundfile.write(path, np.where(np.arange(audio.size) % 4_000 < 2_000, audio, audio // 50), 16_000)
    cached = CachedDistillationDataset(cache, windows(speech / "train.tsv"))
    with pytest.raises(CacheError, match="is not the audio that the teacher heard") as error:
        [cached[index] for index in range(3)]
    one_line(error)
    (tmp_path / "c" / "states-00004.safetensors").unlink()
    with pytest.raises(RequestError, match="was begun with other audio"):
        build(speech / "train.tsv", tmp_path / "c")


def test_a_disk_too_small_is_told_before_the_work(table: Path, tmp_path: Path, monkeypatch) -> None:
    size, words = estimate_bytes(5580, 1500, 384, 80, store_features=False)
    assert size == 5580 * 1500 * 384 * 2
    assert words == "5580 windows × 1500 positions × 384 channels × 2 bytes = 6.4 GB"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=30_000))
    teacher = ToyTeacher()
    with pytest.raises(RequestError) as error:
        build(table, tmp_path / "c", teacher)
    message = one_line(error)
    assert "the disk has 0.0 MB free" in message
    assert "20 windows × 50 positions × 16 channels × 2 bytes = 0.0 MB" in message
    assert teacher.seen == 0
    assert not list((tmp_path / "c").glob("*.safetensors"))


@pytest.mark.parametrize("store_features", [False, True])
def test_the_estimate_is_true(table: Path, tmp_path: Path, store_features: bool) -> None:
    cache = build(table, tmp_path / "c", ToyTeacher(width=256), store_features=store_features)
    size, _ = estimate_bytes(20, POSITIONS, 256, MELS, store_features=store_features)
    used = sum(path.stat().st_size for path in cache.folder.glob("*.safetensors"))
    assert size < used < 1.03 * size


def test_a_disk_that_fills_up(table: Path, tmp_path: Path) -> None:
    """The system refuses to write beyond a size; what was finished stays, and the next build goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cache = build(table, tmp_path / "whole", epochs=(0,))
    resource.setrlimit(resource.RLIMIT_FSIZE, (PER_SHARD * POSITIONS * WIDTH, hard))
    try:
        with pytest.raises(CacheError, match="cannot be written") as error:
            build(table, tmp_path / "c", epochs=(0,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(error)
    assert not list((tmp_path / "c").glob("*.tmp"))
    assert build(table, tmp_path / "c", epochs=(0,)).records == cache.records


def test_folders_that_are_something_else(table: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(RequestError, match="is not empty and no teacher cache"):
        build(table, tmp_path / "photos")
    with pytest.raises(RequestError, match="holds no teacher cache"):
        TeacherCache(tmp_path / "photos")
    with pytest.raises(CacheError, match="cannot be written"):
        build(table, tmp_path / "photos" / "cat.jpg")


def test_two_builders(table: Path, own: Path) -> None:
    from filelock import FileLock

    with FileLock(own / ".lock"), pytest.raises(RequestError, match="another process is building"):
        build(table, own)
    build(table, own)  # the lock was given back


def test_states_must_be_numbers_and_shapes_must_agree(table: Path, tmp_path: Path) -> None:
    for value in (float("nan"), float("inf"), 1e6):
        teacher = ToyTeacher()
        teacher.matrix[3, 2] = value
        with pytest.raises(CacheError, match=r"of window 0-0-.* are not finite numbers"):
            build(table, tmp_path / str(value), teacher)
    wide = ToyTeacher()
    wide.d_model = 17
    with pytest.raises(RequestError, match=r"states of shape \(3, 50, 16\), not \(3, 50, 17\)"):
        build(table, tmp_path / "wide", wide)
    mels = ToyTeacher()
    mels.n_mels = 80
    with pytest.raises(RequestError, match="the data set gives 8 mel bins and the teacher takes 80"):
        build(table, tmp_path / "mels", mels)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_audio_that_cannot_be_read_is_one_line(table: Path, tmp_path: Path, num_workers: int) -> None:
    speech = tmp_path / "speech"
    shutil.copytree(table.parent, speech)
    dataset = windows(speech / "train.tsv", memory_gb=0.0)
    (speech / "3.wav").write_bytes(b"no audio")
    with pytest.raises(RequestError, match=r"3\.wav: is not audio") as error:
        build_teacher_cache(dataset, ToyTeacher(), tmp_path / "c", num_workers=num_workers)
    assert one_line(error).startswith(str(speech))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Slow enough to be killed between two shards.
    build(Path(sys.argv[1]), Path(sys.argv[2]), ToyTeacher(slow=0.6))
