"""Decoder-only transformers for language modelling, in the style of GPT-2 or Llama.

Legend of shapes: ``B`` sequences, ``T`` positions, ``D`` width, ``H`` heads, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from kingpost.build.blocks.feed_forward import GATED, FeedForwardName, gated_hidden
from kingpost.build.blocks.positions import LearnedPositions, Rotary, SinusoidalPositions
from kingpost.build.blocks.transformer import DecoderCache, NormName, TransformerBlock, sequence_norm
from kingpost.build.heads import HEADS_REASON, check_heads, heads_for
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, token_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form

Positions = Literal["learned", "rotary", "sinusoidal", "none"]
PER_BLOCK = 64  # width for each block


class GPTNet(nn.Module):
    """Token embeddings with positions, causal blocks, a last norm, and a score for each token.

    Input ``(B, T)`` int64 with ``T <= context``; output ``(B, T, V)``. All matrices start at N(0, 0.02^2), those
    that write to the residual stream at that over ``sqrt(2 depth)``, so that its variance does not grow with depth.
    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; Touvron et al. (Llama),
    arXiv 2302.13971.

    Args:
        vocabulary: number of tokens.
        context: longest sequence; a longer one is an error where positions are learned, and untried elsewhere.
        depth: blocks.
        width: of the residual stream.
        heads: divides the width.
        kv_heads: heads of keys and values; divides the heads; default ``heads``.
        hidden: units of a feed-forward block; None for the block's default.
        positions: how a token knows where it stands.
        norm: before each branch and at the end.
        eps: of the norms.
        feed_forward: name of the block, or what makes the module for a block's number (from 0): experts, say.
        bias: of linear layers and layer norms (the last layer has none).
        tied: the last layer is the transpose of the embedding.
        qk_norm: RMS norm of queries and keys.
        rotary_base: of the rotary wavelengths.
        scale: factor on attention scores; default ``1 / sqrt(head width)``.

    >>> GPTNet(65, context=16, depth=1, width=32, heads=2)(torch.zeros(3, 8, dtype=torch.long)).shape
    torch.Size([3, 8, 65])
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        depth: int,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        hidden: int | None = None,
        positions: Positions = "learned",
        norm: NormName = "layer",
        eps: float = 1e-5,
        feed_forward: FeedForwardName | Callable[[int], nn.Module] = "gelu-tanh",
        bias: bool = True,
        tied: bool = True,
        qk_norm: bool = False,
        rotary_base: float = 10_000.0,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.context: int | None = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = _positions(positions, context, width, width // heads, rotary_base)
        self.drop = nn.Dropout(0.0)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, heads, causal=True, kv_heads=kv_heads, hidden=hidden, norm=norm, eps=eps, bias=bias,
                feed_forward=feed_forward(index) if callable(feed_forward) else feed_forward, qk_norm=qk_norm,
                scale=scale,
            )
            for index in range(depth)
        )  # fmt: skip
        self.norm = sequence_norm(norm, width, eps, bias)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        self._start(depth)

    def _start(self, depth: int) -> None:
        writes = {id(w) for block in self.blocks for w in _writers(block)}
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02 / (2 * depth) ** 0.5 if id(module.weight) in writes else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens_bt: Tensor) -> Tensor:
        """Scores ``(B, T, V)``."""
        return self._scores(tokens_bt, None)

    def new_cache(self, capacity: int) -> DecoderCache:
        """An empty cache for so many tokens."""
        return DecoderCache.empty(len(self.blocks), capacity)

    def extend(self, tokens_bt: Tensor, cache: DecoderCache) -> Tensor:
        """Scores ``(B, T, V)`` at tokens that follow those in the cache, which then holds them too."""
        return self._scores(tokens_bt, cache)

    def _scores(self, tokens_bt: Tensor, cache: DecoderCache | None) -> Tensor:
        first, t = 0 if cache is None else cache.length, tokens_bt.shape[1]
        if isinstance(self.positions, LearnedPositions) and first + t > self.positions.num_embeddings:
            raise ValueError(f"got {first + t} tokens, but positions are learned for {self.positions.num_embeddings}")
        where = torch.arange(first, first + t, device=tokens_bt.device)
        x_btd, rotation = self.tokens(tokens_bt), None
        if isinstance(self.positions, Rotary):
            rotation = self.positions(where, x_btd.dtype)
        elif isinstance(self.positions, SinusoidalPositions):
            x_btd = x_btd + self.positions(where, x_btd.dtype)
        elif self.positions is not None:
            x_btd = x_btd + self.positions(where)
        x_btd = self.drop(x_btd)
        for index, block in enumerate(self.blocks):
            x_btd = block(x_btd, rotation=rotation, cache=None if cache is None else cache.blocks[index])
        scores: Tensor = self.head(self.norm(x_btd))
        return scores


def _positions(name: Positions, context: int, width: int, head_width: int, base: float) -> nn.Module | None:
    if name == "learned":
        return LearnedPositions(context, width)
    if name == "rotary":
        return Rotary(head_width, base)
    return SinusoidalPositions(width) if name == "sinusoidal" else None


def _writers(block: nn.Module) -> list[Tensor]:
    """The matrices of a block that write to the residual stream."""
    return [
        module.weight
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(("attention.out", "down"))
    ]


STYLES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"positions": "learned", "norm": "layer", "feed_forward": "gelu-tanh", "bias": True, "tied": True},
    "llama": {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "bias": False, "tied": False},
}


def _gpt2(depth: int, width: int, heads: int, parameters: int) -> Size:
    return Size(
        fields={"style": "gpt2", "depth": depth, "width": width, "heads": heads},
        data=token_facts(50_257, 1024),
        parameters=parameters,
        source="Radford et al. 2019; counted in the published weights",
    )


def _llama(
    depth: int, width: int, heads: int, hidden: int, *, vocabulary: int, context: int, parameters: int, source: str,
    **more: Any,
) -> Size:  # fmt: skip
    fields = {"style": "llama", "depth": depth, "width": width, "heads": heads, "hidden": hidden, **more}
    return Size(fields=fields, data=token_facts(vocabulary, context), parameters=parameters, source=source)


def _small(depth: int, width: int, heads: int) -> Size:
    return Size(fields={"depth": depth, "width": width, "heads": heads}, data=token_facts(65, 64))


@checked
class GPT(Net):
    """Fills ``model`` with a decoder-only transformer; the context is that of the data.

    One dial: ``depth`` alone gives a width of 64 a block, the ratio of the smallest GPT-2 (768 / 12), so that
    parameters grow with the cube of the depth; the heads follow from the width.
    """

    size: (
        Literal[
            "nano", "micro", "mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "tinyllama-1.1b", "llama-7b",
            "llama-13b", "llama-2-70b", "llama-3-8b", "llama-3.2-1b",
        ]
        | None
    ) = None  # fmt: skip
    """A named size; fields that are given override its own."""
    depth: Annotated[int, Ge(1)] | None = None
    """Blocks; null: the width over 64, or 2 if no width is given either."""
    width: Annotated[int, Ge(1)] | None = None
    """Of the residual stream; null: 64 for each block."""
    heads: Annotated[int, Ge(1)] | None = None
    """Attention heads; must divide the width; null: heads of 64, or of 32 in narrow nets."""
    kv_heads: Annotated[int, Ge(1)] | None = None
    """Heads of keys and values, which heads of queries share; must divide the heads; null: as many as heads."""
    hidden: Annotated[int, Ge(1)] | None = None
    """Units of a feed-forward block; null: 4 times the width, or 8/3 times where the block is gated."""
    style: Literal["gpt2", "llama"] | None = None
    """Values for the next five fields; null: gpt2."""
    positions: Positions | None = None
    """How a token knows where it stands; null: learned (gpt2) or rotary (llama)."""
    norm: NormName | None = None
    """Before each branch and at the end; null: layer (gpt2) or rms (llama)."""
    feed_forward: FeedForwardName | None = None
    """The feed-forward block; null: gelu-tanh (gpt2) or swiglu (llama)."""
    bias: bool | None = None
    """Biases in linear layers and layer norms; null: true (gpt2) or false (llama)."""
    tied: bool | None = None
    """The last layer is the transpose of the embedding; null: true (gpt2) or false (llama)."""
    qk_norm: bool = False
    """RMS norm of queries and keys, which keeps attention scores from growing at high learning rates."""
    rotary_base: Annotated[float, Gt(1)] | None = None
    """Of the rotary wavelengths; a longer context wants a larger one; null: 10000."""
    attention_scale: Literal["1/sqrt(d)", "1/d"] = "1/sqrt(d)"
    """Factor on attention scores for heads of width d; 1/d is that of maximal-update parametrisation."""

    tasks: ClassVar[tuple[str, ...]] = ("language-modelling",)
    reads: ClassVar[tuple[Form, ...]] = ("tokens",)
    paper: ClassVar[str] = "Radford et al. 2019; Touvron et al., arXiv 2302.13971"
    example: ClassVar[Mapping[str, Any]] = {"depth": 1, "width": 8, "heads": 2}
    sizes: ClassVar[Mapping[str, Size]] = {
        "nano": _small(3, 48, 3),
        "micro": _small(4, 128, 4),
        "mini": _small(6, 192, 6),
        "gpt2": _gpt2(12, 768, 12, 124_439_808),
        "gpt2-medium": _gpt2(24, 1024, 16, 354_823_168),
        "gpt2-large": _gpt2(36, 1280, 20, 774_030_080),
        "gpt2-xl": _gpt2(48, 1600, 25, 1_557_611_200),
        "tinyllama-1.1b": _llama(
            22, 2048, 32, 5632, kv_heads=4, vocabulary=32_000, context=2048, parameters=1_100_048_384,
            source="Zhang et al., arXiv 2401.02385",
        ),
        "llama-7b": _llama(
            32, 4096, 32, 11_008, vocabulary=32_000, context=2048, parameters=6_738_415_616,
            source="Touvron et al., arXiv 2302.13971",
        ),
        "llama-13b": _llama(
            40, 5120, 40, 13_824, vocabulary=32_000, context=2048, parameters=13_015_864_320,
            source="Touvron et al., arXiv 2302.13971",
        ),
        "llama-2-70b": _llama(
            80, 8192, 64, 28_672, kv_heads=8, vocabulary=32_000, context=4096, parameters=68_976_648_192,
            source="Touvron et al., arXiv 2307.09288",
        ),
        "llama-3-8b": _llama(
            32, 4096, 32, 14_336, kv_heads=8, rotary_base=500_000.0, vocabulary=128_256, context=8192,
            parameters=8_030_261_248, source="Grattafiori et al., arXiv 2407.21783",
        ),
        "llama-3.2-1b": _llama(
            16, 2048, 32, 8192, kv_heads=8, rotary_base=500_000.0, tied=True, vocabulary=128_256, context=8192,
            parameters=1_235_814_400, source="published weights; their stretching of long rotary waves is left out",
        ),
    }  # fmt: skip

    def __post_init__(self) -> None:
        _, width, heads = self._form()
        check_heads(width, heads)
        if heads % (kv_heads := self.of("kv_heads") or heads):
            fits = [h for h in range(1, heads + 1) if heads % h == 0]
            raise RecipeError(
                f"got {kv_heads}, which does not divide the {heads} heads",
                path="kv_heads",
                mend=f"use {min(fits, key=lambda h: abs(h - kv_heads))}",
            )
        positions = self._styled("positions")
        if positions == "rotary" and (width // heads) % 2:
            raise RecipeError(
                f"{heads} heads of width {width // heads}, but rotary positions turn pairs of entries",
                path="heads",
                mend="choose heads of even width, or positions=learned",
            )
        if positions == "sinusoidal" and width % 2:
            raise RecipeError(f"got {width}, but sines and cosines come in pairs", path="width", mend="make it even")
        if self.rotary_base is not None and positions != "rotary":
            raise RecipeError(f"has no effect on {positions} positions", path="rotary_base", mend="remove it")

    def _styled(self, name: str) -> Any:
        """A field as given, else of the size, else of the style."""
        given = self.of(name)
        return STYLES[self.of("style") or "gpt2"][name] if given is None else given

    def _form(self) -> tuple[int, int, int]:
        """Depth, width and heads."""
        depth, width, heads = self.of("depth"), self.of("width"), self.of("heads")
        depth = depth or (max(1, round(width / PER_BLOCK)) if width else 2)
        width = width or PER_BLOCK * depth
        return depth, width, heads or heads_for(width)

    def make(self, data: DataFacts, outputs: int) -> GPTNet:
        """The network, sized to the data."""
        depth, width, heads = self._form()
        return GPTNet(
            data.vocabulary, data.inputs[0][0][0], depth, width, heads,
            kv_heads=self.of("kv_heads"), hidden=self.of("hidden"), positions=self._styled("positions"),
            norm=self._styled("norm"), feed_forward=self._styled("feed_forward"), bias=self._styled("bias"),
            tied=self._styled("tied"), qk_norm=self.qk_norm, rotary_base=self.of("rotary_base") or 10_000.0,
            scale=heads / width if self.attention_scale == "1/d" else None,
        )  # fmt: skip

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Depth, width, heads and hidden units that were not given, and the context."""
        depth, width, heads = self._form()
        feed_forward = self._styled("feed_forward")
        gated = feed_forward in GATED
        hidden = self.of("hidden") or (gated_hidden(width) if gated else 4 * width)
        share = f"about 8/3 x {width}: three matrices" if gated else f"4 x {width}: two matrices"
        from_width = f"width {width} / {PER_BLOCK}, rounded" if self.of("width") else "small enough for a processor"
        reasons = {
            "depth": (depth, "blocks", from_width),
            "width": (width, "units", f"{PER_BLOCK} for each of {depth} blocks, the ratio of the smallest GPT-2"),
            "heads": (heads, "heads", HEADS_REASON),
            "hidden": (hidden, "units", f"{share} of a {feed_forward} block"),
        }
        named = self.sizes[self.size].fields if self.size else {}
        figures = [
            Figure(f"model.{name}", value, unit, f"size {self.size}" if name in named else reason)
            for name, (value, unit, reason) in reasons.items()
            if getattr(self, name) is None
        ]
        return (*figures, Figure("model.context", data.inputs[0][0][0], "tokens", "length of a sample of this data"))
