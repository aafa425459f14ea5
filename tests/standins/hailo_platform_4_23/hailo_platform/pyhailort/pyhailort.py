"""Where the exceptions are that are not at the top of the package."""

from hailo_chip.runtime import *  # noqa: F403
