"""The bundled demo to a Hub and back, into another process with an empty cache: with the package, on the graph and a
stand-in for a chip; and without the package, from the code that came along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers_hef import hailo_platform, install_hef
from helpers_hub import OWNER, serving

from whisper_hailo_hf import WhisperHailoForConditionalGeneration as Model
from whisper_hailo_hf import __version__
from whisper_hailo_hf.artefacts import HEF_PATH, ONNX_INT8_PATH, ONNX_PATH
from whisper_hailo_hf.compile.quantize import quantize_encoder
from whisper_hailo_hf.hub.code import FOLDER, code_files
from whisper_hailo_hf.speech_model import demo_model_path

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own, of httpx
RECORDING = Path(__file__).resolve().parent.parent / "examples" / "digits_theo.flac"
NAME = f"{OWNER}/digits-hailo"
DIGITS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}


@pytest.fixture(scope="module")
def audio() -> np.ndarray:
    return soundfile.read(RECORDING, dtype="float32")[0]


@pytest.fixture(scope="module")
def recording(audio, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "audio.npy"
    np.save(path, audio)
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with the demo, a graph, an integer graph, a HEF of that, and the code."""
    from transformers import AutoProcessor

    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as monkeypatch, hailo_platform("4.23"), serving(monkeypatch, home) as found:
        folder = home / "model"
        model = Model.from_pretrained(demo_model_path(), encoder_backend="torch")
        quantize_encoder(
            model, str(RECORDING), output=home / "int8.onnx", method="minmax", layer_windows=0, choices=False,
            equalize=False, bias_correction=False, report_windows=1,
        )  # fmt: skip
        model.set_encoder_backend("onnx", threads=1)
        model.save_pretrained(folder)
        install_hef(folder)
        model = Model.from_pretrained(folder, encoder_backend="torch")
        processor = AutoProcessor.from_pretrained(demo_model_path())
        for name, include_code in ((NAME, False), (f"{NAME}-code", True)):
            model.push_to_hub(name, include_code=include_code)
            processor.push_to_hub(name)
        found.log.clear()
        yield found


def run(hub, code: str, home: Path, *arguments: object) -> dict:
    """In a process that knows this Hub, and whose cache is empty; what it prints as JSON."""
    environment = os.environ | hub.environment(home) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


_WITH_THE_PACKAGE = """
import json, sys
import numpy as np
import whisper_hailo_hf
from transformers import pipeline
name, recording = sys.argv[1:]
said = {}
for backend in ("onnx", "hef"):
    asr = pipeline("automatic-speech-recognition", model=name, model_kwargs={"encoder_backend": backend})
    result = asr(np.load(recording), return_timestamps=True)
    said[backend] = [asr.model.encoder_backend, result["text"], [chunk["timestamp"] for chunk in result["chunks"]]]
    asr.model.get_encoder().backend.close()
print(json.dumps(said))
"""


def test_there_and_back(hub, recording, tmp_path):
    said = run(hub, _WITH_THE_PACKAGE, tmp_path, NAME, recording)
    assert [said[backend][0] for backend in ("onnx", "hef")] == ["onnx", "hef"]
    words = [said[backend][1].lower().replace(",", " ").replace(".", " ").split() for backend in ("onnx", "hef")]
    assert len(words[0]) > 1
    assert set(words[0]) <= DIGITS
    assert set(words[1]) <= DIGITS
    assert said["onnx"][2]
    # the same folder here, without the Hub
    here = Model.from_pretrained(NAME, encoder_backend="emulator")
    assert {name for name in hub.fetched(NAME) if "/" in name} == {ONNX_PATH, HEF_PATH, ONNX_INT8_PATH}
    assert said["hef"][1] == text_of(here, recording)  # the chip's integers are the emulator's


def text_of(model, recording: Path) -> str:
    from transformers import AutoProcessor, pipeline

    processor = AutoProcessor.from_pretrained(demo_model_path())
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    return pipeline("automatic-speech-recognition", model, **parts)(np.load(recording), return_timestamps=True)["text"]


# Without the package

_WITHOUT = """
import json, os, sys
sys.modules["whisper_hailo_hf"] = None  # it cannot be imported
import numpy as np
from transformers import AutoModelForSpeechSeq2Seq, pipeline
name, recording = sys.argv[1:]
audio, said = np.load(recording), {}
for backend in ("auto", "torch"):
    asr = pipeline(
        "automatic-speech-recognition", model=name, trust_remote_code=True, model_kwargs={"encoder_backend": backend}
    )
    said[backend] = [asr.model.encoder_backend, asr(audio, return_timestamps=True)["text"]]
model = asr.model
said["module"] = type(model).__module__
try:
    model.set_encoder_backend("hef")
except Exception as error:
    said["hef"] = f"{type(error).__name__}: {error}"
try:
    model.push_to_hub("user/again")
except Exception as error:
    said["push"] = f"{type(error).__name__}: {error}"
model.save_pretrained("saved")
said["saved"] = sorted(os.path.join(folder, file) for folder, _, files in os.walk("saved") for file in files)
again = AutoModelForSpeechSeq2Seq.from_pretrained("saved", trust_remote_code=True)
said["again"] = [again.encoder_backend, type(again).__name__]
print(json.dumps(said))
"""


def test_without_the_package(hub, recording, tmp_path):
    name = f"{NAME}-code"
    said = run(hub, _WITHOUT, tmp_path, name, recording)
    expected = text_of(Model.from_pretrained(name, encoder_backend="torch"), recording)
    assert said["torch"] == ["torch", expected]
    assert said["auto"] == ["onnx", expected]
    assert said["module"].startswith("transformers_modules.")
    assert said["hef"].startswith(
        "RequestError: the encoder backend 'hef' cannot run here: it is not in the code that"
    )
    assert "pip install whisper-hailo-hf" in said["hef"]
    assert "ImportError: this is not in the code that came with the model: pip install" in said["push"]
    assert said["again"] == ["onnx", "WhisperHailoForConditionalGeneration"]
    assert set(code_files(True)) <= {name.removeprefix("saved/") for name in said["saved"]}
    assert f"saved/{ONNX_PATH}" in said["saved"]


def test_the_code_is_this_version_s(hub):
    files = hub.files(f"{NAME}-code")
    for name, text in code_files(True).items():
        assert files[name].decode() == text
        assert text.startswith(f"# From whisper_hailo_hf {__version__}, Apache-2.0: ")
    assert f'__version__ = "{__version__}"' in files[f"{FOLDER}/version.py"].decode()
    assert not [name for name in hub.files(NAME) if name.startswith(FOLDER)]
