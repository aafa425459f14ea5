"""Utterances made ready to be sent: what is asked of a server for each."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.arithmetic import Affine
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.service.feed import Sample, Speech
from whisper_hailo_hf.wire import SAMPLING_RATE
from whisper_hailo_hf.wire.messages import STATES_AS, EncodeRequest
from whisper_hailo_hf.wire.tensors import pack_audio, pack_tensor, unpack_integers, whole_samples

FloatArray = npt.NDArray[np.float32]

SEND = ("auto", "float16", "flac", "pcm")
STATES = {"auto": "AUTO", "float16": "FLOAT16_STATES"}
_SAMPLES_PER_FRAME = 160
_SAMPLES_PER_POSITION = 320
_MARGIN = 25  # positions kept behind the end of speech: 0.5 s, as far as an encoder's short taps carry


@dataclass(frozen=True)
class CollectionSettings:
    """Settings of `collect`.

    Attributes:
        send: what goes to the servers: `"auto"`, log-mel as the network's own integers or else float16; `"float16"`;
            or the audio itself, `"flac"` or `"pcm"`, and the server makes the log-mel.
        states: what comes back: `"auto"`, the network's own integers or else float16; or `"float16"`.
        speech_only: keep only the positions that hold speech and half a second more; what is left out is filled with
            the states of silence when the data set is read.
        shard_bytes: size of a shard before compression; so much is held in memory.
        shard_seconds: a shard is written after so long even if it is small; what a killed run had got since then is
            asked for again.
        patience: seconds without an answer from any server after which the run ends; at its start, 60 at most.
        timeout: seconds that one window may wait in a server.
    """

    send: str = "auto"
    states: str = "auto"
    speech_only: bool = False
    shard_bytes: int = 64_000_000
    shard_seconds: float = 60.0
    patience: float = 300.0
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if self.send not in SEND:
            raise RequestError(f"send is one of {', '.join(SEND)}, not {self.send!r}")
        if self.states not in STATES:
            raise RequestError(f"states is one of {', '.join(STATES)}, not {self.states!r}")
        for name in ("shard_bytes", "shard_seconds", "patience", "timeout"):
            if not getattr(self, name) > 0:
                raise RequestError(f"{name} is a positive number, not {getattr(self, name)}")


class Preparation:
    """Makes requests for servers of one model.

    Args:
        model: their `Description`.
        settings: of the collection.

    Attributes:
        native: whether states come as the network's own integers.
        dtype: of the states.
        positions: of all the states of a window.
    """

    def __init__(self, model: Any, settings: CollectionSettings) -> None:
        self.model, self.settings = model, settings
        self.native = settings.states == "auto" and model.HasField("output")
        self.dtype: str = unpack_integers(model.output)["dtype"] if self.native else "float16"
        self.positions = int(model.core_positions if self.native else model.positions)
        self._longest = model.frames * _SAMPLES_PER_FRAME
        self._input = Affine.from_dict(unpack_integers(model.input)) if model.HasField("input") else None
        self._extract: Any = None

    def kept(self, seconds: float) -> int:
        """Positions that are kept of so much speech."""
        return self.spoken(seconds) if self.settings.speech_only else self.positions

    def spoken(self, seconds: float) -> int:
        """Positions that hold speech, and the margin."""
        speech = int(np.ceil(seconds * SAMPLING_RATE / _SAMPLES_PER_POSITION))
        return int(min(self.positions, speech + _MARGIN))

    def silence(self) -> Any:
        """A request for a window without speech."""
        return self._request("silence", np.zeros(self._longest, np.float32))

    def sample(self, speech: Speech) -> Sample:
        """An utterance with its request; a `WhisperHailoError` where it cannot be had or is longer than a window."""
        samples = speech.load()
        if samples.size > self._longest + SAMPLING_RATE // 100:
            seconds = samples.size / SAMPLING_RATE
            raise WhisperHailoError(f"{seconds:.1f} s are more than one window: cut it, with its text, before")
        samples = samples[: self._longest]
        request = self._request(speech.id, samples)
        seconds = samples.size / SAMPLING_RATE
        request.positions = 0 if self.kept(seconds) == self.positions else self.kept(seconds)
        if isinstance(speech.audio, Path):
            start = getattr(speech, "start", None)
            audio = f"{speech.audio}" + ("" if start is None else f"@{start:.3f}")
        else:
            audio = f"sha256:{hashlib.sha256(whole_samples(samples).tobytes()).hexdigest()}"
        return Sample(speech, request, audio, seconds)

    def _request(self, name: str, samples: FloatArray) -> Any:
        request = EncodeRequest(
            sample_id=name,
            states_as=STATES_AS[STATES[self.settings.states]],
            core_sha256=self.model.core_sha256,
            timeout_ms=int(self.settings.timeout * 1000),
        )
        if self.settings.send in ("flac", "pcm"):
            request.audio.CopyFrom(pack_audio(samples, self.settings.send))
            return request
        if self._extract is None:
            from transformers import WhisperFeatureExtractor

            self._extract = WhisperFeatureExtractor(feature_size=self.model.mel_bins)
        features = self._extract(
            samples,
            sampling_rate=SAMPLING_RATE,
            padding="max_length",
            max_length=self._longest,
            return_tensors="np",
        ).input_features[0]
        if self._input is not None and self.settings.send == "auto":
            numbers = self._input.to_dict()
            tensor = pack_tensor(self._input.quantize(features), numbers["scale"], numbers["zero_point"])
        else:
            tensor = pack_tensor(features.astype(np.float16))
        request.features.CopyFrom(tensor)
        return request
