"""Recurrent encoder and decoder, with attention between them.

Legend of shapes: ``B`` pairs, ``S`` source positions, ``T`` target positions, ``H`` width, ``L`` layers,
``V`` tokens of the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from kingpost.build.blocks.recurrent import Kind, Recurrent, StateCache, lengths_of, real_steps
from kingpost.build.blocks.seq_attention import Score, SequenceAttention
from kingpost.build.generate import beam_search, generate
from kingpost.build.nets.recurrent import dial_figures
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size
from kingpost.option import checked
from kingpost.source import DataFacts, Form


@dataclass
class Seq2SeqCache:
    """What is kept while a target is written.

    Args:
        memory_bsh: the encoder's outputs.
        real_bs: True where the source is no padding; None if nothing is padded.
        summary_bh: the encoder's last state.
        decoder: the decoder's state.
    """

    memory_bsh: Tensor
    real_bs: Tensor | None
    summary_bh: Tensor
    decoder: StateCache = field(default_factory=StateCache)

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` what row ``rows[i]`` was."""
        self.memory_bsh, self.summary_bh = self.memory_bsh[rows], self.summary_bh[rows]
        self.real_bs = None if self.real_bs is None else self.real_bs[rows]
        self.decoder.reorder(rows)


class Seq2SeqNet(nn.Module):
    """A bidirectional encoder, a decoder that starts from its last state, and attention from each target position.

    ``scores = V tanh(W [context; h])``, where ``h`` is the decoder's output and the context is what attention finds
    in the encoder's outputs; with ``attention="none"`` it is the encoder's last state at every position, which must
    then hold the whole sentence. The decoder runs over all target positions at once, so attention does not feed back
    into it (Luong's model without input feeding). Each direction of the encoder has half the width.
    Source: Sutskever, Vinyals and Le, arXiv 1409.3215; Bahdanau, Cho and Bengio, arXiv 1409.0473; Luong, Pham and
    Manning, arXiv 1508.04025.

    Args:
        kind: of recurrent layer.
        source_vocabulary: tokens of the source.
        target_vocabulary: ``V``.
        width: of embeddings, decoder and context, ``H``; even.
        depth: layers of encoder and of decoder, ``L``.
        attention: score of the attention, or ``none``.
        tied: the scores use the table of the target's token vectors.
        padding: the token that fills up short sources.

    >>> net = Seq2SeqNet("gru", 50, 40, width=16)
    >>> net(torch.ones(2, 7, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 40])
    >>> net.generate(torch.ones(2, 7, dtype=torch.long), begin=1, end=2, length=4).shape[0]
    2
    """

    context: int | None = None

    def __init__(
        self,
        kind: Kind,
        source_vocabulary: int,
        target_vocabulary: int,
        width: int,
        depth: int = 1,
        attention: Score | Literal["none"] = "general",
        tied: bool = True,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width: each direction of the encoder has half of it, so it must be even, got {width}")
        self.padding = padding
        self.source_tokens = nn.Embedding(source_vocabulary, width)
        self.target_tokens = nn.Embedding(target_vocabulary, width)
        self.drop_source, self.drop_target, self.drop_out = nn.Dropout(0.0), nn.Dropout(0.0), nn.Dropout(0.0)
        self.encoder = Recurrent(kind, width, width // 2, depth, bidirectional=True)
        self.decoder = Recurrent(kind, width, width, depth)
        self.attention = None if attention == "none" else SequenceAttention(attention, width, width)
        self.combine = nn.Linear(2 * width, width, bias=False)
        self.head = nn.Linear(width, target_vocabulary)
        nn.init.zeros_(self.head.bias)
        if tied:  # small, or the first scores would be far from chance
            nn.init.uniform_(self.target_tokens.weight, -0.1, 0.1)
            self.head.weight = self.target_tokens.weight

    def forward(self, source_bs: Tensor, target_bt: Tensor) -> Tensor:
        """Scores ``(B, T, V)`` of the token after each one of the target, given the true ones up to it."""
        return self.extend(target_bt, self.new_cache(target_bt.shape[1], source_bs))

    def new_cache(self, capacity: int, *inputs: Tensor) -> Seq2SeqCache:
        """Read the source; nothing of the target is read yet."""
        (source_bs,) = inputs
        lengths = lengths_of(source_bs, self.padding)
        memory_bsh, state = self.encoder(self.drop_source(self.source_tokens(source_bs)), lengths)
        start = tuple(_joined(part) for part in state)
        real = None if lengths is None else real_steps(lengths, source_bs.shape[1])
        return Seq2SeqCache(memory_bsh, real, start[0][-1], StateCache(start))

    def extend(self, tokens_bt: Tensor, cache: Seq2SeqCache) -> Tensor:
        """Scores ``(B, T, V)`` of a continuation of the target; the cache is then behind it."""
        x_bth = self.drop_target(self.target_tokens(tokens_bt))
        h_bth, cache.decoder.state = self.decoder(x_bth, state=cache.decoder.state)
        if self.attention is None:
            context_bth = cache.summary_bh[:, None].expand_as(h_bth)
        else:
            context_bth, _ = self.attention(h_bth, cache.memory_bsh, cache.real_bs)
        combined_bth = torch.tanh(self.combine(torch.cat([context_bth, h_bth], 2)))
        scores: Tensor = self.head(self.drop_out(combined_bth))
        return scores

    def generate(self, source_bs: Tensor, *, begin: int, end: int, length: int, beams: int = 1) -> Tensor:
        """Targets ``(B, <= length)`` int64, each up to its end, then zeros.

        Args:
            source_bs: what is translated.
            begin: the token that a target starts with; not part of the answer.
            end: the token that ends it; part of the answer, unless ``length`` is reached first.
            length: most tokens.
            beams: hypotheses that are followed at once; 1 takes the likeliest token each time.
        """
        prompt = torch.full((len(source_bs), 1), begin, dtype=torch.int64, device=source_bs.device)
        if beams == 1:
            found = generate(self, prompt, length, temperature=0.0, end=end, inputs=(source_bs,))
        else:
            found = [
                best[0].tokens for best in beam_search(self, prompt, length, beams=beams, end=end, inputs=(source_bs,))
            ]
        return nn.utils.rnn.pad_sequence([tokens[1:] for tokens in found], batch_first=True)


def _joined(part: Tensor) -> Tensor:
    """Both directions of each layer side by side: ``(2 L, B, H / 2)`` to ``(L, B, H)``."""
    return torch.cat([part[0::2], part[1::2]], 2)


DEFAULTS = {"depth": 1, "width": 256}


def pair_facts(source: int, target: int, length: int, padding: int = 0) -> DataFacts:
    """Facts of token pairs, on which sizes are counted."""
    return DataFacts(
        task="sequence-to-sequence",
        inputs=(((length,), torch.int64), ((length,), torch.int64)),
        target_shape=(length,),
        vocabulary=source,
        target_vocabulary=target,
        padding=padding,
        begin=1,
        end=2,
    )


@checked
class Seq2Seq(Net):
    """Fills ``model`` with a recurrent encoder and decoder, with or without attention."""

    kind: Literal["lstm", "gru", "rnn"] = "gru"
    """Of recurrent layer."""
    depth: Annotated[int, Ge(1)] | None = None
    """Layers of encoder and of decoder; null takes that of the size, else 1."""
    width: Annotated[int, Ge(2), MultipleOf(2)] | None = None
    """Of embeddings, decoder and context; null takes that of the size, else 256."""
    size: Literal["small", "medium"] | None = None
    """A named depth and width."""
    attention: Literal["additive", "dot", "general", "scaled", "none"] = "general"
    """How encoder states are scored; none: the decoder sees only the encoder's last state."""
    tied: bool = True
    """Use one table for the target's token vectors and scores."""

    tasks: ClassVar[tuple[str, ...]] = ("sequence-to-sequence", "language-modelling")
    reads: ClassVar[tuple[Form, ...]] = ("token-pair",)
    sizes: ClassVar[Mapping[str, Size]] = {
        "small": Size(fields={"depth": 1, "width": 256}, data=pair_facts(4000, 4000, 32)),
        "medium": Size(fields={"depth": 2, "width": 512}, data=pair_facts(8000, 8000, 64)),
    }
    paper: ClassVar[str] = "Sutskever et al., arXiv 1409.3215; Bahdanau et al., arXiv 1409.0473; Luong et al. 2015"
    example: ClassVar[Mapping[str, Any]] = {"width": 8, "attention": "additive"}

    def value(self, name: str) -> int:
        """Depth or width: as given, of the size, or the default."""
        given: int | None = self.of(name)
        return DEFAULTS[name] if given is None else given

    def make(self, data: DataFacts, outputs: int) -> Seq2SeqNet:
        """The network, sized to the data."""
        target = data.target_vocabulary or data.vocabulary
        if outputs != target:
            raise RecipeError(f"the task wants {outputs} outputs, but there are {target} target tokens", path="name")
        return Seq2SeqNet(
            self.kind, data.vocabulary, target, self.value("width"), self.value("depth"), self.attention, self.tied,
            data.padding,
        )  # fmt: skip

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Depth and width where they are not given."""
        return tuple(dial_figures(self, DEFAULTS))
