"""Stochastic depth: in training, a residual branch is left out for some samples."""

from __future__ import annotations

from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """In training each sample's branch is zero with probability ``p``, else divided by ``1 - p``.

    Stands at the end of a residual branch; ``(B, ...)`` to the same. Source: Huang et al., arXiv 1603.09382 (which
    scales in use instead of in training; the expectation is the same).

    Args:
        p: probability of a zero; may be set later, as that of ``nn.Dropout``.

    >>> import torch
    >>> drop = StochasticDepth(0.5)
    >>> sorted(set(drop(torch.ones(100, 2)).flatten().tolist())), drop.eval()(torch.ones(1)).item()
    ([0.0, 2.0], 1.0)
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p: got {p}, expected a probability >= 0 and < 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or self.p == 0:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * kept / (1 - self.p)

    def extra_repr(self) -> str:
        """For the print."""
        return f"p={self.p:.3g}"


def set_stochastic_depth(net: nn.Module, p: float) -> int:
    """Give the branch ``l`` of ``L`` (from 1, in the net's order) the probability ``p l / L``.

    Returns how many branches there are. Source: Huang et al., arXiv 1603.09382, the linear decay rule.

    >>> net = nn.Sequential(StochasticDepth(), StochasticDepth())
    >>> set_stochastic_depth(net, 0.2), [drop.p for drop in net]
    (2, [0.1, 0.2])
    """
    drops = [module for module in net.modules() if isinstance(module, StochasticDepth)]
    for index, drop in enumerate(drops, 1):
        drop.p = p * index / len(drops)
    return len(drops)
