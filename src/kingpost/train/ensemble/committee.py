"""A committee: nets that vote, used like one net.

Legend of shapes: ``M`` members, ``B`` samples; other axes are the outputs' own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kingpost import seeds
from kingpost.errors import RecipeError

Combine = Callable[[Tensor], Tensor]

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def mean_of_classes(votes_mb: Tensor) -> Tensor:
    """Scores whose softmax is the mean of the members' softmax: ``log mean softmax``.

    >>> mean_of_classes(torch.tensor([[[0.0, 0.0]], [[9.0, -9.0]]])).softmax(-1)
    tensor([[0.7500, 0.2500]])
    """
    return F.log_softmax(votes_mb, -1).logsumexp(0) - math.log(len(votes_mb))


def mean_of_labels(votes_mb: Tensor) -> Tensor:
    """Scores whose sigmoid is the mean of the members' sigmoid."""
    return F.logsigmoid(votes_mb).logsumexp(0) - F.logsigmoid(-votes_mb).logsumexp(0)


def mean_of_values(votes_mb: Tensor) -> Tensor:
    """The mean."""
    return votes_mb.mean(0)


COMBINE: Mapping[str, Combine] = {
    "classification": mean_of_classes,
    "multi-label": mean_of_labels,
    "regression": mean_of_values,
    "forecasting": mean_of_values,
}


def combine_for(task: str) -> Combine:
    """How votes become one output, by the task's name.

    Raises:
        RecipeError: nothing is known for this task.
    """
    if task not in COMBINE:
        raise RecipeError(
            f"predictions of the task '{task}' cannot be averaged here", mend=f"tasks that can: {', '.join(COMBINE)}"
        )
    return COMBINE[task]


class Committee(nn.Module):
    """Base of all committees: its output is that whose prediction is the mean of the members' predictions.

    Args:
        combine: from all votes ``(M, B, ...)`` to one output ``(B, ...)``.
    """

    def __init__(self, combine: Combine) -> None:
        super().__init__()
        self.combine = combine

    @abstractmethod
    def votes(self, *inputs: Tensor) -> Tensor:
        """Raw outputs of each member, ``(M, B, ...)``."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """The combined output, ``(B, ...)``."""
        return self.combine(self.votes(*inputs))


class Nets(Committee):
    """Whole nets, which may differ in everything but what they read and predict.

    Source: Lakshminarayanan, Pritzel and Blundell, "Simple and Scalable Predictive Uncertainty Estimation using
    Deep Ensembles", arXiv 1612.01474.

    >>> Nets([nn.Linear(2, 3), nn.Linear(2, 3)], mean_of_classes)(torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """

    def __init__(self, nets: Sequence[nn.Module], combine: Combine) -> None:
        super().__init__(combine)
        self.nets = nn.ModuleList(nets)

    def votes(self, *inputs: Tensor) -> Tensor:
        """One vote a net."""
        return torch.stack([net(*inputs) for net in self.nets])


class Weights(Committee):
    """One net with several sets of weights, of which one at a time is in use.

    Args:
        net: the net.
        weights: parameters and buffers by name, one mapping a member; names left out keep the net's own.
        combine: from all votes to one output.
    """

    def __init__(self, net: nn.Module, weights: Sequence[Mapping[str, Tensor]], combine: Combine) -> None:
        super().__init__(combine)
        self.net, self.weights = net, weights

    def votes(self, *inputs: Tensor) -> Tensor:
        """One vote a set of weights."""
        calls = (torch.func.functional_call(self.net, dict(weights), inputs) for weights in self.weights)
        return torch.stack(list(calls))


class DropoutSamples(Committee):
    """One net whose dropout stays on: each vote is taken under another mask.

    A member's masks depend on the seed and its number alone, so predictions repeat; each call draws them anew, so
    the row at the same place of two batches of equal size meets the same mask.
    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", arXiv 1506.02142.

    Raises:
        RecipeError: no dropout layer has a rate above zero.
    """

    def __init__(self, net: nn.Module, samples: int, combine: Combine, seed: int = 0) -> None:
        super().__init__(combine)
        self.net, self.samples, self.seed = net, samples, seed
        if not any(isinstance(m, DROPOUTS) and m.p > 0 for m in net.modules()):
            raise RecipeError(
                "the net has no dropout that could stay on", mend="train it with techniques+='{name: dropout, p: 0.1}'"
            )

    def votes(self, *inputs: Tensor) -> Tensor:
        """One vote a mask."""
        device = inputs[0].device
        before = [(module, module.training) for module in self.net.modules()]
        drop_in_use(self.net)
        votes = []
        try:
            with torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type):
                for member in range(self.samples):
                    seeds.seed_default_generators(seeds.derive(self.seed, "dropout at prediction", member), device)
                    votes.append(self.net(*inputs))
        finally:
            for module, training in before:
                module.training = training
        return torch.stack(votes)


def drop_in_use(net: nn.Module) -> None:
    """Put the dropout layers in training mode, and nothing else (norms keep their running statistics).

    Attention reads the rate of a dropout layer that it holds, and its own mode: it is switched too.
    """
    net.eval()
    for module in net.modules():
        held = any(isinstance(child, DROPOUTS) for child in module.children())
        if isinstance(module, DROPOUTS) or (held and not list(module.buffers(recurse=False))):
            module.training = True
