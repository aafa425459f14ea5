"""The files beside a model's weights, in its folder or on the Hub, whence each is fetched when first asked for."""

import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Self

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers.utils import hub as transformers_hub

from whisper_hailo_hf.errors import WhisperHailoError
from whisper_hailo_hf.hub.explain import hub_error

# of from_pretrained's arguments, those that say where a file comes from
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# and those of them that hold for any repository
ANYWHERE = ("cache_dir", "force_download", "local_files_only", "token")


def pinned_revision(name_or_path: str | os.PathLike | None, **kwargs: Any) -> str | None:
    """The revision that `from_pretrained` was asked for, tied to the commit that it stands for now: all files of one
    load shall be of one state of the repository. As it was asked for, where that cannot be found out."""
    resolve = getattr(transformers_hub, "resolve_revision", None)  # not in every release of Transformers
    where = {key: kwargs[key] for key in ("cache_dir", "local_files_only", "token") if kwargs.get(key) is not None}
    revision = kwargs.get("revision")
    return revision if resolve is None else resolve(name_or_path, revision, **where)


def fetch(name: str, filename: str, **where: Any) -> Path | None:
    """A file of a repository on the Hub, from the cache if it is there; None if the repository has no such file.

    Raises:
        WhisperHailoError: it cannot be had, in one line.
    """
    try:
        return Path(hf_hub_download(name, filename, **where))
    except LocalEntryNotFoundError as error:
        raise (hub_error(error, f"{name}/{filename}") or WhisperHailoError(str(error))) from error
    except EntryNotFoundError:
        return None
    except Exception as error:
        if (found := hub_error(error, name)) is None:
            raise
        raise found from error


class ArtefactFiles(MutableMapping[str, Path]):
    """Local paths of files beside the weights, by their names in the model folder.

    Asking for one that lies on the Hub fetches it, which raises a `WhisperHailoError` if it cannot be had; naming them
    all fetches nothing. A file that turns out not to be there is not named any more.
    """

    def __init__(self, files: Mapping[str, Path] | None = None) -> None:
        self._files: dict[str, Path] = dict(files or {})
        self._awaited: dict[str, None] = {}  # on the Hub, in order
        self._name, self._where = "", dict[str, Any]()

    @classmethod
    def beside(cls, name_or_path: str | os.PathLike | None, names: Iterable[str], **kwargs: Any) -> Self:
        """Those of a model.

        Args:
            name_or_path: its folder or Hub id; None has no files.
            names: of the files, as its config records them.
            kwargs: what was given to `from_pretrained`; the arguments that say where a file comes from are honoured.
        """
        found = cls()
        if name_or_path is None:
            return found
        if os.path.isdir(name_or_path):
            folder = Path(name_or_path, kwargs.get("subfolder") or "")
            found._files = {name: folder / name for name in names if (folder / name).is_file()}
        else:
            found._awaited = dict.fromkeys(names)
            found._name = os.fspath(name_or_path)
            found._where = {key: kwargs[key] for key in _WHERE if kwargs.get(key) is not None}
        return found

    def __getitem__(self, name: str) -> Path:
        if name in self._awaited:
            path = fetch(self._name, name, **self._where)
            del self._awaited[name]
            if path is not None:
                self._files[name] = path
        return self._files[name]

    def __setitem__(self, name: str, path: Path) -> None:
        self._awaited.pop(name, None)
        self._files[name] = path

    def __delitem__(self, name: str) -> None:
        if name in self._awaited:
            del self._awaited[name]
        else:
            del self._files[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._files, *self._awaited])

    def __len__(self) -> int:
        return len(self._files) + len(self._awaited)

    def __contains__(self, name: object) -> bool:
        return name in self._files or name in self._awaited

    def __ior__(self, other: Mapping[str, Path]) -> Self:
        self.update(other)
        return self

    def here(self) -> dict[str, Path]:
        """Those that are on this machine, or were fetched already."""
        return dict(self._files)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"

    def __getstate__(self) -> dict[str, Any]:
        # a token shall not get into a pickle: who restores it uses their own
        where = {key: value for key, value in self._where.items() if key != "token"}
        return self.__dict__ | {"_where": where}
