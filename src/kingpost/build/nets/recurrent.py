"""Recurrent nets that read a whole sequence, of tokens or of numbers, and answer once.

Legend of shapes: ``B`` sequences, ``T`` steps, ``F`` features of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.blocks.recurrent import Kind, Recurrent, lengths_of, real_steps
from kingpost.build.blocks.seq_pooling import AttentionPooling, max_over_time, mean_over_time
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, token_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form

Pool = Literal["last", "mean", "max", "attention"]


class RecurrentNet(nn.Module):
    """Embedding (for tokens), recurrent layers, one vector for the sequence, one linear layer.

    Input ``(B, T)`` int64, padded at the end, or numbers ``(B, T, F)``; output ``(B, outputs)``.
    Source: Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al., arXiv 1406.1078; the anchor: NLinear of Zeng et
    al., "Are Transformers Effective for Time Series Forecasting?", arXiv 2205.13504.

    Args:
        kind: of recurrent layer.
        inputs: features of a step ``F``, or of a token's vector.
        outputs: units of the last layer.
        width: units of each direction.
        depth: recurrent layers.
        bidirectional: also read backwards.
        pool: how the steps become one vector: what stands after the ``last`` one read, ``mean``, ``max``, or a mean
            weighted by ``attention``.
        vocabulary: number of tokens; 0 for numbers.
        padding: the token that fills up short sequences.
        anchor: features of a step that are predicted, for a forecast; all steps are then read as differences from the
            last one, and its values at these features are added to each predicted step. None reads them as they are.

    >>> import torch
    >>> RecurrentNet("gru", 7, 3, width=16)(torch.zeros(5, 24, 7)).shape
    torch.Size([5, 3])
    >>> RecurrentNet("lstm", 8, 3, width=16, vocabulary=50, padding=0)(torch.ones(5, 9, dtype=torch.long)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        kind: Kind,
        inputs: int,
        outputs: int,
        width: int,
        depth: int = 1,
        bidirectional: bool = False,
        pool: Pool = "last",
        vocabulary: int = 0,
        padding: int | None = None,
        anchor: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.anchor = None if anchor is None else list(anchor)
        self.tokens = nn.Embedding(vocabulary, inputs) if vocabulary else None
        self.padding, self.pool = padding, pool
        self.drop_in, self.drop_out = nn.Dropout(0.0), nn.Dropout(0.0)
        self.recurrent = Recurrent(kind, inputs, width, depth, bidirectional)
        self.attention = AttentionPooling(self.recurrent.outputs) if pool == "attention" else None
        self.head = nn.Linear(self.recurrent.outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Scores or values, ``(B, outputs)``."""
        lengths = None
        if self.tokens is not None:
            lengths, x = lengths_of(x, self.padding), self.tokens(x)
        last = x[:, -1:]
        x = x if self.anchor is None else x - last
        y: Tensor = self.head(self.drop_out(self._pooled(self.drop_in(x), lengths)))
        if self.anchor is None:
            return y
        steps = y.view(len(y), -1, len(self.anchor)) + last[:, :, self.anchor]
        return steps.flatten(1)

    def _pooled(self, x_btf: Tensor, lengths: Tensor | None) -> Tensor:
        if self.pool == "last":
            return self.recurrent.summary(x_btf, lengths)
        h_btd = self.recurrent.sequence(x_btf, lengths)
        real = None if lengths is None else real_steps(lengths, x_btf.shape[1])
        if self.attention is not None:
            y: Tensor = self.attention(h_btd, real)
            return y
        return mean_over_time(h_btd, real) if self.pool == "mean" else max_over_time(h_btd, real)


DEFAULTS = {"depth": 1, "width": 128}


@checked
class RNN(Net):
    """Fills ``model`` with an LSTM, GRU or tanh RNN that reads a sequence and answers once."""

    kind: Literal["lstm", "gru", "rnn"] = "lstm"
    """Of recurrent layer."""
    depth: Annotated[int, Ge(1)] | None = None
    """Recurrent layers; null takes that of the size, else 1."""
    width: Annotated[int, Ge(1)] | None = None
    """Units of each direction; null takes that of the size, else 128."""
    size: Literal["small", "medium"] | None = None
    """A named depth and width."""
    bidirectional: bool = False
    """Also read backwards."""
    pool: Pool = "last"
    """How the steps become one vector; last, mean, max or attention."""
    embedding: Annotated[int, Ge(1)] | None = None
    """Features of a token's vector; null takes the width. Has no meaning for numbers."""
    anchored: bool = False
    """Forecast the change from the last step that is read; for series whose level drifts."""

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label", "multi-task", "forecasting")
    reads: ClassVar[tuple[Form, ...]] = ("tokens", "series")
    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(fields={"depth": 1, "width": 128}, data=token_facts(10_000, 64, 4, padding=0)),
        "medium": Size(fields={"depth": 2, "width": 256}, data=token_facts(10_000, 64, 4, padding=0)),
    }
    paper: ClassVar[str] = "Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al., arXiv 1406.1078"
    example: ClassVar[Mapping[str, Any]] = {"width": 8, "kind": "lstm", "bidirectional": True}

    def value(self, name: str) -> int:
        """Depth or width: as given, of the size, or the default."""
        given: int | None = self.of(name)
        return DEFAULTS[name] if given is None else given

    def make(self, data: DataFacts, outputs: int) -> RecurrentNet:
        """The network, sized to the data."""
        width, anchor = self.value("width"), self._anchor(data) if self.anchored else None
        if data.form == "tokens":
            inputs, vocabulary = width if self.embedding is None else self.embedding, data.vocabulary
        else:
            self._refuse_embedding()
            inputs, vocabulary = data.inputs[0][0][1], 0
        return RecurrentNet(
            self.kind, inputs, outputs, width, self.value("depth"), self.bidirectional, self.pool, vocabulary,
            data.padding, anchor,
        )  # fmt: skip

    def _anchor(self, data: DataFacts) -> list[int]:
        """Which of the features read are predicted."""
        if not data.targets or any(name not in data.features for name in data.targets):
            raise RecipeError("needs a forecast of columns that are read", path="anchored", mend="anchored=false")
        return [data.features.index(name) for name in data.targets]

    def _refuse_embedding(self) -> None:
        if self.embedding is not None:
            raise RecipeError("numbers are not embedded", path="embedding", mend="remove it")

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Depth and width where they are not given, and the width of the embedding."""
        figures = dial_figures(self, DEFAULTS)
        if data.form == "tokens" and self.embedding is None:
            figures.append(Figure("model.embedding", self.value("width"), "", "the width"))
        return tuple(figures)


def dial_figures(net: Net, defaults: Mapping[str, int]) -> list[Figure]:
    """Depth and width of a net, where they were not given, with the reason."""
    figures = []
    for name, default in defaults.items():
        if getattr(net, name) is None:
            of_size = net.of(name)
            reason = "not given: the default" if of_size is None else f"size '{getattr(net, 'size', None)}'"
            figures.append(Figure(f"model.{name}", default if of_size is None else of_size, "", reason))
    return figures
