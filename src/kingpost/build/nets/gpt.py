"""A small decoder-only transformer for language modelling.

Legend of shapes: ``B`` sequences, ``T`` positions, ``D`` width, ``H`` heads, ``V`` vocabulary.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        """``(B, T, D)`` to ``(B, T, D)``."""
        b, t, d = x_btd.shape
        q, k, v = self.qkv(x_btd).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y_bhtd = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y: Tensor = self.out(y_bhtd.transpose(1, 2).reshape(b, t, d))
        return y


class Block(nn.Module):
    """Pre-norm residual block: attention, then a perceptron four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.LayerNorm(width), CausalSelfAttention(width, heads)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop_1, self.drop_2 = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x_btd: Tensor) -> Tensor:
        """``(B, T, D)`` to ``(B, T, D)``."""
        x_btd = x_btd + self.drop_1(self.attention(self.norm_1(x_btd)))
        y: Tensor = x_btd + self.drop_2(self.mlp(self.norm_2(x_btd)))
        return y


class GPTNet(nn.Module):
    """Token and position embeddings, blocks, a last norm, and scores by the embedding's transpose.

    Input ``(B, T)`` int64 with ``T <= context``; output ``(B, T, V)``.
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019.

    Args:
        vocabulary: number of tokens.
        context: longest sequence.
        depth: blocks.
        width: of the residual stream.
        heads: divides the width.

    >>> GPTNet(65, context=16, depth=1, width=32, heads=2)(torch.zeros(3, 8, dtype=torch.long)).shape
    torch.Size([3, 8, 65])
    """

    def __init__(self, vocabulary: int, context: int, depth: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.drop = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for name, p in self.named_parameters():
            if p.ndim == 2:  # the residual stream's variance grows with each block that writes to it
                writes = name.endswith(("attention.out.weight", "mlp.2.weight"))
                nn.init.normal_(p, std=0.02 / (2 * depth) ** 0.5 if writes else 0.02)

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """Scores ``(B, T, V)``."""
        where = torch.arange(tokens_bt.shape[1], device=tokens_bt.device)
        x_btd = self.drop(self.tokens(tokens_bt) + self.positions(where))
        for block in self.blocks:
            x_btd = block(x_btd)
        scores: Tensor = self.head(self.norm(x_btd))
        return scores


@checked
class GPT(Technique):
    """Fills ``model`` with a small GPT; the context is that of the data."""

    depth: Annotated[int, Ge(1)] = 4
    """Blocks."""
    width: Annotated[int, Ge(1)] = 128
    """Of the residual stream."""
    heads: Annotated[int, Ge(1)] = 4
    """Attention heads; must divide the width."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    tasks: ClassVar[tuple[str, ...]] = ("language-modelling",)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            fits = [h for h in range(1, self.width + 1) if self.width % h == 0]
            nearest = min(fits, key=lambda h: abs(h - self.heads))
            raise RecipeError(
                f"got {self.heads}, which does not divide the width {self.width}",
                path="heads",
                mend=f"use {nearest}",
            )

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the net."""
        data = assembly.setting.data
        if len(data.inputs) != 1:
            raise RecipeError(f"reads one sequence, but a sample of this data has {len(data.inputs)} inputs")
        context = data.inputs[0][0][0]
        return assembly.with_(model=GPTNet(data.vocabulary, context, self.depth, self.width, self.heads))
