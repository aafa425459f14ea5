"""What travels to and from the Hub besides the weights."""

import os
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

# of from_pretrained's arguments, those that say where a file comes from
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


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
