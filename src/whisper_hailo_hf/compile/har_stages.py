"""The forms of an encoder inside Hailo's Dataflow Compiler (DFC), run in its emulator: stages of the fidelity ladder.

`har-native` is the parsed network in float, `har-quantized` the optimized one in integers. Both are files that
`compile_encoder` leaves in its work folder; one that was made from other weights is refused, and the parsed one, where
there is none, is made for the occasion. The compiler runs in its own interpreter, as in a compilation.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.compile.compile_source import FloatArray, Source, open_source, rows_of, work_beside, write_set
from whisper_hailo_hf.compile.compile_stages import HAR, NAME, ONNX, OPTIMIZED, input_shape
from whisper_hailo_hf.compile.dfc_errors import Context
from whisper_hailo_hf.compile.dfc_process import DataflowCompiler, check_platform
from whisper_hailo_hf.compile.journal import Journal
from whisper_hailo_hf.compile.memory_guard import Ceiling, ceiling
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.fidelity import Stage, StageAbsent
from whisper_hailo_hf.hailo.har import read_har
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder

# by stage: its file in a work folder, and the compiler's name for this kind of emulation
FORMS = {"har-native": (HAR, "SDK_NATIVE"), "har-quantized": (OPTIMIZED, "SDK_QUANTIZED")}
_WINDOWS = 64  # in one call, for each starts the compiler anew
_BATCH = 8  # of those, in the compiler
_MADE_FROM = {OPTIMIZED: HAR, HAR: ONNX}


def compiler_stages(
    model_or_folder: Any,
    dfc_python: str | os.PathLike,
    *,
    work: str | os.PathLike | None = None,
    hw_arch: str = "hailo8l",
    memory_ceiling: str | float = 0.8,
    timeout: float | None = None,
) -> dict[str, Callable[[HailoWhisperEncoder], Stage]]:
    """Openers of the stages inside the compiler, for `compare_stages(..., openers=)`.

    Args:
        model_or_folder: what is verified; the work folder of its compilation is looked for beside a model's folder.
        dfc_python: the interpreter that `hailo_sdk_client` is installed for.
        work: the work folder, where it lies elsewhere.
        hw_arch: the target, for the work folder's name and for a network that must be parsed first.
        memory_ceiling: a share of the RAM (0.8, "80%") or a size ("24G"), at which the compiler is stopped.
        timeout: seconds that it may take for one stage's windows.

    Returns:
        By the stage's name, what opens it for an encoder. An opener raises `StageAbsent` where there is no HAR, and
        `WhisperHailoError` where it is not this encoder's, or no network as the encoder's.

    Raises:
        RequestError: no such interpreter or folder, or no Dataflow Compiler in that interpreter.
    """
    check_platform()
    folder = None
    if work is not None:
        folder = Path(work).expanduser()
        if not folder.is_dir():
            raise RequestError(f"--work {folder}: no such folder; name the one that whisper-hailo compile worked in")
    elif isinstance(model_or_folder, str | os.PathLike):
        folder = work_beside(model_or_folder, hw_arch)
    emulator = _Emulator(dfc_python, folder, hw_arch, ceiling(memory_ceiling), timeout)
    return {name: partial(emulator.open, name) for name in FORMS}


class _Emulator:
    """The compiler, asked for nothing but emulations."""

    def __init__(
        self, python: str | os.PathLike, work: Path | None, hw_arch: str, limit: Ceiling, timeout: float | None
    ) -> None:
        self._python, self._work, self._hw_arch, self._limit, self._timeout = python, work, hw_arch, limit, timeout
        with tempfile.TemporaryDirectory(prefix="whisper-hailo-") as room:
            self.versions = self._compiler(Path(room), "width", None).probe()

    def open(self, name: str, encoder: HailoWhisperEncoder) -> Stage:
        """Opens a stage for an encoder."""
        file = FORMS[name][0]
        path = self._work / file if self._work is not None and (self._work / file).is_file() else None
        if path is None and name != "har-native":
            where = f"{self._work} holds none" if self._work is not None else "name its work folder with --work"
            raise StageAbsent(f"needs {file} of whisper-hailo compile: {where}")
        facts = _made_by(path, encoder) if path is not None else {}
        source = open_source(encoder, facts.get("time_axis"))
        room = Path(tempfile.mkdtemp(prefix=f"whisper-hailo-{name}-"))
        emulation = _Emulation(
            name, source, room, self._compiler(room, source.time_axis, self._timeout), self.versions, facts
        )
        try:
            emulation.take(path, self._hw_arch)
        except BaseException:
            emulation.close()
            raise
        return Stage(name, emulation.run, emulation.info, emulation.close, _WINDOWS)

    def _compiler(self, room: Path, time_axis: str, timeout: float | None) -> DataflowCompiler:
        context = Context(self._hw_arch, time_axis)
        return DataflowCompiler(self._python, room / "logs", self._limit, context, timeout=timeout)


class _Emulation:
    """A HAR in the compiler's emulator, with what the host does around it."""

    def __init__(
        self,
        name: str,
        source: Source,
        room: Path,
        dfc: DataflowCompiler,
        versions: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> None:
        self._name, self._source, self._room, self._dfc, self._facts = name, source, room, dfc, facts
        self._info = {"context": FORMS[name][1], "dfc": versions["dfc"]}
        self._failed = False

    def take(self, path: Path | None, hw_arch: str) -> None:
        """Takes a HAR; None parses the encoder."""
        if path is None:
            graph, path = self._room / ONNX, self._room / HAR
            self._source.write_graph(graph)
            self._ask("parse", onnx=graph, name=NAME, hw_arch=hw_arch, har=path)
            self._info["har"] = "parsed for this comparison"
        else:
            self._info["har"] = str(path)
        try:
            self._har, har = path, read_har(path)
        except RequestError as error:  # of a file that the compiler wrote
            raise WhisperHailoError(str(error)) from error
        self._shape = input_shape(har)
        self._info["hw_arch"] = har.metadata.get("hw_arch", hw_arch)

    def run(self, features: FloatArray) -> FloatArray:
        """float32 (batch, mel bins, 2 * positions) features to float32 (batch, positions, d_model) states."""
        inputs, outputs = self._room / "inputs.npy", self._room / "outputs.npy"
        write_set(inputs, self._source, features, range(len(features)), self._shape)
        context = FORMS[self._name][1]
        self._ask("infer", har=self._har, context=context, inputs=inputs, outputs=outputs, batch_size=_BATCH)
        rows, tiles = rows_of(np.load(outputs)), self._source.tiles
        if len(rows) != len(features) * tiles:
            raise WhisperHailoError(f"the compiler gave {len(rows)} windows for {len(features) * tiles}")
        return np.stack([self._source.states(rows[i : i + tiles]) for i in range(0, len(rows), tiles)])

    def info(self) -> dict[str, Any]:
        """What it is, and the SNR of layers, dB, that the compiler told when it made the integers."""
        return self._info | {"layer_snr": self._facts.get("compiler_snr", {})}

    def close(self) -> None:
        """Removes what was written for it; after a failure, what the compiler printed is kept."""
        if not self._failed:
            shutil.rmtree(self._room, ignore_errors=True)

    def _ask(self, do: str, **files: Any) -> None:
        try:
            answer = self._dfc.run(self._name, do, **files)
        except WhisperHailoError as error:
            self._failed = True
            raise WhisperHailoError(f"{error}, in {self._dfc.folder}") from error
        self._info["peak_memory"] = max(answer.peak_memory, self._info.get("peak_memory", 0))


def _made_by(path: Path, encoder: HailoWhisperEncoder) -> dict[str, Any]:
    """What the journal beside a HAR says of it, and of the files that it was made from.

    Raises:
        WhisperHailoError: the journal does not know the file, or it was made from other weights.
    """
    journal = Journal(path.with_name("journal.jsonl"))
    name, sha256, found = path.name, artefacts.sha256_of(path), dict[str, Any]()
    while True:
        event = journal.maker(name, sha256)
        if event is None or "made_from" not in event:
            raise WhisperHailoError(
                f"{path.name} in {path.parent} is no file that its journal knows: it was changed, or made by other "
                "means; run whisper-hailo compile again"
            )
        found = event | found
        if name not in _MADE_FROM:
            break
        name = _MADE_FROM[name]
        sha256 = event["made_from"].get(name)
    if event["made_from"].get("weights") != artefacts.fingerprint(encoder.core):
        raise WhisperHailoError(
            f"{path.name} in {path.parent} was made from other weights than those loaded: run whisper-hailo "
            "compile again"
        )
    return found
