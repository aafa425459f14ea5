"""The other end of `bench_worker`: starts a system's process, gives it orders, and makes one line of what fails."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.evaluation.bench_systems import SystemSpec


class BenchProcess:
    """A system in its own process; use it as a context.

    Args:
        spec: what runs there.
        windows: file of the windows, float32 (windows, 480000), as numpy saves it.
        tokens: what it says of a window.
        threads: that it may use.

    Attributes:
        facts: what it told of itself.

    Raises:
        WhisperHailoError: it cannot be loaded, or has died.
    """

    def __init__(self, spec: SystemSpec, windows: str, tokens: int, threads: int) -> None:
        self.spec = spec
        self.facts: dict[str, Any] = {}
        self._order = {"spec": spec.to_dict(), "windows": windows, "tokens": tokens, "threads": threads}
        self._threads = threads

    def __enter__(self) -> Self:
        number = str(self._threads)
        quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # the model lies here
        threads = {"OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number, "OPENBLAS_NUM_THREADS": number}
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "whisper_hailo_hf.evaluation.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | quiet | offline | threads,
            text=True,
            encoding="utf-8",
        )
        try:
            self.facts |= self._ask({"do": "load"} | self._order)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, measure: str) -> float:
        """Seconds of one run."""
        return float(self._ask({"do": "run", "measure": measure})["seconds"])

    def look(self) -> dict[str, Any]:
        """Peak memory so far, MiB, and what the system says it runs on."""
        self.facts |= self._ask({"do": "look"})
        return self.facts

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WhisperHailoError(f"the process of {self.spec.name} has died: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WhisperHailoError(f"{self.spec.name} cannot be measured: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._process.wait(timeout=10)
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        return (lines[-1][:300] if lines else "it said nothing") + f" (exit status {self._process.returncode})"

    def _end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()
