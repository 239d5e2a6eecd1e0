"""Attention of a decoder over the states of an encoder: additive (Bahdanau) and multiplicative (Luong).

Legend of shapes: ``B`` samples, ``T`` queries, ``S`` states that are looked at, ``Q`` and ``K`` their features,
``A`` units of the additive score.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Score = Literal["additive", "dot", "general", "scaled"]


class SequenceAttention(nn.Module):
    """A mean of the states, weighted by how well each answers the query.

    ``weights = softmax over s of score(q, k_s)``, ``context = sum over s of weights_s k_s``, where the score is

    - additive: ``v . tanh(W q + U k)`` (Bahdanau, Cho and Bengio, arXiv 1409.0473),
    - dot: ``q . k``; general: ``q . W k`` (Luong, Pham and Manning, arXiv 1508.04025),
    - scaled: ``q . k / sqrt(K)`` (Vaswani et al., arXiv 1706.03762), for states so wide that dot products saturate
      the softmax.

    Args:
        score: which of them.
        query: features of a query, ``Q``.
        key: features of a state, ``K``; equal to ``Q`` for dot and scaled.
        width: units of the additive score, ``A``; None takes ``K``.

    >>> attention = SequenceAttention("additive", query=4, key=6)
    >>> context, weights = attention(torch.zeros(2, 3, 4), torch.zeros(2, 5, 6))
    >>> context.shape, weights.shape
    (torch.Size([2, 3, 6]), torch.Size([2, 3, 5]))
    """

    def __init__(self, score: Score, query: int, key: int, width: int | None = None) -> None:
        super().__init__()
        if score in ("dot", "scaled") and query != key:
            raise ValueError(f"score='{score}' needs queries and keys of one width, got {query} and {key}; use general")
        if width is not None and score != "additive":
            raise ValueError(f"width={width} has no effect on score='{score}'; leave it out")
        self.score: Score = score
        if score == "additive":
            units = key if width is None else width
            self.query, self.key = nn.Linear(query, units, bias=False), nn.Linear(key, units, bias=False)
            self.v = nn.Linear(units, 1, bias=False)
        if score == "general":
            self.key = nn.Linear(key, query, bias=False)

    def forward(self, query_btq: Tensor, key_bsk: Tensor, real_bs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Context ``(B, T, K)`` and weights ``(B, T, S)``, which sum to 1 over ``S``.

        Args:
            query_btq: what is asked.
            key_bsk: the states.
            real_bs: True where a state is no padding; a row without a real state gets equal weights.
        """
        scores_bts = self.scores(query_btq, key_bsk)
        if real_bs is not None:  # the lowest number, not minus infinity: rows of padding only must not become NaN
            scores_bts = scores_bts.masked_fill(~real_bs[:, None], torch.finfo(scores_bts.dtype).min)
        weights_bts = scores_bts.softmax(2)
        return weights_bts @ key_bsk, weights_bts

    def scores(self, query_btq: Tensor, key_bsk: Tensor) -> Tensor:
        """The raw scores, ``(B, T, S)``."""
        if self.score == "additive":
            summed_btsa = self.query(query_btq)[:, :, None] + self.key(key_bsk)[:, None]
            scores: Tensor = self.v(torch.tanh(summed_btsa)).squeeze(3)
            return scores
        key = self.key(key_bsk) if self.score == "general" else key_bsk
        scores = query_btq @ key.transpose(1, 2)
        return scores / key_bsk.shape[2] ** 0.5 if self.score == "scaled" else scores
