"""The encoder that is served: requests to features, features to states, states to responses."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import torch

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.arithmetic import Affine
from whisper_hailo_hf.backends.base import GraphBackend, states_of_core
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.model_loading import encoder_of
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder
from whisper_hailo_hf.service.device_queue import Encoded
from whisper_hailo_hf.version import __version__
from whisper_hailo_hf.wire import SAMPLING_RATE
from whisper_hailo_hf.wire.messages import STATES_AS, DecodeError, Description, EncodeRequest, EncodeResponse
from whisper_hailo_hf.wire.tensors import WireError, pack_integers, pack_tensor, unpack_audio, unpack_tensor

FloatArray = npt.NDArray[np.float32]

_SAMPLES_PER_FRAME = 160
_LONGEST_ID = 1024
# A log-mel value of Whisper is within about ±2; what is beyond this is another kind of number.
_LARGEST_FEATURE = 100.0
_ARTEFACT = {"onnx": artefacts.ONNX_PATH, "emulator": artefacts.ONNX_INT8_PATH, "hef": artefacts.HEF_PATH}


class Rejected(Exception):
    """A request that is not served: the status of the call, and a line that the client may see."""

    def __init__(self, code: grpc.StatusCode, line: str) -> None:
        super().__init__(line)
        self.code, self.line = code, line


@dataclass(frozen=True, eq=False)
class Work:
    """A checked request: `features` are float32, (mel bins, frames)."""

    sample_id: str
    features: FloatArray
    states_as: str
    positions: int
    timeout: float | None


class ServedEncoder:
    """An encoder on a local backend.

    Args:
        model: a model in memory, or the folder or Hub id of one; it is not to be changed while it is served.
        backend: where it runs; any but `remote`.
        backend_options: settings of the backend.
        queue_per_client, max_message_bytes: what the description tells clients.

    Raises:
        RequestError: no such model or backend, or one that cannot run here.
    """

    def __init__(
        self,
        model: Any,
        backend: str = "auto",
        backend_options: dict[str, Any] | None = None,
        *,
        queue_per_client: int = 8,
    ) -> None:
        if backend == "remote":
            raise RequestError("a service runs its encoder here: choose another backend than remote")
        self.encoder: HailoWhisperEncoder = encoder_of(model)
        self.name = str(model) if isinstance(model, str | os.PathLike) else self.encoder.config.name_or_path
        self.encoder.set_encoder_backend(backend, **(backend_options or {}))
        config = self.encoder.config
        self.shape = (config.num_mel_bins, 2 * config.max_source_positions)
        self.positions = config.max_source_positions
        # the first run opens the device, and finds now what would otherwise fail the first client
        self.encoder.backend.encode(np.zeros((1, *self.shape), np.float32))
        self.integers: tuple[Affine, Affine] | None = self.encoder.backend.integers()
        self.description = self._describe(queue_per_client)

    @property
    def one_by_one(self) -> bool:
        """Whether the backend runs window after window anyway: a batch would only hold its first answers back."""
        return isinstance(self.encoder.backend, GraphBackend)

    @property
    def _finishes(self) -> bool:
        """Whether the epilogue runs in `respond`, beside the device's next window, and does not hold it up."""
        return self.one_by_one or self.integers is not None

    @property
    def max_message_bytes(self) -> int:
        """Room for a window in float32, and for the rest of a message."""
        return 4 * self.shape[0] * self.shape[1] + 65536

    @cached_property
    def _extract(self) -> Any:
        from transformers import WhisperFeatureExtractor

        return WhisperFeatureExtractor(feature_size=self.shape[0])

    def _describe(self, queue_per_client: int) -> Any:
        encoder, host = self.encoder, self.encoder.host
        artefact = _ARTEFACT.get(encoder.backend.name, "")
        path = encoder.artefacts.get(artefact)
        description = Description(
            package_version=__version__,
            backend=encoder.backend.name,
            backend_version=str(type(encoder.backend).status().reason),
            model=os.path.basename(os.path.normpath(self.name)) if self.name else "",
            core_sha256=artefacts.fingerprint(encoder.core),
            host_sha256=artefacts.fingerprint(host),
            artefact=artefact if path else "",
            artefact_sha256=artefacts.sha256_of(path) if path else "",
            mel_bins=self.shape[0],
            frames=self.shape[1],
            positions=self.positions,
            core_positions=self.positions if host.tiles == "all" else host.window_positions,
            d_model=encoder.config.d_model,
            stream_window=queue_per_client,
            max_message_bytes=self.max_message_bytes,
        )
        if self.integers is not None:
            for field, affine in zip((description.input, description.output), self.integers, strict=True):
                numbers = affine.to_dict()
                field.CopyFrom(pack_integers(numbers["dtype"], numbers["scale"], numbers["zero_point"]))
        return description

    def run(self, features: FloatArray) -> FloatArray:
        """Features (batch, mel bins, frames) to what the network gave, or to states if it gives only those."""
        backend = self.encoder.backend
        return backend.core_states(features) if self._finishes else backend.encode(features)

    def check(self, raw: bytes) -> Work:
        """What a request asks for.

        Raises:
            Rejected: it is no request, asks for what there is not, or its features are not such.
        """
        try:
            request = EncodeRequest.FromString(raw)
        except DecodeError:
            raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, "the message is no EncodeRequest") from None
        if len(request.sample_id) > _LONGEST_ID:
            raise _invalid(f"a sample_id of more than {_LONGEST_ID} characters")
        if request.core_sha256 and request.core_sha256 != self.description.core_sha256:
            raise Rejected(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this server has the weights {self.description.core_sha256[:12]}, the request means others",
            )
        states_as = {number: name for name, number in STATES_AS.items()}.get(request.states_as)
        if states_as is None:
            raise _invalid(f"unknown states_as {request.states_as}")
        if states_as == "AUTO":
            states_as = "FLOAT16_STATES" if self.integers is None else "CORE"
        if states_as == "CORE" and self.integers is None:
            raise _invalid(f"the backend {self.description.backend} has no integers of its own: ask for float states")
        most = self.description.core_positions if states_as == "CORE" else self.positions
        if request.positions > most:
            raise _invalid(f"{request.positions} positions, and there are {most}")
        return Work(
            request.sample_id,
            self._features(request),
            states_as,
            request.positions or most,
            request.timeout_ms / 1000 or None,
        )

    def _features(self, request: Any) -> FloatArray:
        try:
            kind = request.WhichOneof("input")
            if kind == "audio":
                return self._heard(unpack_audio(request.audio, self.shape[1] * _SAMPLES_PER_FRAME))
            if kind is None:
                raise WireError("neither features nor audio")
            packed = unpack_tensor(request.features)
        except WireError as error:
            raise _invalid(str(error)) from None
        if packed.values.shape != self.shape:
            raise _invalid(f"features of shape {list(packed.values.shape)}: this encoder takes {list(self.shape)}")
        if packed.values.dtype == np.float16:
            features = torch.from_numpy(packed.values.copy()).float().numpy()
        else:
            features = packed.real()
        if not np.isfinite(features).all():
            raise _invalid("features with values that are not finite numbers")
        if np.abs(features).max() > _LARGEST_FEATURE:
            raise _invalid(f"features beyond ±{_LARGEST_FEATURE:g} are no log-mel of Whisper's")
        return features

    def _heard(self, samples: FloatArray) -> FloatArray:
        whole = self.shape[1] * _SAMPLES_PER_FRAME
        found = self._extract(
            samples, sampling_rate=SAMPLING_RATE, padding="max_length", max_length=whole, return_tensors="np"
        )
        return np.asarray(found.input_features[0], np.float32)

    def respond(self, work: Work, encoded: Encoded) -> Any:
        """The response to a request, from what `run` gave for its features."""
        found, kept, tensor = encoded.states, work.positions, None
        if work.states_as == "CORE":
            assert self.integers is not None  # or `check` refuses
            output = self.integers[1]
            numbers = output.to_dict()
            tensor = pack_tensor(_integers(output, found[:kept]), numbers["scale"], numbers["zero_point"])
        elif self._finishes:
            found = states_of_core(self.encoder.host, torch.from_numpy(found)[None])[0].numpy()
        if tensor is None:
            found = found[:kept]
            # torch converts eight times as fast as numpy
            tensor = pack_tensor(
                found if work.states_as == "FLOAT32_STATES" else torch.from_numpy(found).half().numpy()
            )
        return EncodeResponse(
            sample_id=work.sample_id,
            states=tensor,
            core=work.states_as == "CORE",
            core_sha256=self.description.core_sha256,
            artefact_sha256=self.description.artefact_sha256,
            queue_seconds=encoded.queue_seconds,
            device_seconds=encoded.device_seconds,
        )

    def close(self) -> None:
        """Lets go of the device."""
        self.encoder.backend.close()


def _integers(output: Affine, states: FloatArray) -> npt.NDArray[Any]:
    """`output.quantize`, several times as fast where the integers are of 8 or 16 bits: no wider ones are needed."""
    low, high = output.integer.low - output.zero_point, output.integer.high - output.zero_point
    steps = (torch.from_numpy(states) / float(output.scale)).round_().clamp_(low, high).add_(output.zero_point)
    return steps.numpy().astype(output.integer.dtype)


def _invalid(line: str) -> Rejected:
    return Rejected(grpc.StatusCode.INVALID_ARGUMENT, line)
