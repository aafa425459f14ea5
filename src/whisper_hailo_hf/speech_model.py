"""A model folder or Hub id to what speech recognition needs: model, tokenizer, feature extractor."""

from __future__ import annotations

import importlib.resources
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whisper_hailo_hf.errors import RequestError, WhisperHailoError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, WhisperFeatureExtractor, WhisperForConditionalGeneration

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class SpeechModel:
    """A Whisper of either kind, stock or with a pluggable encoder, ready to generate."""

    name: str
    model: WhisperForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    feature_extractor: WhisperFeatureExtractor

    @property
    def encoder_backend(self) -> str:
        """Where the encoder runs; a stock Whisper has only torch."""
        return str(getattr(self.model, "encoder_backend", "torch"))

    @property
    def decoder_backend(self) -> str:
        """Where the decoder runs; a stock Whisper has only torch."""
        return str(getattr(self.model, "decoder_backend", "torch"))


def demo_model_path() -> Path:
    """The folder of the model that comes with the package: spoken English digits."""
    path = Path(str(importlib.resources.files("whisper_hailo_hf").joinpath("demo")))
    if not (path / "config.json").is_file():
        raise RequestError(f"this installation has no demo model in {path}: name a model with --model")
    return path


def checkpoint_kind(name: str | os.PathLike[str] | None = None) -> str:
    """What a model folder or Hub id holds: `"whisper"`, stock, or `"whisper_hailo"`; None is the bundled demo model.

    Raises:
        RequestError: no such model, or not a Whisper.
    """
    from transformers import AutoConfig

    source = _check_source(demo_model_path() if name is None else name)
    # The class says what is on disk; instances of ours say "whisper".
    kind = type(_attempt(source, "config", AutoConfig.from_pretrained, source)).model_type
    if kind not in ("whisper", "whisper_hailo"):
        raise RequestError(f"{source} is a model of type {kind!r}, not a Whisper")
    return kind


def load_speech_model(
    name: str | os.PathLike[str] | None = None,
    encoder_backend: str = "auto",
    address: str | None = None,
    decoder_backend: str = "torch",
) -> SpeechModel:
    """Load a model folder or Hub id; None is the bundled demo model.

    Args:
        name: a folder in Hub layout or a Hub id, stock Whisper or `whisper_hailo`.
        encoder_backend: one of `backends.backend_names()`; a stock Whisper takes `auto` or `torch` only.
        address: of the service, for `remote`: `host:port`.
        decoder_backend: one of `decoders.decoder_backend_names()`; a stock Whisper takes `torch` only.

    Raises:
        RequestError: in one line: no such model, no weights, no processor, weights that do not fit, not a Whisper,
            unknown backend, or one that cannot run here.
    """
    from whisper_hailo_hf.backends import backend_names
    from whisper_hailo_hf.decoders import decoder_backend_names

    if encoder_backend not in backend_names():
        raise RequestError(f"unknown encoder backend {encoder_backend!r}: choose {', '.join(backend_names())}")
    if decoder_backend not in (names := decoder_backend_names()):
        raise RequestError(f"unknown decoder backend {decoder_backend!r}: choose {', '.join(names)}")
    if address is not None and encoder_backend != "remote":
        raise RequestError(f"an address goes with the encoder backend remote, not with {encoder_backend}")
    source = _check_source(demo_model_path() if name is None else name)
    kind = checkpoint_kind(source)
    if kind == "whisper" and encoder_backend not in ("auto", "torch"):
        raise RequestError(
            f"{source} is a stock Whisper, whose encoder runs on torch only: for --encoder-backend {encoder_backend} "
            "convert it with WhisperHailoForConditionalGeneration.from_whisper(..., family='attention')"
        )
    if kind == "whisper" and decoder_backend != "torch":
        raise RequestError(
            f"{source} is a stock Whisper, whose decoder runs on torch only: for --decoder-backend {decoder_backend} "
            "convert it with WhisperHailoForConditionalGeneration.from_whisper()"
        )
    tokenizer, feature_extractor = _load_processor(source)
    backends = {"encoder_backend": encoder_backend, "address": address, "decoder_backend": decoder_backend}
    model = _load_model(source, kind, backends)
    return SpeechModel(source, model, tokenizer, feature_extractor)


def _check_source(name: str | os.PathLike[str]) -> str:
    """Tell a folder from a Hub id before Transformers guesses, whose guess is the Hub."""
    source = os.fspath(name)
    path = Path(source).expanduser()
    if path.is_file():
        raise RequestError(f"{source} is a file: name the model's folder, {path.parent}")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RequestError(f"{source} is no model folder: it has no config.json")
        if not any((path / weights).is_file() for weights in _WEIGHTS):
            raise RequestError(f"{source} has no weights: copy {_WEIGHTS[0]} into it")
        return str(path)
    owner, slash, model = source.partition("/")
    if not (slash and owner and model) or "/" in model or owner in (".", "..", "~"):
        raise RequestError(f"no model folder {source} here, and a name on the Hub would be of the form owner/model")
    return source


def _load_processor(source: str) -> tuple[Any, Any]:
    from transformers import AutoFeatureExtractor, AutoTokenizer

    if Path(source).is_dir():
        folder = Path(source)
        if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
            raise RequestError(f"{source} has no tokenizer: save the processor of the original Whisper into it")
        if not any((folder / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
            raise RequestError(
                f"{source} has no feature extractor: save the processor of the original Whisper into it"
            )
    tokenizer = _attempt(source, "tokenizer", AutoTokenizer.from_pretrained, source)
    return tokenizer, _attempt(source, "feature extractor", AutoFeatureExtractor.from_pretrained, source)


def _load_model(source: str, kind: str, backends: dict[str, Any]) -> Any:
    import torch
    from transformers import WhisperForConditionalGeneration

    # float32: CPUs run half precision, in which larger checkpoints are stored, slowly or not at all.
    settings: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    if kind == "whisper":
        cls: Any = WhisperForConditionalGeneration
    else:
        from whisper_hailo_hf.modeling_whisper_hailo import WhisperHailoForConditionalGeneration as cls

        settings |= backends
    model, loaded = _attempt(source, "weights", cls.from_pretrained, source, **settings)
    unfit = sorted(map(str, {*loaded["missing_keys"], *loaded["mismatched_keys"]}))
    if unfit:
        raise RequestError(
            f"the weights of {source} do not fit its config: {len(unfit)} missing, the first {unfit[0]}"
        )
    return model.eval()


def _attempt(source: str, part: str, load: Any, *args: Any, **settings: Any) -> Any:
    """Call a loader of Transformers; what it raises, often a page long, becomes one line."""
    from safetensors import SafetensorError

    from whisper_hailo_hf.hub.explain import hub_error

    try:
        return load(*args, **settings)
    except WhisperHailoError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if Path(source).is_dir():
            raise RequestError(f"cannot load the {part} of {source}: {first}") from error
        if (found := hub_error(error, source)) is not None:
            raise found from error
        raise RequestError(
            f"cannot load {source}: there is no such folder here, and on the Hub it is not there or not to be reached "
            f"({first})"
        ) from error
