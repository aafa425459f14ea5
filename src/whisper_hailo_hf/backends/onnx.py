"""`onnx`: the core as a static graph in ONNX Runtime.

The graph is `onnx/encoder.onnx` beside the weights where that fits them; otherwise it is exported from the weights in
memory at the first run, and again when they have changed.
"""

import logging
import os
import shutil
import tempfile
import weakref
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.backends.base import BackendStatus, EncoderParts, GraphBackend
from whisper_hailo_hf.encoders import EncoderCore
from whisper_hailo_hf.encoders.export import INPUT_NAME, OUTPUT_NAME, export_core
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

logger = logging.getLogger(__name__)

_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}


class OnnxBackend(GraphBackend):
    """ONNX Runtime.

    Args:
        parts: the model's encoder.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.
        providers: execution providers in order of preference; None is the CPU.
        graph_optimization: `"all"`, `"extended"`, `"basic"` or `"disabled"`.
    """

    name = "onnx"

    def __init__(
        self,
        parts: EncoderParts,
        *,
        threads: int | None = None,
        providers: list[str] | None = None,
        graph_optimization: str = "all",
    ) -> None:
        super().__init__(parts)
        if graph_optimization not in _LEVELS:
            raise RequestError(f"graph_optimization is one of {', '.join(_LEVELS)}, not {graph_optimization!r}")
        if threads is not None and threads < 1:
            raise RequestError(f"threads is a positive number, not {threads!r}")
        if providers:
            import onnxruntime

            # ONNX Runtime itself would fall back to the CPU with no more than a warning
            present = onnxruntime.get_available_providers()
            if absent := [name for name in providers if name not in present]:
                raise RequestError(
                    f"onnxruntime has no provider {', '.join(absent)} here: it has {', '.join(present)}"
                )
        self.threads, self.providers, self.graph_optimization = threads, providers, graph_optimization
        self._folder: Path | None = None
        self._source = ""
        self._beside()

    @classmethod
    def status(cls) -> BackendStatus:
        if find_spec("onnxruntime") is None:
            return BackendStatus(cls.name, False, "onnxruntime is not installed: pip install 'whisper-hailo-hf[onnx]'")
        return BackendStatus(cls.name, True, runtime_version())

    @classmethod
    def why_not_auto(cls, parts: EncoderParts) -> str | None:
        try:
            path = parts.artefacts.get(artefacts.ONNX_PATH)
        except WhisperHailoError as error:  # on the Hub, and not to be had
            return str(error)
        if path is None:
            return f"no {artefacts.ONNX_PATH} beside the weights"
        return _why_unfit(parts, artefacts.fingerprint(parts.core))

    def _beside(self) -> Path | None:
        """The file beside the weights, fetched if need be; None, with a line, where it cannot be had."""
        try:
            return self.parts.artefacts.get(artefacts.ONNX_PATH)
        except WhisperHailoError as error:
            logger.warning("exporting the encoder anew: %s", error)
            return None

    def graph(self) -> Path:
        """The ONNX file that stands for the weights as they are now, exported if need be."""
        present = self._beside()
        if present is not None:
            reason = _why_unfit(self.parts, artefacts.fingerprint(self.parts.core))
            if reason is None:
                self._source = str(present)
                return present
            logger.warning("exporting the encoder anew: %s", reason)
        if any(parameter.is_meta for parameter in self.parts.core.parameters()):
            raise WhisperHailoError("the encoder's weights are off-loaded: load the model without disk off-loading")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="whisper-hailo-"))
            weakref.finalize(self, _remove, self._folder, os.getpid())
        self._source = "exported from the weights in memory"
        return export_core(self.parts.core, self.parts.mel_bins, self.parts.time_axis, self._folder / "encoder.onnx")

    def record(self, graph: Path, **facts: Any) -> dict[str, Any]:
        """The record of what `graph()` gave."""
        return graph_record(graph, self.parts.core, self.parts.time_axis, **facts)

    def open(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # threads that wait for work by spinning keep the decoder's, which runs next, from the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, _LEVELS[self.graph_optimization]
        )
        return onnxruntime.InferenceSession(
            str(self.graph()), options, providers=self.providers or ["CPUExecutionProvider"]
        )

    def run(self, window: np.ndarray) -> np.ndarray:
        with self.handle() as session:
            return session.run([OUTPUT_NAME], {INPUT_NAME: window})[0]

    def info(self) -> dict[str, Any]:
        return {
            "backend": self.name,
            "runtime": runtime_version(),
            "graph": self._source or "not opened yet",
            "threads": self.threads or "onnxruntime's choice",
            "providers": self.providers or ["CPUExecutionProvider"],
            "graph_optimization": self.graph_optimization,
        }

    def __getstate__(self) -> dict[str, Any]:
        # the exported file belongs to the original, which removes it
        return super().__getstate__() | {"_folder": None, "_source": ""}


def runtime_version() -> str:
    """Name and version of the ONNX Runtime that is installed."""
    try:
        return f"onnxruntime {version('onnxruntime')}"
    except PackageNotFoundError:  # the module also comes as onnxruntime-gpu, onnxruntime-openvino and others
        names = packages_distributions().get("onnxruntime", [])
        return " ".join(f"{name} {version(name)}" for name in names) or "onnxruntime of an unknown version"


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child that ends
        shutil.rmtree(folder, ignore_errors=True)


def graph_record(path: Path, core: EncoderCore, time_axis: str, **facts: Any) -> dict[str, Any]:
    """The record of a core's graph, as `onnx/encoder.onnx`."""
    made = {"producer": f"torch {version('torch')}", "versions": artefacts.tool_versions("torch", "onnx")}
    return artefacts.record(path, artefacts.fingerprint(core), **_facts(core, time_axis), **made, **facts)


def _facts(core: EncoderCore, time_axis: str) -> dict[str, Any]:
    return {"time_axis": time_axis, "frames": core.frames}


def _why_unfit(parts: EncoderParts, weights: str) -> str | None:
    path, record = parts.artefacts[artefacts.ONNX_PATH], parts.records.get(artefacts.ONNX_PATH)
    return artefacts.why_unfit(path, record, weights, **_facts(parts.core, parts.time_axis))
