"""What a test wants to go wrong: JSON in STANDIN_FAULTS, by the runner's method."""

import importlib
import json
import os
import signal
import sys
import time
from typing import Any

_MODULES = (
    "hailo_sdk_client.model_translator.exceptions",
    "hailo_sdk_client.sdk_backend.sdk_backend_exceptions",
    "hailo_sdk_common.hailo_nn.exceptions",
    "hailo_sdk_common.states.states",
    "hailo_model_optimization.acceleras.utils.acceleras_exceptions",
    "builtins",
)


def told(method: str, what: str) -> Any:
    """What a test says of a method; None if nothing."""
    return json.loads(os.environ.get("STANDIN_FAULTS", "{}")).get(method, {}).get(what)


def strike(method: str) -> None:
    """Does what shall happen when a method is called."""
    if told(method, "kill_parent"):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)  # and then this process must not live
    if told(method, "kill_self"):
        os.kill(os.getpid(), signal.SIGKILL)
    if told(method, "exit") is not None:
        sys.stderr.write("Segmentation fault of sorts\n")
        sys.stderr.flush()
        os._exit(told(method, "exit"))
    if wanted := told(method, "raise"):
        name, message = wanted
        for module in _MODULES:
            if found := getattr(importlib.import_module(module), name, None):
                raise found(message)
        raise LookupError(name)
    if megabytes := told(method, "eat"):
        eaten = []
        for _ in range(megabytes):
            eaten.append(bytearray(os.urandom(1024)) * 1024)
            time.sleep(0.001)
    if child := told(method, "child_eats"):
        if os.fork() == 0:
            eaten = [bytearray(os.urandom(1024)) * 1024 for _ in range(child)]
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
    if seconds := told(method, "sleep"):
        time.sleep(seconds)
