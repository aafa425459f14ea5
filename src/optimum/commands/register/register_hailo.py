"""Adds `optimum-cli export hailo` and `optimum-cli hailo`, where optimum is installed.

Optimum finds this file by its place, and stops altogether if it cannot be imported. The folders above must not have an
`__init__.py` (PEP 420): they are optimum's.
"""

import logging
from typing import Any

REGISTER_COMMANDS: list[Any] = []
try:
    from optimum.commands.export.base import ExportCommand

    from whisper_hailo_hf.cli.optimum_commands import HailoCommand, HailoExportCommand
except ImportError as error:
    logging.getLogger("whisper_hailo_hf").warning("optimum-cli goes without its hailo commands: %s", error)
else:
    REGISTER_COMMANDS = [(HailoExportCommand, ExportCommand), HailoCommand]
