"""Runs one job in Hailo's Dataflow Compiler (DFC). A program of its own, for the DFC's own Python environment:

    python dfc_worker.py JOB.json

It imports the standard library, NumPy and `hailo_sdk_client`, nothing of this package, and runs in Python 3.8 to 3.11.
The job says what to do, and with which files. What the worker has to say goes as JSON lines to the job's file
`events`: the compiler itself writes what it likes to stdout and stderr. The worker ends, with all that it has started,
when its standard input is closed, for then whoever asked has gone.

The compiler's interface as in DFC 3.33 and in hailocs/hailo-whisper, conversion/convert_whisper_encoder.py (ebe7a853).
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
    # this file's folder holds modules of another package, which nothing here may take for its own
    del sys.path[0]

import json
import platform
import shutil
import signal
import subprocess
import threading
import traceback
from collections.abc import Callable  # in annotations only, which Python 3.8 does not look at
from contextlib import suppress
from typing import Any

PROTOCOL = 1
_DISTRIBUTION = "hailo_dataflow_compiler"
_PR_SET_PDEATHSIG = 1


def main(path: str) -> int:
    """Does the job in that file; 0 if it was done."""
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    with open(job["events"], "a", encoding="utf-8") as events:

        def say(event: str, **facts: Any) -> None:
            events.write(json.dumps(dict(facts, event=event)) + "\n")
            events.flush()

        try:
            if job["protocol"] != PROTOCOL:
                raise ValueError(f"a job of protocol {job['protocol']!r} for a worker of protocol {PROTOCOL}")
            if job["alone"]:
                end_with_parent()
            offer_to_the_oom_killer()
            say("started", pid=os.getpid(), python=platform.python_version())
            facts = JOBS[job["do"]](job, say)
            say("result", peak_memory=peak_memory(), **facts)
        except BaseException as error:
            names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__]
            say("error", types=names, message=str(error)[:4000], peak_memory=peak_memory())
            traceback.print_exc()
            return 1
    return 0


def probe(job: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """What is installed here."""
    import numpy

    sdk = import_sdk()
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "numpy": numpy.__version__,
        "dfc": version_of(_DISTRIBUTION) or str(getattr(sdk, "__version__", "")),
        "tensorflow": version_of("tensorflow"),
        "gpu": gpu(),
    }


def parse(job: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """ONNX to a parsed HAR."""
    runner = import_sdk().ClientRunner(hw_arch=job["hw_arch"])
    runner.translate_onnx_model(job["onnx"], job["name"])
    say("step", what="parsed")
    runner.save_har(job["har"])
    return {"state": state_of(runner)}


def infer(job: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """A HAR's network in the compiler's emulator: `inputs`, float32 (N, H, W, C) in a .npy, to `outputs`, the same."""
    import numpy

    sdk = import_sdk()
    inputs = mapped(job["inputs"])
    runner = sdk.ClientRunner(har=job["har"])
    with runner.infer_context(getattr(sdk.InferenceContext, job["context"])) as context:
        found = runner.infer(context, inputs, batch_size=job["batch_size"])
    if isinstance(found, (list, tuple)):
        if len(found) != 1:
            raise ValueError(f"the network has {len(found)} outputs, one is expected")
        found = found[0]
    found = numpy.ascontiguousarray(found, dtype=numpy.float32)
    numpy.save(job["outputs"], found)
    return {"shape": list(found.shape), "state": state_of(runner)}


def optimize(job: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """A parsed HAR to one in integers, by a model script and a calibration set, float32 (N, H, W, C) in a .npy."""
    runner = import_sdk().ClientRunner(har=job["har"])
    runner.load_model_script(job["script"])
    say("step", what="model script read")
    os.makedirs(job["work_dir"], exist_ok=True)
    runner.optimize(mapped(job["calibration"]), work_dir=job["work_dir"])
    say("step", what="optimized")
    runner.save_har(job["optimized"])
    shutil.rmtree(job["work_dir"], ignore_errors=True)
    return {"state": state_of(runner)}


def analyze(job: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """Which layers the noise of quantisation comes from; the compiler may give no answer, which is told as None."""
    runner = import_sdk().ClientRunner(har=job["har"])
    data = mapped(job["inputs"])
    found = runner.analyze_noise(data, batch_size=1, data_count=len(data), analyze_mode="simple")
    return {"analysis": None if found is None else plain(found), "state": state_of(runner)}


def compile_hef(job: dict[str, Any], say: Callable[..., None]) -> dict[str, Any]:
    """An optimized HAR to a HEF, and the HAR of that state."""
    runner = import_sdk().ClientRunner(har=job["har"])
    hef = runner.compile()
    if not isinstance(hef, bytes) or not hef:
        raise ValueError(f"compile() gave {type(hef).__name__} and no HEF")
    with open(job["hef"], "wb") as file:
        file.write(hef)
        file.flush()
        os.fsync(file.fileno())
    say("step", what="compiled")
    runner.save_har(job["compiled"])
    return {"state": state_of(runner), "hef_bytes": len(hef)}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "probe": probe,
    "parse": parse,
    "infer": infer,
    "optimize": optimize,
    "analyze": analyze,
    "compile": compile_hef,
}


def import_sdk() -> Any:
    """The compiler; before TensorFlow, or it finds no GPU."""
    import hailo_sdk_client  # type: ignore[import-not-found]

    return hailo_sdk_client


def mapped(path: str) -> Any:
    """A .npy as an array that is mapped, not read: a calibration set of 1024 windows of 30 s is 1 GB."""
    import numpy

    return numpy.asarray(numpy.load(path, mmap_mode="r"))  # a plain array, should the compiler ask for the very type


def state_of(runner: Any) -> str:
    """The runner's state as a word, such as "quantized_model"."""
    state = runner.state
    return str(getattr(state, "value", state))


def version_of(distribution: str) -> str | None:
    """Version of a distribution, None where it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def gpu() -> str | None:
    """Names of the GPUs that NVIDIA's driver knows, without an import of TensorFlow; None where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = found.stdout.decode("utf-8", "replace").split("\n") if found.returncode == 0 else []
    return ", ".join(name.strip() for name in names if name.strip()) or None


def plain(value: Any) -> Any:
    """Whatever the compiler gives, as JSON types."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


def peak_memory() -> int:
    """The most memory that this process has had in RAM, in bytes; 0 where the system does not say."""
    # not getrusage(): what it tells was handed down by the process that started this one
    try:
        with open("/proc/self/status") as file:
            lines = [line.split() for line in file if line.startswith("VmHWM:")]
    except OSError:
        return 0
    return 1024 * int(lines[0][1]) if lines else 0


def end_with_parent() -> None:
    """Kills this process and all in its group when its parent has gone, even while the compiler computes."""
    import ctypes

    if os.getpgrp() != os.getpid():
        return  # started by hand: the group is the shell's job

    def watch() -> None:
        while os.read(0, 4096):  # not through sys.stdin, whose lock Python wants back at its end
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    with suppress(OSError, AttributeError):  # then the thread above does it, as soon as the compiler lets it run
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def offer_to_the_oom_killer() -> None:
    """If the machine runs out of memory, this process shall go first."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("900")
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
