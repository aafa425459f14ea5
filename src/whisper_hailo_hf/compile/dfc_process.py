"""Runs jobs of `dfc_worker` in the interpreter that the Dataflow Compiler is installed in, under a memory ceiling."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whisper_hailo_hf.compile import dfc_worker
from whisper_hailo_hf.compile.dfc_errors import Context, explain
from whisper_hailo_hf.compile.memory_guard import Ceiling, kill_group, memory_of
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

Tick = Callable[[str, float, int], None]  # a stage, its seconds, its bytes

_INTERVAL = 0.25  # seconds between two looks at the memory
# which settings of this interpreter's environment are not the other's
_OURS = ("VIRTUAL_ENV", "PYTHONHOME", "__PYVENV_LAUNCHER__")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WARNING = re.compile(r"\[warning\]\s*(.+)")
_SNR = re.compile(r"(\S+/\S+)\s+SNR:\s*(-?\d+(?:\.\d+)?)\s*dB")
_ENTRIES = re.compile(r"Using dataset with (\d+) entries for (\w+)")


class StageStopped(WhisperHailoError):
    """A stage that was ended from outside: its memory or its time was used up, or the kernel killed it."""


@dataclass
class Answer:
    """What a job gave.

    Attributes:
        facts: of the worker's result.
        seconds, peak_memory: what it took; bytes.
        log: name of the file with all that the compiler wrote.
        warnings: lines that the compiler marked as warnings, each once.
        snr: SNR in dB that the compiler told, by layer.
        entries: size of the data set that it said it used, by what for.
    """

    facts: dict[str, Any]
    seconds: float
    peak_memory: int
    log: str
    warnings: list[str] = field(default_factory=list)
    snr: dict[str, float] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """What the journal keeps of it."""
        found: dict[str, Any] = {"log": self.log, "worker_seconds": self.seconds, "peak_memory": self.peak_memory}
        for name in ("warnings", "snr", "entries"):
            if value := getattr(self, name):
                found[f"compiler_{name}"] = value
        return found


class DataflowCompiler:
    """The environment of the DFC.

    Args:
        python: its interpreter.
        folder: for jobs, logs, and what the compiler drops into its working folder.
        ceiling: of memory.
        context: for the explanation of failures.
        timeout: seconds that one job may take.
        keep_open: a file that every worker holds open as long as it lives.
        tick: told now and then how a job is doing.

    Raises:
        RequestError: there is no such interpreter.
    """

    def __init__(
        self,
        python: str | os.PathLike,
        folder: Path,
        ceiling: Ceiling,
        context: Context,
        *,
        timeout: float | None = None,
        keep_open: int | None = None,
        tick: Tick | None = None,
    ) -> None:
        self.python = _interpreter(python)
        self.folder, self.ceiling, self.context, self.timeout = folder, ceiling, context, timeout
        self._keep_open = () if keep_open is None else (keep_open,)
        self._tick = tick or (lambda stage, seconds, memory: None)
        folder.mkdir(parents=True, exist_ok=True)

    def probe(self) -> dict[str, Any]:
        """Versions of what is installed there.

        Raises:
            RequestError: no Dataflow Compiler can be imported there.
        """
        try:
            facts = self.run("probe", "probe").facts
        except StageStopped:
            raise
        except WhisperHailoError as error:
            raise RequestError(f"--dfc-python {self.python}: {error}") from error
        facts.pop("peak_memory", None)
        return facts

    def run(self, stage: str, do: str, **files: Any) -> Answer:
        """Does a job in a process of its own.

        Args:
            stage: for whom; names the log.
            do: what, one of `dfc_worker.JOBS`.
            files: what that job needs; paths as they are.

        Raises:
            StageStopped: it was stopped, or killed.
            WhisperHailoError: the compiler failed; the line says why, and what to do.
        """
        base = self._unused(stage)
        job, events, log = (base.with_suffix(suffix) for suffix in (".job.json", ".events.jsonl", ".log"))
        asked = {name: str(value) if isinstance(value, Path) else value for name, value in files.items()}
        asked |= {"protocol": dfc_worker.PROTOCOL, "do": do, "events": str(events), "alone": True}
        job.write_text(json.dumps(asked, indent=1), encoding="utf-8")
        events.touch()
        started, environment = time.monotonic(), {k: v for k, v in os.environ.items() if k not in _OURS}
        command = [str(self.python), dfc_worker.__file__, str(job)]
        with open(log, "wb") as out:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,  # where the compiler drops logs of its own
                    env=environment | {"PYTHONUNBUFFERED": "1"},
                    start_new_session=True,
                    pass_fds=self._keep_open,
                )
            except OSError as error:
                raise RequestError(f"{self.python} cannot be run: {error.strerror}") from error
            try:
                peak = self._watch(process, stage, started)
            finally:
                kill_group(process)  # what it may have left running, too
                assert process.stdin is not None
                process.stdin.close()
        told = _events(events)
        answer = _from_log(log, time.monotonic() - started, peak)
        result = next((event for event in told if event["event"] == "result"), None)
        if result is not None and process.returncode == 0:
            answer.peak_memory = max(peak, result.pop("peak_memory"))
            answer.facts = {name: value for name, value in result.items() if name != "event"}
            return answer
        raise self._failure(process.returncode, told, log)

    def _unused(self, stage: str) -> Path:
        """A name for the files of a job that no earlier one has: their logs are kept."""
        used = [int(path.name.split("-")[0]) for path in self.folder.glob("[0-9]*-*.log")]
        return self.folder / f"{1 + max(used, default=0):03d}-{stage}"

    def _watch(self, process: "subprocess.Popen[bytes]", stage: str, started: float) -> int:
        """Waits for the end, or puts one."""
        peak = 0
        while True:
            try:
                process.wait(_INTERVAL)
                return peak
            except subprocess.TimeoutExpired:
                pass
            held, seconds = memory_of(process.pid), time.monotonic() - started
            peak = max(peak, held)
            self._tick(stage, seconds, held)
            if reason := self.ceiling.exceeded(held):
                kill_group(process)
                raise StageStopped(
                    f"the compiler {reason} and was stopped; what was finished is kept: run the same command on a "
                    "machine with more memory, with fewer --windows, or a smaller batch_size in the model script"
                )
            if self.timeout is not None and seconds > self.timeout:
                kill_group(process)
                raise StageStopped(
                    f"the compiler took more than the {self.timeout / 3600:g} hours allowed and was stopped; what was "
                    "finished is kept"
                )

    def _failure(self, status: int, told: Sequence[dict[str, Any]], log: Path) -> WhisperHailoError:
        where = f"(log: {log.name})"
        error = next((event for event in told if event["event"] == "error"), None)
        if error is not None:
            return WhisperHailoError(f"{explain(error['types'], error['message'], self.context)} {where}")
        last = _COLOURS.sub("", _tail(log)).strip()
        if status == -9:
            return StageStopped(
                f"the compiler was killed by the system, most likely for want of memory, and what was finished is "
                f"kept: give it less with --memory-ceiling, or a machine with more {where}"
            )
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return WhisperHailoError(f"the compiler {how}{f': {last}' * bool(last)} {where}")


def check_platform() -> None:
    """Refuses systems on which there is no Dataflow Compiler."""
    if not sys.platform.startswith("linux"):
        raise RequestError("Hailo's Dataflow Compiler runs on Linux (x86-64) only: do this there")


def _interpreter(python: str | os.PathLike) -> Path:
    named = shutil.which(python) if os.sep not in os.fspath(python) else None
    # a link is not followed: it is what makes an environment of it
    path = Path(os.path.abspath(Path(named or python).expanduser()))
    if path.is_dir() and (path / "bin" / "python").exists():
        path = path / "bin" / "python"  # the environment's folder was named
    if not path.is_file():
        raise RequestError(
            f"--dfc-python {python}: no such interpreter; name the Python of the environment that the Dataflow "
            "Compiler is installed in, such as ~/dfc/bin/python"
        )
    if not os.access(path, os.X_OK):
        raise RequestError(f"--dfc-python {python}: cannot be run")
    return path


def _events(path: Path) -> list[dict[str, Any]]:
    """What a worker said; its last line may be cut off."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def _from_log(log: Path, seconds: float, peak: int) -> Answer:
    answer = Answer({}, seconds, peak, log.name)
    with open(log, encoding="utf-8", errors="replace") as file:
        for raw in file:
            # a progress bar writes over its own line
            for line in _COLOURS.sub("", raw).split("\r"):
                if (found := _WARNING.search(line)) and found[1].strip() not in answer.warnings:
                    answer.warnings = [*answer.warnings, found[1].strip()[:300]][:20]
                if found := _SNR.search(line):
                    answer.snr[found[1]] = float(found[2])
                if found := _ENTRIES.search(line):
                    answer.entries[found[2]] = int(found[1])
    return answer


def _tail(log: Path) -> str:
    """The last line that has something on it."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    return next((line[:300] for line in reversed(lines) if line.strip()), "")
