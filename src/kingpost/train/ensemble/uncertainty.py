"""How far votes lie apart, and how much of a prediction's uncertainty is the data's, how much the model's.

Legend of shapes: ``M`` members, ``B`` samples, ``C`` classes, ``L`` labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Uncertainty:
    """The entropy of the mean prediction, in two parts that add up to it; each ``(B,)``, in nats.

    Args:
        total: entropy of the mean prediction.
        aleatoric: mean entropy of the members: what they agree cannot be known from the input.
        epistemic: what is left, the mutual information of prediction and member: where they disagree.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def mean_and_variance(votes_mb: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance over the members (the first axis), each of the shape of one vote.

    >>> mean_and_variance(torch.tensor([[1.0], [3.0]]))
    (tensor([2.]), tensor([1.]))
    """
    return votes_mb.mean(0), votes_mb.var(0, correction=0)


def entropy(probabilities_bc: Tensor) -> Tensor:
    """``-sum p ln p`` over the last axis, in nats, with ``0 ln 0 = 0``.

    >>> entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [0.6931..., 0.0]
    """
    nats: Tensor = torch.special.entr(probabilities_bc).sum(-1)
    return nats


def decompose(votes_mbc: Tensor) -> Uncertainty:
    """The predictive entropy of members that each give probabilities of classes ``(M, B, C)``, split in two.

    ``H[mean p] = mean H[p] + I``, where the mutual information ``I`` is never negative.
    Source: Depeweg et al., arXiv 1710.07283; Houlsby et al., arXiv 1112.5745.

    >>> parts = decompose(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))  # two members, each quite sure of another class
    >>> parts.aleatoric.item(), round(parts.epistemic.item(), 4)
    (0.0, 0.6931)
    """
    total, aleatoric = entropy(votes_mbc.mean(0)), entropy(votes_mbc).mean(0)
    return Uncertainty(total, aleatoric, (total - aleatoric).clamp(min=0))  # rounding can fall a little below


def decompose_labels(votes_mbl: Tensor) -> Uncertainty:
    """The same for independent labels ``(M, B, L)``: the entropies of the labels, added up."""
    both = decompose(torch.stack([votes_mbl, 1 - votes_mbl], -1))
    return Uncertainty(both.total.sum(-1), both.aleatoric.sum(-1), both.epistemic.sum(-1))
