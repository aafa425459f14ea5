"""What a supervisor sees of a server: systemd's notifications, and logs of one JSON object a line."""

import json
import logging
import os
import socket
from datetime import UTC, datetime

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def notify_systemd(*states: str) -> bool:
    """Tells systemd, if it started this process with `Type=notify`: `READY=1`, `STOPPING=1`, `WATCHDOG=1`, ...

    As sd_notify(3) says: a datagram to the socket that NOTIFY_SOCKET names. Returns whether there was one.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return False
    address = f"\0{name[1:]}" if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
            end.settimeout(1.0)  # a supervisor that does not read is no reason to stand still
            end.connect(address)
            end.sendall("\n".join(states).encode())
    except OSError:
        return False
    return True


def watchdog_seconds() -> float | None:
    """How often systemd wants a `WATCHDOG=1` at least: half of what WATCHDOG_USEC says; None if it wants none."""
    wanted = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(wanted) / 2e6 if wanted.isdigit() and int(wanted) > 0 and meant == str(os.getpid()) else None


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        data = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        data |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data, ensure_ascii=False, default=str)
