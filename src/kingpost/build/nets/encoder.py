"""The transformer encoder (BERT): every position sees every other; one prediction for a whole sequence.

Legend of shapes: ``B`` sequences, ``T`` positions, ``D`` width, ``F`` numbers at a step of a series.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.blocks.embeddings import InputEmbedding, word_embedding
from kingpost.build.blocks.positions import LearnedPositions, Rotary, SinusoidalPositions
from kingpost.build.blocks.transformer import NormName, Order, TransformerBlock, sequence_norm
from kingpost.build.heads import check_heads, default_figures, heads_figure, heads_for
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, token_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form

DEPTH, WIDTH = 4, 128  # where nothing is given
Pooling = Literal["first", "mean"]
EncoderPositions = Literal["learned", "sinusoidal", "rotary"]


class EncoderNet(nn.Module):
    """Embeddings or projected numbers, positions, blocks without a causal mask, pooling, one linear layer.

    Input ``(B, T)`` int64 for words, ``(B, T, F)`` for numbers; output ``(B, outputs)``. Padding is masked: it
    changes no result.
    Source: Devlin et al., "BERT", arXiv 1810.04805.

    Args:
        inputs: number of words, or ``F`` for a series of numbers.
        outputs: units of the last layer.
        context: longest sequence; counts for learned positions only.
        depth: blocks.
        width: ``D``.
        heads: of attention.
        series: the input is numbers.
        padding: the word that fills up short sequences, if there is one.
        hidden: units of a feed-forward block; default ``4 D``.
        pooling: ``first`` takes the first position through a tanh layer (BERT, whose texts begin with a token for
            that), ``mean`` the mean of all positions that are no padding.
        order: of norm and branch; ``pre`` adds a norm after the last block, ``post`` one on the embeddings.
        norm: layer or rms.
        eps: of the norms.
        positions: learned and sinusoidal ones are added to the embeddings, rotary ones turn queries and keys.
        segments: kinds of text (sentence A and B) with a vector of their own; 0 for none.

    >>> net = EncoderNet(30, outputs=4, context=16, depth=1, width=32, heads=2, padding=0)
    >>> net(torch.ones(3, 9, dtype=torch.long)).shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        context: int,
        depth: int,
        width: int,
        heads: int,
        *,
        series: bool = False,
        padding: int | None = None,
        hidden: int | None = None,
        pooling: Pooling = "mean",
        order: Order = "pre",
        norm: NormName = "layer",
        eps: float = 1e-5,
        positions: EncoderPositions = "learned",
        segments: int = 0,
    ) -> None:
        super().__init__()
        self.padding, self.pooling = padding, pooling
        first = nn.Linear(inputs, width) if series else word_embedding(inputs, width, padding)
        added: LearnedPositions | SinusoidalPositions | None = None
        if positions != "rotary":
            added = LearnedPositions(context, width) if positions == "learned" else SinusoidalPositions(width)
        self.rotary = Rotary(width // heads) if positions == "rotary" else None
        outside, post = sequence_norm(norm, width, eps), order == "post"
        self.embed = InputEmbedding(first, width, added, segments, norm=outside if post else None)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, hidden=hidden, norm=norm, eps=eps, order=order) for _ in range(depth)
        )
        self.norm = nn.Identity() if post else outside
        self.pooler = nn.Sequential(nn.Linear(width, width), nn.Tanh()) if pooling == "first" else nn.Identity()
        self.pooled_drop = nn.Dropout(0.0)
        self.head = nn.Linear(width, outputs)
        self._start()

    def _start(self) -> None:
        """Matrices from N(0, 0.02^2) as in BERT; numbers are projected so that they keep their variance."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if isinstance(self.embed.first, nn.Linear):
            nn.init.normal_(self.embed.first.weight, std=self.embed.first.in_features**-0.5)

    def forward(self, x: Tensor, segments_bt: Tensor | None = None) -> Tensor:
        """Scores ``(B, outputs)``."""
        real_bt = None if self.padding is None or x.is_floating_point() else x != self.padding
        x_btd = self.encode(x, real_bt, segments_bt)
        if self.pooling == "first":
            pooled_bd = x_btd[:, 0]
        elif real_bt is None:
            pooled_bd = x_btd.mean(1)
        else:  # at least 1, for a sequence that is padding throughout
            pooled_bd = (x_btd * real_bt.unsqueeze(2)).sum(1) / real_bt.sum(1, keepdim=True).clamp(min=1)
        y: Tensor = self.head(self.pooled_drop(self.pooler(pooled_bd)))
        return y

    def encode(self, x: Tensor, real_bt: Tensor | None = None, segments_bt: Tensor | None = None) -> Tensor:
        """One vector for each position, ``(B, T, D)``.

        Args:
            x: words ``(B, T)`` or numbers ``(B, T, F)``.
            real_bt: True where there is no padding; None if there is none.
            segments_bt: the kind of text at each position, int64; all 0 if not given.
        """
        x_btd = self.embed(x, segments_bt)
        rotation = None
        if self.rotary is not None:
            rotation = self.rotary(torch.arange(x.shape[1], device=x.device), x_btd.dtype)
        for block in self.blocks:
            x_btd = block(x_btd, real=real_bt, rotation=rotation)
        y_btd: Tensor = self.norm(x_btd)
        return y_btd


def _bert(depth: int, width: int, parameters: int) -> Size:
    return Size(
        fields={"depth": depth, "width": width, "order": "post", "pooling": "first"},
        data=token_facts(30522, 512, classes=2, padding=0),
        parameters=parameters,
        source="transformers, BertForSequenceClassification with two classes: BertModel and 2 (D + 1) for the head",
    )


@checked
class Encoder(Net):
    """Fills ``model`` with a transformer encoder, for one prediction a sequence."""

    depth: Annotated[int, Ge(1)] | None = None
    """Blocks; null = that of the size, else 4."""
    width: Annotated[int, Ge(1)] | None = None
    """Of the residual stream; null = that of the size, else 128."""
    heads: Annotated[int, Ge(1)] | None = None
    """Of attention, a divisor of the width; null derives them from it."""
    pooling: Pooling | None = None
    """What the last layer sees: first (the first position) or mean; null = that of the size, else mean."""
    order: Order | None = None
    """Norm before each branch (pre) or after the sum (post); null = that of the size, else pre."""
    positions: EncoderPositions = "learned"
    """How a position is known."""
    size: Literal["small", "bert-base-uncased", "bert-large-uncased"] | None = None
    """A named size; fields given beside it win."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label", "multi-task", "forecasting")
    reads: ClassVar[tuple[Form, ...]] = ("tokens", "series")
    example: ClassVar[Mapping[str, object]] = {"depth": 1, "width": 8, "heads": 2}
    sizes: ClassVar[Mapping[str, Size]] = {
        "default": Size(data=token_facts(8000, 64, classes=4, padding=0)),
        "small": Size(fields={"depth": 6, "width": 256}, data=token_facts(8000, 128, classes=4, padding=0)),
        "bert-base-uncased": _bert(12, 768, 109_483_778),
        "bert-large-uncased": _bert(24, 1024, 335_143_938),
    }
    paper: ClassVar[str] = "Devlin et al., arXiv 1810.04805"

    def __post_init__(self) -> None:
        width = self.of("width") or WIDTH
        if self.heads is not None:
            check_heads(width, self.heads)
        pairs = width // (self.heads or heads_for(width)) if self.positions == "rotary" else width
        if self.positions != "learned" and pairs % 2:
            raise RecipeError(
                f"{self.positions} positions come in pairs, but there are {pairs} numbers to a position",
                path="positions",
                mend="use positions=learned, or an even width (of a head, for rotary)",
            )

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Defaults, and the heads, where they were not given."""
        figures = default_figures(self, depth=DEPTH, width=WIDTH, pooling="mean", order="pre")
        return figures if self.heads is not None else (*figures, heads_figure(self.of("width") or WIDTH))

    def make(self, data: DataFacts, outputs: int) -> EncoderNet:
        """The network, sized to the data."""
        shape, series = data.inputs[0][0], data.form == "series"
        width = self.of("width") or WIDTH
        bert = self.size is not None and self.size.startswith("bert")  # what these have besides the fields
        return EncoderNet(
            shape[1] if series else data.vocabulary,
            outputs,
            context=shape[0],
            depth=self.of("depth") or DEPTH,
            width=width,
            heads=self.heads or heads_for(width),
            series=series,
            padding=data.padding,
            pooling=self.of("pooling") or "mean",
            order=self.of("order") or "pre",
            eps=1e-12 if bert else 1e-5,
            positions=self.positions,
            segments=2 if bert and not series else 0,
        )
