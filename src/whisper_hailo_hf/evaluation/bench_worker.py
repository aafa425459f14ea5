"""One system in a process of its own: orders come in as lines of JSON, answers go out as lines of JSON.

A process for each, so that memory is counted for one system alone, and that no runtime's idle threads or libraries
meet another's. Run by `bench_process`.
"""

import json
import os
import sys
from pathlib import Path
from typing import IO, Any


def resident_mib() -> tuple[float | None, float | None]:
    """Memory of this process now and at its peak, MiB, as Linux tells (VmRSS, VmHWM); elsewhere the peak alone."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        now, peak = (int(values[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak
    except (OSError, KeyError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None, None
    unit = 1024 if sys.platform != "darwin" else 1024**2
    return None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def serve(orders: IO[str], answers: IO[str]) -> None:
    """Answers orders until there are no more."""
    system: Any = None
    for line in orders:
        order = json.loads(line)
        answer: dict[str, Any]
        try:
            if order["do"] == "load":
                import time

                import numpy as np

                from whisper_hailo_hf.evaluation.bench_systems import SystemSpec, make_system

                before = resident_mib()[0]
                windows = list(np.load(order["windows"]))
                began = time.perf_counter()
                system = make_system(SystemSpec(**order["spec"]), windows, order["tokens"], order["threads"])
                answer = {"seconds": time.perf_counter() - began, "before_mib": before}
            elif order["do"] == "run":
                answer = {"seconds": system.run(order["measure"])}
            else:
                answer = {"peak_mib": resident_mib()[1], "info": system.info()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()


def main() -> None:
    # what libraries print must not get among the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
