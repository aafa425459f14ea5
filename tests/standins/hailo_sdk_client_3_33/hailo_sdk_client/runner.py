"""The ClientRunner: states, files, emulation, and the ways in which the real one refuses."""

import io
import json
import os
import sys
import tarfile
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import numpy as np
from hailo_model_optimization.acceleras.utils.acceleras_exceptions import BadInputsShape
from hailo_sdk_common.states.states import InvalidStateException

from hailo_sdk_client.exposed_definitions import States
from hailo_sdk_client.faults import strike, told
from hailo_sdk_client.script import Script
from hailo_sdk_client.sdk_backend.sdk_backend_exceptions import BackendRuntimeException

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the tests' own helpers: the parser's and the HEF's form

ARCHITECTURES = ("hailo8", "hailo8l", "hailo8r", "hailo10h", "hailo15h", "hailo15m", "hailo15l")
_ORDER = list(States)


class InferenceContext(Enum):
    SDK_NATIVE = "sdk_native"
    SDK_FP_OPTIMIZED = "sdk_fp_optimized"
    SDK_QUANTIZED = "sdk_quantized"
    SDK_HAILO_HW = "sdk_hailo_hw"


_NEEDS = {
    InferenceContext.SDK_NATIVE: States.HAILO_MODEL,
    InferenceContext.SDK_FP_OPTIMIZED: States.FP_OPTIMIZED_MODEL,
    InferenceContext.SDK_QUANTIZED: States.QUANTIZED_MODEL,
}


class ClientRunner:
    def __init__(self, hw_arch=None, har=None):
        if (hw_arch is None) == (har is None):
            raise ValueError("either hw_arch or har")
        if hw_arch is not None and hw_arch not in ARCHITECTURES:
            raise ValueError(f"unknown hw_arch {hw_arch}")
        self.hw_arch, self.state, self.model_name, self.model_script = hw_arch, States.UNINITIALIZED, None, None
        self.hef, self._files, self._open = None, {}, None
        if har is not None:
            self.load_har(har)

    # states

    def _needs(self, *states):
        if self.state not in states:
            wanted = ", ".join(state.value for state in states)
            raise InvalidStateException(f"The execution requires one of [{wanted}], the state is {self.state.value}")

    # files

    def save_har(self, har_path):
        self._needs(*_ORDER[1:])
        metadata = json.loads(self._files[f"{self.model_name}.metadata.json"])
        metadata.update(state=self.state.value, hw_arch=self.hw_arch)
        self._files[f"{self.model_name}.metadata.json"] = json.dumps(metadata).encode()
        with tarfile.open(har_path, "w:") as archive:
            for name, data in self._files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))

    def load_har(self, har):
        with tarfile.open(har, "r:") as archive:
            self._files = {one.name: archive.extractfile(one).read() for one in archive}
        (name,) = [one for one in self._files if one.endswith(".metadata.json")]
        metadata = json.loads(self._files[name])
        self.model_name, self.hw_arch = metadata["model_name"], metadata["hw_arch"]
        self.state = States(metadata["state"])

    def get_hn(self):
        self._needs(*_ORDER[1:])
        return json.loads(self._files[f"{self.model_name}.hn"])

    # parse

    def translate_onnx_model(
        self,
        model=None,
        net_name="model",
        start_node_names=None,
        end_node_names=None,
        net_input_shapes=None,
        net_input_format=None,
        disable_onnx_simplifier=False,
    ):
        strike("translate_onnx_model")
        from helpers_har import files_of, parsed

        data = Path(model).read_bytes()
        if scale := told("translate_onnx_model", "spoil"):
            data = _spoiled(data, scale)
            (Path(os.getcwd()) / "spoiled.onnx").write_bytes(data)
            model = Path(os.getcwd()) / "spoiled.onnx"
        hn, weights = parsed(Path(model), name=net_name)
        if told("translate_onnx_model", "lose"):
            ends = [name for name, layer in hn["layers"].items() if layer["type"] == "conv"]
            hn["layers"][ends[-1]]["params"]["strides"] = [1, 2, 2, 1]
        self.model_name, self.state = net_name, States.HAILO_MODEL
        self._files = files_of(hn, weights)
        self._files["standin.onnx"] = data
        return hn, weights

    # optimize

    def load_model_script(self, model_script=None, append=False):
        self._needs(States.HAILO_MODEL, States.FP_OPTIMIZED_MODEL)
        strike("load_model_script")
        is_file = "\n" not in str(model_script) and os.path.isfile(model_script)
        text = Path(model_script).read_text() if is_file else str(model_script)
        before = self.model_script.text if append and self.model_script else ""
        layers = [name.rpartition("/")[2] for name in self.get_hn()["layers"]]
        self.model_script = Script(before + text, layers)

    def optimize(self, calib_data, data_type="auto", work_dir=None):
        self._needs(States.HAILO_MODEL, States.FP_OPTIMIZED_MODEL)
        data = self._dataset(calib_data)
        script = self.model_script or Script("", [])
        if len(data) < 1024:
            print("[warning] Reducing optimization level to 1 because there's less data than recommended (1024)")
        print("[warning] Reducing optimization level to 0 because there's no available GPU")
        if len(data) < script.calibset_size:
            raise ValueError(f"the calibration set has {len(data)} entries, calibset_size is {script.calibset_size}")
        strike("optimize")
        print(f"[info] Using dataset with {script.calibset_size} entries for calibration")
        import onnx
        from helpers_har import Parsed

        from hailo_sdk_client import rounding

        model = onnx.load_model_from_string(self._files["standin.onnx"])
        source = Path(work_dir or ".") / "standin.onnx"
        source.write_bytes(self._files["standin.onnx"])
        home = {tensor: layer.rpartition("/")[2] for tensor, layer in Parsed(source, "net", False).home.items()}
        output = model.graph.output[0].name
        ends = [layer["type"] for layer in self.get_hn()["layers"].values()].count("output_layer")
        assert ends == 1
        windows = self._layout(np.asarray(data[: script.calibset_size], np.float32))

        def bits(tensor):
            activations, weights = script.bits(home.get(tensor, ""))
            return (script.bits("output_layer1")[0] if tensor == output else activations), weights

        seen = rounding.ranges(model, list(home), windows)
        quantized = rounding.rounded(model, seen, bits)
        native = self._files
        self._files = {
            **native,
            f"{self.model_name}.native.hn": native[f"{self.model_name}.hn"],
            f"{self.model_name}.native.npz": native[f"{self.model_name}.npz"],
            f"{self.model_name}.fp.hn": native[f"{self.model_name}.hn"],
            f"{self.model_name}.alls": script.text.encode(),
            "standin_quantized.onnx": quantized.SerializeToString(),
            "standin_ends.json": json.dumps(
                {
                    "input": [*seen[model.graph.input[0].name], bits(model.graph.input[0].name)[0]],
                    "output": [*seen[output], bits(output)[0]],
                }
            ).encode(),
        }
        self.state = States.QUANTIZED_MODEL
        if script.checker:
            probe = windows[:4]
            ours, theirs = (self._run(one, probe) for one in ("standin.onnx", "standin_quantized.onnx"))
            noise = float(np.square(ours - theirs).sum())
            snr = 10 * np.log10(float(np.square(ours).sum()) / max(noise, 1e-12))
            print(f"[info] \t{self.model_name}/output_layer1 SNR:\t{snr:.3f} dB")

    def optimize_full_precision(self, calib_data=None):
        self._needs(States.HAILO_MODEL)
        self.state = States.FP_OPTIMIZED_MODEL

    def analyze_noise(self, dataset, data_type="auto", batch_size=1, data_count=None, analyze_mode="simple"):
        self._needs(States.QUANTIZED_MODEL, States.COMPILED_MODEL)
        self._dataset(dataset)
        strike("analyze_noise")
        return None

    # emulation

    @contextmanager
    def infer_context(self, inference_context):
        if inference_context is InferenceContext.SDK_HAILO_HW:
            raise RuntimeError("no device")
        needed = _NEEDS[inference_context]
        self._needs(*_ORDER[_ORDER.index(needed) :])
        self._open = inference_context
        try:
            yield inference_context
        finally:
            self._open = None

    def infer(self, context, dataset, data_type="auto", batch_size=8, data_count=None):
        if self._open is None or context is not self._open:
            raise RuntimeError("infer() outside of infer_context()")
        strike("infer")
        data = np.asarray(self._dataset(dataset)[:data_count], np.float32)
        model = "standin_quantized.onnx" if context is InferenceContext.SDK_QUANTIZED else "standin.onnx"
        found = self._run(model, self._layout(data)).transpose(0, 2, 3, 1)
        if told("infer", "nan"):
            found = np.full_like(found, np.nan)
        return found

    def _run(self, name, windows):
        session = session_of(self._files[name])
        given = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {given: window[None]})[0] for window in windows])

    def _layout(self, data):
        return np.ascontiguousarray(data.transpose(0, 3, 1, 2))

    def _dataset(self, data):
        ((layer, entry),) = [pair for pair in self.get_hn()["layers"].items() if pair[1]["type"] == "input_layer"]
        if isinstance(data, dict):
            if layer not in data:
                raise ValueError(f"Unspecified inputs: {{'{layer}'}}")
            data = data[layer]
        if not isinstance(data, np.ndarray):
            raise TypeError(f"a dataset of type {type(data).__name__}")
        shape = entry["output_shapes"][0][1:]
        if list(data.shape[1:]) != shape:
            raise BadInputsShape(
                f"Data shape {data.shape[1:]} for layer {layer} doesn't match network's input shape {tuple(shape)}"
            )
        if data.dtype != np.float32:
            raise TypeError(f"a dataset of {data.dtype}")
        return data

    # compile

    def compile(self):
        if self.state in (States.UNINITIALIZED, States.HAILO_MODEL, States.FP_OPTIMIZED_MODEL):
            raise BackendRuntimeException(
                "Model requires quantized weights in order to run on HW, but none were given. "
                "Did you forget to quantize?"
            )
        strike("compile")
        from hailo_sdk_client.hef import hef_of

        self.hef = hef_of(self, json.loads(self._files["standin_ends.json"]), self._files["standin_quantized.onnx"])
        self._files[f"{self.model_name}.hef"] = self.hef
        self.state = States.COMPILED_MODEL
        return self.hef


def session_of(model):
    import onnxruntime  # what needs no ONNX starts faster without it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _spoiled(data, scale):
    """The graph with noise in its weights."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(data)
    random = np.random.default_rng(0)
    for index, one in enumerate(model.graph.initializer):
        array = numpy_helper.to_array(one)
        if array.dtype == np.float32 and array.ndim == 4:
            noisy = (array + scale * random.standard_normal(array.shape)).astype(np.float32)
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(noisy, one.name))
    return model.SerializeToString()
