"""What the machine is like: devices, driver, who holds the chip, and what goes wrong when.

A test sets attributes of `state`. A process that is started anew takes them from the environment, HAILO_STANDIN.
"""

import fcntl
import json
import os
import threading
from dataclasses import dataclass, field, fields
from typing import Any

# what HailoRT's releases do differently
VERSIONS = {
    "4.20.0": {"arch_code": 26, "damaged_codes": (26, 26), "newest_header": 2, "newest_extension": 30},
    "4.23.0": {"arch_code": 93, "damaged_codes": (92, 91), "newest_header": 3, "newest_extension": 32},
}


@dataclass
class World:
    """Attributes: what there is, what goes wrong, and what was seen."""

    devices: list[str] = field(default_factory=lambda: ["0001:01:00.0"])
    architecture: str = "HAILO8L"
    driver: str | None = "same"  # version of the kernel driver; "same" as the library's, None for no driver
    lock: str = ""  # a file that stands for the device: who holds a lock on it holds the device
    service: bool = False  # the hailort service runs
    queue_size: int = 4
    latency: float = 0.0  # seconds a frame
    fail_at: dict[str, int] = field(default_factory=dict)  # number of a frame -> HailoRT's status
    hang_at: int = -1  # number of the frame that never comes
    gone_after: bool = False  # a failure takes the device away
    frames: int = 0
    opened: int = 0
    most_in_flight: int = 0
    violations: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)

    def to_environment(self) -> str:
        """What a child process shall find."""
        return json.dumps({one.name: getattr(self, one.name) for one in fields(self)})


state = World(**json.loads(os.environ.get("HAILO_STANDIN", "{}")))


class Held:
    """The device as one process holds it: by groups that share it."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.pid = 0
        self.file: Any = None
        self.groups: list[str] = []

    def take(self, group: str, shared_between_processes: bool) -> bool:
        """Whether the device was free for this group."""
        with self.guard:
            if self.pid != os.getpid():  # a fork: what the parent holds is not ours
                self.pid, self.file, self.groups = os.getpid(), None, []
            if self.groups and (group == "UNIQUE" or group not in self.groups):
                return False
            if not self.groups and state.lock and not shared_between_processes:
                file = open(state.lock, "w")  # noqa: SIM115  # held as long as the device is
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    file.close()
                    return False
                self.file = file
            self.groups.append(group)
            return True

    def give_back(self, group: str) -> None:
        with self.guard:
            if self.pid != os.getpid() or group not in self.groups:
                return
            self.groups.remove(group)
            if not self.groups and self.file is not None:
                self.file.close()
                self.file = None


held = Held()
