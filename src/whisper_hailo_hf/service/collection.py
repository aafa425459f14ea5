"""Encoder states of many utterances, from one or several servers, to a data set on disk.

Whatever dies, nothing is lost and nothing doubled: a sample counts when the shard that holds it is in the manifest,
and until then it is asked for again, by this run or the next.
"""

import io
import os
import queue
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.service.feed import Feed, Sample, Speech
from whisper_hailo_hf.service.preparation import CollectionSettings, Preparation
from whisper_hailo_hf.service.shards import Collection, only_one
from whisper_hailo_hf.service.stations import Station
from whisper_hailo_hf.wire.client import Connection
from whisper_hailo_hf.wire.tensors import unpack_tensor

FloatArray = npt.NDArray[np.float32]
Progress = Callable[[int, int | None], None]  # rows in the data set, rows in the end

SILENCE = "silence.npy"
_TRIED = 4  # samples, for the estimate
_BYTES = {"float32": 4, "float16": 2, "uint8": 1, "uint16": 2}


@dataclass(frozen=True)
class Estimate:
    """What a collection will take.

    Attributes:
        rows: windows that are still to be collected; None for a stream, whose length nobody knows.
        bytes: of their states, before compression.
        seconds: as a few take that were tried, by the servers and by this machine.
        arithmetic: how the bytes come about, and what other settings would give.
    """

    rows: int | None
    bytes: int | None
    seconds: float | None
    arithmetic: str


@dataclass
class CollectionReport:
    """What a run did."""

    rows: int  # in the data set
    new: int  # of this run
    shards: int
    bytes: int
    seconds: float
    skipped: dict[str, str] = field(default_factory=dict)


def collect(
    speech: Iterable[Speech],
    folder: str | os.PathLike,
    servers: Sequence[Connection],
    settings: CollectionSettings | None = None,
    *,
    estimated: Callable[[Estimate], None] = lambda estimate: None,
    progress: Progress = lambda rows, total: None,
) -> CollectionReport:
    """Collects the encoder's states of each utterance; run again, it goes on where it was.

    Args:
        speech: utterances of at most one window, a sequence or a stream.
        folder: of the data set, which `datasets.load_dataset` reads.
        servers: where the encoders run; all must have the same model.
        settings: see there.
        estimated: called with what it will take, before the start.
        progress: called as rows arrive.

    Raises:
        RequestError: nothing to collect, an id twice, servers that differ, a folder of something else, or a disk that
            is too small.
        WhisperHailoError: no server answered for too long. What arrived is kept.
    """
    settings = settings or CollectionSettings()
    if not servers:
        raise RequestError("no server to collect from: give at least one address")
    stations = [Station(connection, settings.timeout, settings.patience) for connection in servers]
    try:
        with only_one(folder):
            return _Run(speech, Path(folder).expanduser(), stations, settings, progress).run(estimated)
    finally:
        for station in stations:
            station.close()


class _Run:
    def __init__(
        self,
        speech: Iterable[Speech],
        folder: Path,
        stations: list[Station],
        settings: CollectionSettings,
        progress: Progress,
    ) -> None:
        self.settings, self.stations, self.progress = settings, stations, progress
        self.model = stations[0].describe()
        for station in stations[1:]:
            station.must_serve(self.model)
        self.preparation = Preparation(self.model, settings)
        self.dtype, self.positions = self.preparation.dtype, self.preparation.positions
        self.collection = Collection(folder, self._facts())
        self.known = self.collection.ids()
        self.total: int | None = None
        if isinstance(speech, Sequence):
            names = [one.id for one in speech]
            if not names:
                raise RequestError("nothing to collect: the source has no utterances")
            if len(set(names)) < len(names):
                twice = next(name for name, count in Counter(names).items() if count > 1)
                raise RequestError(f"the source has the id {twice!r} twice: ids must differ")
            self.total = len(self.known.union(names))
        self.speech = speech

    def _facts(self) -> dict[str, Any]:
        model = self.model
        names = ("model", "core_sha256", "host_sha256", "artefact", "artefact_sha256", "mel_bins", "frames")
        return {name: getattr(model, name) for name in names} | {
            "positions": model.positions,
            "core_positions": model.core_positions,
            "d_model": model.d_model,
            "core": self.preparation.native,
            "dtype": self.dtype,
            "send": self.settings.send,
            "speech_only": self.settings.speech_only,
        }

    def run(self, estimated: Callable[[Estimate], None]) -> CollectionReport:
        start, before = time.monotonic(), len(self.known)
        left = [one for one in self.speech if one.id not in self.known] if isinstance(self.speech, Sequence) else None
        if left is None or left:
            estimate = self._estimate(left)
            estimated(estimate)
            self._check_disk(estimate)
            self._keep_silence()
            skipped = self._collect(iter(left) if left is not None else self._new())
        else:
            skipped = {}
        if skipped and not self.known:
            name, reason = next(iter(skipped.items()))
            raise WhisperHailoError(f"none of {len(skipped):,} utterances could be collected; {name}: {reason}")
        shards = self.collection.shards
        size = sum(shard.size for shard in shards)
        seconds = time.monotonic() - start
        return CollectionReport(len(self.known), len(self.known) - before, len(shards), size, seconds, skipped)

    def _new(self) -> Iterator[Speech]:
        seen = set(self.known)
        for one in self.speech:
            if one.id not in seen:
                seen.add(one.id)
                yield one

    # ---- before the start ----

    def _estimate(self, left: list[Speech] | None) -> Estimate:
        width, wide = self.model.d_model, _BYTES[self.dtype]
        whole = self.positions * width * wide
        if left is None:
            line = f"each window takes {self.positions} x {width} x {wide} B = {_gb(whole)}; their number is unknown"
            return Estimate(None, None, None, line)
        lengths = [one.seconds for one in left]
        spoken = [self.positions if seconds is None else self.preparation.spoken(seconds) for seconds in lengths]
        short = sum(spoken) * width * wide
        size = short if self.settings.speech_only else len(left) * whole
        line = f"{len(left):,} windows x {self.positions} positions x {width} channels x {wide} B"
        line += f" = {_gb(len(left) * whole)}; speech only, "
        if None in lengths:
            line += f"at most that, since {lengths.count(None):,} lengths are unknown"
        else:
            line += f"{np.mean(spoken):.0f} positions on average: {_gb(short)}"
        if self.dtype != "float16":
            line += f"; as float16: {_gb(len(left) * self.model.positions * width * 2)}"
        rate = sum(station.rate(self.preparation.silence()) for station in self.stations)
        return Estimate(len(left), size, len(left) * max(1 / rate, self._seconds_to_prepare(left)), line)

    def _seconds_to_prepare(self, left: list[Speech]) -> float:
        """What reading a sample and making it ready takes here, from a few."""
        seconds = []
        for one in left[: 2 * _TRIED : 2]:
            start = time.monotonic()
            try:
                self.preparation.sample(one)
            except WhisperHailoError:
                continue  # it will be skipped, and named, in its turn
            seconds.append(time.monotonic() - start)
        return float(np.median(seconds)) if seconds else 0.0

    def _check_disk(self, estimate: Estimate) -> None:
        free = shutil.disk_usage(self.collection.folder).free
        needed = (estimate.bytes or 0) + 2 * self.settings.shard_bytes
        if needed > free:
            hint = "" if self.settings.speech_only else "keep speech only, "
            raise RequestError(
                f"{self.collection.folder} has {_gb(free)} free and {_gb(needed)} are needed ({estimate.arithmetic}): "
                f"{hint}collect fewer, or name a larger disk"
            )

    def _keep_silence(self) -> None:
        """What positions without speech sound like, for whoever reads the data set."""
        if not self.settings.speech_only or SILENCE in self.collection.files:
            return
        response = self.stations[0].encode(self.preparation.silence())
        content = io.BytesIO()
        np.save(content, unpack_tensor(response.states).values)
        self.collection.keep(SILENCE, content.getvalue())

    # ---- the run itself ----

    def _collect(self, speech: Iterator[Speech]) -> dict[str, str]:
        ahead = sum(station.window for station in self.stations)
        feed = Feed(speech, self.preparation.sample, ahead)
        answers: queue.Queue[Any] = queue.Queue(maxsize=2 * ahead)
        threads = [
            threading.Thread(target=station.work, args=(feed, answers, self.model), daemon=True)
            for station in self.stations
        ]
        for thread in threads:
            thread.start()
        rows: list[dict[str, Any]] = []
        size, written, heard = 0, time.monotonic(), time.monotonic()
        try:
            while True:
                try:
                    station, sample, response = answers.get(timeout=0.2)
                except queue.Empty:
                    self._check_alive(feed, heard)
                    # a server that is away may hold its thread for long yet, and is not needed
                    if feed.finished and answers.empty():
                        break
                else:
                    heard = time.monotonic()
                    row = self._row(station, sample, response)
                    rows.append(row)
                    size += len(row["states"])
                    feed.done(sample)
                    self.progress(len(self.known) + len(rows), self.total)
                late = time.monotonic() - written > self.settings.shard_seconds
                if rows and (size >= self.settings.shard_bytes or late):
                    self._write(rows)
                    rows, size, written = [], 0, time.monotonic()
        finally:
            # also when interrupted: what is here need not be asked for again
            if rows:
                self._write(rows)
            for station in self.stations:
                station.close()
            feed.close()
        if feed.error is not None:
            raise feed.error
        return feed.skipped

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.collection.add(rows)
        self.known.update(row["id"] for row in rows)

    def _check_alive(self, feed: Feed, heard: float) -> None:
        if all(station.error is not None for station in self.stations):
            raise next(station.error for station in self.stations if station.error is not None)
        if time.monotonic() - heard > self.settings.patience and feed.error is None:
            raise WhisperHailoError(
                f"no server has answered for {self.settings.patience:g} s: what arrived is kept, run it again to go on"
            )

    def _row(self, station: Station, sample: Sample, response: Any) -> dict[str, Any]:
        packed, speech = unpack_tensor(response.states), sample.speech
        wanted = (sample.request.positions or self.positions, self.model.d_model)
        if packed.values.shape != wanted or packed.values.dtype != self.dtype:
            raise WhisperHailoError(
                f"{station.address} answered {speech.id!r} with {packed.values.dtype} {list(packed.values.shape)}: "
                f"{self.dtype} {list(wanted)} are due"
            )
        return {
            "id": speech.id,
            "audio": sample.audio,
            "seconds": sample.seconds,
            "text": speech.text,
            "language": speech.language,
            "states": packed.values.tobytes(),
            "dtype": self.dtype,
            "shape": list(wanted),
            "scale": packed.scale,
            "zero_point": packed.zero_point,
            "core": response.core,
            "core_sha256": response.core_sha256,
            "artefact_sha256": response.artefact_sha256,
            "server": station.address,
            "backend": station.backend,
            "collected_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
