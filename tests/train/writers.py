"""Nets that write, for tests of translation; by reference so that a run can be opened again."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Mute(nn.Module):
    """Scores ``(B, T, V)`` of the next token from the last one alone; cannot write."""

    def __init__(self, vocabulary: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary)

    def forward(self, source: Tensor, shown: Tensor) -> Tensor:
        y: Tensor = self.table(shown)
        return y


class Copier(Mute):
    """Writes its source again, word by word, with rubbish after the end."""

    def generate(self, source: Tensor, *, begin: int, end: int, length: int, beams: int) -> Tensor:
        assert not self.training and not torch.is_grad_enabled() and begin == 1 and end == 2 and beams == 3
        rubbish = torch.full((len(source), length), 7)
        rubbish[:, : source.shape[1]] = source[:, :length]
        return rubbish
