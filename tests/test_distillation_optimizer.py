"""Muon on convolutions: which weights it takes, its step, its state, and what it is good for."""

import copy
from pathlib import Path

import pytest
import torch
from helpers_distillation import ToyWindows, arguments, make_student, make_teacher
from torch import nn

from whisper_hailo_hf import EncoderDistillationTrainer, RequestError
from whisper_hailo_hf.distillation.optimizer import MuonWithAdamW, hidden_convolutions, muon_with_adamw


def two_layers(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Sequential:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Conv2d(24, 20, (1, 3), padding=(0, 1)), nn.ReLU(), nn.Conv2d(20, 32, 1))
    return layers.to(memory_format=memory_format)


def optimizer_of(layers: nn.Sequential, lr: float = 0.01) -> MuonWithAdamW:
    biases = [layers[0].bias, layers[2].bias]
    return MuonWithAdamW([layers[0].weight, layers[2].weight], [], biases, lr=lr)


def step(layers: nn.Sequential, optimizer: torch.optim.Optimizer, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(4, 24, 1, 10, generator=generator)
    loss = (layers(features) - features.mean(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_which_weights_are_hidden_convolutions() -> None:
    core = make_student(encoder_options={"width": 32, "inner": 16, "depthwise": True}).core
    names = hidden_convolutions(core)
    assert "conv2.conv.weight" in names
    assert "blocks.0.reduce.conv.weight" in names
    assert not {"conv1.conv.weight", "head.weight", "blocks.0.mix.conv.weight"} & set(names)  # ends, depthwise
    weights = dict(core.named_parameters())
    assert all(weights[name].ndim == 4 and weights[name].shape[1] > 1 for name in names)


def test_a_step_is_that_of_muon_on_the_matrices_and_of_adamw_on_the_rest() -> None:
    layers, plain = two_layers(), two_layers()
    optimizer = optimizer_of(layers)
    matrices = [nn.Parameter(plain[i].weight.detach().permute(0, 2, 3, 1).flatten(1).clone()) for i in (0, 2)]
    muon = torch.optim.Muon(matrices, lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([plain[0].bias, plain[2].bias], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
    for seed in range(3):
        step(layers, optimizer, seed)
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(4, 24, 1, 10, generator=generator)
        with torch.no_grad():
            for i, matrix in zip((0, 2), matrices, strict=True):
                taps = plain[i].weight.shape[3]
                plain[i].weight.copy_(matrix.unflatten(1, (1, taps, -1)).permute(0, 3, 1, 2))
        plain.zero_grad()
        (plain(features) - features.mean(1, keepdim=True)).square().mean().backward()
        for i, matrix in zip((0, 2), matrices, strict=True):
            matrix.grad = plain[i].weight.grad.permute(0, 2, 3, 1).flatten(1)
        muon.step()
        adamw.step()
    for i, matrix in zip((0, 2), matrices, strict=True):
        taps = plain[i].weight.shape[3]
        assert torch.equal(layers[i].weight, matrix.unflatten(1, (1, taps, -1)).permute(0, 3, 1, 2))
        assert torch.equal(layers[i].bias, plain[i].bias)


def test_the_memory_format_makes_no_difference() -> None:
    one, other = two_layers(), two_layers(torch.channels_last)
    first, second = optimizer_of(one), optimizer_of(other)
    for seed in range(3):
        assert step(one, first, seed) == pytest.approx(step(other, second, seed), rel=1e-4)
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(one[0].weight, other[0].weight, atol=1e-3)


def test_its_state_goes_on_where_it_was() -> None:
    layers = two_layers()
    optimizer = optimizer_of(layers)
    for seed in range(3):
        step(layers, optimizer, seed)
    stored = {k: v.clone() for k, v in layers.state_dict().items()}
    state = copy.deepcopy(optimizer.state_dict())
    again = two_layers()
    again.load_state_dict(stored)
    second = optimizer_of(again, lr=0.5)
    second.load_state_dict(state)
    assert second.param_groups[0]["lr"] == 0.01
    for seed in range(3, 6):
        assert step(layers, optimizer, seed) == step(again, second, seed)
    assert torch.equal(layers[0].weight, again[0].weight)


def test_the_learning_rate_of_a_scheduler_is_used() -> None:
    layers = two_layers()
    optimizer = optimizer_of(layers)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    before = {k: v.clone() for k, v in layers.state_dict().items()}
    step(layers, optimizer, 0)
    scheduler.step()
    assert all(torch.equal(v, before[k]) for k, v in layers.state_dict().items())


def test_every_trained_parameter_has_its_place_once() -> None:
    student = make_student()
    student.requires_grad_(True)
    student.core.head.weight.requires_grad_(False)
    optimizer = muon_with_adamw(student, student.core, ["core.conv1.conv.weight"], 1e-3, 0.1)
    places = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trained = [id(p) for p in student.parameters() if p.requires_grad]
    assert sorted(places) == sorted(trained)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


def test_a_checkpoint_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    def trainer(muon: bool, steps: int) -> EncoderDistillationTrainer:
        args = arguments(tmp_path, muon=muon, max_steps=steps, save_strategy="steps", save_steps=1)
        return EncoderDistillationTrainer(make_student(), make_teacher(), args, train_dataset=ToyWindows(8))

    trainer(False, 1).train()
    with pytest.raises(RequestError, match="trained without Muon: resume it with muon set to false"):
        trainer(True, 2).train(resume_from_checkpoint=True)


def test_a_torch_without_muon_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(RequestError, match=r"has no Muon: install torch>=2.9, or set muon to false"):
        optimizer_of(two_layers())
