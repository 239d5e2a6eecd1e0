"""Recurrent language models.

Legend of shapes: ``B`` sequences, ``T`` positions, ``H`` units, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.blocks.recurrent import Kind, Recurrent, StateCache
from kingpost.build.nets.recurrent import dial_figures
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, token_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form


class RecurrentLMNet(nn.Module):
    """Token vectors, recurrent layers, scores of the next token at every position.

    Input ``(B, T)`` int64, any ``T``; output ``(B, T, V)``.
    Source: Mikolov et al., "Recurrent neural network based language model", 2010; with an LSTM and dropout between
    layers Zaremba, Sutskever and Vinyals, arXiv 1409.2329; the tied table Press and Wolf, arXiv 1608.05859.

    Args:
        kind: of recurrent layer.
        vocabulary: ``V``.
        width: units, ``H``.
        depth: recurrent layers.
        tied: the scores use the table of token vectors, which saves ``V H`` parameters.

    >>> import torch
    >>> RecurrentLMNet("lstm", 65, width=32)(torch.zeros(3, 8, dtype=torch.long)).shape
    torch.Size([3, 8, 65])
    """

    context: int | None = None

    def __init__(self, kind: Kind, vocabulary: int, width: int, depth: int = 1, tied: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.recurrent = Recurrent(kind, width, width, depth)
        self.drop_in, self.drop_out = nn.Dropout(0.0), nn.Dropout(0.0)
        self.head = nn.Linear(width, vocabulary)
        nn.init.zeros_(self.head.bias)
        if tied:  # small, or the first scores would be far from chance
            nn.init.uniform_(self.tokens.weight, -0.1, 0.1)
            self.head.weight = self.tokens.weight

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """Scores ``(B, T, V)``; the state is zero at the start of each sequence."""
        h_bth = self.recurrent.sequence(self.drop_in(self.tokens(tokens_bt)))
        scores: Tensor = self.head(self.drop_out(h_bth))
        return scores

    def new_cache(self, capacity: int, *inputs: Tensor) -> StateCache:
        """For :func:`kingpost.build.generate.generate`: nothing is read yet."""
        return StateCache()

    def extend(self, tokens_bt: Tensor, cache: StateCache) -> Tensor:
        """Scores ``(B, T, V)`` of a continuation; the cache is then behind it."""
        h_bth, cache.state = self.recurrent(self.drop_in(self.tokens(tokens_bt)), state=cache.state)
        scores: Tensor = self.head(self.drop_out(h_bth))
        return scores


DEFAULTS = {"depth": 1, "width": 256}
_PTB = token_facts(10_000, 35)


@checked
class RecurrentLM(Net):
    """Fills ``model`` with an LSTM, GRU or tanh RNN that says the next token at every position."""

    kind: Literal["lstm", "gru", "rnn"] = "lstm"
    """Of recurrent layer."""
    depth: Annotated[int, Ge(1)] | None = None
    """Recurrent layers; null takes that of the size, else 1."""
    width: Annotated[int, Ge(1)] | None = None
    """Units, and features of a token's vector; null takes that of the size, else 256."""
    tied: bool | None = None
    """Use one table for token vectors and scores; null takes that of the size, else true."""
    size: Literal["small", "medium", "zaremba-medium", "zaremba-large"] | None = None
    """A named depth, width and tying; the last two are published."""

    tasks: ClassVar[tuple[str, ...]] = ("language-modelling",)
    reads: ClassVar[tuple[Form, ...]] = ("tokens",)
    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(fields={"depth": 1, "width": 256}, data=token_facts(65, 64)),
        "medium": Size(fields={"depth": 2, "width": 512}, data=token_facts(65, 64)),
        "zaremba-medium": Size(
            fields={"depth": 2, "width": 650, "tied": False},
            data=_PTB,
            source="20 million, rounded, in Merity, Keskar and Socher, arXiv 1708.02182, table 1",
        ),
        "zaremba-large": Size(
            fields={"depth": 2, "width": 1500, "tied": False},
            data=_PTB,
            source="66 million, rounded, in Merity, Keskar and Socher, arXiv 1708.02182, table 1",
        ),
    }
    paper: ClassVar[str] = "Mikolov et al. 2010; Zaremba et al., arXiv 1409.2329; Press and Wolf, arXiv 1608.05859"
    example: ClassVar[Mapping[str, Any]] = {"width": 8, "depth": 2}

    def value(self, name: str) -> int:
        """Depth or width: as given, of the size, or the default."""
        given: int | None = self.of(name)
        return DEFAULTS[name] if given is None else given

    def make(self, data: DataFacts, outputs: int) -> RecurrentLMNet:
        """The network, sized to the data."""
        tied = self.of("tied")
        if outputs != data.vocabulary:
            raise RecipeError(f"the task wants {outputs} outputs, but there are {data.vocabulary} tokens", path="name")
        return RecurrentLMNet(
            self.kind, data.vocabulary, self.value("width"), self.value("depth"), True if tied is None else tied
        )

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Depth and width where they are not given."""
        return tuple(dial_figures(self, DEFAULTS))
