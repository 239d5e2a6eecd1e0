"""From a padded sequence to one vector.

Legend of shapes: ``B`` sequences, ``T`` steps, ``D`` features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mean_over_time(x_btd: Tensor, real_bt: Tensor | None = None) -> Tensor:
    """The mean of the real steps, ``(B, D)``; zero if there is none.

    >>> x = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> mean_over_time(x, torch.tensor([[True, True, False]])).tolist()
    [[2.0]]
    """
    if real_bt is None:
        return x_btd.mean(1)
    return x_btd.masked_fill(~real_bt[..., None], 0.0).sum(1) / real_bt.sum(1, keepdim=True).clamp(min=1)


def max_over_time(x_btd: Tensor, real_bt: Tensor | None = None) -> Tensor:
    """The largest value of each feature over the real steps, ``(B, D)``; there must be one.

    >>> max_over_time(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])).tolist()
    [[3.0]]
    """
    if real_bt is not None:
        x_btd = x_btd.masked_fill(~real_bt[..., None], torch.finfo(x_btd.dtype).min)
    return x_btd.amax(1)


class AttentionPooling(nn.Module):
    """``sum_t a_t x_t`` with ``a = softmax_t(v . tanh(W x_t + b))``: the net learns which steps count.

    Source: Yang et al., "Hierarchical Attention Networks for Document Classification", 2016.

    Args:
        features: of a step, ``D``.

    >>> AttentionPooling(4)(torch.zeros(2, 3, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(features, features)
        self.v = nn.Linear(features, 1, bias=False)

    def forward(self, x_btd: Tensor, real_bt: Tensor | None = None) -> Tensor:
        """The weighted mean, ``(B, D)``."""
        scores_bt = self.v(torch.tanh(self.hidden(x_btd))).squeeze(2)
        if real_bt is not None:
            scores_bt = scores_bt.masked_fill(~real_bt, torch.finfo(scores_bt.dtype).min)
        pooled: Tensor = (scores_bt.softmax(1)[:, None] @ x_btd).squeeze(1)
        return pooled
