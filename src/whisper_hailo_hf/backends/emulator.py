"""`emulator`: the core as a device would run it, in integers, in ONNX Runtime on the CPU.

The graph is `onnx/encoder_int8.onnx` beside the weights. What a device's host does is done here and not in the graph:
features become integers of the input's scale, saturating at the range that was calibrated, and the integers that come
out become float32 for the host epilogue.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.arithmetic import ACTIVATIONS, Affine
from whisper_hailo_hf.backends.base import BackendStatus, EncoderParts, GraphBackend
from whisper_hailo_hf.backends.onnx import runtime_version
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


class IntegerGraph:
    """An integer graph with its host's part taken off: integers in, integers out.

    Args:
        path: the ONNX file, as the quantizer writes it: one input and one output in float32, with a QuantizeLinear
            behind the one and a DequantizeLinear before the other.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.

    Attributes:
        input, output: the integers of the graph's input and output.
        session: of ONNX Runtime.

    Raises:
        WhisperHailoError: a graph of another form.
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None) -> None:
        import onnx
        import onnxruntime

        model = onnx.load(path)
        graph = model.graph
        first = [node for node in graph.node if graph.input[0].name in node.input]
        last = [node for node in graph.node if graph.output[0].name in node.output]
        if [node.op_type for node in first] != ["QuantizeLinear"] or last[0].op_type != "DequantizeLinear":
            raise WhisperHailoError(
                f"{Path(path).name} is no integer graph of this package's making: make it with whisper-hailo quantize"
            )
        self.input, self.output = _affine(graph, first[0]), _affine(graph, last[0])
        for value, name, affine in (
            (graph.input[0], first[0].output[0], self.input),
            (graph.output[0], last[0].input[0], self.output),
        ):
            value.name = name
            value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(affine.integer.dtype))
        for node in (first[0], last[0]):
            graph.node.remove(node)
        graph.ClearField("value_info")
        options = onnxruntime.SessionOptions()
        # threads that wait for work by spinning keep the decoder's, which runs next, from the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._names = [graph.output[0].name], graph.input[0].name

    def run_integers(self, integers: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What the device does, in the graph's own layout: integers to integers."""
        return self.session.run(self._names[0], {self._names[1]: integers})[0]

    def run(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What device and host do together: float32 to float32."""
        return self.output.dequantize(self.run_integers(self.input.quantize(features)))


def _affine(graph: "GraphProto", node: "NodeProto") -> Affine:
    import onnx

    constants = {one.name: one for one in graph.initializer if one.name in node.input}
    scale, zero = (onnx.numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    integer = next(kind for kind in ACTIVATIONS.values() if kind.dtype == zero.dtype.name)
    return Affine(np.asarray(scale, np.float32), int(zero), integer)


class EmulatorBackend(GraphBackend):
    """The integer graph beside the weights.

    Args:
        parts: the model's encoder.
        threads: threads within an operator; None leaves the choice to ONNX Runtime.

    Raises:
        RequestError: there is no integer graph, or it does not fit the weights.
    """

    name = "emulator"

    def __init__(self, parts: EncoderParts, *, threads: int | None = None) -> None:
        super().__init__(parts)
        if threads is not None and threads < 1:
            raise RequestError(f"threads is a positive number, not {threads!r}")
        self.threads = threads
        self.graph()

    @classmethod
    def status(cls) -> BackendStatus:
        missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
        if missing:
            line = f"{missing[0]} is not installed: pip install 'whisper-hailo-hf[onnx]'"
            return BackendStatus(cls.name, False, line)
        return BackendStatus(cls.name, True, f"integers in {runtime_version()}")

    @classmethod
    def why_not_auto(cls, parts: EncoderParts) -> str | None:
        return "it shows what a device would answer, and is asked for by name"

    def graph(self) -> Path:
        """The integer graph that stands for the weights as they are now."""
        path = self.parts.artefacts.get(artefacts.ONNX_INT8_PATH)
        if path is None:
            raise RequestError(
                f"no {artefacts.ONNX_INT8_PATH} beside the weights: make it with whisper-hailo quantize"
            )
        entry = self.parts.records.get(artefacts.ONNX_INT8_PATH)
        weights = artefacts.fingerprint(self.parts.core)
        reason = artefacts.why_unfit(path, entry, weights, time_axis=self.parts.time_axis)
        if reason is not None:
            raise RequestError(f"{reason}: make it anew with whisper-hailo quantize")
        return path

    def open(self) -> IntegerGraph:
        return IntegerGraph(self.graph(), self.threads)

    def run(self, window: np.ndarray) -> np.ndarray:
        with self.handle() as graph:
            return graph.run(window)

    def integers(self) -> tuple[Affine, Affine]:
        with self.handle() as graph:
            return graph.input, graph.output

    def info(self) -> dict[str, Any]:
        record = self.parts.records.get(artefacts.ONNX_INT8_PATH, {})
        return {
            "backend": self.name,
            "runtime": runtime_version(),
            "graph": str(self.parts.artefacts.get(artefacts.ONNX_INT8_PATH)),
            "input": record.get("input"),
            "output": record.get("output"),
            "threads": self.threads or "onnxruntime's choice",
        }
