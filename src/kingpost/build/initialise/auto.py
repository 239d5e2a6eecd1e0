"""Starting weights chosen layer by layer, from what follows each."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Slot, Started
from kingpost.build.initialise.follow import UNKNOWN, Follow, follow
from kingpost.build.initialise.gains import FUNCTIONS, RELU, gain_of
from kingpost.build.initialise.orthogonal import orthogonal
from kingpost.build.initialise.weights import Weight, normal, set_weights
from kingpost.option import checked
from kingpost.technique import Technique


def auto(model: nn.Module, batch: Batch, seed: int) -> Started:
    """Set all weights of a model by what follows each of them, and say what was chosen and why.

    Args:
        model: any module; it is run once on two samples.
        batch: training samples.
        seed: of all random draws.

    >>> x = torch.zeros(2, 4)
    >>> auto(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), Batch((x,), x, 0, 2), seed=0).done["0.weight"]
    'he normal: relu follows'
    """
    seen = follow(model, batch, seed)
    branches = len(seen.branches)
    last = {name for branch in seen.branches if not branch.norms for name in branch.last}

    def values(weight: Weight, draw: torch.Generator) -> tuple[Tensor, str]:
        new, how = _chosen(weight, draw, seen.follows.get(weight.name, UNKNOWN))
        if weight.name in last and branches > 1:  # else the stream's variance grows with each branch
            return new / math.sqrt(
                branches
            ), f"{how}; / sqrt({branches}), the last of one of {branches} residual branches"
        return new, how

    return set_weights(model, seed, values, forget_bias=1.0)


def _chosen(weight: Weight, draw: torch.Generator, then: Follow) -> tuple[Tensor, str]:
    w = weight.matrices
    if weight.recurrent:
        made = orthogonal(weight.flat, draw, w.dtype, w.device).view(w.shape)
        return made, "orthogonal: a recurrent matrix is applied again and again"
    if weight.gates:
        then = Follow("gates")
    gain = gain_of(then)
    if then.name in RELU or then.name in FUNCTIONS:
        return normal(weight, draw, gain / math.sqrt(weight.fan_in)), f"he normal: {then}"
    if then.name == "selu":
        return normal(weight, draw, 1 / math.sqrt(weight.fan_in)), f"lecun normal: {then}"
    return normal(weight, draw, gain * math.sqrt(2 / (weight.fan_in + weight.fan_out))), f"xavier normal: {then}"


@checked
class Auto(Technique):
    """He before ReLU and its kin, Xavier before tanh, sigmoid or nothing, LeCun before SELU; orthogonal recurrence.

    What follows each layer is found by running the model once on two training samples, in any module. Last layers of
    residual branches without a norm after them are divided by the root of the number of branches (Radford et al.
    2019); forget gates of LSTMs start at 1 (Jozefowicz et al. 2015). Embeddings and norms stay as they are. Fails,
    and says so, where a layer is hidden from torch's own functions.
    Sources: He et al., arXiv 1502.01852; Glorot and Bengio 2010; Klambauer et al., arXiv 1706.02515.
    """

    touches: ClassVar[frozenset[Slot]] = frozenset({"initialise"})

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this initialiser."""
        return assembly.with_(initialise=lambda model, seed: auto(model, assembly.setting.first_batch(), seed))
