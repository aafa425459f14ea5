"""`remote`: the core on another machine, behind `whisper-hailo serve`.

Features go there as the integers that the network takes, where it has such, and come back as the integers that it
gives; the host's epilogue is done here. States are then, bit for bit, those that the server's own backend gives.
"""

from collections import deque
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.arithmetic import Affine, affine
from whisper_hailo_hf.backends.base import BackendStatus, EncoderBackend, EncoderParts, states_of_core, weights_version
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

if TYPE_CHECKING:
    from whisper_hailo_hf.wire.client import Client

_FEATURES = ("auto", "float32", "float16", "uint8")
_STATES = {"auto": "AUTO", "float32": "FLOAT32_STATES", "float16": "FLOAT16_STATES"}


class RemoteBackend(EncoderBackend):
    """An encoder service.

    Args:
        parts: the model's encoder; the service must have the same weights.
        address: `host`, `host:port`, `[IPv6]:port` or `unix:path`.
        token: what the service wants to hear; None takes the environment's WHISPER_HAILO_TOKEN.
        ca: file of the authority that signed the service's certificate, or `"system"`; None takes the environment's
            WHISPER_HAILO_CA, and is not encrypted where there is none.
        certificate, key: files of this client's own certificate, where the service asks for one; None takes the
            environment's WHISPER_HAILO_CERT and WHISPER_HAILO_KEY.
        insecure: send the token over a network in the clear.
        features: how features travel: `"auto"`, the network's own integers or else float16; `"float32"`, `"float16"`;
            or `"uint8"`, with a scale for each window where the network has none of 8 bits.
        states: how states travel: `"auto"`, the network's own integers or else float16; `"float32"` or `"float16"`.
        timeout: seconds that one window may take.
        attempts: how often a window is sent before the service counts as out of reach.

    Raises:
        RequestError: no address, or a setting that there is not.
    """

    name = "remote"

    def __init__(
        self,
        parts: EncoderParts,
        *,
        address: str | None = None,
        token: str | None = None,
        ca: str | None = None,
        certificate: str | None = None,
        key: str | None = None,
        insecure: bool = False,
        features: str = "auto",
        states: str = "auto",
        timeout: float = 60.0,
        attempts: int = 8,
    ) -> None:
        super().__init__(parts)
        if not address:
            raise RequestError("the encoder backend 'remote' needs the address of a service: address='host:port'")
        if features not in _FEATURES:
            raise RequestError(f"features is one of {', '.join(_FEATURES)}, not {features!r}")
        if states not in _STATES:
            raise RequestError(f"states is one of {', '.join(_STATES)}, not {states!r}")
        if not timeout > 0:
            raise RequestError(f"timeout is a positive number of seconds, not {timeout!r}")
        if attempts < 1:
            raise RequestError(f"attempts is a positive number, not {attempts!r}")
        from whisper_hailo_hf.wire.client import Connection

        self.connection = Connection(address, token, ca, certificate, key, insecure)
        self.features, self.states = features, states
        self.timeout, self.attempts = timeout, attempts
        self._version: tuple[tuple[int, int], ...] = ()
        self._description: Any = None

    @classmethod
    def status(cls) -> BackendStatus:
        if find_spec("grpc") is None or find_spec("google.protobuf") is None:
            return BackendStatus(cls.name, False, "grpcio is not installed: pip install 'whisper-hailo-hf[serve]'")
        return BackendStatus(cls.name, True, f"grpcio {version('grpcio')}, where a service is running")

    @classmethod
    def why_not_auto(cls, parts: EncoderParts) -> str | None:
        return "it needs an address, and is asked for by name"

    def open(self) -> "Client":
        client = self.connection.open()
        try:
            self._description = description = client.describe(self.timeout, self.attempts)
            self._check(description)
        except BaseException:
            client.close()
            raise
        return client

    def _check(self, description: Any) -> None:
        where = f"the service at {self.connection.address}"
        host = self.parts.host
        for what, theirs, ours in (
            ("the network's weights", description.core_sha256, artefacts.fingerprint(self.parts.core)),
            ("the final LayerNorm", description.host_sha256, artefacts.fingerprint(host)),
            ("log-mel rows", description.mel_bins, self.parts.mel_bins),
            ("positions", description.positions, host.positions),
        ):
            if theirs != ours:
                shown = [str(one)[:12] for one in (theirs, ours)]
                raise RequestError(
                    f"{where} serves another model: {what} is {shown[0]} there and {shown[1]} here. Serve the model "
                    "that is loaded here, or load the one that is served"
                )

    def encode(self, input_features: np.ndarray) -> np.ndarray:
        from whisper_hailo_hf.wire.client import RemoteError

        features = np.ascontiguousarray(input_features, dtype=np.float32)
        current = weights_version(self.parts.core) + weights_version(self.parts.host)
        with self._lock:
            if current != self._version:
                self.close()
                self._version = current
        with self.handle() as client:
            host, found = self.parts.host, []
            sent: deque[tuple[Any, Any]] = deque()
            most = max(1, self._description.stream_window)
            try:
                for number, window in enumerate(features):
                    request = self._request(str(number), window)
                    sent.append((request, client.encode(request, self.timeout)))
                    if len(sent) >= most:
                        found.append(self._received(client, *sent.popleft()))
                while sent:
                    found.append(self._received(client, *sent.popleft()))
            except RemoteError as error:
                self.close()
                raise WhisperHailoError(str(error)) from error
            finally:
                for _, call in sent:
                    call.cancel()
        if not found:
            return np.empty((0, host.positions, host.layer_norm.weight.shape[0]), np.float32)
        return np.concatenate(found)

    def _request(self, sample_id: str, window: np.ndarray) -> Any:
        from whisper_hailo_hf.wire.messages import STATES_AS, EncodeRequest
        from whisper_hailo_hf.wire.tensors import pack_tensor

        integers = self._integers()
        if integers is not None and (self.features == "auto" or integers.integer.dtype == self.features):
            numbers = integers.to_dict()
            tensor = pack_tensor(integers.quantize(window), numbers["scale"], numbers["zero_point"])
        elif self.features == "uint8":
            own = affine(float(window.min()), float(window.max()))
            tensor = pack_tensor(own.quantize(window), float(own.scale), own.zero_point)
        else:
            tensor = pack_tensor(window.astype("float32" if self.features == "float32" else "float16"))
        return EncodeRequest(
            sample_id=sample_id,
            features=tensor,
            states_as=STATES_AS[_STATES[self.states]],
            core_sha256=self._description.core_sha256,
        )

    def _integers(self) -> Affine | None:
        from whisper_hailo_hf.wire.tensors import unpack_integers

        description = self._description
        return Affine.from_dict(unpack_integers(description.input)) if description.HasField("input") else None

    def _received(self, client: "Client", request: Any, sent: Any) -> np.ndarray:
        from whisper_hailo_hf.wire.tensors import unpack_tensor

        response = client.answer(request, sent, self.timeout, self.attempts)
        packed = unpack_tensor(response.states)
        description = self._description
        positions = description.core_positions if response.core else description.positions
        if packed.values.shape != (positions, description.d_model) or response.sample_id != request.sample_id:
            raise WhisperHailoError(
                f"the service at {self.connection.address} answered with states {list(packed.values.shape)} of "
                f"sample {response.sample_id!r}: [{positions}, {description.d_model}] of {request.sample_id!r} are due"
            )
        states = packed.real()[None]
        return states_of_core(self.parts.host, torch.from_numpy(states)).numpy() if response.core else states

    def close(self) -> None:
        """Closes the channel; the next `encode` opens it anew."""
        with self._lock:
            client, self._handle = self._handle, None
        if client is not None:
            client.close()

    def info(self) -> dict[str, Any]:
        description = self._description
        facts: dict[str, Any] = {
            "backend": self.name,
            "address": self.connection.target,
            "encrypted": self.connection.ca is not None,
            "features": self.features,
            "states": self.states,
        }
        if description is not None:
            facts["runs_on"] = f"{description.backend} ({description.backend_version})"
            facts["artefact"] = description.artefact or None
        return facts

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_version": (), "_description": None}
