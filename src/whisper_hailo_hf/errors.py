"""Failures that are explained in one line: what is wrong and what to do about it.

The command line prints such an error as it stands and exits with `exit_status`; anything else that escapes from a
public function is a bug.
"""


class WhisperHailoError(RuntimeError):
    """The work failed for a reason that the message explains in one line."""

    exit_status = 1


class RequestError(WhisperHailoError, ValueError):
    """The request was wrong: the message says what is wrong with it and what to ask for instead."""

    exit_status = 2
