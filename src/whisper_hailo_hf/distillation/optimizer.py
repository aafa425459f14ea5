"""Muon for the convolutions, AdamW for the rest, as one optimizer that a Trainer can drive, save and resume.

Muon moves a weight matrix by its momentum with all singular values made alike. Source: Jordan et al. 2024, "Muon: An
optimizer for hidden layers in neural networks"; the step size that matches AdamW's is of Liu et al. 2025,
arXiv:2502.16982. A convolution is taken as the matrix (out, taps * in), as Jordan's own experiments do.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from whisper_hailo_hf.errors import RequestError

SMALLEST = 16  # rows and columns from which on a weight is worth a matrix


def hidden_convolutions(core: nn.Module) -> list[str]:
    """Names of the weights in a core that Muon takes: all dense convolutions but the first and the last.

    Those at the ends face features and states, not a hidden layer, and are better off with AdamW (Jordan et al.).
    """
    names = [
        name
        for name, weight in core.named_parameters()
        if weight.ndim == 4 and min(weight.shape[0], weight[0].numel()) >= SMALLEST and weight.shape[1] > 1
    ]
    return names[1:-1]


def muon_with_adamw(
    model: nn.Module, core: nn.Module, decayed: Iterable[str], lr: float, weight_decay: float, sharded: bool = False
) -> "MuonWithAdamW":
    """The optimizer of what is trainable in a model: Muon for the hidden convolutions of the core in it.

    Args:
        model: all that is trained.
        core: the encoder core within it.
        decayed: names in `model` that weight decay applies to.
        lr, weight_decay: see [`MuonWithAdamW`].
        sharded: whether no process holds whole weights.

    Raises:
        RequestError: the weights are sharded, or this torch has no Muon.
    """
    if sharded:
        raise RequestError("Muon needs whole weights, not sharded ones: set muon to false, or use DDP")
    weights = dict(core.named_parameters())
    hidden = {id(weights[name]) for name in hidden_convolutions(core)}
    groups: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    decayed = set(decayed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[0 if id(parameter) in hidden else 1 if name in decayed else 2].append(parameter)
    return MuonWithAdamW(*groups, lr=lr, weight_decay=weight_decay)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on some convolution weights, AdamW on all other parameters, with one learning rate.

    Args:
        convolutions: weights (out, in, height, width).
        decayed, undecayed: the other parameters, with and without weight decay.
        lr: learning rate of both; Muon's step is scaled to AdamW's size.
        weight_decay: decoupled, of the convolutions and of `decayed`.
        betas: of AdamW.

    Raises:
        RequestError: this torch has no Muon, which came with 2.9.
    """

    def __init__(
        self,
        convolutions: Iterable[Tensor],
        decayed: Iterable[Tensor],
        undecayed: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise RequestError(f"torch {torch.__version__} has no Muon: install torch>=2.9, or set muon to false")
        self.convolutions = list(convolutions)
        self.matrices = [nn.Parameter(_matrix(weight.detach())) for weight in self.convolutions]
        rest = [
            {"params": list(decayed), "weight_decay": weight_decay},
            {"params": list(undecayed), "weight_decay": 0.0},
        ]
        rest = [group for group in rest if group["params"]]
        self.muon = torch.optim.Muon(self.matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = torch.optim.AdamW(rest, lr=lr, betas=betas)
        groups = [{"params": self.convolutions, "weight_decay": weight_decay}, *rest]
        super().__init__([dict(group) for group in groups], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; the learning rates are those of `param_groups`, where schedulers set them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        inner = [*self.muon.param_groups, *self.adamw.param_groups]
        for ours, theirs in zip(self.param_groups, inner, strict=True):
            theirs["lr"], theirs["weight_decay"] = ours["lr"], ours["weight_decay"]
        for weight, matrix in zip(self.convolutions, self.matrices, strict=True):
            matrix.data = _matrix(weight.data)  # a view in channels-last memory format, else a copy
            matrix.grad = None if weight.grad is None else _matrix(weight.grad)
        self.muon.step()
        self.adamw.step()
        for weight, matrix in zip(self.convolutions, self.matrices, strict=True):
            matrix.grad = None
            if matrix.data_ptr() == weight.data_ptr():
                torch.autograd.graph.increment_version(weight)  # written to through a view
            else:
                height, width = weight.shape[2:]
                weight.copy_(matrix.unflatten(1, (height, width, -1)).permute(0, 3, 1, 2))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of both, and the groups that schedulers act on."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict(), "param_groups": groups, "state": {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave.

        Raises:
            RequestError: it is the state of another optimizer.
        """
        if not {"muon", "adamw"} <= set(state_dict):
            raise RequestError("the checkpoint was trained without Muon: resume it with muon set to false")
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        for group, stored in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(stored)


def _matrix(weight: Tensor) -> Tensor:
    """(out, in, height, width) -> (out, height * width * in)."""
    return weight.permute(0, 2, 3, 1).flatten(1)
