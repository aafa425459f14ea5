"""A Whisper whose encoder is pluggable: the encoder, and the stock decoder behind it.

Only the encoder differs from Transformers' Whisper. Its contract with `generate()` is Whisper's own: 30 s of log-mel
features in, one state per 20 ms out, whatever the window of the network inside.
"""

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.generation_whisper import WhisperGenerationMixin
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder, WhisperModel
from transformers.utils.generic import can_return_tuple

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.backends import EncoderBackend, EncoderParts, make_backend, weights_version
from whisper_hailo_hf.backends.onnx import OnnxBackend
from whisper_hailo_hf.backends.torch import TorchBackend
from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig
from whisper_hailo_hf.decoders import DecoderChoice, with_masks_made_once
from whisper_hailo_hf.encoders import Trace, build_encoder, get_family
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.hub.fetch import ArtefactFiles, pinned_revision
from whisper_hailo_hf.modeling_base import WhisperHailoPreTrainedModel as WhisperHailoPreTrainedModel
from whisper_hailo_hf.stock import config_from_stock, config_with_student, load_stock, load_student, source_of

logger = logging.getLogger(__name__)


class HailoWhisperEncoder(WhisperHailoPreTrainedModel):
    """Whisper's encoder in a form for the Hailo chip, run by one of several backends.

    Args:
        config: its `encoder_family`, `encoder_options`, `encoder_layers` and `time_axis` say what is built.
    """

    input_modalities: Any = ("audio",)

    def __init__(self, config: WhisperHailoConfig) -> None:
        super().__init__(config)
        self.core, self.host = build_encoder(config)
        self.gradient_checkpointing = False
        self.artefacts = ArtefactFiles()
        self._backend: EncoderBackend = TorchBackend(self._parts())
        self._backend_is_auto = False
        self._last: tuple[Any, Tensor, Tensor] | None = None
        self.post_init()

    def _parts(self) -> EncoderParts:
        return EncoderParts(
            core=self.core,
            host=self.host,
            mel_bins=self.config.num_mel_bins,
            time_axis=self.config.time_axis,
            artefacts=self.artefacts,
            records=self.config.artefacts,
        )

    # `generate()` multiplies these strides to learn how many mel frames make a state
    @property
    def conv1(self) -> SimpleNamespace:
        return SimpleNamespace(stride=(1,))

    @property
    def conv2(self) -> SimpleNamespace:
        return SimpleNamespace(stride=(2,))

    def get_input_embeddings(self) -> nn.Module:
        return self.core.conv1

    def _freeze_parameters(self) -> None:
        self.requires_grad_(False)
        self._requires_grad = False
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays in evaluation: its statistics are part of what is frozen."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._last = None  # .to(), .half() and the like put other tensors in place of the weights
        return super()._apply(*args, **kwargs)

    @property
    def _hailo_encoder(self) -> "HailoWhisperEncoder":
        return self

    @property
    def backend(self) -> EncoderBackend:
        """The backend in use."""
        return self._backend

    def set_encoder_backend(self, name: str, **options: Any) -> None:
        """Chooses where the forward runs.

        Args:
            name: `"auto"`, `"torch"`, `"onnx"`.
            options: settings of that backend (for `onnx`: `threads`, `providers`, `graph_optimization`).

        Raises:
            RequestError: no such backend or option, or it cannot run here.
        """
        chosen = make_backend(name, self._parts(), **options)
        self._backend.close()
        self._backend, self._backend_is_auto, self._last = chosen, name == "auto", None

    def save_artefacts(self, folder: Path) -> dict[str, Any]:
        """Copies into a folder what stands for the weights as they are: the files that lie beside them, if they still
        fit, fetched if need be, and the graph that the `onnx` backend runs. Returns their records."""
        files: dict[str, Path] = {}
        for name in list(self.artefacts):
            try:
                if (path := self.artefacts.get(name)) is not None:
                    files[name] = path
            except WhisperHailoError as error:
                logger.warning("%s stays behind: %s", name, error)
        if isinstance(self._backend, OnnxBackend):
            files[artefacts.ONNX_PATH] = self._backend.graph()
        if not files:
            return {}
        weights, records = artefacts.fingerprint(self.core), dict(self.config.artefacts)
        if isinstance(self._backend, OnnxBackend):
            graph = files[artefacts.ONNX_PATH]
            records[artefacts.ONNX_PATH] = self._backend.record(graph, source=self.config.source)
        return artefacts.copy_fitting(files, records, weights, folder)

    def load_stock_encoder(self, stock: WhisperEncoder) -> None:
        """Takes over a stock encoder's final LayerNorm and, as far as the family can use them, its weights.

        Raises:
            RequestError: the shapes do not fit.
        """
        ours, theirs = self.config, stock.config
        for name in ("d_model", "num_mel_bins", "max_source_positions"):
            if getattr(ours, name) != getattr(theirs, name):
                raise RequestError(
                    f"this encoder has {name} {getattr(ours, name)}, the stock encoder {getattr(theirs, name)}: "
                    "they must agree"
                )
        self.host.layer_norm.load_state_dict(stock.layer_norm.state_dict())
        get_family(ours.encoder_family).start_from_teacher(self.core, stock)

    @can_return_tuple
    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """Encoder states of log-mel features.

        Args:
            input_features: (batch, num_mel_bins, 2 * max_source_positions).
            attention_mask: ignored, as stock Whisper does.
            output_hidden_states: also return the input of each block, (batch, time, channels) at the block's own rate
                and width, and the last state. `torch` only.

        Returns:
            `last_hidden_state`: (batch, max_source_positions, d_model), in the model's dtype, on the input's device.
            `attentions` is always None.
        """
        frames = 2 * self.config.max_source_positions
        if input_features.shape[-1] != frames or input_features.shape[-2] != self.config.num_mel_bins:
            bins, found = self.config.num_mel_bins, input_features.shape
            raise ValueError(
                f"Whisper expects the mel input features to be of length {frames} with {bins} bins, but found "
                f"{found[-1]} with {found[-2]}. Make sure to pad the input mel features to {frames}."
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if torch.compiler.is_compiling() and self._runs_torch():
            return self._forward_torch(input_features, bool(output_hidden_states))
        if output_hidden_states or torch.is_grad_enabled():
            return self._dispatch(input_features, bool(output_hidden_states))
        return self._dispatch_once(input_features)

    def _runs_torch(self) -> bool:
        return isinstance(self._backend, TorchBackend) or (self._backend_is_auto and self.training)

    @torch.compiler.disable
    def _dispatch(self, input_features: Tensor, output_hidden_states: bool) -> BaseModelOutput:
        if self._runs_torch():
            return self._forward_torch(input_features, output_hidden_states)
        name = self._backend.name
        if self.training:
            raise RequestError(f"the encoder backend {name!r} cannot train: call set_encoder_backend('torch') first")
        if output_hidden_states:
            raise RequestError(
                f"the encoder backend {name!r} gives no inner states: call set_encoder_backend('torch') for "
                "output_hidden_states"
            )
        states = self._backend.encode(input_features.detach().to("cpu", torch.float32).numpy())
        return BaseModelOutput(last_hidden_state=torch.from_numpy(states).to(input_features.device, self.dtype))

    def _forward_torch(self, input_features: Tensor, output_hidden_states: bool) -> BaseModelOutput:
        trace = Trace(len(input_features), self.config.time_axis) if output_hidden_states else None
        last = self.host.states(self.core(self.host.windows(input_features), trace))
        if trace is None:
            return BaseModelOutput(last_hidden_state=last)
        return BaseModelOutput(last_hidden_state=last, hidden_states=(*trace.states, last))

    @torch.compiler.disable
    def _dispatch_once(self, input_features: Tensor) -> BaseModelOutput:
        """Encodes a window once: `generate()` asks again to detect the language and at each fallback."""
        asked = (id(self._backend), self.training, self.dtype, weights_version(self))
        if self._last is not None and not self.training:
            known, features, states = self._last
            if known == asked and features.device == input_features.device and torch.equal(features, input_features):
                return BaseModelOutput(last_hidden_state=states.clone())
        output = self._dispatch(input_features, False)
        self._last = (asked, input_features.clone(), output.last_hidden_state.clone())
        return output

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_last": None}


class WhisperHailoModel(WhisperHailoPreTrainedModel, WhisperModel):
    """The pluggable encoder and the stock decoder, without a head."""

    _auto_classes = ("AutoModel",)

    def __init__(self, config: WhisperHailoConfig) -> None:
        super().__init__(config)
        self.encoder = HailoWhisperEncoder(config)  # type: ignore[assignment]  # the point of this package
        self.decoder = WhisperDecoder(config)
        self.post_init()


class WhisperHailoForConditionalGeneration(  # type: ignore[misc]  # from_pretrained takes more than the base's
    DecoderChoice, WhisperHailoPreTrainedModel, WhisperForConditionalGeneration, WhisperGenerationMixin
):
    """Whisper with a pluggable encoder: `generate()` and the ASR pipeline work on it as on the stock class."""

    _auto_classes = ("AutoModelForSpeechSeq2Seq",)
    # the loss is a mean over the batch and ignores num_items_in_batch: the Trainer must divide it itself
    accepts_loss_kwargs = False

    def __init__(self, config: WhisperHailoConfig) -> None:
        super().__init__(config)
        self.model = WhisperHailoModel(config)
        self.proj_out = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.max_target_positions = config.max_target_positions
        self.post_init()

    def _retrieve_logit_processors(self, *args: Any, **kwargs: Any) -> Any:
        return with_masks_made_once(super()._retrieve_logit_processors(*args, **kwargs))

    @classmethod
    def from_whisper(
        cls,
        name_or_path: str | os.PathLike,
        family: str | None = None,
        preset: str | None = None,
        *,
        student: str | os.PathLike | None = None,
        time_axis: str | None = None,
        encoder_layers: int | None = None,
        encoder_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Builds a model from any stock Whisper checkpoint.

        Decoder, output projection, generation config and the final LayerNorm are copied. The `attention` family takes
        the stock encoder's weights and gives its states; a `conv` student starts from the teacher's stem where the
        shapes allow, and has to be distilled before it hears anything. `student` names one that is, saved alone.

        Args:
            name_or_path: Hub id or folder of a stock Whisper.
            family: `"conv"`, the default, or `"attention"`.
            preset: preset of the family; by default the one that suits the checkpoint's d_model.
            student: Hub id or folder of a distilled encoder, in place of the settings that describe a new one. The
                model is then in float32 unless `dtype` is given.
            time_axis: `"width"`, the default, or `"height"`.
            encoder_layers: blocks of the encoder, instead of the preset's (`conv` only).
            encoder_options: options of the family, over the preset's: `{"window_seconds": 10}` for example.
            kwargs: for `from_pretrained` of the stock model (`dtype`, `revision`, `token`, ...).

        Raises:
            RequestError: no stock Whisper, family, preset, option or student of that name, or it does not fit.
        """
        if (revision := pinned_revision(name_or_path, **kwargs)) is not None:
            kwargs["revision"] = revision
        described = (family, preset, time_axis, encoder_layers, encoder_options)
        if student is None:
            stock = load_stock(name_or_path, **kwargs)
            model = cls(config_from_stock(stock.config, *described))
            model.model.encoder.load_stock_encoder(stock.model.encoder)
        elif any(described):
            raise RequestError(
                "a student's encoder is what it is: leave out the settings of a new one, or the student"
            )
        else:
            kwargs = {"dtype": torch.float32} | kwargs
            encoder = load_student(student, HailoWhisperEncoder, **kwargs)
            stock = load_stock(name_or_path, **kwargs)
            model = cls(config_with_student(stock, encoder.config, name_or_path, student))
            model.model.encoder.load_state_dict(encoder.state_dict())
            model.model.encoder.artefacts = encoder.artefacts
        model.config.source = source_of(name_or_path, revision)
        model.model.decoder.load_state_dict(stock.model.decoder.state_dict())
        if not model.config.tie_word_embeddings:
            model.proj_out.load_state_dict(stock.proj_out.state_dict())
        model.tie_weights()
        model.generation_config = stock.generation_config
        # the pipeline's own default is five beams: four times the decoder's work
        model.generation_config.num_beams = 1
        return model.to(stock.dtype).eval()  # type: ignore[arg-type]  # wrapped beyond mypy's view
