"""How close a student's states are to its teacher's, on frames of speech, summed up batch by batch.

All sums are float64 on the CPU, and the cosines go into fine histograms, so that a set of any size fits.
"""

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from whisper_hailo_hf.distillation.collator import DistillationCollator
from whisper_hailo_hf.distillation.statistics import TeacherStatistics, measure_statistics
from whisper_hailo_hf.distillation.student import Student, encoder_of
from whisper_hailo_hf.distillation.teacher import Projection, Teacher, check_student
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.fidelity import decibels

BINS = 20_000  # of a cosine, from -1 to 1: a percentile is exact to 0.0001


@dataclass(frozen=True)
class Fidelity:
    """What `encoder_fidelity` found.

    Attributes:
        metrics: `snr_db` and `content_snr_db` (the teacher's mean by position taken from both); `cosine` and
            `whitened_cosine` with their 5th percentiles over frames (`_p5`); `key_snr_db_layer<i>`,
            `value_snr_db_layer<i>` and `kv_snr_db`, as the decoder sees it; `content_snr_db_start`, `_middle` and
            `_end`, of frames 0-100, 700-800 and 1400-1500 of 1500, and `drift_db`, the largest difference between
            them; `speech_frames`, `windows`. A value that no frame could give is left out.
        content_snr_by_position: (positions,), dB; NaN where there was no speech.
        frames_by_position: (positions,), how much speech there was.
    """

    metrics: dict[str, float]
    content_snr_by_position: np.ndarray
    frames_by_position: np.ndarray


class FidelityMeter:
    """Sums up how student states differ from teacher states.

    Args:
        statistics: of the teacher, on the device of the states.
        projections: the decoder's cross-attention maps, on the same device; may be empty.
    """

    def __init__(self, statistics: TeacherStatistics, projections: tuple[Projection, ...] = ()) -> None:
        self.statistics, self.projections = statistics, projections
        positions = len(statistics.position_mean)
        sizes = {
            "windows": 1,
            "signal": 1,  # sum of t²
            "cosine": 1,
            "whitened_cosine": 1,
            "frames_at": positions,
            "content_at": positions,  # sum of (t - m)²
            "error_at": positions,  # sum of (s - t)²
            "cosine_bins": BINS,
            "whitened_cosine_bins": BINS,
            "projected_signal": len(projections),
            "projected_error": len(projections),
        }
        self.sums = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
        if projections:
            self._weight = torch.cat([p.weight for p in projections])  # (projections * d_model, d_model)
            self._bias = torch.cat([p.bias for p in projections])

    @torch.no_grad()
    def update(self, student: Tensor, teacher: Tensor, speech_mask: Tensor) -> None:
        """Takes in states (batch, positions, d_model) and the frames that count (batch, positions), bool."""
        student, teacher, speech_mask = student.float(), teacher.float(), speech_mask.bool()
        stats, sums = self.statistics, self.sums
        sums["windows"] += len(student)
        sums["frames_at"] += speech_mask.sum(0).double().cpu()
        content = (teacher - stats.position_mean).square().sum(-1)
        error = (student - teacher).square().sum(-1)
        sums["content_at"] += (content * speech_mask).double().sum(0).cpu()
        sums["error_at"] += (error * speech_mask).double().sum(0).cpu()
        ours, theirs = student[speech_mask], teacher[speech_mask]  # (frames, d_model)
        sums["signal"] += theirs.double().square().sum().cpu()
        for name, pair in (
            ("cosine", (ours, theirs)),
            ("whitened_cosine", (stats.whiten(ours), stats.whiten(theirs))),
        ):
            cosine = F.cosine_similarity(*pair, dim=-1).double().cpu()
            sums[name] += cosine.sum()
            sums[f"{name}_bins"] += torch.histc(cosine.clamp(-1, 1), BINS, -1, 1)
        if self.projections:
            for name, values in (
                ("projected_signal", F.linear(theirs, self._weight, self._bias)),
                ("projected_error", F.linear(ours - theirs, self._weight)),
            ):
                sums[name] += values.double().square().sum(0).unflatten(0, (len(self.projections), -1)).sum(-1).cpu()

    def merge(self, add_up: Callable[[Tensor], Tensor]) -> None:
        """Replaces each sum by `add_up` of it: what several processes found together."""
        for name, tensor in self.sums.items():
            if tensor.numel():
                self.sums[name] = add_up(tensor).double().cpu()

    def _projected(self) -> tuple[list[float], list[float]]:
        return self.sums["projected_signal"].tolist(), self.sums["projected_error"].tolist()

    def result(self) -> Fidelity:
        """The metrics of all that was taken in.

        Raises:
            RequestError: there was no frame of speech.
        """
        sums = self.sums
        frames = float(sums["frames_at"].sum())
        if not frames:
            raise RequestError("no speech in the evaluation data: check the data set and its speech masks")
        found = {
            "snr_db": decibels(float(sums["signal"]), float(sums["error_at"].sum())),
            "content_snr_db": decibels(float(sums["content_at"].sum()), float(sums["error_at"].sum())),
        }
        for name in ("cosine", "whitened_cosine"):
            found[name] = float(sums[name]) / frames
            found[f"{name}_p5"] = _percentile(sums[f"{name}_bins"], 0.05)
        shares = []
        for p, signal, error in zip(self.projections, *self._projected(), strict=True):
            found[f"{p.kind}_snr_db_layer{p.layer}"] = decibels(signal, error)
            shares.append(error / signal if signal else math.nan)
        if shares:
            found["kv_snr_db"] = decibels(1.0, sum(shares) / len(shares))
        positions = len(sums["frames_at"])
        parts = {}
        for name, first in (("start", 0), ("middle", 7), ("end", 14)):
            part = slice(first * positions // 15, (first + 1) * positions // 15)
            if sums["frames_at"][part].sum():
                signal, error = (float(sums[of][part].sum()) for of in ("content_at", "error_at"))
                parts[f"content_snr_db_{name}"] = decibels(signal, error)
        if len(parts) == 3:
            parts["drift_db"] = max(parts.values()) - min(parts.values())
        found |= parts | {"speech_frames": frames, "windows": float(sums["windows"])}
        curve = [decibels(float(c), float(e)) for c, e in zip(sums["content_at"], sums["error_at"], strict=True)]
        return Fidelity(
            {name: value for name, value in found.items() if not math.isnan(value)},
            np.array(curve),
            sums["frames_at"].numpy().copy(),
        )


def _percentile(counts: Tensor, share: float) -> float:
    """The value in a histogram over [-1, 1] below which `share` of the counts lie."""
    below = torch.cumsum(counts, 0)
    wanted = share * float(below[-1])
    index = int(torch.searchsorted(below, torch.tensor(wanted, dtype=torch.float64)))
    before = float(below[index - 1]) if index else 0.0
    within = (wanted - before) / max(float(counts[index]), 1.0)
    return -1 + 2 * (index + within) / len(counts)


def encoder_fidelity(
    student: Student,
    teacher: Teacher,
    dataset: Dataset,
    *,
    statistics: TeacherStatistics | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    observe: Callable[[int], None] | None = None,
) -> Fidelity:
    """Fidelity of a student's encoder, through the backend it has chosen, on a data set.

    Args:
        student: the student, in eval mode from here on.
        teacher: its teacher, on the student's device from here on.
        dataset: items with `input_features`, `speech_mask` and perhaps `teacher_states`.
        statistics: of the teacher, best from the training data; measured on the data set itself if left out.
        batch_size: windows at a time.
        num_workers: processes that load data.
        observe: told the number of windows after each batch.

    Raises:
        RequestError: student and teacher do not fit, or there is no speech in the data.
    """
    encoder = encoder_of(student).eval()
    check_student(teacher, encoder)
    check_not_empty(dataset, "evaluation")
    device = next(encoder.parameters()).device
    teacher.to(device)
    loader: Iterable[dict[str, Any]] = DataLoader(
        dataset, batch_size, num_workers=num_workers, collate_fn=DistillationCollator()
    )
    if statistics is None:
        statistics = measure_statistics(teacher, loader)
    meter = FidelityMeter(statistics.to(device), teacher.projections)
    windows = 0
    for batch in loader:
        features = batch["input_features"].to(device)
        theirs = batch["teacher_states"].to(device) if "teacher_states" in batch else teacher.encode(features)
        with torch.no_grad():
            ours = encoder(features.to(encoder.dtype)).last_hidden_state
        meter.update(ours, theirs, batch["speech_mask"].to(device))
        windows += len(features)
        if observe is not None:
            observe(windows)
    return meter.result()


def check_not_empty(dataset: Any, purpose: str) -> None:
    """Raises a `RequestError` if a data set that knows its length has none."""
    if isinstance(dataset, Sized) and not isinstance(dataset, dict) and len(dataset) == 0:
        raise RequestError(f"the {purpose} data set is empty: check its path and its filters")
