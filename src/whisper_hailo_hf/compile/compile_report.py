"""What a compilation gave: the file, what each stage took and found, and what to know before using it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from whisper_hailo_hf.compile.journal import Event
from whisper_hailo_hf.compile.memory_guard import gib


@dataclass(frozen=True)
class CompileReport:
    """What was made, and how.

    Attributes:
        hef: the file that was put in place; None if the work was to stop before.
        sha256, size: of it; bytes.
        hw_arch: what it is for.
        versions: of the DFC's environment.
        work: folder of all files between.
        stages: what the journal says of each stage, with `status` `"done"` or `"kept"`.
        script: the model script.
        script_reasons: (command, why) of one that was generated.
        noise_check: whether the compiler looked for the layers that noise comes from; None if it did not come to it.
        warnings: what to know.
    """

    hef: str | None
    sha256: str | None
    size: int | None
    hw_arch: str
    versions: dict[str, Any]
    work: str
    stages: dict[str, dict[str, Any]]
    script: str | None
    script_reasons: list[tuple[str, str]]
    noise_check: bool | None
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, ...]]:
        """A line for each stage: name, what became of it, time, memory, what it found."""
        found: list[tuple[str, ...]] = [("stage", "", "time", "peak memory", "found")]
        for name, event in self.stages.items():
            memory = gib(event["peak_memory"]) if "peak_memory" in event else ""
            found.append((name, event["status"], duration(event["seconds"]), memory, finding(event)))
        return found


def finding(event: Event) -> str:
    """What a stage found, in a few words."""
    if figures := event.get("figures"):
        if "snr_db" not in figures:
            return "values that are not finite"
        text = (
            f"SNR {figures['snr_db']:.1f} dB, cosine mean {figures['cosine_mean']:.4f}, 5 % {figures['cosine_p5']:.4f}"
        )
        if ours := event.get("emulator"):
            text += f" (our emulator: {ours['snr_db']:.1f} dB)"
        return text
    if hef := event.get("hef"):
        contexts = hef["contexts"]
        told = f"{hef['hw_arch']}, DFC {hef['dfc']}, {contexts} context{'s' * (contexts != 1)}"
        return f"{told}, read by HailoRT {hef['runtime_since']} and later"
    if "entries" in event:
        return f"{event['entries']} windows to calibrate with, {event['compared']} to compare on"
    if "text" in event:
        return "your own" if event["own"] else f"{len(event['why'])} commands"
    if "skipped" in event:
        return "skipped, as asked" if event["skipped"] else event.get("note", "")
    if event.get("outputs"):
        return ", ".join(f"{name} {gib(output['size'])}" for name, output in event["outputs"].items())
    return ""


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def report_of(event: Mapping[str, Any], status: str) -> dict[str, Any]:
    """What the report keeps of a stage's line in the journal."""
    return {"status": status} | {name: value for name, value in event.items() if name not in ("event", "stage", "key")}
