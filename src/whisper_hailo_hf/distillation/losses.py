"""The terms of the distillation loss: small functions of states, each with its source.

States are (batch, positions, d_model), frame weights (batch, positions), both float32. A mean over frames is weighted;
`total` may replace the sum of the weights, so that several processes can share one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from whisper_hailo_hf.distillation.teacher import Projection


def frame_weights(speech_mask: Tensor, non_speech_weight: float) -> Tensor:
    """Weight 1 for frames of speech, `non_speech_weight` for padding, silence and noise. (batch, positions), float32.

    The decoder attends mostly to speech, but what it finds in the rest decides whether it goes on talking.
    """
    return torch.where(speech_mask, 1.0, non_speech_weight)


def weighted_mean(values: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """Mean of values (batch, positions) over frames by weight; 0 if no frame counts."""
    return (values * weights).sum() / (weights.sum() if total is None else total).clamp_min(1e-8)


def whitened_mse(
    student: Tensor, teacher: Tensor, scale: Tensor, weights: Tensor, total: Tensor | None = None
) -> Tensor:
    """Mean squared error of the states in units of each channel's standard deviation in the teacher, `scale`.

    Without it a handful of wide channels would be the whole loss. 1 means as bad as the teacher's mean.
    Source: whitened feature targets, Wei et al. 2022, arXiv:2205.14141 (there by a LayerNorm, here by channel).
    """
    return weighted_mean(((student - teacher) / scale).square().mean(-1), weights, total)


def cosine_distance(student: Tensor, teacher: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """1 - cosine of the angle between the states of a frame. Give it whitened states.

    Source: the cosine term of DistilHuBERT, Chang et al. 2022, arXiv:2110.01900.
    """
    return weighted_mean(1 - F.cosine_similarity(student, teacher, dim=-1), weights, total)


def pool_to(frames: int, hidden: Tensor) -> Tensor:
    """Averages (batch, positions, channels) down to a coarser rate, (batch, frames, channels)."""
    if frames == hidden.shape[1]:
        return hidden
    return F.adaptive_avg_pool1d(hidden.transpose(1, 2), frames).transpose(1, 2)


def hint(adapted: Tensor, teacher: Tensor, mean: Tensor, scale: Tensor, weights: Tensor) -> Tensor:
    """Whitened error between a student block, through its adapter, and a teacher layer.

    `adapted` is (batch, frames, d_model) at the block's own rate, already in whitened units; the teacher's layer and
    the weights are averaged down to it. `mean` and `scale` are those of the layer.
    Source: FitNets, Romero et al. 2015, arXiv:1412.6550.
    """
    frames = adapted.shape[1]
    target = pool_to(frames, (teacher - mean) / scale)
    pooled = pool_to(frames, weights.unsqueeze(-1)).squeeze(-1)
    return weighted_mean((adapted - target).square().mean(-1), pooled)


def decoder_metric(projections: tuple[Projection, ...], covariance: Tensor) -> Tensor:
    """The quadratic form (d_model, d_model) that `decoder_view` measures errors with.

    For projections W of the decoder's cross-attention, the mean of W'W / trace(W C W') with C the covariance of the
    teacher's states: an error e then costs the mean over all keys and values of |We|² in units of their variance.
    """
    form = torch.zeros_like(covariance, dtype=torch.float64)
    for projection in projections:
        weight = projection.weight.double()
        power = weight.T @ weight
        form += power / torch.sum(power * covariance.double()).clamp_min(1e-12)
    return (form / max(1, len(projections))).float()


def decoder_view(
    student: Tensor, teacher: Tensor, form: Tensor, weights: Tensor, total: Tensor | None = None
) -> Tensor:
    """Error of the keys and values that the frozen decoder makes of the states, relative to their variance.

    One matrix product for all layers, see `decoder_metric`. 1 means as bad as the teacher's mean.
    Source: MiniLMv2, Wang et al. 2021, arXiv:2012.15828, matches queries, keys and values instead of states; here
    those of the decoder.
    """
    error = student - teacher
    return weighted_mean(((error @ form) * error).sum(-1), weights, total)


def outliers(core_output: Tensor, limit: float) -> Tensor:
    """Squared hinge on core outputs (batch, d_model, ., .) whose size exceeds `limit` typical spreads.

    It serves the chip's 8 bits: the output tensor has one scale, so a few wide channels or rare peaks would cost all
    others their resolution. The typical spread is the median over channels of their standard deviation, and carries
    no gradient, or the penalty could be paid by spreading everything.
    Source: range penalties for quantisation such as KURE, Shkolnik et al. 2020, arXiv:2002.07686.
    """
    values = core_output.float().flatten(2)  # (batch, channels, frames)
    spread = values.detach().std(dim=(0, 2), correction=0).median().clamp_min(1e-8)
    return F.relu(values.abs() / spread - limit).square().mean()


def token_divergence(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the student's next-token distribution from the teacher's, times temperature².

    Logits (batch, tokens, vocabulary), labels (batch, tokens) with -100 where there is none.
    Source: Hinton et al. 2015, arXiv:1503.02531; the mean over tokens as in Distil-Whisper, Gandhi et al. 2023,
    arXiv:2311.00430.
    """
    known = labels != -100
    student = F.log_softmax(student_logits[known].float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits[known].float() / temperature, dim=-1)
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    return divergence * temperature**2 / known.sum().clamp_min(1)


def token_cross_entropy(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the transcript's tokens, the mean over those that are not -100; 0 if there is none."""
    total = F.cross_entropy(student_logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (labels != -100).sum().clamp_min(1)
