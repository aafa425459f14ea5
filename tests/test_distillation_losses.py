"""Each loss has the value that a hand calculation gives, and its gradient reaches the student's encoder alone."""

import math
from collections.abc import Callable

import pytest
import torch
from helpers_distillation import (
    MELS,
    POSITIONS,
    ToyWindows,
    arguments,
    make_student,
    make_teacher,
    make_whole_student,
)
from torch import Tensor

from whisper_hailo_hf.distillation import losses
from whisper_hailo_hf.distillation.collator import DistillationCollator
from whisper_hailo_hf.distillation.objective import DistillationObjective, Targets
from whisper_hailo_hf.distillation.statistics import measure_statistics
from whisper_hailo_hf.distillation.student import DistillationStudent, encoder_of
from whisper_hailo_hf.distillation.teacher import Projection
from whisper_hailo_hf.errors import RequestError

ONE = torch.ones(1, 2)


def test_frames_without_speech_weigh_less() -> None:
    weights = losses.frame_weights(torch.tensor([[True, False, True]]), 0.25)
    assert weights.tolist() == [[1.0, 0.25, 1.0]]
    values = torch.tensor([[1.0, 4.0, 2.0]])
    assert losses.weighted_mean(values, weights).item() == pytest.approx((1 + 1 + 2) / 2.25)
    assert losses.weighted_mean(values, weights, torch.tensor(8.0)).item() == pytest.approx(0.5)
    assert losses.weighted_mean(values, torch.zeros(1, 3)).item() == 0  # a window of silence that counts for nothing


def test_whitened_mse_counts_in_standard_deviations() -> None:
    teacher = torch.tensor([[[1.0, 10.0], [0.0, 0.0]]])
    student = torch.tensor([[[3.0, 30.0], [0.0, 0.0]]])
    scale = torch.tensor([2.0, 10.0])
    # errors 2 / 2 and 20 / 10 in the first frame: (1 + 4) / 2, halved by the second frame
    assert losses.whitened_mse(student, teacher, scale, ONE).item() == pytest.approx(1.25)
    assert losses.whitened_mse(student, teacher, scale, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(2.5)


def test_cosine_distance_of_known_angles() -> None:
    teacher = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    student = torch.tensor([[[1.0, 1.0], [-2.0, -2.0]]])  # 45 and 180 degrees
    expected = ((1 - math.sqrt(0.5)) + 2) / 2
    assert losses.cosine_distance(student, teacher, ONE).item() == pytest.approx(expected)


def test_hint_compares_at_the_rate_of_the_block() -> None:
    layer = torch.tensor([[[1.0], [3.0], [5.0], [9.0]]])  # averaged in pairs: 2, 7; whitened by 1 and 2: 0.5, 3
    adapted = torch.tensor([[[0.5], [1.0]]])
    weights = torch.tensor([[1.0, 1.0, 0.5, 0.5]])
    value = losses.hint(adapted, layer, torch.tensor([1.0]), torch.tensor([2.0]), weights)
    assert value.item() == pytest.approx((0.0 * 1.0 + 4.0 * 0.5) / 1.5)


def test_decoder_view_is_the_noise_in_keys_and_values() -> None:
    torch.manual_seed(0)
    maps = tuple(Projection(i // 2, ("key", "value")[i % 2], torch.randn(4, 4), torch.randn(4)) for i in range(6))
    teacher = torch.randn(3, 50, 4) @ torch.randn(4, 4) + torch.randn(4)
    student = teacher + 0.3 * torch.randn_like(teacher)
    flat = teacher.flatten(0, 1)
    covariance = torch.cov(flat.T, correction=0)
    form = losses.decoder_metric(maps, covariance)
    expected = []
    for p in maps:  # straight from the definition
        theirs, ours = flat @ p.weight.T + p.bias, student.flatten(0, 1) @ p.weight.T + p.bias
        expected.append((ours - theirs).square().sum(-1).mean() / theirs.var(0, correction=0).sum())
    value = losses.decoder_view(student, teacher, form, torch.ones(3, 50))
    assert value.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    constant = teacher.mean((0, 1)).expand_as(teacher)
    assert losses.decoder_view(constant, teacher, form, torch.ones(3, 50)).item() == pytest.approx(1, rel=1e-4)


def test_outliers_cost_only_beyond_the_limit() -> None:
    calm = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 1, 1, 4).repeat(1, 3, 1, 1)  # every channel: deviation 1
    assert losses.outliers(calm, 2.0).item() == 0
    wide = calm.clone()
    wide[:, 2] *= 5  # the median channel still has deviation 1
    assert losses.outliers(wide, 2.0).item() == pytest.approx(4 * (5 - 2) ** 2 / 12)
    assert losses.outliers(wide.transpose(2, 3), 2.0).item() == losses.outliers(wide, 2.0).item()


def test_outliers_are_not_paid_by_spreading_everything() -> None:
    values = torch.randn(2, 5, 1, 40, generator=torch.Generator().manual_seed(0))
    values[0, 1, 0, 3] = 30.0
    values.requires_grad_(True)
    losses.outliers(values, 6.0).backward()
    assert values.grad is not None
    pushed = values.grad.nonzero().tolist()
    assert pushed == [[0, 1, 0, 3]]  # only the peak itself
    assert values.grad[0, 1, 0, 3] > 0


def test_token_losses_by_hand() -> None:
    labels = torch.tensor([[1, -100]])
    student = torch.tensor([[[0.0, math.log(3.0)], [9.0, -9.0]]])  # probabilities 1/4, 3/4; the rest is padding
    teacher = torch.tensor([[[0.0, 0.0], [5.0, 1.0]]])
    assert losses.token_cross_entropy(student, labels).item() == pytest.approx(-math.log(0.75))
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert losses.token_divergence(student, teacher, labels, 1.0).item() == pytest.approx(divergence, rel=1e-5)
    root = math.sqrt(3.0)  # at temperature 2 the student's odds are 1 to the root of 3
    cooled = 0.5 * math.log(0.5 * (1 + root)) + 0.5 * math.log(0.5 * (1 + root) / root)
    assert losses.token_divergence(student, teacher, labels, 2.0).item() == pytest.approx(4 * cooled, rel=1e-4)
    nothing = torch.full_like(labels, -100)
    assert losses.token_cross_entropy(student, nothing).item() == 0
    assert losses.token_divergence(student, teacher, nothing, 2.0).item() == 0


# ---- together ----


def _objective(
    weights: dict[str, float], whole: bool = False, decoder: bool = True, hints: bool = False, **settings: object
) -> tuple[DistillationObjective, Callable[[], tuple[Tensor, dict[str, Tensor]]]]:
    names = ("whitened_mse", "cosine", "decoder_view", "hint", "outlier", "kl", "ce")
    chosen = {f"{name}_weight": weights.get(name, 0.0) for name in names}
    if hints:
        settings["hints"] = ["2:1", "0:0"]
    args = arguments("unused", **chosen, **settings)
    teacher = make_teacher(decoder=decoder)
    student = make_whole_student(teacher) if whole else make_student()
    with torch.no_grad():
        encoder_of(student).core.head.weight.mul_(20)  # beyond what is free of the penalty
    batch = DistillationCollator(101)([ToyWindows(3, labels=True)[i] for i in range(3)])
    statistics = measure_statistics(teacher, [batch])
    model = DistillationStudent(student, [(2, 1), (0, 0)] if hints else [], args.train_decoder).train()
    objective = DistillationObjective(args, model, teacher, statistics, lambda: torch.autocast("cpu", enabled=False))

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        states, stream = teacher.encode_deep(batch["input_features"])
        ids = objective.decoder_input_ids(batch["labels"]) if args.train_decoder else None
        outputs = model(batch["input_features"], ids)
        targets = Targets(states, stream if objective.needs_stream else ())
        return objective(outputs, targets, batch["speech_mask"], batch["labels"])

    return objective, run


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("term", ["whitened_mse", "cosine", "decoder_view", "hint", "outlier", "kl", "ce"])
def test_the_gradient_of_each_term_reaches_the_whole_encoder(term: str, whole: bool) -> None:
    objective, run = _objective({term: 1.0}, whole=whole, hints=term == "hint", outlier_limit=0.5)
    loss, terms = run()
    assert list(terms) == [term]
    assert loss.item() == pytest.approx(terms[term].item())
    assert loss.item() > 0
    loss.backward()
    model = objective.model
    first = model.encoder.core.conv1.conv.weight
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    trained = {id(p) for p in (*model.encoder.parameters(), *model.adapters.parameters())}
    strangers = [n for n, p in model.named_parameters() if p.grad is not None and id(p) not in trained]
    assert strangers == []
    assert all(p.grad is None for p in objective.teacher.encoder.parameters())
    if term == "hint":
        assert all(p.grad is not None for p in model.adapters.parameters())


def test_the_loss_is_the_weighted_sum() -> None:
    weights = {"whitened_mse": 2.0, "cosine": 0.5, "decoder_view": 3.0, "outlier": 0.1, "kl": 1.0, "ce": 0.8}
    objective, run = _objective(weights)
    loss, terms = run()
    assert objective.weights == weights
    assert loss.item() == pytest.approx(sum(weights[name] * value.item() for name, value in terms.items()))


def test_terms_without_a_decoder_are_left_out() -> None:
    objective, run = _objective({"whitened_mse": 1.0, "decoder_view": 1.0, "kl": 1.0, "ce": 1.0}, decoder=False)
    assert objective.weights == {"whitened_mse": 1.0}
    assert list(run()[1]) == ["whitened_mse"]


def test_a_student_brings_its_own_frozen_decoder() -> None:
    teacher = make_teacher()
    args = arguments("unused")
    model = DistillationStudent(make_whole_student(teacher), [], False)
    alone = make_teacher(decoder=False)
    batch = DistillationCollator(101)([ToyWindows(3)[i] for i in range(3)])
    statistics = measure_statistics(alone, [batch])
    objective = DistillationObjective(args, model, alone, statistics, lambda: torch.autocast("cpu", enabled=False))
    assert {"decoder_view", "kl", "ce"} <= set(objective.weights)
    assert objective.frozen_decoder is model.student


def test_the_decoder_learns_only_if_asked() -> None:
    objective, run = _objective({"ce": 1.0}, whole=True, train_decoder=True)
    run()[0].backward()
    decoder = objective.model.student.model.decoder
    assert decoder.training
    assert decoder.layers[0].fc1.weight.grad is not None
    frozen, run = _objective({"ce": 1.0}, whole=True)
    run()[0].backward()
    decoder = frozen.model.student.model.decoder
    assert not decoder.training
    assert not any(p.requires_grad for p in decoder.parameters())


def test_the_same_states_cost_nothing() -> None:
    teacher = make_teacher()
    features = torch.randn(2, MELS, 2 * POSITIONS)
    states = teacher.encode(features)
    weights = torch.ones(2, POSITIONS)
    form = losses.decoder_metric(teacher.projections, torch.eye(states.shape[-1]))
    assert losses.whitened_mse(states, states, torch.ones(states.shape[-1]), weights).item() == 0
    assert losses.decoder_view(states, states, form, weights).item() == 0
    assert losses.cosine_distance(states, states, weights).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cosine_weight": -1.0}, "cosine_weight"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"hint_weight": 1.0}, "hints"),
        ({"temperature": 0.0}, "temperature"),
        ({"statistics_windows": 0}, "statistics_windows"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        arguments("unused", **settings)


def test_no_loss_at_all_is_refused() -> None:
    with pytest.raises(RequestError, match="no loss"):
        _objective({"kl": 1.0}, decoder=False)
