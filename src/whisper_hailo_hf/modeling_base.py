"""What the model classes share: how they come from a folder or the Hub, and how they go there."""

import os
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import initialization
from transformers.models.whisper.modeling_whisper import WhisperPreTrainedModel, sinusoids

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.backends import backend_class
from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig
from whisper_hailo_hf.encoders import PositionMap
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.hub.code import auto_map, write_code
from whisper_hailo_hf.hub.fetch import ArtefactFiles, pinned_revision

ENCODER_ALONE = "HailoWhisperEncoder"  # the class of an encoder that was saved without a decoder
# of what save_pretrained is given, that which is for push_to_hub
_OF_THE_PUSH = ("commit_message", "commit_description", "private", "revision", "create_pr", "tags", "card")


class WhisperHailoPreTrainedModel(WhisperPreTrainedModel):
    """The pluggable encoder's side of every model class; the other side is Transformers' own."""

    config_class = WhisperHailoConfig
    config: WhisperHailoConfig
    _no_split_modules = [  # noqa: RUF012  # the base's type
        "ConvBlock",
        "AttentionBlock",
        "LinearAttentionBlock",
        "WhisperDecoderLayer",
    ]
    _auto_classes: tuple[str, ...] = ()

    def __init__(self, config: WhisperHailoConfig, *args: Any, **kwargs: Any) -> None:
        if not isinstance(config, WhisperHailoConfig):
            raise RequestError(
                f"{type(self).__name__} needs a WhisperHailoConfig, not a {type(config).__name__}: "
                "use WhisperHailoForConditionalGeneration.from_whisper() for a stock Whisper"
            )
        # by name: in the classes below, super() is a stock class that would build its own encoder first
        WhisperPreTrainedModel.__init__(self, config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PositionMap):
            if module.kind == "sinusoids":
                initialization.copy_(module.weight, sinusoids(*module.weight.shape))
            else:
                initialization.zeros_(module.weight)

    @property
    def _hailo_encoder(self) -> Any:
        return self.get_encoder()

    @property
    def encoder_backend(self) -> str:
        """Name of the backend in use."""
        return self._hailo_encoder.backend.name

    def set_encoder_backend(self, name: str, **options: Any) -> None:
        """Chooses where the encoder runs: see [`HailoWhisperEncoder.set_encoder_backend`]."""
        self._hailo_encoder.set_encoder_backend(name, **options)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args: Any,
        encoder_backend: str = "auto",
        encoder_backend_options: dict[str, Any] | None = None,
        address: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a checkpoint of ours, as [`~transformers.PreTrainedModel.from_pretrained`] does.

        Of the files beside the weights, those that the backend runs are fetched and held to what `config.json` says of
        them; another backend that is chosen later fetches its own.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            encoder_backend: where the encoder runs, `"auto"` or the name of a backend. Never saved.
            encoder_backend_options: settings of that backend.
            address: of the service, for `"remote"`: `host:port`.
            args, kwargs: as for any Transformers model.

        Raises:
            RequestError: a stock checkpoint, no such backend, one that cannot run here, or whose file is missing,
                damaged or made from other weights.
        """
        if encoder_backend != "auto":
            backend_class(encoder_backend)  # a wrong name shall not cost a load
        if (revision := pinned_revision(pretrained_model_name_or_path, **kwargs)) is not None:
            kwargs["revision"] = revision
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        saved_as = model.config.architectures or [cls.__name__]
        if (ENCODER_ALONE in saved_as) != (cls.__name__ == ENCODER_ALONE):
            raise RequestError(
                f"{pretrained_model_name_or_path} holds a {saved_as[0]}, and a {cls.__name__} of it would be partly "
                f"random: load a {saved_as[0]}" + ("" if ENCODER_ALONE in saved_as else " and take its get_encoder()")
            )
        encoder = model._hailo_encoder
        names = artefacts.checked_names(encoder.config.artefacts)
        encoder.artefacts = ArtefactFiles.beside(pretrained_model_name_or_path, names, **kwargs)
        options = dict(encoder_backend_options or {}) | ({} if address is None else {"address": address})
        encoder.set_encoder_backend(encoder_backend, **options)
        return loaded

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, include_code: bool = False, **kwargs: Any
    ) -> None:
        """Saves as any Transformers model does; what was made of the encoder and still stands for it travels along.

        Args:
            save_directory: the folder.
            include_code: also write this package's modelling code, for `trust_remote_code=True` where the package is
                not installed (torch and ONNX Runtime only); otherwise a shim that asks for the package.
            args, kwargs: as for any Transformers model; with `push_to_hub=True`, those of `push_to_hub` too.
        """
        push, repo_id = kwargs.pop("push_to_hub", False), kwargs.pop("repo_id", None)
        of_the_push = {name: kwargs.pop(name) for name in _OF_THE_PUSH if name in kwargs}
        folder, here = Path(save_directory), kwargs.get("is_main_process", True)
        if here:
            self.config.artefacts = self._hailo_encoder.save_artefacts(folder)
        names = WhisperHailoConfig.__name__, type(self).__name__, self._auto_classes
        self.config.auto_map = auto_map(*names, include_code)
        super().save_pretrained(save_directory, *args, **kwargs)
        if here:
            write_code(folder, include_code)
        if push and here:
            from whisper_hailo_hf.hub.push import push_saved

            push_saved(folder, repo_id or folder.name, token=kwargs.get("token"), **of_the_push)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        include_code: bool = False,
        max_shard_size: int | str = "50GB",
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        commit_description: str | None = None,
        tags: list[str] | None = None,
        card: str | None = None,
    ) -> Any:
        """Saves the model and uploads it with all that was made of its encoder, in one commit.

        A repository without a card gets one that says what the config knows; a card that is there stays. The processor
        is pushed by its own `push_to_hub`; `whisper-hailo push` takes a whole folder, and checks it first.

        Args:
            repo_id: `owner/model`; made if it is not there.
            include_code: see `save_pretrained`.
            max_shard_size: of a file of weights.
            private: of a repository that is made.
            token: of the Hub; None is the one that is logged in with.
            revision: branch; made if it is not there.
            create_pr: open a pull request.
            commit_message, commit_description: of the commit.
            tags: of a card that is made.
            card: text of a card, in place of the one that is there.

        Returns:
            The commit, as `huggingface_hub.CommitInfo`.

        Raises:
            WhisperHailoError: no token or a wrong one, no right to write there, no connection, no space: in one line.
        """
        from whisper_hailo_hf.hub.push import push_model

        return push_model(
            lambda folder: self.save_pretrained(folder, max_shard_size=max_shard_size, include_code=include_code),
            repo_id,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            commit_description=commit_description,
            tags=tags,
            card=card,
        )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: see `WhisperHailoConfig.register_for_auto_class`."""
