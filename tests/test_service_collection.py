"""Collection: what lands on disk, that nothing is lost or doubled whatever dies, and what is refused."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import shutil
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers_models import small_model
from helpers_service import POSITIONS, WIDTH, save_integer_model, start_verb

from whisper_hailo_hf import RequestError, WhisperHailoError
from whisper_hailo_hf.cli.main import main
from whisper_hailo_hf.service.collection import CollectionSettings, collect
from whisper_hailo_hf.service.running import background_server
from whisper_hailo_hf.service.settings import ServerSettings
from whisper_hailo_hf.service.shards import check_collection, only_one, read_manifest
from whisper_hailo_hf.wire.client import Connection

pq = pytest.importorskip("pyarrow.parquet")


@dataclass
class Said:
    """Noise in place of speech."""

    id: str
    seconds: float | None = 0.3
    text: str | None = "noise"
    language: str | None = "en"
    audio: Callable[[], np.ndarray] | None = None

    def load(self) -> np.ndarray:
        seed = sum(self.id.encode())
        return np.random.default_rng(seed).normal(0, 0.1, round(self.seconds * 16000)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_integer_model(tmp_path_factory.mktemp("integers"))


@pytest.fixture(scope="module")
def server(folder):
    with background_server(folder, backend="emulator") as server:
        yield server


@pytest.fixture
def connection(server):
    return Connection(f"127.0.0.1:{server.port}")


def rows(folder: Path) -> list[dict]:
    return [row for path in sorted((folder / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def settings(**changes) -> CollectionSettings:
    return CollectionSettings(**{"shard_bytes": 4 * POSITIONS * WIDTH, "patience": 20.0} | changes)


def test_rows_are_what_the_encoder_gives(server, connection, tmp_path):
    said = [Said(f"utterance {i}") for i in range(10)]
    heard = []
    report = collect(said, tmp_path, [connection], settings(), estimated=heard.append)
    assert (report.rows, report.new, report.shards, report.skipped) == (10, 10, 3, {})
    assert heard[0].bytes == 10 * POSITIONS * WIDTH
    assert f"10 windows x {POSITIONS} positions x {WIDTH} channels x 1 B" in heard[0].arithmetic
    assert heard[0].seconds > 0
    found = rows(tmp_path)
    assert {row["id"] for row in found} == {one.id for one in said}
    backend, encoder = server.served.encoder.backend, server.served
    for row in found:
        one = next(one for one in said if one.id == row["id"])
        features = encoder._heard(one.load())
        stored = np.frombuffer(row["states"], row["dtype"]).reshape(row["shape"])
        wanted = backend.core_states(features[None])[0]
        real = (stored.astype(np.int32) - row["zero_point"]).astype(np.float32) * np.float32(row["scale"])
        assert np.array_equal(real, wanted)
        assert row["audio"].startswith("sha256:")
        assert (row["text"], row["language"], row["core"]) == ("noise", "en", True)
        assert row["core_sha256"] == encoder.description.core_sha256
        assert row["artefact_sha256"] == encoder.description.artefact_sha256
        assert row["backend"].startswith("emulator (")
    assert check_collection(tmp_path) == {"rows": 10, "shards": 3, "bytes": report.bytes}


def test_datasets_reads_it_as_it_is(connection, tmp_path):
    datasets = pytest.importorskip("datasets")
    collect([Said(str(i)) for i in range(5)], tmp_path / "set", [connection], settings())
    found = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(found["id"]) == list("01234")
    assert len(found[0]["states"]) == POSITIONS * WIDTH
    stream = datasets.load_dataset(str(tmp_path / "set"), split="train", streaming=True)
    assert next(iter(stream))["shape"] == [POSITIONS, WIDTH]


def test_a_second_run_adds_what_is_new(connection, tmp_path):
    first = [Said(str(i)) for i in range(4)]
    collect(first, tmp_path, [connection], settings())
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    report = collect([*first, Said("new")], tmp_path, [connection], settings())
    assert (report.rows, report.new) == (5, 1)
    again = collect([*first, Said("new")], tmp_path, [connection], settings())
    assert (again.rows, again.new) == (5, 0)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "data").iterdir()}
    assert before.items() <= after.items()
    check_collection(tmp_path)


def test_speech_only(server, connection, tmp_path):
    whole, short = tmp_path / "whole", tmp_path / "short"
    said = [Said("a", 0.04), Said("b", 0.6)]
    collect(said, whole, [connection], settings())
    report = collect(said, short, [connection], settings(speech_only=True))
    assert report.rows == 2
    full = {row["id"]: row for row in rows(whole)}
    for row in rows(short):
        assert row["shape"][0] == (27 if row["id"] == "a" else 30)
        assert full[row["id"]]["states"].startswith(row["states"])
    assert np.load(short / "silence.npy").shape == (POSITIONS, WIDTH)


@pytest.mark.parametrize("send", ["float16", "flac", "pcm"])
def test_other_ways_to_send(connection, tmp_path, send):
    report = collect([Said("a")], tmp_path, [connection], settings(send=send, states="float16"))
    (row,) = rows(tmp_path)
    assert report.rows == 1
    assert (row["dtype"], row["scale"], row["core"]) == ("float16", 0.0, False)


def test_several_servers_share_the_work(folder, server, connection, tmp_path):
    with background_server(folder, backend="emulator") as other:
        both = [connection, Connection(f"127.0.0.1:{other.port}")]
        collect([Said(str(i)) for i in range(60)], tmp_path, both, settings())
    served = [row["server"] for row in rows(tmp_path)]
    assert len(set(served)) == 2
    assert len(served) == 60
    check_collection(tmp_path)


def test_a_server_that_ends_leaves_its_work_to_the_other(folder, connection, tmp_path):
    with background_server(folder, backend="emulator") as other:
        both = [connection, Connection(f"127.0.0.1:{other.port}")]
        ended = []

        def end(done, total):
            if done == 20 and not ended:
                ended.append(other)
                asyncio.run_coroutine_threadsafe(other.abort(), other.loop)

        report = collect([Said(str(i)) for i in range(100)], tmp_path, both, settings(), progress=end)
    assert ended
    assert report.rows == 100
    assert check_collection(tmp_path)["rows"] == 100


def test_what_cannot_be_had_is_skipped_and_named(connection, tmp_path):
    class Broken(Said):
        def load(self):
            raise WhisperHailoError("broken.wav: is damaged")

    report = collect([Said("a"), Broken("b"), Said("c", 5.0)], tmp_path, [connection], settings())
    assert report.rows == 1
    assert report.skipped == {
        "b": "broken.wav: is damaged",
        "c": "5.0 s are more than one window: cut it, with its text, before",
    }


def test_a_stream_of_unknown_length(connection, tmp_path):
    said = (Said(str(i % 7)) for i in range(20))
    assert collect(said, tmp_path, [connection], settings()).rows == 7


# What is refused


def test_ids_that_are_there_twice(connection, tmp_path):
    with pytest.raises(RequestError, match="id 'a' twice"):
        collect([Said("a"), Said("a")], tmp_path, [connection])


def test_nothing_to_collect(connection, tmp_path):
    with pytest.raises(RequestError, match="nothing to collect"):
        collect([], tmp_path, [connection])
    with pytest.raises(RequestError, match="no server"):
        collect([Said("a")], tmp_path, [])


def test_another_model_into_the_same_folder(connection, tmp_path):
    collect([Said("a")], tmp_path, [connection], settings())
    with pytest.raises(RequestError, match="was begun with another core"):
        collect([Said("b")], tmp_path, [connection], settings(states="float16"))
    with background_server(small_model(seed=4), backend="torch") as other:
        both = [connection, Connection(f"127.0.0.1:{other.port}")]
        with pytest.raises(RequestError, match="serves another model than the other servers"):
            collect([Said("b")], tmp_path, both, settings())


def test_a_disk_that_is_too_small(connection, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(RequestError, match=r"has 0\.001 MB free and .*\(3 windows x 30 positions .*keep speech only"):
        collect([Said(str(i)) for i in range(3)], tmp_path, [connection], settings())
    assert rows(tmp_path) == []


def test_what_other_settings_would_take_is_said(connection, tmp_path):
    heard = []
    said = [Said("a", 0.04), Said("b", 0.06), Said("c", 0.6)]
    collect(said, tmp_path / "a", [connection], settings(), estimated=heard.append)
    collect(said, tmp_path / "b", [connection], settings(speech_only=True), estimated=heard.append)
    collect([Said("d", 0.04), Unmeasured("e")], tmp_path / "c", [connection], settings(), estimated=heard.append)
    whole, short, unknown = heard
    assert (whole.bytes, short.bytes) == (3 * POSITIONS * WIDTH, (27 + 28 + 30) * WIDTH)
    assert whole.arithmetic == short.arithmetic
    assert "speech only, 28 positions on average: 0.00136 MB; as float16: 0.00288 MB" in whole.arithmetic
    assert "at most that, since 1 lengths are unknown" in unknown.arithmetic


class Unmeasured(Said):
    """Of a length that is known only when it is read."""

    def __init__(self, name: str) -> None:
        super().__init__(name, None)

    def load(self) -> np.ndarray:
        return np.zeros(1600, np.float32)


def test_a_disk_that_fills_up(connection, tmp_path, monkeypatch):
    from whisper_hailo_hf.service import shards

    collect([Said("a")], tmp_path, [connection], settings())
    with monkeypatch.context() as context:

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        context.setattr(shards.pq, "write_table", full)
        with pytest.raises(WhisperHailoError, match=r"cannot be written to \(No space left on device\); what was"):
            collect([Said("a"), Said("b")], tmp_path, [connection], settings())
    assert collect([Said("a"), Said("b")], tmp_path, [connection], settings()).new == 1
    assert check_collection(tmp_path)["rows"] == 2


def test_nothing_that_could_be_had(connection, tmp_path):
    with pytest.raises(WhisperHailoError, match=r"none of 2 utterances could be collected; a: 5\.0 s are"):
        collect([Said("a", 5.0), Said("b", 5.0)], tmp_path, [connection], settings())


def test_one_run_at_a_time(connection, tmp_path):
    with only_one(tmp_path), pytest.raises(RequestError, match="another run"):
        collect([Said("a")], tmp_path, [connection])


def test_damage_is_found(connection, tmp_path):
    collect([Said(str(i)) for i in range(8)], tmp_path, [connection], settings())
    path = tmp_path / "data" / "train-00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WhisperHailoError, match=r"train-00001\.parquet is damaged"):
        check_collection(tmp_path)
    path.unlink()
    with pytest.raises(WhisperHailoError, match="is missing or damaged"):
        collect([Said("x")], tmp_path, [connection], settings())
    collect([Said("a", 0.04)], tmp_path / "short", [connection], settings(speech_only=True))
    (tmp_path / "short" / "silence.npy").write_bytes(b"nothing")
    with pytest.raises(WhisperHailoError, match=r"silence\.npy is damaged"):
        check_collection(tmp_path / "short")


def test_what_a_killed_run_left_is_swept_away(connection, tmp_path):
    collect([Said("a")], tmp_path, [connection], settings())
    (tmp_path / "data" / "train-00001.parquet").write_bytes(b"no manifest names me")
    (tmp_path / "data" / "train-00001.part").write_bytes(b"half")
    collect([Said("a"), Said("b")], tmp_path, [connection], settings())
    assert check_collection(tmp_path)["rows"] == 2
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "train-00000.parquet",
        "train-00001.parquet",
    ]


def test_a_network_that_swallows_everything_for_a_while(folder, tmp_path):
    """The connection is taken and nothing ever answers: until a server does."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(64)
        port = hole.getsockname()[1]
        with ThreadPoolExecutor(1) as pool:
            said = [Said(str(i)) for i in range(3)]
            quick = settings(timeout=1.0, patience=60.0)
            run = pool.submit(collect, said, tmp_path, [Connection(f"127.0.0.1:{port}")], quick)
            time.sleep(2.0)
            assert not run.done()
            hole.close()
            with background_server(folder, ServerSettings(port=port), backend="emulator"):
                assert run.result(60).rows == 3


def test_nobody_there(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(WhisperHailoError, match="cannot be reached"):
        collect([Said("a")], tmp_path, [Connection(f"127.0.0.1:{port}")], settings(patience=0.5))


# Death


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(port: int) -> None:
    """Until a server listens; a machine with much else to do takes its time."""
    for _ in range(1200):
        with socket.socket() as end:
            if end.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """400 short recordings."""
    folder = tmp_path_factory.mktemp("speech")
    lines = ["id\tpath\tseconds\ttext"]
    for i in range(400):
        samples = np.random.default_rng(i).normal(0, 0.1, 4800).astype(np.float32)
        soundfile.write(folder / f"{i}.wav", samples, 16000)
        lines.append(f"u{i}\t{i}.wav\t0.3\tnumber {i}")
    (folder / "table.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "table.tsv"


def test_kill_9_of_the_server_loses_nothing(folder, table, tmp_path):
    """The client lives on and waits for the server to come back."""
    from whisper_hailo_hf.sources.utterances import read_tsv

    port, dice = free_port(), random.Random(0)
    verb = ("serve", folder, "--encoder-backend", "emulator", "--port", port)
    processes = [start_verb(*verb)]
    kills = 0

    def kill(done: int, total: int | None) -> None:
        nonlocal kills
        if kills < 1 and done >= 120 + dice.randrange(20):
            processes[-1].kill()
            processes[-1].join()
            processes.append(start_verb(*verb))
            kills += 1

    try:
        wait_for(port)
        small = settings(shard_bytes=25 * POSITIONS * WIDTH, patience=120.0)
        report = collect(read_tsv(table), tmp_path, [Connection(f"127.0.0.1:{port}")], small, progress=kill)
    finally:
        for process in processes:
            process.kill()
            process.join()
    assert kills == 1
    assert report.rows == report.new == 400
    assert check_collection(tmp_path)["rows"] == 400
    assert {row["id"]: row["text"] for row in rows(tmp_path)} == {f"u{i}": f"number {i}" for i in range(400)}


def test_kill_9_of_the_client_loses_nothing(server, table, tmp_path, capsys):
    verb = ["collect", str(table), str(tmp_path), "--server", f"127.0.0.1:{server.port}", "--json", "--check"]
    verb += ["--shard-mb", str(10 * POSITIONS * WIDTH / 1e6)]
    process = start_verb(*verb)
    wanted = random.Random(1).randint(5, 20)
    while process.is_alive() and len(list((tmp_path / "data").glob("*.parquet"))) < wanted:
        time.sleep(0.01)
    process.kill()
    process.join()
    kept = read_manifest(tmp_path)["rows"]
    assert 0 < kept < 400
    with pytest.raises(SystemExit) as ended:
        main(verb)
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rows"] == said["checked_rows"] == 400
    assert said["new"] == 400 - kept
    assert {row["id"] for row in rows(tmp_path)} == {f"u{i}" for i in range(400)}
