"""What travels to and from the Hub besides the weights."""

import os
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

# of from_pretrained's arguments, those that say where a file comes from
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# and those of them that hold for any repository
ANYWHERE = ("cache_dir", "force_download", "local_files_only", "token")

_SHIM = "whisper_hailo_shim"
_SHIM_CODE = '''"""For `trust_remote_code=True`: finds the model's code, which is in `pip install whisper-hailo-hf`."""

from whisper_hailo_hf import (  # noqa: F401
    HailoWhisperEncoder,
    WhisperHailoConfig,
    WhisperHailoForConditionalGeneration,
    WhisperHailoModel,
)
'''


def find_artefact(name_or_path: str | os.PathLike, filename: str, **kwargs: Any) -> Path | None:
    """The local path of a file of a model folder or Hub repository, or None where it has no such file.

    Args:
        name_or_path: folder or Hub id.
        filename: path within it, `onnx/encoder.onnx` for example.
        kwargs: what was given to `from_pretrained`; the arguments that say where a file comes from are honoured.
    """
    where = {key: kwargs[key] for key in _WHERE if kwargs.get(key) is not None}
    path = cached_file(
        name_or_path,
        filename,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
        **where,
    )
    return Path(path) if path else None


def auto_map(config_class: str, model_class: str, auto_classes: tuple[str, ...]) -> dict[str, str]:
    """What `config.json` tells a loader with `trust_remote_code=True`: which of the shim's classes to take."""
    return {"AutoConfig": f"{_SHIM}.{config_class}"} | dict.fromkeys(auto_classes, f"{_SHIM}.{model_class}")


def write_shim(folder: Path) -> None:
    """Writes the module that `auto_map` names into a model folder."""
    (folder / f"{_SHIM}.py").write_text(_SHIM_CODE, encoding="utf-8")
