"""Attention, positions, feed-forward and transformer blocks against slow twins and closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kingpost.build.blocks.attention import Attention, KVCache
from kingpost.build.blocks.feed_forward import GATED, PLAIN, feed_forward, gated_hidden
from kingpost.build.blocks.positions import LearnedPositions, RelativeBias, Rotary, SinusoidalPositions, alibi, rotate
from kingpost.build.blocks.transformer import DecoderCache, TransformerBlock, sequence_norm

# Two ways to add up the same few dozen numbers around 1, in 64 bits.
ROUNDING = 1e-13


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING)


def naive(attention: Attention, x: Tensor, seen: Tensor, context: Tensor | None = None) -> Tensor:
    """Attention of one sequence, score by score; ``seen[i, j]`` says whether query i may look at key j."""
    context = x if context is None else context
    q, k, v = attention.query(x), attention.key(context), attention.value(context)
    d = q.shape[1] // attention.heads
    group = attention.heads // attention.kv_heads
    scale = attention.scale or 1 / math.sqrt(d)
    rows = []
    for i in range(len(x)):
        heads = []
        for h in range(attention.heads):
            mine, shared = slice(h * d, (h + 1) * d), slice(h // group * d, (h // group + 1) * d)
            query = attention.query_norm(q[i, mine])
            total, weight = torch.zeros(d), torch.zeros(())
            for j in range(len(context)):
                if seen[i, j]:
                    w = (query @ attention.key_norm(k[j, shared]) * scale).exp()
                    total, weight = total + w * v[j, shared], weight + w
            heads.append(total / weight if weight > 0 else total)
        rows.append(attention.out(torch.cat(heads)))
    return torch.stack(rows)


@pytest.mark.parametrize("t", [1, 5])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"heads": 1},
        {"heads": 3, "bias": False},
        {"heads": 4, "kv_heads": 2},
        {"heads": 4, "kv_heads": 1, "qk_norm": True},
        {"heads": 2, "head_width": 5, "scale": 0.1},
    ],
    ids=str,
)
def test_attention_equals_a_naive_twin(options: dict[str, Any], causal: bool, t: int) -> None:
    torch.manual_seed(0)
    attention, x = Attention(12, causal=causal, **options), numbers(2, t, 12)
    seen = torch.ones(t, t).tril() if causal else torch.ones(t, t)
    same(attention(x), torch.stack([naive(attention, row, seen) for row in x]))


def test_attention_to_another_sequence_of_another_width() -> None:
    torch.manual_seed(0)
    attention, x, other = Attention(12, 3, context_width=7), numbers(2, 4, 12), numbers(2, 6, 7, seed=1)
    real = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0]]).bool()
    expected = [naive(attention, x[b], real[b].expand(4, 6), other[b]) for b in range(2)]
    same(attention(x, context=other, real=real), torch.stack(expected))


@pytest.mark.parametrize("causal", [True, False])
def test_padding_and_bias_equal_a_naive_twin(causal: bool) -> None:
    torch.manual_seed(0)
    attention, x = Attention(12, 3, causal=causal), numbers(2, 5, 12)
    real = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]]).bool()
    order = torch.ones(5, 5).tril().bool() if causal else torch.ones(5, 5).bool()
    expected = torch.stack([naive(attention, x[b], real[b] & order) for b in range(2)])
    same(attention(x, real=real), expected)
    forbidden = torch.zeros(2, 1, 5, 5).masked_fill(~real[:, None, None], -math.inf)
    same(attention(x, bias=forbidden), expected)
    slope = numbers(3, 5, 5)  # an additive bias changes the weights by exp(slope), whatever the mask
    q, k, v = (f(x).view(2, 5, 3, 4).transpose(1, 2) for f in (attention.query, attention.key, attention.value))
    weights = ((q @ k.mT) / 2 + slope).exp() * (real[:, None, None] & order)
    shares = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    same(attention(x, real=real, bias=slope), attention.out((shares @ v).transpose(1, 2).flatten(2)))


def test_a_query_that_sees_nothing_gets_the_bias_and_finite_gradients() -> None:
    attention = Attention(12, 3)
    x = numbers(2, 5, 12).requires_grad_()
    y = attention(x, real=torch.tensor([[True] * 5, [False] * 5]))
    same(y[1], attention.out.bias.expand(5, 12))
    y.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_a_causal_block_does_not_see_the_future() -> None:
    block, x = TransformerBlock(12, 3, causal=True), numbers(2, 6, 12).requires_grad_()
    for real in (None, torch.ones(2, 6).bool()):
        for t in range(6):
            (g,) = torch.autograd.grad(block(x, real=real)[:, t].square().sum(), x)
            reached = g.abs().amax((0, 2))
            assert not reached[t + 1 :].any(), t
            assert bool((reached[: t + 1] > 0).all()), t


@pytest.mark.parametrize("causal", [True, False])
def test_padding_does_not_change_results(causal: bool) -> None:
    torch.manual_seed(0)
    block, x = TransformerBlock(12, 3, causal=causal, cross=True), numbers(1, 4, 12)
    context = numbers(1, 3, 12, seed=1)
    alone = block(x, context=context)
    longer, wider = torch.cat((x, numbers(1, 2, 12, seed=2)), 1), torch.cat((context, numbers(1, 5, 12, seed=3)), 1)
    real, other = torch.arange(6)[None] < 4, torch.arange(8)[None] < 3
    same(block(longer, real=real, context=wider, context_real=other)[:, :4], alone)


@pytest.mark.parametrize("pieces", [[1] * 6, [4, 1, 1], [2, 3, 1], [6]], ids=str)
@pytest.mark.parametrize("kv_heads", [None, 2])
def test_with_a_cache_the_pieces_are_the_whole(pieces: list[int], kv_heads: int | None) -> None:
    torch.manual_seed(0)
    block, turn = TransformerBlock(16, 4, causal=True, cross=True, kv_heads=kv_heads), Rotary(4)
    x, context, real = numbers(2, 6, 16), numbers(2, 3, 16, seed=1), torch.ones(2, 3).bool()
    real[1, 2] = False
    own_real = torch.ones(2, 6).bool()
    own_real[1, 0] = False  # padding on the left
    whole = block(x, real=own_real, rotation=turn(torch.arange(6)), context=context, context_real=real)
    cache, done = DecoderCache.empty(1, 6, context, real), []
    for piece in x.split(pieces, 1):
        a, b = cache.length, cache.length + piece.shape[1]
        where = turn(torch.arange(a, b))
        done.append(
            block(
                piece, real=own_real[:, :b], rotation=where, context=cache.context, context_real=cache.context_real,
                cache=cache.blocks[0],
            )
        )  # fmt: skip
    same(torch.cat(done, 1), whole)


def test_a_cache_reorders_its_rows_and_refuses_more_than_it_holds() -> None:
    cache = KVCache(3)
    keys, values = numbers(2, 1, 2, 4), numbers(2, 1, 2, 4, seed=1)
    cache.extend(keys, values)
    cache.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(cache.kept()[0], keys[[1, 1, 0]])
    assert torch.equal(cache.kept()[1], values[[1, 1, 0]])
    with pytest.raises(ValueError, match="a cache for 3 positions holds 2 and cannot take 2 more"):
        cache.extend(keys, values)


def test_reordering_a_decoder_goes_on_as_if_the_rows_had_always_stood_there() -> None:
    torch.manual_seed(0)
    block, x, context = TransformerBlock(12, 3, causal=True, cross=True), numbers(2, 4, 12), numbers(2, 3, 12, seed=1)
    rows = torch.tensor([1, 0, 1])
    cache = DecoderCache.empty(1, 4, context, torch.ones(2, 3).bool())
    block(x[:, :3], context=cache.context, context_real=cache.context_real, cache=cache.blocks[0])
    cache.reorder(rows)
    assert cache.context is not None and cache.context.shape[0] == 3
    last = block(x[rows, 3:], context=cache.context, context_real=cache.context_real, cache=cache.blocks[0])
    same(last, block(x, context=context)[rows, 3:])


def test_errors_of_attention() -> None:
    with pytest.raises(ValueError, match="5 heads do not divide a width of 12"):
        Attention(12, 5)
    with pytest.raises(ValueError, match="2 heads of keys and values do not divide 3 heads of queries"):
        Attention(12, 3, kv_heads=2)
    with pytest.raises(ValueError, match="rotary positions are for attention within one sequence"):
        Attention(12, 3)(numbers(1, 2, 12), context=numbers(1, 2, 12), rotation=Rotary(4)(torch.arange(2)))
    with pytest.raises(ValueError, match="a block with cross=True needs a context"):
        TransformerBlock(12, 3, cross=True)(numbers(1, 2, 12))
    with pytest.raises(ValueError, match="a block with cross=True needs a context"):
        TransformerBlock(12, 3)(numbers(1, 2, 12), context=numbers(1, 2, 12))
    with pytest.raises(ValueError, match="head width is turned or waved in pairs, so it must be even, got 5; use 6"):
        Rotary(5)
    with pytest.raises(ValueError, match="power of two of heads, got 6"):
        alibi(6, torch.arange(2), torch.arange(2))
    with pytest.raises(ValueError, match="unknown feed-forward block 'gellu'"):
        feed_forward("gellu", 8)  # type: ignore[arg-type]


def test_dropout_of_attention_weights_follows_its_module() -> None:
    attention, x = Attention(12, 3), numbers(2, 5, 12)
    plain = attention(x)
    attention.drop.p = 0.5
    assert not torch.allclose(attention(x), plain)
    same(attention.eval()(x), plain)


def test_sinusoids_are_those_of_the_paper() -> None:
    got = SinusoidalPositions(6)(torch.arange(50))
    for p in (0, 1, 7, 49):
        for i in range(3):
            angle = p / 10_000 ** (2 * i / 6)
            assert float(got[p, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-14)
            assert float(got[p, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-14)
    products = got @ got.T  # a shift turns every wave by the same angle, so products know only the distance
    same(products[3:, 3:], products[:-3, :-3])


def test_rotary_is_a_complex_product_and_its_scores_know_only_the_distance() -> None:
    x, where = numbers(2, 3, 9, 8), torch.arange(9)
    turned = rotate(x, Rotary(8, base=100.0)(where))
    angles = where[:, None] * 100.0 ** -(torch.arange(4) / 4)
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(9, 4), angles)
    same(turned, torch.cat((expected.real, expected.imag), -1))
    same(turned.norm(dim=-1), x.norm(dim=-1))
    q, k = numbers(1, 1, 1, 8), numbers(1, 1, 1, 8, seed=1)
    scores = rotate(q.expand(1, 1, 9, 8), Rotary(8)(where)) @ rotate(k.expand(1, 1, 9, 8), Rotary(8)(where)).mT
    for distance in range(-8, 9):
        diagonal = scores[0, 0].diagonal(distance)
        same(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores.std() > 0.1  # and they do know it
    own = Rotary(8)(torch.tensor([[0, 1], [5, 6]]))  # positions of each sequence its own
    same(rotate(x[:, :, :2], own)[1], rotate(x[1:, :, :2], Rotary(8)(torch.tensor([5, 6])))[0])


def test_angles_keep_32_bits_in_half_precision() -> None:
    half, full = (Rotary(8)(torch.arange(4000), dtype)[0] for dtype in (torch.bfloat16, torch.float64))
    assert half.dtype == torch.float32
    # An angle of 4000 in 32 bits is off by at most 2^-13, as is its cosine; 8 bits would be off by 16.
    torch.testing.assert_close(half.double(), full, rtol=0, atol=3e-4)
    assert rotate(numbers(1, 1, 4000, 8).bfloat16(), Rotary(8)(torch.arange(4000))).dtype == torch.bfloat16


def test_buckets_of_relative_bias() -> None:
    both, past = RelativeBias(2, 32, 128), RelativeBias(2, 32, 128, both_ways=False)
    distance = torch.arange(-400, 401)
    bucket, back = both.bucket(distance), past.bucket(distance)
    assert bucket[400 - 7 : 401].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]  # one bucket for each near distance
    assert bucket[401:].tolist() == (bucket[:400].flip(0) + 16).tolist()  # the other direction has the other half
    assert set(bucket.tolist()) == set(range(32)) - {16}  # a distance of +0 does not exist
    assert bool((bucket[:401].diff() <= 0).all())
    assert bool((bucket[: 400 - 127] == 15).all())
    assert back[400:].eq(0).all() and back[400 - 15 : 401].tolist() == list(range(15, -1, -1))
    assert set(back.tolist()) == set(range(32))
    bias = both(torch.arange(3, 5), torch.arange(9))  # positions that start elsewhere, as with a cache
    same(bias, both(torch.arange(5), torch.arange(9))[:, 3:])


def test_alibi_slopes_are_those_of_the_paper() -> None:
    bias = alibi(8, torch.arange(4), torch.arange(4))
    assert bias[:, 3, 2].tolist() == [-(0.5**h) for h in range(1, 9)]
    same(bias[:, 3], bias[:, 3, 2:3] * torch.tensor([3.0, 2.0, 1.0, 0.0]))


def test_learned_positions_are_a_table() -> None:
    table = LearnedPositions(5, 4)
    assert torch.equal(table(torch.tensor([3, 1])), table.weight[[3, 1]])


GATES = {
    "glu": torch.sigmoid,
    "swiglu": F.silu,
    "geglu": F.gelu,
    "geglu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "reglu": F.relu,
}
BENDS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu-tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + (-x).exp()),
    "relu-squared": lambda x: x.clamp(min=0) ** 2,
}


@pytest.mark.parametrize("name", [*PLAIN, *GATED])
@pytest.mark.parametrize("bias", [True, False])
def test_feed_forward_blocks_are_their_equation(name: Any, bias: bool) -> None:
    torch.manual_seed(0)
    block, x = feed_forward(name, 12, bias=bias), numbers(2, 3, 12)

    def line(layer: nn.Linear, x: Tensor) -> Tensor:
        return x @ layer.weight.T + (layer.bias if bias else 0)

    inner = GATES[name](line(block.gate, x)) * line(block.up, x) if name in GATES else BENDS[name](line(block.up, x))
    same(block(x), line(block.down, inner))
    assert block.up.out_features == (32 if name in GATES else 48)


def test_a_gated_block_has_about_as_many_parameters_as_a_plain_one() -> None:
    for width in (64, 100, 768, 4096):
        plain, gated = 2 * width * 4 * width, 3 * width * gated_hidden(width)
        assert 0 <= gated - plain <= 3 * width * 8  # rounded up to a multiple of 8
    assert feed_forward("swiglu", 8, hidden=11).up.out_features == 11


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_block_is_its_branches(order: Any, norm: Any) -> None:
    torch.manual_seed(0)
    block, x, other = TransformerBlock(12, 3, cross=True, order=order, norm=norm), numbers(2, 4, 12), numbers(2, 5, 12)

    def standard(x: Tensor, layer: nn.Module) -> Tensor:
        centred = x - x.mean(-1, keepdim=True) if norm == "layer" else x
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()  # gains 1, shifts 0 at the start

    y = x
    for layer, f in (
        (block.attention_norm, block.attention),
        (block.cross_norm, lambda z: block.cross(z, context=other)),
        (block.feed_forward_norm, block.feed_forward),
    ):
        y = y + f(standard(y, layer)) if order == "pre" else standard(y + f(y), layer)
    same(block(x, context=other), y)


def test_each_branch_passes_through_the_module_that_is_given() -> None:
    class Off(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x

    x = numbers(2, 4, 12)
    block = TransformerBlock(12, 3, cross=True, branch=Off)
    assert sum(isinstance(module, Off) for module in block.modules()) == 3
    assert torch.equal(block(x, context=x), x)
    own = nn.Linear(12, 12)
    assert TransformerBlock(12, 3, feed_forward=own).feed_forward is own
    norm = TransformerBlock(12, 3, norm=lambda width: nn.GroupNorm(1, width)).attention_norm
    assert isinstance(norm, nn.GroupNorm)
    assert sequence_norm("layer", 8, bias=False).bias is None


def variety(dtype: torch.dtype) -> tuple[TransformerBlock, dict[str, Any]]:
    """A block with all that could trip a compiler or half precision."""
    torch.manual_seed(0)
    block = TransformerBlock(16, 4, causal=True, kv_heads=2, qk_norm=True, norm="rms", feed_forward="swiglu")
    return block.to(dtype), {
        "real": torch.arange(5)[None] < torch.tensor([[5], [3]]),
        "rotation": Rotary(4)(torch.arange(5), dtype),
    }


def test_export_and_compile_give_the_same_numbers() -> None:
    block, more = variety(torch.float64)
    x = numbers(2, 5, 16)
    program = torch.export.export(block, (x,), more, strict=False)
    same(program.module()(x, **more), block(x, **more))
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    same(compiled(x, **more), block(x, **more))
    torch.compiler.reset()


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision(autocast: bool) -> None:
    block, more = variety(torch.float32 if autocast else torch.bfloat16)
    x = numbers(2, 5, 16).float()
    full = variety(torch.float32)[0](x, **more)
    cache = DecoderCache.empty(1, 5).blocks[0]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        half = block(x if autocast else x.bfloat16(), cache=cache, **more)
    # 8 bits a product, a dozen products one after another; values are around 1.
    torch.testing.assert_close(half.float(), full, rtol=0, atol=0.1)
