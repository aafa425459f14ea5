"""What the losses and metrics need to know about a teacher's states: measured in one pass, stored, used again.

Why: per-channel spreads differ many times over, and a good third of Whisper's variance is a fixed function of the
frame's position. Whitening by the first and taking away the second is what makes an error comparable across channels.
"""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from whisper_hailo_hf.distillation.teacher import Teacher
from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from whisper_hailo_hf.distillation.arguments import EncoderDistillationArguments
    from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder

logger = logging.getLogger(__name__)

# A positional mean is shrunk to that of all frames by this many; where little speech was seen it would else be noise.
PRIOR_FRAMES = 8
# No channel counts as narrower than this share of the median channel.
SCALE_FLOOR = 1e-2


@dataclass(frozen=True)
class TeacherStatistics:
    """Moments of a teacher's states over frames of speech, all float32.

    Attributes:
        mean: (d_model,), of the states.
        scale: (d_model,), standard deviation of the states.
        covariance: (d_model, d_model), of the states.
        position_mean: (positions, d_model), mean of the states at each frame position.
        position_mean_before_norm: (positions, d_model), the same of what the final LayerNorm takes.
        hidden_mean: (layers + 1, d_model), of the residual stream before layer 0, after layer 0, ...
        hidden_scale: (layers + 1, d_model), its standard deviation.
        teacher: fingerprint of the teacher's encoder.
        frames: frames of speech that were seen.
        windows: windows that were seen.
    """

    mean: Tensor
    scale: Tensor
    covariance: Tensor
    position_mean: Tensor
    position_mean_before_norm: Tensor
    hidden_mean: Tensor
    hidden_scale: Tensor
    teacher: str
    frames: int
    windows: int

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by name."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return type(self)(**moved, teacher=self.teacher, frames=self.frames, windows=self.windows)

    def whiten(self, states: Tensor) -> Tensor:
        """States (..., d_model) with mean 0 and standard deviation 1 in each channel of the teacher."""
        return (states - self.mean) / self.scale

    def save(self, path: str | os.PathLike) -> None:
        """Writes one safetensors file, atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        facts = {"teacher": self.teacher, "frames": str(self.frames), "windows": str(self.windows)}
        save_file({name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}, partial, facts)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike, teacher: Teacher) -> Self:
        """Reads what `save` wrote.

        Raises:
            RequestError: no such file, a damaged one, or one that was measured on another teacher.
        """
        try:
            with safe_open(path, "pt") as file:
                facts: dict[str, Any] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = cls(
                **tensors, teacher=facts["teacher"], frames=int(facts["frames"]), windows=int(facts["windows"])
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"{path} holds no teacher statistics ({error}): delete it, it is measured anew"
            ) from error
        if found.teacher != teacher.fingerprint:
            raise RequestError(
                f"{path} was measured on another teacher than {teacher.name}: name another file, or delete it"
            )
        return found


@torch.no_grad()
def measure_statistics(
    teacher: Teacher,
    batches: Iterable[dict[str, Any]],
    max_windows: int | None = None,
    observe: Callable[[int], None] | None = None,
) -> TeacherStatistics:
    """Runs the teacher once over batches and takes the moments of its states.

    Args:
        teacher: the teacher.
        batches: dicts with `input_features` (batch, n_mels, 2 * positions) and `speech_mask` (batch, positions).
        max_windows: stop after so many windows.
        observe: told the number of windows after each batch.

    Raises:
        RequestError: there is no speech in the batches.
    """
    positions, width, device = teacher.positions, teacher.d_model, teacher.device
    depth = teacher.config.encoder_layers + 1

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64)

    total, square = zeros(depth + 1, width), zeros(depth + 1, width)  # the stream, then the states
    outer, counts = zeros(width, width), zeros(positions)
    # sums at each position, of (states, what the LayerNorm takes), over speech and over all frames
    at_speech, at_all = zeros(2, positions, width), zeros(2, positions, width)
    windows = 0
    for batch in batches:
        features, speech = batch["input_features"].to(device), batch["speech_mask"].to(device)
        if max_windows is not None and windows + len(features) > max_windows:
            features, speech = features[: max_windows - windows], speech[: max_windows - windows]
        states, stream = teacher.encode_deep(features)
        for index, hidden in enumerate((*stream, states)):
            spoken = hidden[speech]  # (frames, d_model)
            total[index] += spoken.sum(0, dtype=torch.float64).cpu()
            square[index] += spoken.square().sum(0, dtype=torch.float64).cpu()
        centred = states[speech]
        outer += (centred.T @ centred).double().cpu()
        counts += speech.sum(0).double().cpu()
        for index, hidden in enumerate((states, stream[-1])):
            at_all[index] += hidden.sum(0).double().cpu()
            at_speech[index] += (hidden * speech.unsqueeze(-1)).sum(0).double().cpu()
        windows += len(features)
        if observe is not None:
            observe(windows)
        if max_windows is not None and windows >= max_windows:
            break
    frames = int(counts.sum())
    if frames == 0:
        raise RequestError(f"no speech in {windows} windows of the data: check the data set and its speech masks")
    mean = total / frames
    spread = (square / frames - mean.square()).clamp_min(0).sqrt()
    spread = torch.maximum(spread, SCALE_FLOOR * spread.median(dim=-1, keepdim=True).values).clamp_min(1e-6)
    covariance = outer / frames - torch.outer(mean[-1], mean[-1])
    prior = PRIOR_FRAMES * at_all / windows
    at_position = (at_speech + prior) / (counts + PRIOR_FRAMES).unsqueeze(-1)
    return TeacherStatistics(
        mean=mean[-1].float(),
        scale=spread[-1].float(),
        covariance=covariance.float(),
        position_mean=at_position[0].float(),
        position_mean_before_norm=at_position[1].float(),
        hidden_mean=mean[:-1].float(),
        hidden_scale=spread[:-1].float(),
        teacher=teacher.fingerprint,
        frames=frames,
        windows=windows,
    )


def obtain_statistics(
    teacher: Teacher,
    path: str | os.PathLike,
    dataset: Any,
    collate: Callable[..., dict[str, Any]],
    args: "EncoderDistillationArguments",
) -> TeacherStatistics:
    """Reads the statistics from a file, or measures them on part of a data set and writes the file.

    Where there are several processes, one of them measures. A map-style data set is sampled, of an iterable one the
    beginning is taken.

    Raises:
        RequestError: another teacher's file, a damaged one, no file and no data, or data without speech.
    """
    path = Path(path)
    with args.main_process_first(local=False, desc="teacher statistics"):
        if not path.is_file():
            if isinstance(dataset, dict):
                dataset = next(iter(dataset.values()))
            if dataset is None:
                raise RequestError(f"no statistics of the teacher at {path} and no data set to measure them on")
            logger.info("measuring the teacher on %d windows", args.statistics_windows)
            if not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__"):
                order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))
                dataset = Subset(dataset, order[: args.statistics_windows].tolist())
            loader: Any = DataLoader(
                dataset, args.per_device_eval_batch_size, collate_fn=collate, num_workers=args.dataloader_num_workers
            )
            measure_statistics(teacher, loader, args.statistics_windows).save(path)
        return TeacherStatistics.load(path, teacher)


@torch.no_grad()
def start_positional_map(student: "HailoWhisperEncoder", statistics: TeacherStatistics) -> None:
    """Starts the host epilogue's positional map from the teacher's mean by position, before its final LayerNorm.

    Raises:
        RequestError: the student's family has no such map, or another shape.
    """
    table = student.host.positional_map
    if table is None:
        raise RequestError(f"the {student.config.encoder_family} family has no positional map to start")
    if table.weight.shape != statistics.position_mean_before_norm.shape:
        raise RequestError(
            f"the student's positional map is {tuple(table.weight.shape)}, the teacher's mean "
            f"{tuple(statistics.position_mean_before_norm.shape)}: they must agree"
        )
    table.weight.copy_(statistics.position_mean_before_norm)
