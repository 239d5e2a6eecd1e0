"""The transformer block, as encoder, as decoder-only model, and as decoder that looks at an encoder.

Legend of shapes: ``B`` sequences, ``T`` positions, ``S`` positions of the other sequence, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from kingpost.build.blocks.attention import Attention, KVCache
from kingpost.build.blocks.feed_forward import FeedForwardName, feed_forward
from kingpost.build.blocks.norms import RMSNorm
from kingpost.build.blocks.positions import Rotation

NormName = Literal["layer", "rms"]
Order = Literal["pre", "post"]


def sequence_norm(name: NormName, width: int, eps: float = 1e-5, bias: bool = True) -> nn.Module:
    """Layer norm, or RMS norm (which has no bias), over the last axis.

    >>> sum(p.numel() for p in sequence_norm("rms", 8).parameters())
    8
    """
    return nn.LayerNorm(width, eps, bias=bias) if name == "layer" else RMSNorm(width, eps)


@dataclass(frozen=True)
class BlockCache:
    """What one block keeps between the steps of generation.

    Args:
        own: keys and values of the sequence that is being written.
        context: those of the other sequence, for a block that looks at one.
    """

    own: KVCache
    context: KVCache

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` what row ``rows[i]`` was."""
        self.own.reorder(rows)
        self.context.reorder(rows)


@dataclass
class DecoderCache:
    """What a whole decoder keeps between the steps of generation.

    Args:
        blocks: one for each block.
        context: the other sequence as the encoder gave it, ``(B, S, D)``, where there is one.
        context_real: ``(B, S)`` bool, True where it is no padding.

    >>> DecoderCache.empty(depth=2, capacity=16).length
    0
    """

    blocks: list[BlockCache]
    context: Tensor | None = None
    context_real: Tensor | None = None

    @classmethod
    def empty(
        cls, depth: int, capacity: int, context: Tensor | None = None, context_real: Tensor | None = None
    ) -> DecoderCache:
        """One for so many blocks and positions, and for the other sequence, if there is one."""
        other = 0 if context is None else context.shape[1]
        return cls([BlockCache(KVCache(capacity), KVCache(other)) for _ in range(depth)], context, context_real)

    @property
    def length(self) -> int:
        """Positions that it holds, which is the position of the next token."""
        return self.blocks[0].own.length

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` what row ``rows[i]`` was; rows may be repeated or left out."""
        for block in self.blocks:
            block.reorder(rows)
        self.context = None if self.context is None else self.context[rows]
        self.context_real = None if self.context_real is None else self.context_real[rows]


class TransformerBlock(nn.Module):
    """Attention, attention to another sequence where wanted, and a feed-forward block, each added to the stream.

    ``order="pre"``: ``x + f(norm(x))``, which trains without warm-up and wants a norm after the last block;
    ``order="post"``: ``norm(x + f(x))``, as in the first transformer.
    Source: Vaswani et al., arXiv 1706.03762; the order: Xiong et al., arXiv 2002.04745.

    Args:
        width: ``D``.
        heads: of attention.
        causal: a position sees only itself and those before it (decoder).
        cross: also look at another sequence, the ``context`` (decoder of an encoder-decoder model).
        feed_forward: name of a feed-forward block, or a module of one's own, ``(B, T, D)`` to ``(B, T, D)``.
        hidden: units of the named block; None for its default.
        norm: name of the norm, or what makes one for a width.
        eps: of the named norm.
        order: of norm and branch.
        bias: of all linear layers and layer norms.
        kv_heads: heads of keys and values; default ``heads``.
        head_width: of one head; default ``width / heads``.
        context_width: of the other sequence; default ``width``.
        qk_norm: RMS norm of queries and keys.
        scale: factor on the scores; default ``1 / sqrt(head_width)``.
        branch: makes a module that each branch passes through before it is added: stochastic depth, layer scale.

    >>> import torch
    >>> block = TransformerBlock(32, heads=4, causal=True, cross=True)
    >>> block(torch.zeros(2, 5, 32), context=torch.zeros(2, 7, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = False,
        cross: bool = False,
        feed_forward: FeedForwardName | nn.Module = "gelu",
        hidden: int | None = None,
        norm: NormName | Callable[[int], nn.Module] = "layer",
        eps: float = 1e-5,
        order: Order = "pre",
        bias: bool = True,
        kv_heads: int | None = None,
        head_width: int | None = None,
        context_width: int | None = None,
        qk_norm: bool = False,
        scale: float | None = None,
        branch: Callable[[], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()

        def make_norm() -> nn.Module:
            return norm(width) if callable(norm) else sequence_norm(norm, width, eps, bias)

        self.order = order
        self.attention_norm = make_norm()
        self.attention = Attention(
            width, heads, kv_heads=kv_heads, causal=causal, bias=bias, head_width=head_width, qk_norm=qk_norm,
            scale=scale,
        )  # fmt: skip
        self.attention_branch = nn.Sequential(nn.Dropout(0.0), branch())
        self.cross: Attention | None = None
        if cross:
            self.cross_norm = make_norm()
            self.cross = Attention(
                width, heads, kv_heads=kv_heads, bias=bias, head_width=head_width, context_width=context_width,
                qk_norm=qk_norm, scale=scale,
            )  # fmt: skip
            self.cross_branch = nn.Sequential(nn.Dropout(0.0), branch())
        self.feed_forward_norm = make_norm()
        self.feed_forward = _feed_forward(feed_forward, width, hidden, bias)
        self.feed_forward_branch = nn.Sequential(nn.Dropout(0.0), branch())

    def forward(
        self,
        x_btd: Tensor,
        *,
        real: Tensor | None = None,
        bias: Tensor | None = None,
        rotation: Rotation | None = None,
        context: Tensor | None = None,
        context_real: Tensor | None = None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """``(B, T, D)`` to ``(B, T, D)``.

        Args:
            x_btd: the stream.
            real: ``(B, T)`` bool (with a cache, of all positions so far), True where there is no padding.
            bias: added to the scores of the attention to the sequence itself; broadcast to ``(B, H, T, T)``.
            rotation: of :class:`Rotary`, at the positions of ``x_btd``.
            context: the other sequence, ``(B, S, context_width)``; needed by a block with ``cross``.
            context_real: ``(B, S)`` bool, True where there is no padding.
            cache: of this block.
        """
        own, other = (None, None) if cache is None else (cache.own, cache.context)
        x_btd = self._add(
            x_btd,
            self.attention_norm,
            lambda x: self.attention(x, real=real, bias=bias, rotation=rotation, cache=own),
            self.attention_branch,
        )
        cross = self.cross
        if (cross is None) != (context is None):
            raise ValueError("a block with cross=True needs a context, and one without it takes none")
        if cross is not None:
            x_btd = self._add(
                x_btd,
                self.cross_norm,
                lambda x: cross(x, context=context, real=context_real, cache=other),
                self.cross_branch,
            )
        return self._add(x_btd, self.feed_forward_norm, self.feed_forward, self.feed_forward_branch)

    def _add(self, x: Tensor, norm: nn.Module, f: Callable[[Tensor], Tensor], branch: nn.Module) -> Tensor:
        y: Tensor = x + branch(f(norm(x))) if self.order == "pre" else norm(x + branch(f(x)))
        return y


def _feed_forward(given: FeedForwardName | nn.Module, width: int, hidden: int | None, bias: bool) -> nn.Module:
    return given if isinstance(given, nn.Module) else feed_forward(given, width, hidden, bias)
