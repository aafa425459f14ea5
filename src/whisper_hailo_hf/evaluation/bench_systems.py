"""What a benchmark runs: stock Transformers, models with a pluggable encoder, and faster-whisper, behind one protocol.

All hear the same windows of 30 s and say the same number of tokens, greedily, in English, without timestamps: the end
of the text is forbidden until then. A call never hears the window of the call before, since the encoder of this
package remembers that one.
"""

import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from whisper_hailo_hf.audio import SAMPLING_RATE, FloatArray
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

# each token after the first takes (decoding - prefill) / (tokens - 1)
MEASURES = ("encoder", "first_token", "prefill", "decoding", "end_to_end")
WINDOW_SECONDS = 30


@dataclass(frozen=True)
class SystemSpec:
    """A system to measure.

    Attributes:
        name: for people, unlike the others.
        kind: `stock`, `ours` or `faster_whisper`.
        folder: of the model, in the form that its kind reads.
        encoder_backend, decoder_backend: of `ours`.
        compute_type: of `faster_whisper`: `float32` or `int8`.
    """

    name: str
    kind: str
    folder: str
    encoder_backend: str = "torch"
    decoder_backend: str = "torch"
    compute_type: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return asdict(self)


class BenchSystem(ABC):
    """One system, loaded.

    Args:
        spec: what it is.
        windows: 30 s of samples each, float32 (480000,), two or more.
        tokens: what it says of a window.
        threads: that it may use.
    """

    def __init__(self, spec: SystemSpec, windows: list[FloatArray], tokens: int, threads: int) -> None:
        self.spec, self.windows, self.tokens, self.threads = spec, windows, tokens, threads
        self._call = 0
        self.load()

    @abstractmethod
    def load(self) -> None:
        """Loads the model, and makes features and encoder states of all windows."""

    @abstractmethod
    def encode(self, window: int) -> Any:
        """Encoder states of a window from its features."""

    @abstractmethod
    def generate(self, window: int, tokens: int) -> int:
        """From features to tokens; how many there are."""

    @abstractmethod
    def decode(self, window: int, tokens: int) -> int:
        """From encoder states that are there already to tokens; how many there are."""

    @abstractmethod
    def transcribe(self, window: int) -> int:
        """From samples to text; how many tokens it has."""

    def info(self) -> dict[str, Any]:
        """What it runs on, for people and for reports."""
        return {}

    def run(self, measure: str) -> float:
        """Seconds that one of `MEASURES` takes, on the next window.

        Raises:
            WhisperHailoError: it said another number of tokens than it should.
        """
        self._call += 1
        window = self._call % len(self.windows)
        wanted = {"encoder": 0, "first_token": 1, "prefill": 1}.get(measure, self.tokens)
        said = 0
        began = time.perf_counter()
        if measure == "encoder":
            self.encode(window)
        elif measure == "end_to_end":
            said = self.transcribe(window)
        elif measure == "first_token":
            said = self.generate(window, wanted)
        else:
            said = self.decode(window, wanted)
        seconds = time.perf_counter() - began
        if said != wanted:
            raise WhisperHailoError(f"{self.spec.name} said {said} tokens where {wanted} were asked for")
        return seconds


class TransformersSystem(BenchSystem):
    """Stock Transformers on torch, or a model of this package on one of its backends."""

    def load(self) -> None:
        import torch
        from transformers import AutoProcessor, WhisperForConditionalGeneration

        torch.set_num_threads(self.threads)
        self.torch = torch
        folder, spec = self.spec.folder, self.spec
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.model: Any
        if spec.kind == "stock":
            self.model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        else:
            from whisper_hailo_hf.modeling_whisper_hailo import WhisperHailoForConditionalGeneration

            threads = {"threads": self.threads}
            self.model = WhisperHailoForConditionalGeneration.from_pretrained(
                folder,
                dtype=torch.float32,
                encoder_backend=spec.encoder_backend,
                encoder_backend_options=threads if spec.encoder_backend in ("onnx", "emulator") else {},
                decoder_backend=spec.decoder_backend,
                decoder_backend_options={} if spec.decoder_backend == "torch" else threads,
            ).eval()
        known = self.model.generation_config
        self.settings: dict[str, Any] = {"num_beams": 1, "do_sample": False, "return_timestamps": False}
        if getattr(known, "is_multilingual", False):
            self.settings |= {"language": "en", "task": "transcribe"}
        known.return_timestamps = False  # a True there would outweigh the False above
        self.features = [self._features(samples) for samples in self.windows]
        self.states = [self.encode(window) for window in range(len(self.windows))]

    def _features(self, samples: FloatArray) -> Any:
        extractor = self.processor.feature_extractor
        return extractor(samples, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features

    def encode(self, window: int) -> Any:
        with self.torch.no_grad():
            return self.model.get_encoder()(self.features[window]).last_hidden_state

    def generate(self, window: int, tokens: int) -> int:
        return len(self._generate(tokens, input_features=self.features[window]))

    def decode(self, window: int, tokens: int) -> int:
        from transformers.modeling_outputs import BaseModelOutput

        return len(self._generate(tokens, encoder_outputs=BaseModelOutput(last_hidden_state=self.states[window])))

    def _generate(self, tokens: int, **heard: Any) -> Any:
        limits = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        found = self.model.generate(**heard, **self.settings, **limits)[0].tolist()
        prompt = getattr(self, "prompt", None)
        if prompt is None:  # some versions return the decoder's prompt too
            special = set(self.processor.tokenizer.all_special_ids)
            prompt = self.prompt = next((i for i, token in enumerate(found) if token not in special), 0)
        return found[prompt:]

    def transcribe(self, window: int) -> int:
        found = self._generate(self.tokens, input_features=self._features(self.windows[window]))
        self.processor.tokenizer.decode(found, skip_special_tokens=True)
        return len(found)

    def info(self) -> dict[str, Any]:
        backend = getattr(self.model.get_encoder(), "backend", None)
        decoder = {} if self.spec.decoder_backend == "torch" else {"decoder_backend": self.spec.decoder_backend}
        return ({"backend": "torch"} if backend is None else backend.info()) | decoder


class FasterWhisperSystem(BenchSystem):
    """faster-whisper (https://github.com/SYSTRAN/faster-whisper) on CTranslate2; end to end by its `transcribe`."""

    def load(self) -> None:
        from ctranslate2 import StorageView
        from faster_whisper import WhisperModel
        from faster_whisper.tokenizer import Tokenizer

        kind = self.spec.compute_type
        self.model = WhisperModel(self.spec.folder, device="cpu", compute_type=kind, cpu_threads=self.threads)
        multilingual = self.model.model.is_multilingual
        language = {"task": "transcribe", "language": "en"} if multilingual else {}
        tokenizer = Tokenizer(self.model.hf_tokenizer, multilingual, **language)
        self.prompt = self.model.get_prompt(tokenizer, [], without_timestamps=True)
        self.end = tokenizer.eot
        frames = self.model.feature_extractor.nb_max_frames
        self.features = [
            StorageView.from_array(np.ascontiguousarray(self.model.feature_extractor(samples)[None, :, :frames]))
            for samples in self.windows
        ]
        self.states = [self.encode(window) for window in range(len(self.windows))]

    def encode(self, window: int) -> Any:
        return self.model.model.encode(self.features[window])

    def generate(self, window: int, tokens: int) -> int:
        return self._generate(self.features[window], tokens)

    def decode(self, window: int, tokens: int) -> int:
        return self._generate(self.states[window], tokens)

    def _generate(self, heard: Any, tokens: int) -> int:
        found = self.model.model.generate(
            heard,
            [self.prompt],
            beam_size=1,
            max_length=self._max_length(tokens),
            suppress_blank=False,
            suppress_tokens=[-1, self.end],
        )
        return len(found[0].sequences_ids[0])

    def _max_length(self, tokens: int) -> int:
        """CTranslate2 gives at most half of `max_length` to what comes after the prompt."""
        return max(2 * tokens, len(self.prompt) + tokens)

    def transcribe(self, window: int) -> int:
        segments, _ = self.model.transcribe(
            self.windows[window],
            language="en" if self.model.model.is_multilingual else None,
            beam_size=1,
            best_of=1,
            temperature=0.0,
            max_new_tokens=self._max_length(self.tokens) - len(self.prompt),
            suppress_blank=False,
            suppress_tokens=[-1, self.end],
            without_timestamps=True,
            condition_on_previous_text=False,
            compression_ratio_threshold=None,
            log_prob_threshold=None,
            no_speech_threshold=None,
        )
        return sum(len(segment.tokens) for segment in segments)

    def info(self) -> dict[str, Any]:
        return {"backend": "ctranslate2", "compute_type": self.model.model.compute_type}


def make_system(spec: SystemSpec, windows: list[FloatArray], tokens: int, threads: int) -> BenchSystem:
    """Loads what a spec says."""
    kinds = {"stock": TransformersSystem, "ours": TransformersSystem, "faster_whisper": FasterWhisperSystem}
    if spec.kind not in kinds:
        raise RequestError(f"unknown kind of system {spec.kind!r}: choose {', '.join(kinds)}")
    return kinds[spec.kind](spec, windows, tokens, threads)


def faster_whisper_installed() -> bool:
    """Whether faster-whisper can be measured here."""
    return find_spec("faster_whisper") is not None and find_spec("ctranslate2") is not None


def convert_for_faster_whisper(
    stock: str | os.PathLike[str], folder: str | os.PathLike[str], compute_type: str
) -> Path:
    """The same weights in CTranslate2's form, by its own converter.

    Args:
        stock: folder of a stock Whisper with `tokenizer.json`.
        folder: where the result goes.
        compute_type: `float32` or `int8`.
    """
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(os.fspath(stock))
    made = Path(converter.convert(os.fspath(folder), quantization=compute_type, force=True))
    shutil.copy(Path(stock) / "tokenizer.json", made)
    bins = json.loads((Path(stock) / "config.json").read_text(encoding="utf-8"))["num_mel_bins"]
    (made / "preprocessor_config.json").write_text(json.dumps({"feature_size": bins}) + "\n", encoding="utf-8")
    return made


def speech_like_windows(count: int = 4) -> list[FloatArray]:
    """Noise that swells and ebbs as syllables do, 30 s each, no two alike: float32 (480000,)."""
    random = np.random.default_rng(0)
    time_axis = np.arange(WINDOW_SECONDS * SAMPLING_RATE) / SAMPLING_RATE
    windows = []
    for _ in range(count):
        loudness = 0.1 * (0.1 + np.abs(np.sin(2 * np.pi * random.uniform(1.5, 3) * time_axis)))
        windows.append((loudness * random.standard_normal(time_axis.size)).astype(np.float32))
    return windows
