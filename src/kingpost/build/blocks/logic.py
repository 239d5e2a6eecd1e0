"""Fuzzy logics: what 'and', 'or', 'not' and 'if' mean for truths between 0 and 1, by batches and with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

LogicName = Literal["product", "goedel", "lukasiewicz"]
Implication = Literal["strong", "residuum"]

TINY = 1e-7


class Logic:
    """A t-norm, its t-conorm, the negation ``1 - a``, and an implication; on crisp truths, classical logic.

    ============  ===============  ===============  ==========================  ===========================
    name          and              or               if (strong: not a or b)     if (residuum)
    ============  ===============  ===============  ==========================  ===========================
    product       ``a b``          ``a + b - a b``  ``1 - a + a b``             ``min(1, b / a)``
    goedel        ``min(a, b)``    ``max(a, b)``    ``max(1 - a, b)``           ``1 if a <= b else b``
    lukasiewicz   ``a + b - 1``    ``a + b``        ``min(1, 1 - a + b)``       the same
    ============  ===============  ===============  ==========================  ===========================

    (those of Lukasiewicz cut to 0..1). The strong implications have a gradient almost everywhere that they are
    violated; the residuum of Goedel has none with respect to ``a``.
    Source: Hajek, "Metamathematics of Fuzzy Logic", 1998; compared for learning by van Krieken, Acar and van Harmelen,
    "Analyzing Differentiable Fuzzy Logic Operators", arXiv 2002.06100.

    >>> a, b = torch.tensor(0.8), torch.tensor(0.5)
    >>> [round(float(Logic(name).implies(a, b)), 2) for name in ("product", "goedel", "lukasiewicz")]
    [0.6, 0.5, 0.7]
    """

    def __init__(self, name: LogicName = "product", implication: Implication = "strong") -> None:
        self.name, self.implication = name, implication

    def both(self, a: Tensor, b: Tensor) -> Tensor:
        """The t-norm, 'a and b'."""
        if self.name == "product":
            return a * b
        return torch.minimum(a, b) if self.name == "goedel" else (a + b - 1).clamp(min=0)

    def either(self, a: Tensor, b: Tensor) -> Tensor:
        """The t-conorm, 'a or b'."""
        if self.name == "product":
            return a + b - a * b
        return torch.maximum(a, b) if self.name == "goedel" else (a + b).clamp(max=1)

    def implies(self, a: Tensor, b: Tensor) -> Tensor:
        """'if a then b'."""
        if self.implication == "strong" or self.name == "lukasiewicz":
            return self.either(1 - a, b)
        if self.name == "product":
            return (b / a.clamp(min=TINY)).clamp(max=1).where(a > b, 1.0)
        return b.where(a > b, 1.0)

    def at_least(self, count: int, truths: Sequence[Tensor]) -> Tensor:
        """'at least so many of these': what expansion into 'and' and 'or' stands for, without its exponential size.

        Product: the probability, were they independent events. Goedel: the ``count``-th largest. Lukasiewicz: the sum
        less ``count - 1``, cut to 0..1.
        """
        shape = torch.broadcast_shapes(*(truth.shape for truth in truths))  # type: ignore[no-untyped-call]
        stacked = torch.stack([truth.expand(shape) for truth in truths])
        if count <= 0:
            return torch.ones_like(stacked[0])
        if count > len(stacked):
            return torch.zeros_like(stacked[0])
        if self.name == "goedel":
            return stacked.sort(0, descending=True).values[count - 1]
        if self.name == "lukasiewicz":
            return (stacked.sum(0) - (count - 1)).clamp(0, 1)
        fewer = [torch.ones_like(stacked[0])] + [torch.zeros_like(stacked[0])] * (
            count - 1
        )  # chances of 0, 1, ... true
        for truth in stacked.unbind(0):
            below = [torch.zeros_like(truth), *fewer[:-1]]
            fewer = [stay * (1 - truth) + come * truth for stay, come in zip(fewer, below, strict=True)]
        return 1 - torch.stack(fewer).sum(0)
