"""The gain of an activation: the factor on the weights before it that keeps the signal's size."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from kingpost.build.initialise.follow import Follow

FUNCTIONS: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "celu": lambda x: x if x > 0 else math.expm1(x),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "hardtanh": lambda x: min(max(x, -1), 1),
}
RELU = ("relu", "relu6", "leaky_relu", "prelu", "rrelu", "threshold")


def gain_of(activation: Follow) -> float:
    """What the standard deviation of weights before this activation is multiplied by.

    ReLU and its leaky forms: ``sqrt(2 / (1 + slope^2))`` (He et al., arXiv 1502.01852); tanh: 5/3, as torch has it;
    sigmoid, SELU (Klambauer et al., arXiv 1706.02515) and where none follows: 1. For the others there is no agreed
    value: one over the root mean square of the activation on N(0, 1), which keeps the size of a unit signal. In depth,
    such signals need norms all the same: a GELU net makes large ones larger and small ones smaller.

    >>> round(gain_of(Follow("relu")), 4), round(gain_of(Follow("gelu")), 4), gain_of(Follow("linear"))
    (1.4142, 1.5335, 1.0)
    """
    if activation.name in RELU:
        return math.sqrt(2 / (1 + activation.slope**2))
    if activation.name == "tanh":
        return 5 / 3
    if activation.name in FUNCTIONS:
        return 1 / math.sqrt(second_moment(activation.name))
    return 1.0


@functools.cache
def second_moment(name: str) -> float:
    """The mean of the activation's square on N(0, 1), by the trapezoid rule on -8 to 8 (error below 1e-5).

    >>> round(second_moment("hardtanh"), 4)
    0.5161
    """
    step = 1 / 256
    points = [i * step for i in range(-2048, 2049)]
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in points]
    return step * sum(d * FUNCTIONS[name](x) ** 2 for d, x in zip(density, points, strict=True))
