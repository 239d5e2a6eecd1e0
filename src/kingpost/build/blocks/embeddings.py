"""Embeddings: vectors for words with their positions and segments, and for the categories of a table.

Legend of shapes: ``B`` samples, ``T`` positions, ``D`` width, ``F`` numbers and ``K`` categories of a row or step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kingpost.build.blocks.positions import LearnedPositions, SinusoidalPositions


def word_embedding(words: int, width: int, padding: int | None = None, std: float = 0.02) -> nn.Embedding:
    """A table of ``(words, D)`` from N(0, std^2); the row of the padding token is zero and stays so.

    Where an output layer shares the table, that layer's gradient moves the padding row too: mask the positions.

    Raises:
        ValueError: the padding token is not one of the words.

    >>> word_embedding(5, 3, padding=0)(torch.tensor([0])).tolist()
    [[0.0, 0.0, 0.0]]
    """
    if padding is not None and not 0 <= padding < words:
        raise ValueError(f"padding: the token {padding} is none of the {words} words, expected 0 to {words - 1}")
    table = nn.Embedding(words, width, padding_idx=padding)
    with torch.no_grad():
        table.weight.normal_(std=std)
        if padding is not None:
            table.weight[padding] = 0
    return table


class InputEmbedding(nn.Module):
    """What enters a transformer: each element as a vector, plus its position, plus its segment; then norm and dropout.

    Input ``(B, T)`` int64 or ``(B, T, F)``, as ``first`` takes it; output ``(B, T, D)``.
    Source: Devlin et al., "BERT", arXiv 1810.04805, figure 2.

    Args:
        first: gives each element its vector: a :func:`word_embedding`, or a linear layer for numbers.
        width: ``D``.
        positions: gives ``(T, D)`` for positions ``(T,)``; None where they are known otherwise (rotary, a bias).
        segments: kinds of text (sentence A and B) with a vector of their own; 0 for none.
        scale: factor on the elements' vectors; ``sqrt(D)`` in "Attention is all you need".
        norm: of the sum; None for none.

    >>> embed = InputEmbedding(word_embedding(30, 8, padding=0), 8, LearnedPositions(16, 8), segments=2)
    >>> embed(torch.ones(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        first: nn.Module,
        width: int,
        positions: LearnedPositions | SinusoidalPositions | None = None,
        segments: int = 0,
        scale: float = 1.0,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.first, self.positions, self.scale = first, positions, scale
        self.segments = word_embedding(segments, width) if segments else None
        self.norm, self.drop = norm, nn.Dropout(0.0)
        if isinstance(positions, LearnedPositions):
            nn.init.normal_(positions.weight, std=0.02)

    def forward(self, x: Tensor, segments_bt: Tensor | None = None, start: int = 0) -> Tensor:
        """``(B, T, ...)`` to ``(B, T, D)``.

        Args:
            x: the elements.
            segments_bt: the segment of each, int64; all 0 if not given.
            start: position of the first one.

        Raises:
            ValueError: segments are given to an embedding that has none, or there are more positions than vectors.
        """
        x_btd: Tensor = self.first(x) * self.scale if self.scale != 1.0 else self.first(x)
        x_btd = x_btd + self._positions(start, x, x_btd.dtype) if self.positions is not None else x_btd
        if self.segments is not None:
            x_btd = x_btd + self.segments(torch.zeros_like(x) if segments_bt is None else segments_bt)
        elif segments_bt is not None:
            raise ValueError("segments were given to an embedding that has none; make it with segments=2")
        y_btd: Tensor = self.drop(x_btd if self.norm is None else self.norm(x_btd))
        return y_btd

    def _positions(self, start: int, x: Tensor, dtype: torch.dtype) -> Tensor:
        where = torch.arange(start, start + x.shape[1], device=x.device)
        if isinstance(self.positions, SinusoidalPositions):
            waves: Tensor = self.positions(where, dtype)
            return waves
        assert self.positions is not None
        if start + x.shape[1] > self.positions.num_embeddings:
            raise ValueError(
                f"a sequence reaches position {start + x.shape[1]}, but only {self.positions.num_embeddings} positions "
                "are learned; make the net for a longer context, or use sinusoidal positions"
            )
        y: Tensor = self.positions(where)
        return y


def category_width(cardinality: int) -> int:
    """A category's width by fastai's rule of thumb, ``min(600, round(1.6 c^0.56))``; never more than ``c``.

    Source: documentation of fastai, ``emb_sz_rule``; the bound by ``c`` is ours, since a one-hot code is ``c`` wide.

    >>> [category_width(c) for c in (1, 2, 3, 10, 1000)]
    [1, 2, 3, 6, 77]
    """
    return min(cardinality, 600, round(1.6 * math.pow(cardinality, 0.56)))


class CategoryEmbeddings(nn.Module):
    """Numbers with the vectors of a row's categories beside them: one table of vectors a column.

    Input numbers ``(B, F)`` and codes ``(B, K)`` int64, code 0 being a category that was not in the training data;
    output ``(B, F + widths)``. Vectors start with a mean squared length of 1, as a standardised number has; that of
    code 0 with zero.
    Source: Guo and Berkhahn, "Entity Embeddings of Categorical Variables", arXiv 1604.06737.

    Args:
        cardinalities: number of codes of each column, code 0 included.
        widths: of each column's vectors; None takes :func:`category_width`.

    >>> embed = CategoryEmbeddings([3, 10])
    >>> embed.width, embed(torch.zeros(2, 4), torch.tensor([[1, 0], [2, 9]])).shape
    (9, torch.Size([2, 13]))
    """

    def __init__(self, cardinalities: Sequence[int], widths: Sequence[int] | None = None) -> None:
        super().__init__()
        widths = [category_width(c) for c in cardinalities] if widths is None else widths
        if len(widths) != len(cardinalities) or min([*widths, *cardinalities], default=1) < 1:
            raise ValueError(
                f"widths: got {list(widths)} for columns of {list(cardinalities)} codes; "
                "expected one width of at least 1 for each column"
            )
        self.width = sum(widths)
        """What is added to the numbers."""
        pairs = zip(cardinalities, widths, strict=True)
        tables = [word_embedding(c, width, std=width**-0.5) for c, width in pairs]
        with torch.no_grad():
            for table in tables:
                table.weight[0] = 0  # never trained if no training row has code 0: then such a category adds nothing
        self.columns = nn.ModuleList(tables)

    def forward(self, numbers_bf: Tensor, codes_bk: Tensor) -> Tensor:
        """``(B, F)`` and ``(B, K)`` to ``(B, F + widths)``."""
        if codes_bk.shape[1] != len(self.columns):
            raise ValueError(f"got codes {tuple(codes_bk.shape)}, expected (B, {len(self.columns)}), one a column")
        vectors = [column(codes_bk[:, k]) for k, column in enumerate(self.columns)]
        return torch.cat([numbers_bf, *vectors], 1)
