"""Attention: multi-head and grouped-query, over the sequence itself or another one, with a cache.

Legend of shapes: ``B`` sequences, ``T`` queries, ``S`` keys, ``D`` width, ``H`` heads, ``d`` width of one head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kingpost.build.blocks.norms import RMSNorm
from kingpost.build.blocks.positions import Rotation, rotate


class KVCache:
    """Keys and values of one attention layer, kept between the steps of generation.

    Args:
        capacity: positions that it has room for; memory is taken at the first use.

    >>> cache = KVCache(capacity=8)
    >>> keys, values = cache.extend(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    >>> cache.length, keys.shape
    (3, torch.Size([1, 2, 3, 4]))
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._both: Tensor | None = None  # (2, B, H, capacity, d)

    def extend(self, k_bhtd: Tensor, v_bhtd: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, the new ones at the end.

        Raises:
            ValueError: the cache is full.
        """
        b, h, t, d = k_bhtd.shape
        stop = self.length + t
        if stop > self.capacity:
            raise ValueError(f"a cache for {self.capacity} positions holds {self.length} and cannot take {t} more")
        if self._both is None:
            self._both = k_bhtd.new_empty(2, b, h, self.capacity, d)
        self._both[0, :, :, self.length : stop] = k_bhtd
        self._both[1, :, :, self.length : stop] = v_bhtd
        self.length = stop
        return self.kept()

    def kept(self) -> tuple[Tensor, Tensor]:
        """All keys and values so far, each ``(B, H, length, d)``."""
        assert self._both is not None, "nothing was put into this cache"
        keys, values = self._both[:, :, :, : self.length]
        return keys, values

    def reorder(self, rows: Tensor) -> None:
        """Make row ``i`` what row ``rows[i]`` was; rows may be repeated or left out."""
        if self._both is not None:
            self._both = self._both.index_select(1, rows)


class Attention(nn.Module):
    """``softmax(q k^T scale + bias) v`` for several heads, between two linear layers.

    Source: Vaswani et al., arXiv 1706.03762; shared keys and values: Ainslie et al. (grouped-query), arXiv
    2305.13245; normed queries and keys: Henry et al., arXiv 2010.04245.

    Args:
        width: ``D``, of queries and of the result.
        heads: ``H``.
        kv_heads: heads of keys and values, each shared by ``heads / kv_heads`` heads of queries; default ``heads``.
        causal: a position sees only itself and those before it.
        bias: of the four linear layers.
        head_width: ``d``; by default ``width / heads``.
        context_width: of the sequence that is looked at, where it is another one; default ``width``.
        qk_norm: RMS norm of queries and keys, over each head.
        scale: factor on the scores; by default ``1 / sqrt(d)``. Maximal-update parametrisation wants one that
            falls as ``1 / d`` (Yang et al., arXiv 2203.03466).

    Raises:
        ValueError: the heads do not divide the width, or ``kv_heads`` not the heads.

    >>> Attention(32, heads=4, kv_heads=2, causal=True)(torch.zeros(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        causal: bool = False,
        bias: bool = True,
        head_width: int | None = None,
        context_width: int | None = None,
        qk_norm: bool = False,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        kv_heads = kv_heads or heads
        if head_width is None and width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        if heads % kv_heads:
            raise ValueError(f"{kv_heads} heads of keys and values do not divide {heads} heads of queries")
        d = head_width or width // heads
        self.heads, self.kv_heads, self.causal, self.scale = heads, kv_heads, causal, scale
        self.query = nn.Linear(width, heads * d, bias)
        self.key = nn.Linear(context_width or width, kv_heads * d, bias)
        self.value = nn.Linear(context_width or width, kv_heads * d, bias)
        self.query_norm = RMSNorm(d, eps=1e-6) if qk_norm else nn.Identity()
        self.key_norm = RMSNorm(d, eps=1e-6) if qk_norm else nn.Identity()
        self.drop = nn.Dropout(0.0)  # of the weights; its rate is handed to the fused kernel
        self.out = nn.Linear(heads * d, width, bias)

    def forward(
        self,
        x_btd: Tensor,
        *,
        context: Tensor | None = None,
        real: Tensor | None = None,
        bias: Tensor | None = None,
        rotation: Rotation | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """``(B, T, D)`` to ``(B, T, D)``; a query that may see nothing gets the output layer's bias.

        Args:
            x_btd: what asks.
            context: what is looked at, ``(B, S, context_width)``; by default ``x_btd`` itself.
            real: ``(B, S)`` bool, True where a key is no padding.
            bias: added to the scores before the softmax (after ``scale``); broadcast to ``(B, H, T, S)``.
            rotation: of :class:`Rotary`, at the positions of ``x_btd``; not for another sequence.
            cache: of earlier positions, extended by this call; of another sequence, filled by the first call.

        Raises:
            ValueError: a rotation for another sequence, whose distances to this one mean nothing.
        """
        if context is not None and rotation is not None:
            raise ValueError("rotary positions are for attention within one sequence; leave out rotation or context")
        q_bhtd = self.query_norm(self._split(self.query(x_btd), self.heads))
        if rotation is not None:
            q_bhtd = rotate(q_bhtd, rotation)
        if context is not None and cache is not None and cache.length:
            k_bhsd, v_bhsd = cache.kept()
        else:
            seen = x_btd if context is None else context
            k_bhsd = self.key_norm(self._split(self.key(seen), self.kv_heads))
            v_bhsd = self._split(self.value(seen), self.kv_heads)
            if rotation is not None:
                k_bhsd = rotate(k_bhsd, rotation)
            if cache is not None:
                k_bhsd, v_bhsd = cache.extend(k_bhsd, v_bhsd)
        t, s = q_bhtd.shape[2], k_bhsd.shape[2]
        whole = real is None and bias is None and t == s  # then the kernel knows the causal mask by itself
        y_bhtd = F.scaled_dot_product_attention(
            q_bhtd.to(v_bhsd.dtype),
            k_bhsd.to(v_bhsd.dtype),
            v_bhsd,
            attn_mask=None if whole else self._mask(t, s, real, bias, x_btd.device),
            dropout_p=self.drop.p if self.training else 0.0,
            is_causal=self.causal and whole,
            scale=self.scale,
            enable_gqa=self.kv_heads != self.heads,
        )
        y: Tensor = self.out(y_bhtd.transpose(1, 2).flatten(2))
        return y

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """``(B, T, heads d)`` to ``(B, heads, T, d)``."""
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    def _mask(self, t: int, s: int, real: Tensor | None, bias: Tensor | None, device: torch.device) -> Tensor | None:
        """What may be seen, bool or added to the scores; broadcast to ``(B, H, T, S)``."""
        seen = None if real is None else real[:, None, None]
        if self.causal and t > 1:  # a single query is the last position, which sees all
            earlier = torch.ones(t, s, dtype=torch.bool, device=device).tril(s - t)
            seen = earlier if seen is None else seen & earlier
        if bias is None:
            return seen
        return bias if seen is None else torch.where(seen, bias, -torch.inf)
