"""What the Hub client raises, which is often a page long, in one line: what is wrong and what to do about it."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from whisper_hailo_hf.errors import RequestError, WhisperHailoError

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def hub_error(error: BaseException, name: str) -> WhisperHailoError | None:
    """An error of the Hub client, or of what called it, as one line; None if it is none of the Hub's.

    Args:
        error: what was raised; what it was raised from is looked at too.
        name: of the repository.
    """
    chain = list(_chain(error))
    if any(isinstance(one, OSError) and one.errno in _NO_SPACE for one in chain):
        return WhisperHailoError(
            f"no space is left on the disk while working on {name}: free some, or let HF_HOME (or cache_dir) name a "
            "folder on another disk"
        )
    for one in chain:
        if isinstance(one, LocalTokenNotFoundError):
            return RequestError(f"{name} asks for a token, and there is none: {LOG_IN}")
        if isinstance(one, HFValidationError):
            return RequestError(f"{name} is no name of a repository: it is of the form owner/model")
        if isinstance(one, HfHubHTTPError) and (found := _answered(one, name)) is not None:
            return found
    if any(type(one).__module__.partition(".")[0].startswith("httpx") for one in chain):
        return WhisperHailoError(
            f"the Hub could not be reached for {name}, or broke off ({_first_line(chain[-1])}): try again, what has "
            "arrived whole is kept"
        )
    if any(isinstance(one, LocalEntryNotFoundError) for one in chain):
        return RequestError(
            f"a file of {name} is not in the cache, and the Hub is not asked (offline mode) or not to be reached: "
            "load it once with a connection"
        )
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return RequestError(f"offline mode is on: unset HF_HUB_OFFLINE to reach the Hub for {name}")
    return None


def _answered(error: HfHubHTTPError, name: str) -> WhisperHailoError | None:
    status = error.response.status_code if error.response is not None else 0
    if isinstance(error, GatedRepoError):
        return RequestError(f"{name} is gated: ask for access on its page, then {LOG_IN}")
    if isinstance(error, RepositoryNotFoundError):
        return RequestError(f"there is no {name} on the Hub, or it is private: check the name, or {LOG_IN}")
    if isinstance(error, RevisionNotFoundError):
        return RequestError(f"{name} has no such revision: name a branch, a tag or a commit of it")
    if status == 401:
        return RequestError(f"the Hub does not accept the token for {name}: {LOG_IN}")
    if status == 403:
        return RequestError(f"the token does not allow this with {name}: it needs write access to that owner")
    if isinstance(error, BadRequestError):
        return RequestError(f"the Hub refuses what was sent for {name}: {error.server_message or _first_line(error)}")
    if status == 429:
        return WhisperHailoError(f"the Hub wants fewer requests (429) for {name}: try again in a few minutes")
    if status in (413, 507):
        return WhisperHailoError(f"the Hub has no room for {name} ({status}): {error.server_message or 'too large'}")
    if status >= 500:
        return WhisperHailoError(f"the Hub failed over {name} ({status}): try again later")
    return None  # a file that is not there, say: that is for the caller


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """What the Hub client raises within becomes one line; everything else stays as it is."""
    try:
        yield
    except WhisperHailoError:
        raise
    except Exception as error:
        if (found := hub_error(error, name)) is None:
            raise
        raise found from error
