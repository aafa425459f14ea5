"""The teacher: a stock Whisper whose encoder states the student learns. Frozen, never trained, never saved."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from whisper_hailo_hf.artefacts import fingerprint
from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig
from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder

ENCODER_ONLY = "encoder.safetensors"
DECODER_ONLY = "decoder_without_token_embedding.safetensors"
_ENCODER, _DECODER = "model.encoder.", "model.decoder."


@dataclass(frozen=True)
class Projection:
    """One linear map through which the decoder reads the encoder states: the keys or values of a layer.

    Attributes:
        layer: index of the decoder layer.
        kind: `"key"` or `"value"`.
        weight: (d_model, d_model).
        bias: (d_model,); Whisper's keys have none, so zeros there.
    """

    layer: int
    kind: str
    weight: Tensor
    bias: Tensor


class Teacher:
    """A frozen stock Whisper encoder and, as far as the checkpoint has it, the decoder that reads its states.

    Not a module, so that it can become no part of a model, an optimizer or a checkpoint.

    Args:
        encoder: the stock encoder.
        config: its config.
        name: what the user called it.
        model: the whole stock model, where there is one with its token embedding.
        projections: the decoder's cross-attention key and value maps, in the order of its layers; empty if unknown.

    Attributes:
        fingerprint: SHA-256 over the encoder's weights, as hex.
    """

    def __init__(
        self,
        encoder: WhisperEncoder,
        config: WhisperConfig,
        name: str,
        model: WhisperForConditionalGeneration | None = None,
        projections: tuple[Projection, ...] = (),
    ) -> None:
        self.encoder, self.config, self.name = encoder, config, name
        self.model, self.projections = model, projections
        for part in (encoder, model):
            if part is not None:
                part.eval().requires_grad_(False)
        self.fingerprint = fingerprint(encoder)

    @property
    def d_model(self) -> int:
        return self.config.d_model

    @property
    def n_mels(self) -> int:
        return self.config.num_mel_bins

    @property
    def positions(self) -> int:
        return self.config.max_source_positions

    @property
    def device(self) -> torch.device:
        return self.encoder.conv1.weight.device

    def record(self) -> dict[str, str]:
        """What a student's config says of it: its Hub id or its folder's own name, and its fingerprint."""
        name = Path(self.name).resolve().name if Path(self.name).is_dir() else self.name
        return {"name": name, "fingerprint": self.fingerprint}

    def to(self, device: torch.device | str) -> Self:
        """Moves the teacher. Its weights are never sharded: they need no gradient and no optimizer state, and an
        encoder fits any card that trains. (`accelerate`'s `prepare_model(evaluation_mode=True)` shards nothing either
        and, under FSDP, would leave it on the CPU.)"""
        self.encoder.to(device)  # type: ignore[arg-type]  # wrapped beyond mypy's view
        if self.model is not None:
            self.model.to(device)  # type: ignore[arg-type]
        self.projections = tuple(
            Projection(p.layer, p.kind, p.weight.to(device), p.bias.to(device)) for p in self.projections
        )
        return self

    @torch.no_grad()
    def encode(self, input_features: Tensor) -> Tensor:
        """Encoder states, float32, (batch, positions, d_model), of log-mel features (batch, n_mels, 2 * positions)."""
        return self.encoder(input_features).last_hidden_state.float()

    @torch.no_grad()
    def encode_deep(self, input_features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The states, and the residual stream: its value before layer 0, after layer 0, ..., after the last layer.

        The last of these is what the final LayerNorm takes. Each is (batch, positions, d_model), float32.
        """
        with _inputs_of(*self.encoder.layers, self.encoder.layer_norm) as stream:
            states = self.encode(input_features)
        return states, tuple(hidden.float() for hidden in stream)


@contextmanager
def _inputs_of(*modules: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    hooks = [m.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for m in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def load_teacher(name_or_path: str | os.PathLike, **kwargs: Any) -> Teacher:
    """Loads any stock Whisper as a teacher, in float32.

    Args:
        name_or_path: Hub id or folder of a stock Whisper; or a folder with the encoder alone: `config.json` and
            `encoder.safetensors` with keys `model.encoder.*`, perhaps `decoder_without_token_embedding.safetensors`,
            whose cross-attention maps then serve the losses that look through the decoder.
        kwargs: for `from_pretrained` (`revision`, `token`, ...).

    Raises:
        RequestError: no stock Whisper there, or its encoder is not complete.
    """
    name = os.fspath(name_or_path)
    folder = Path(name)
    config = _stock_config(name, kwargs)
    whole = folder.is_dir() and any(
        (folder / f"{stem}{suffix}").is_file()
        for stem in ("model.safetensors", "pytorch_model.bin")
        for suffix in ("", ".index.json")
    )
    if folder.is_dir() and not whole:
        return _load_encoder_only(folder, config)
    try:
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            name, **kwargs | {"dtype": torch.float32, "output_loading_info": True}
        )
    except OSError as error:
        raise RequestError(f"cannot load a teacher from {name}: {_first_line(error)}") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if any(key.startswith(_ENCODER) for key in missing):
        raise RequestError(f"{name} lacks {missing[0]} and more of the encoder: name a complete stock Whisper")
    decodes = not any(key.startswith(_DECODER) for key in missing)
    projections = cross_attention_maps(model.model.decoder) if decodes else ()
    return Teacher(model.model.encoder, config, name, model if decodes else None, projections)


def _stock_config(name: str, kwargs: dict[str, Any]) -> WhisperConfig:
    try:
        known, _ = WhisperConfig.get_config_dict(name, **kwargs)
    except OSError as error:
        raise RequestError(f"cannot load a teacher from {name}: {_first_line(error)}") from error
    kind = known.get("model_type")
    if kind == WhisperHailoConfig.model_type:
        raise RequestError(f"{name} is a student of ours: a teacher is a stock Whisper, such as openai/whisper-tiny")
    if kind != WhisperConfig.model_type:
        found = f"is a {kind} checkpoint, no Whisper" if kind else "has no config.json of a Whisper"
        raise RequestError(f"{name} {found}: name a stock Whisper as the teacher")
    return WhisperConfig.from_dict(known)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _load_encoder_only(folder: Path, config: WhisperConfig) -> Teacher:
    if not (folder / ENCODER_ONLY).is_file():
        raise RequestError(f"{folder} has neither model.safetensors nor {ENCODER_ONLY}: name a stock Whisper")
    try:
        stored = load_file(folder / ENCODER_ONLY)
        decoder = _read_cross_attention(folder / DECODER_ONLY)
    except SafetensorError as error:
        raise RequestError(f"the weights in {folder} are damaged ({error}): fetch them again") from error
    encoder = WhisperEncoder(config)
    state = {key.removeprefix(_ENCODER): tensor.float() for key, tensor in stored.items()}
    expected = encoder.state_dict()
    for key, tensor in expected.items():
        if key not in state or state[key].shape != tensor.shape:
            raise RequestError(f"{folder / ENCODER_ONLY} lacks {_ENCODER}{key} of shape {tuple(tensor.shape)}")
    encoder.load_state_dict({key: state[key] for key in expected})
    return Teacher(encoder, config, str(folder), None, decoder)


def _read_cross_attention(path: Path) -> tuple[Projection, ...]:
    if not path.is_file():
        return ()
    with safe_open(path, "pt") as file:
        wanted = {k: file.get_tensor(k).float() for k in file.keys() if ".encoder_attn." in k}  # noqa: SIM118
    layers = sorted({int(key.removeprefix(_DECODER + "layers.").split(".")[0]) for key in wanted})
    return tuple(
        Projection(
            layer,
            kind,
            weight := wanted[f"{_DECODER}layers.{layer}.encoder_attn.{kind[0]}_proj.weight"],
            wanted.get(f"{_DECODER}layers.{layer}.encoder_attn.{kind[0]}_proj.bias", weight.new_zeros(len(weight))),
        )
        for layer in layers
        for kind in ("key", "value")
    )


@torch.no_grad()
def cross_attention_maps(decoder: WhisperDecoder) -> tuple[Projection, ...]:
    """The maps through which a decoder's layers read the encoder states, copied."""
    maps = []
    for index in range(len(decoder.layers)):
        for kind in ("key", "value"):
            linear: Any = decoder.get_submodule(f"layers.{index}.encoder_attn.{kind[0]}_proj")
            weight = linear.weight.detach().clone()
            bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().clone()
            maps.append(Projection(index, kind, weight, bias))
    return tuple(maps)


def check_student(teacher: Teacher, student: "HailoWhisperEncoder") -> None:
    """Raises a `RequestError` if the student's states or features have other shapes than the teacher's."""
    for name, words in (
        ("d_model", "d_model"),
        ("num_mel_bins", "mel bins"),
        ("max_source_positions", "positions"),
    ):
        ours, theirs = getattr(student.config, name), getattr(teacher.config, name)
        if ours != theirs:
            raise RequestError(
                f"the student has {words} {ours}, the teacher {teacher.name} {theirs}: they must agree, build the "
                "student from this teacher (whisper-hailo init)"
            )
