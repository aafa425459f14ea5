"""How long Hailo's chips take for a network, modelled on the published speeds of other networks.

The model is three regressions for each device, on what is known of a published network: its operations, its parameters
and the make of its layers. One says whether the network fits the chip at once (a single context) or is run in parts
whose weights are loaded for each frame (several contexts); one gives the time of each of these two. The interval comes
from what the regressions missed by when a whole family of networks was left out of the fit.

`benchmarks/fit_cost_model.py` makes the file of coefficients, which holds the published numbers too.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from whisper_hailo_hf.errors import RequestError

COEFFICIENTS = "cost_model.json"
# A network that is no faster at batch 8 than at batch 1 had nothing to load between frames.
SINGLE_CONTEXT_RATIO = 1.06
BAND = (0.1, 0.9)


@dataclass(frozen=True)
class CostFeatures:
    """What the time of a network is modelled on.

    Attributes:
        gop: billions of operations for one frame, positive; a multiply-accumulate is two, as in Hailo's tables.
        mparams: millions of parameters, positive.
        grouped: share of the convolutions that have several groups, but not one for each channel.
        depthwise: share of the convolutions that have one group for each channel.
        attention: 1 for attention (products of two activations), 0 for none, between for a mixture.
        layer_norm: 1 where normalisation is computed at run time, 0 where it is folded away.
    """

    gop: float
    mparams: float
    grouped: float = 0.0
    depthwise: float = 0.0
    attention: float = 0.0
    layer_norm: float = 0.0

    def vector(self) -> np.ndarray:
        """The regressors: a constant, logarithms of the sizes, the shares. (7,)"""
        sizes = [math.log(self.gop / 10), math.log(self.mparams / 10)]
        return np.array([1.0, *sizes, self.grouped, self.depthwise, self.attention, self.layer_norm])


@dataclass(frozen=True)
class Prediction:
    """What the model says of one network on one device.

    Attributes:
        single_context: probability that the network fits the chip at once.
        low, middle, high: milliseconds for one frame in a stream at batch 1; four published networks in five lie
            between low and high.
        outside: which of its sizes are beyond those of the networks behind the fit.
    """

    single_context: float
    low: float
    middle: float
    high: float
    outside: tuple[str, ...] = ()


@dataclass(frozen=True)
class DeviceModel:
    """The fitted coefficients of one device, each a vector over `CostFeatures.vector()`.

    Attributes:
        context: logistic regression of "fits in a single context".
        single, multi: regressions of the logarithm of the milliseconds.
        single_misses, multi_misses: what these missed by, in logarithms, on families left out.
        gop, mparams: smallest and largest among the networks behind the fit.
    """

    context: np.ndarray
    single: np.ndarray
    multi: np.ndarray
    single_misses: np.ndarray
    multi_misses: np.ndarray
    gop: tuple[float, float]
    mparams: tuple[float, float]

    def predict(self, features: CostFeatures) -> Prediction:
        """The interval for a network: a mixture of the two contexts, by their probability.

        A network smaller than all published ones counts as the smallest: below that, time is overhead.
        """
        gop, mparams = max(features.gop, self.gop[0]), max(features.mparams, self.mparams[0])
        vector = dataclasses.replace(features, gop=gop, mparams=mparams).vector()
        single = float(1 / (1 + np.exp(-vector @ self.context)))
        low, middle, high = mixture_quantiles(
            [vector @ self.single + self.single_misses, vector @ self.multi + self.multi_misses],
            [single, 1 - single],
            (BAND[0], 0.5, BAND[1]),
        )
        outside = tuple(
            f"{value:.3g} {unit}, where the published networks have {least:.3g} to {most:.3g}"
            for value, (least, most), unit in (
                (features.gop, self.gop, "billion operations"),
                (features.mparams, self.mparams, "million parameters"),
            )
            if not least <= value <= most
        )
        return Prediction(single, math.exp(low), math.exp(middle), math.exp(high), outside)


def mixture_quantiles(samples: Sequence[np.ndarray], weights: Sequence[float], at: Sequence[float]) -> list[float]:
    """Quantiles of a mixture of samples, each sample with its weight."""
    values = np.concatenate(samples)
    shares = np.concatenate(
        [np.full(len(sample), weight / len(sample)) for sample, weight in zip(samples, weights, strict=True)]
    )
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(shares[order]) / shares.sum()
    return [float(values[order][min(int(np.searchsorted(reached, q - 1e-12)), len(values) - 1)]) for q in at]


@functools.cache
def coefficients() -> Mapping[str, Any]:
    """The whole file: where the numbers come from, the published networks, the coefficients, the errors."""
    text = resources.files("whisper_hailo_hf.compile").joinpath(COEFFICIENTS).read_text(encoding="utf-8")
    data: Mapping[str, Any] = json.loads(text)
    return data


def devices() -> list[str]:
    """The devices that the model knows."""
    return list(coefficients()["devices"])


def device_model(device: str) -> DeviceModel:
    """The model of one device; a `RequestError` names those that there are."""
    known = coefficients()["devices"]
    if device not in known:
        raise RequestError(f"no speeds are known of the device {device!r}: choose {', '.join(known)}")
    return from_json(known[device], coefficients()["columns"])


def from_json(entry: Mapping[str, Any], columns: Sequence[str]) -> DeviceModel:
    """A device's entry in the file."""
    table = {name: [row[index] for row in entry["networks"]] for index, name in enumerate(columns)}
    misses = np.array(table["miss"], dtype=float)
    single = np.array([b8 / b1 < SINGLE_CONTEXT_RATIO for b1, b8 in zip(table["fps1"], table["fps8"], strict=True)])
    return DeviceModel(
        context=np.array(entry["context"]),
        single=np.array(entry["single"]),
        multi=np.array(entry["multi"]),
        single_misses=misses[single],
        multi_misses=misses[~single],
        gop=(min(table["gop"]), max(table["gop"])),
        mparams=(min(table["mparams"]), max(table["mparams"])),
    )
