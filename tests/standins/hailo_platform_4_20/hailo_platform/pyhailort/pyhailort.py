"""Where the exceptions are that are not at the top of the package."""

from hailo_chip.runtime import *  # noqa: F403

del HailoRTHEFNotCompatibleWithDevice  # noqa: F821  # came with 4.21
