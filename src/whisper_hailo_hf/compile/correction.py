"""What is done to weights and biases so that the integers come nearer to the float network."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whisper_hailo_hf.compile.simulation import Rounding, Simulation
from whisper_hailo_hf.errors import RequestError, WhisperHailoError

# a network, what is rounded in it, and a window's features, to the states after the host epilogue
Forward = Callable[[Simulation, Rounding | None, Any], Tensor]


@torch.no_grad()
def correct_biases(simulation: Simulation, rounding: Rounding, windows: Iterable[Tensor]) -> dict[str, float]:
    """Takes the mean error that rounded weights make in a convolution's output into its bias, layer by layer, each
    seeing those before it corrected (Nagel et al. 2019, arXiv:1906.04721, section 4.2, with real data).

    The error is that of the weights on the very input that the layer gets. What clipping does to rare peaks is left
    out: a bias that made up for it on average would move everything else.

    Args:
        simulation: the rounded network, whose biases are changed.
        rounding: what is rounded.
        windows: features of some windows, as the graph takes them; all are held in memory, one layer at a time.

    Returns:
        By layer, the mean over the channels of the absolute mean error that was taken away.
    """
    rounded = [simulation.start(one, rounding) for one in windows]
    corrected = {}
    for node in simulation.graph.nodes:
        results = [simulation.compute(node, values, rounding) for values in rounded]
        bias = simulation.graph.bias_of(node)
        if bias in simulation.constants and node.name in rounding.layers and rounding.on(node.name):
            wanted = [simulation.compute(node, values, rounding, exact_weights=True) for values in rounded]
            others = [axis for axis in range(wanted[0].dim()) if axis != 1]
            error = _shrunk(torch.stack([(w - r).mean(others) for w, r in zip(wanted, results, strict=True)]))
            simulation.constants[bias] = simulation.constants[bias] + error
            results = [result + error.reshape(-1, *[1] * (result.dim() - 2)) for result in results]
            corrected[node.name] = float(error.abs().mean())
        for result, values in zip(results, rounded, strict=True):
            simulation.store(node, result, values, rounding)
    return corrected


def _shrunk(errors: Tensor) -> Tensor:
    """Mean over windows of each channel's mean error, (windows, channels) -> (channels,).

    Drawn towards zero by as much of its square as chance explains: what differs from window to window is no bias.
    """
    mean = errors.mean(0)
    if len(errors) < 2:
        return mean
    chance = errors.var(0) / len(errors)
    return mean * (1 - chance / mean.square().clamp(min=1e-30)).clamp(min=0)


def finetune(
    simulation: Simulation,
    reference: Simulation,
    rounding: Rounding,
    windows: Sequence[Any],
    forward: Forward,
    *,
    steps: int,
    learning_rate: float = 1e-5,
    batch_size: int = 4,
    seed: int = 0,
) -> Iterator[float]:
    """Trains weights and biases through the rounding, so that the states come nearer to the float network's.

    The loss is the squared error of the states after the host epilogue, over their variance; Adam, its rate falling to
    zero as a cosine. Ranges of activations stay; scales of weights follow the weights.

    Args:
        simulation: the rounded network, whose weights and biases are trained.
        reference: the float network.
        rounding: what is rounded.
        windows: features to draw from.
        forward: from features to states.
        steps: of the optimiser.
        learning_rate: of its first step.
        batch_size: windows in a step.
        seed: of the draw.

    Yields:
        The loss of each step.

    Raises:
        RequestError: the graph has operators without a gradient here.
        WhisperHailoError: the loss is not finite.
    """
    if foreign := simulation.foreign_operators():
        raise RequestError(f"fine-tuning knows no gradient of {', '.join(foreign)}: leave finetune_steps at 0")
    names = []
    for node in simulation.graph.nodes:
        weight = simulation.graph.weight_of(node)
        if weight is not None and node.name in rounding.layers:
            bias = simulation.graph.bias_of(node)
            names += [weight[0]] if bias is None else [weight[0], bias]
    for name in names:
        simulation.constants[name] = simulation.constants[name].detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([simulation.constants[name] for name in names], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        total = 0.0
        drawn = rng.choice(len(windows), min(batch_size, len(windows)), replace=False)
        for index in drawn:
            features = windows[int(index)]
            with torch.no_grad():
                wanted = forward(reference, None, features)
            error = forward(simulation, rounding, features) - wanted
            loss = error.square().mean() / wanted.var() / len(drawn)
            loss.backward()
            total += float(loss.detach())
        if not np.isfinite(total):
            raise WhisperHailoError(
                f"the loss of fine-tuning step {step + 1} is not finite: use a lower learning rate"
            )
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield total
    for name in names:
        simulation.constants[name] = simulation.constants[name].detach()
