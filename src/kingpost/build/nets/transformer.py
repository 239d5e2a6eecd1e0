"""The encoder-decoder transformer: one sequence is read, another is written.

Legend of shapes: ``B`` pairs, ``S`` source positions, ``T`` target positions, ``D`` width, ``V`` target vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost.build.blocks.embeddings import InputEmbedding, word_embedding
from kingpost.build.blocks.feed_forward import FeedForwardName
from kingpost.build.blocks.positions import LearnedPositions, RelativeBias, SinusoidalPositions
from kingpost.build.blocks.transformer import DecoderCache, NormName, Order, TransformerBlock, sequence_norm
from kingpost.build.generate import beam_search
from kingpost.build.heads import check_heads, default_figures, heads_figure, heads_for
from kingpost.build.nets.seq2seq import pair_facts
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size
from kingpost.option import checked
from kingpost.source import DataFacts, Form

DEPTH, WIDTH = 3, 256  # where nothing is given
PairPositions = Literal["sinusoidal", "learned", "relative"]


class TransformerNet(nn.Module):
    """An encoder that reads the source, and a decoder that sees it and what it has written itself.

    Input source ``(B, S)`` and target ``(B, T)`` int64; output ``(B, T, V)``: at each position the scores of the token
    that follows. Padding of the source is masked; that of the target comes last, where nobody sees it.
    Source: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762; with ``positions="relative"``,
    ``norm="rms"``, ``bias=False``, ``scale=1.0`` and ``scale_at="output"``: Raffel et al. (T5), arXiv 1910.10683.

    Args:
        source_words: tokens of the source.
        target_words: ``V``.
        context: longest sequence; counts for learned positions only.
        depth: blocks of the encoder.
        width: ``D``.
        heads: of attention.
        decoder_depth: blocks of the decoder; default ``depth``.
        hidden: units of a feed-forward block; None for the block's default.
        padding: the token that fills up short sources, if there is one.
        shared: one table of vectors for source and target; needs one vocabulary.
        tied: the last layer uses the target's table.
        positions: sinusoidal and learned ones are added to the vectors; relative ones bias the scores of attention,
            alike in all blocks of the encoder and in all of the decoder.
        order: of norm and branch; ``pre`` adds a norm after the last block.
        norm: layer or rms.
        eps: of the norms.
        bias: of linear layers and layer norms; the last layer has none.
        feed_forward: name of the block.
        scale: factor on attention scores; default ``1 / sqrt(head width)``.
        scale_at: where a tied table is brought to scale: its vectors times ``sqrt(D)`` at the ``input``, or the
            decoder's result by ``sqrt(D)`` at the ``output``.

    >>> net = TransformerNet(50, 50, context=16, depth=1, width=32, heads=2, padding=0)
    >>> net(torch.ones(2, 7, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 50])
    >>> net.generate(torch.ones(2, 7, dtype=torch.long), begin=1, end=2, length=4).shape[0]
    2
    """

    def __init__(
        self,
        source_words: int,
        target_words: int,
        context: int,
        depth: int,
        width: int,
        heads: int,
        *,
        decoder_depth: int | None = None,
        hidden: int | None = None,
        padding: int | None = None,
        shared: bool = True,
        tied: bool = True,
        positions: PairPositions = "sinusoidal",
        order: Order = "pre",
        norm: NormName = "layer",
        eps: float = 1e-5,
        bias: bool = True,
        feed_forward: FeedForwardName = "relu",
        scale: float | None = None,
        scale_at: Literal["input", "output"] = "input",
    ) -> None:
        super().__init__()
        if shared and source_words != target_words:
            raise ValueError(f"shared: {source_words} source and {target_words} target words are no one vocabulary")
        self.padding = padding
        self.context: int | None = context if positions == "learned" else None
        at_input = scale_at == "input"
        std, factor = (width**-0.5, width**0.5) if at_input else (1.0, 1.0)
        self.output_scale = width**-0.5 if tied and not at_input else 1.0

        def embedding(words: nn.Module) -> InputEmbedding:
            where: LearnedPositions | SinusoidalPositions | None = None
            if positions != "relative":
                where = LearnedPositions(context, width) if positions == "learned" else SinusoidalPositions(width)
            return InputEmbedding(words, width, where, scale=factor)

        def stack(blocks: int, decoder: bool) -> nn.ModuleList:
            return nn.ModuleList(
                TransformerBlock(
                    width, heads, causal=decoder, cross=decoder, feed_forward=feed_forward, hidden=hidden, norm=norm,
                    eps=eps, order=order, bias=bias, scale=scale,
                )
                for _ in range(blocks)
            )  # fmt: skip

        def last() -> nn.Module:
            return sequence_norm(norm, width, eps, bias) if order == "pre" else nn.Identity()

        relative = positions == "relative"
        table = word_embedding(source_words, width, padding, std)
        self.source = embedding(table)
        self.target = embedding(table if shared else word_embedding(target_words, width, padding, std))
        self.encoder, self.encoder_norm, self.encoder_drop = stack(depth, decoder=False), last(), nn.Dropout(0.0)
        self.decoder, self.decoder_norm = stack(decoder_depth or depth, decoder=True), last()
        self.encoder_bias = RelativeBias(heads) if relative else None
        self.decoder_bias = RelativeBias(heads, both_ways=False) if relative else None
        self.drop = nn.Dropout(0.0)
        self.head = nn.Linear(width, target_words, bias=False)
        self._start(scale)
        if tied:
            self.head.weight = self.target.first.weight  # type: ignore[assignment]

    def _start(self, scale: float | None) -> None:
        """Xavier; where attention scores are not scaled, the queries are smaller by as much."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if scale is not None and name.endswith(".query"):
                    heads = self.get_submodule(name.removesuffix(".query")).heads
                    head_width = module.out_features // heads  # type: ignore[operator]
                    with torch.no_grad():
                        module.weight.mul_(head_width**-0.5 / scale)
            if isinstance(module, RelativeBias):
                nn.init.normal_(module.values.weight, std=0.02)

    def forward(self, source_bs: Tensor, target_bt: Tensor) -> Tensor:
        """Scores ``(B, T, V)`` of the token after each one of the target, given the true ones up to it."""
        return self._scores(target_bt, self.encode(source_bs), self._real(source_bs), None)

    def encode(self, source_bs: Tensor) -> Tensor:
        """One vector for each position of the source, ``(B, S, D)``."""
        x_bsd, real_bs, bias = self.source(source_bs), self._real(source_bs), None
        if self.encoder_bias is not None:
            where = torch.arange(source_bs.shape[1], device=source_bs.device)
            bias = self.encoder_bias(where, where)
        for block in self.encoder:
            x_bsd = block(x_bsd, real=real_bs, bias=bias)
        y_bsd: Tensor = self.encoder_drop(self.encoder_norm(x_bsd))
        return y_bsd

    def new_cache(self, capacity: int, *inputs: Tensor) -> DecoderCache:
        """Read the source; nothing is written yet, and there is room for so many tokens."""
        (source_bs,) = inputs
        return DecoderCache.empty(len(self.decoder), capacity, self.encode(source_bs), self._real(source_bs))

    def extend(self, tokens_bt: Tensor, cache: DecoderCache) -> Tensor:
        """Scores ``(B, T, V)`` at tokens that follow those in the cache, which then holds them too."""
        assert cache.context is not None
        return self._scores(tokens_bt, cache.context, cache.context_real, cache)

    def generate(self, source_bs: Tensor, *, begin: int, end: int, length: int, beams: int = 1) -> Tensor:
        """The target that beam search finds, ``(B, <= length)`` int64; 0 after the end.

        Args:
            source_bs: what is translated.
            begin: the token that a target starts with; not part of the answer.
            end: the token that ends it; part of the answer, unless ``length`` is reached first.
            length: most tokens.
            beams: hypotheses that are followed at once; 1 is greedy.
        """
        prompt = torch.full((len(source_bs), 1), begin, dtype=torch.int64, device=source_bs.device)
        found = beam_search(self, prompt, length, beams=beams, end=end, inputs=(source_bs,))
        return nn.utils.rnn.pad_sequence([best[0].tokens[1:] for best in found], batch_first=True)

    def _scores(
        self, target_bt: Tensor, source_bsd: Tensor, real_bs: Tensor | None, cache: DecoderCache | None
    ) -> Tensor:
        first = 0 if cache is None else cache.length
        x_btd, bias = self.target(target_bt, start=first), None
        if self.decoder_bias is not None:
            where = torch.arange(first + target_bt.shape[1], device=target_bt.device)
            bias = self.decoder_bias(where[first:], where)
        for index, block in enumerate(self.decoder):
            x_btd = block(
                x_btd, bias=bias, context=source_bsd, context_real=real_bs,
                cache=None if cache is None else cache.blocks[index],
            )  # fmt: skip
        x_btd = self.drop(self.decoder_norm(x_btd))
        scores: Tensor = self.head(x_btd if self.output_scale == 1.0 else x_btd * self.output_scale)
        return scores

    def _real(self, source_bs: Tensor) -> Tensor | None:
        return None if self.padding is None else source_bs != self.padding


STYLES: Mapping[str, Mapping[str, Any]] = {
    "vaswani": {"positions": "sinusoidal", "norm": "layer", "eps": 1e-5, "bias": True},
    "t5": {"positions": "relative", "norm": "rms", "eps": 1e-6, "bias": False, "scale": 1.0, "scale_at": "output"},
}


def _t5(depth: int, width: int, parameters: int) -> Size:
    return Size(
        fields={"style": "t5", "depth": depth, "width": width},
        data=pair_facts(32_128, 32_128, 512),
        parameters=parameters,
        source="published weights; Raffel et al., arXiv 1910.10683",
    )


@checked
class Transformer(Net):
    """Fills ``model`` with an encoder-decoder transformer."""

    depth: Annotated[int, Ge(1)] | None = None
    """Blocks of the encoder, and as many of the decoder; null = that of the size, else 3."""
    width: Annotated[int, Ge(1)] | None = None
    """Of the residual stream; null = that of the size, else 256."""
    heads: Annotated[int, Ge(1)] | None = None
    """Of attention, a divisor of the width; null derives them from it."""
    hidden: Annotated[int, Ge(1)] | None = None
    """Units of a feed-forward block; null = 4 times the width, or 8/3 times where the block is gated."""
    style: Literal["vaswani", "t5"] | None = None
    """The first transformer, or T5: RMS norm, no biases, relative positions, unscaled scores; null = that of the
    size, else vaswani."""
    positions: PairPositions | None = None
    """How a position is known; null = that of the style."""
    order: Order | None = None
    """Norm before each branch (pre) or after the sum (post, wants warm-up); null = that of the size, else pre."""
    feed_forward: FeedForwardName = "relu"
    """The feed-forward block."""
    shared: bool = True
    """One table of token vectors for source and target; the data must have one vocabulary for both."""
    tied: bool = True
    """The last layer uses the target's table."""
    size: Literal["small", "base", "big", "t5-small", "t5-base"] | None = None
    """A named size; fields given beside it win."""

    tasks: ClassVar[tuple[str, ...]] = ("sequence-to-sequence", "language-modelling")
    reads: ClassVar[tuple[Form, ...]] = ("token-pair",)
    example: ClassVar[Mapping[str, object]] = {"depth": 1, "width": 8, "heads": 2, "shared": False}
    sizes: ClassVar[Mapping[str, Size]] = {
        "default": Size(data=pair_facts(4000, 4000, 32)),
        "small": Size(fields={"depth": 3, "width": 128}, data=pair_facts(4000, 4000, 32)),
        "base": Size(
            fields={"depth": 6, "width": 512, "order": "post"},
            data=pair_facts(37_000, 37_000, 512),
            source="Vaswani et al., table 3: 65 million, of a vocabulary of about 37,000",
        ),
        "big": Size(
            fields={"depth": 6, "width": 1024, "order": "post"},
            data=pair_facts(37_000, 37_000, 512),
            source="Vaswani et al., table 3: 213 million, of a vocabulary of about 37,000",
        ),
        "t5-small": _t5(6, 512, 60_506_624),
        "t5-base": _t5(12, 768, 222_903_552),
    }
    paper: ClassVar[str] = "Vaswani et al., arXiv 1706.03762; Raffel et al., arXiv 1910.10683"

    def __post_init__(self) -> None:
        width = self._width()
        if self.heads is not None:
            check_heads(width, self.heads)
        if self._styled()["positions"] == "sinusoidal" and width % 2:
            raise RecipeError(f"got {width}, but sines and cosines come in pairs", path="width", mend="make it even")

    def _width(self) -> int:
        return self.of("width") or WIDTH

    def _styled(self) -> dict[str, Any]:
        """What the style says, and positions if they are given."""
        style = dict(STYLES[self.of("style") or "vaswani"])
        return style | ({} if self.positions is None else {"positions": self.positions})

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Defaults, and the heads, where they were not given."""
        figures = default_figures(self, depth=DEPTH, width=WIDTH, style="vaswani", order="pre")
        return figures if self.heads is not None else (*figures, heads_figure(self._width()))

    def make(self, data: DataFacts, outputs: int) -> TransformerNet:
        """The network, sized to the data."""
        if self.shared and data.vocabulary != outputs:
            raise RecipeError(
                f"the source has {data.vocabulary} tokens and the target {outputs}, so they cannot share one table",
                path="shared",
                mend="shared=false, or one vocabulary for both: data.shared=true",
            )
        return TransformerNet(
            data.vocabulary,
            outputs,
            context=max(shape[0] for shape, _ in data.inputs),
            depth=self.of("depth") or DEPTH,
            width=self._width(),
            heads=self.heads or heads_for(self._width()),
            hidden=self.hidden,
            padding=data.padding,
            shared=self.shared,
            tied=self.tied,
            order=self.of("order") or "pre",
            feed_forward=self.feed_forward,
            **self._styled(),
        )
