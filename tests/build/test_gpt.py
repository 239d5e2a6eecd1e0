"""GPT: counts, causality, the start, the dial, and generation with a cache."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kingpost.build.blocks.transformer import DecoderCache
from kingpost.build.nets.gpt import GPT, GPTNet
from kingpost.errors import RecipeError
from kingpost.net import token_facts

LLAMA: dict[str, Any] = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "bias": False, "tied": False}
VARIETIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": LLAMA,
    "llama, shared keys": {**LLAMA, "kv_heads": 2},
    "sinusoidal, normed queries": {"positions": "sinusoidal", "qk_norm": True, "feed_forward": "relu-squared"},
    "no positions, scale 1/d": {"positions": "none", "kv_heads": 1, "scale": 0.25, "tied": False},
}
each_variety = pytest.mark.parametrize("name", VARIETIES)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def tokens(b: int, t: int, vocabulary: int = 13) -> Tensor:
    return torch.randint(0, vocabulary, (b, t), generator=torch.Generator().manual_seed(0))


def net(name: str, context: int = 8, depth: int = 2) -> GPTNet:
    torch.manual_seed(0)
    model = GPTNet(13, context=context, depth=depth, width=16, heads=4, **VARIETIES[name])
    for p in model.parameters():  # away from the start, where a position hardly matters
        nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("size", [name for name, size in GPT.sizes.items() if size.parameters])
def test_published_parameter_counts(size: str) -> None:
    named = GPT.sizes[size]
    with torch.device("meta"):
        model = GPT(size=size).make(named.data, named.data.vocabulary)  # type: ignore[arg-type]
    assert count(model) == named.parameters


@pytest.mark.parametrize("depth", [1, 3])
def test_parameter_count_in_closed_form(depth: int) -> None:
    v, t, d, f = 13, 8, 16, 48
    block = 4 * (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 2 * 2 * d
    assert count(net("gpt2", t, depth)) == v * d + t * d + depth * block + 2 * d  # the head is the embedding again
    block = 2 * d * d + 2 * d * d // 2 + 3 * d * f + 2 * d
    assert count(net("llama, shared keys", t, depth)) == 2 * v * d + depth * block + d


def from_embeddings(model: GPTNet, x: Tensor) -> Tensor:
    """The scores as a function of what the first block sees."""
    rotation = model.positions(torch.arange(x.shape[1])) if isinstance(model.positions, nn.Module) else None
    for block in model.blocks:
        x = block(x, rotation=rotation if isinstance(rotation, tuple) else None)
    return model.head(model.norm(x))


@each_variety
def test_it_does_not_see_the_future(name: str) -> None:
    """The gradient of what is said at position t with respect to what stands at later positions is zero."""
    model = net(name)
    entered: list[Tensor] = []
    handle = model.blocks[0].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    expected = model(tokens(2, 8))
    handle.remove()
    x = entered[0].detach().requires_grad_()
    assert torch.equal(from_embeddings(model, x), expected)
    for t in range(8):
        (g,) = torch.autograd.grad(from_embeddings(model, x)[:, t].square().sum(), x)
        reached = g.abs().amax((0, 2))
        assert not reached[t + 1 :].any(), t
        assert bool((reached[: t + 1] > 0).all()), t


@each_variety
def test_a_prefix_gives_the_same_scores(name: str) -> None:
    model, x = net(name), tokens(2, 8)
    for t in (1, 4, 7):
        # Attention over fewer positions may add up in another order; scores are around 1.
        torch.testing.assert_close(model(x[:, :t]), model(x)[:, :t], rtol=0, atol=1e-13)


@each_variety
@pytest.mark.parametrize("pieces", [[1] * 8, [5, 1, 1, 1], [3, 4, 1]], ids=str)
def test_with_a_cache_the_pieces_are_the_whole(name: str, pieces: list[int]) -> None:
    model, x = net(name), tokens(2, 8)
    cache = model.new_cache(8)
    with torch.no_grad():
        scores = torch.cat([model.extend(piece, cache) for piece in x.split(pieces, 1)], 1)
        torch.testing.assert_close(scores, model(x), rtol=0, atol=1e-12)  # sums of a few dozen numbers around 1
    assert cache.length == 8


@pytest.mark.parametrize("name", [name for name in VARIETIES if name != "no positions, scale 1/d"])
def test_order_matters_where_there_are_positions(name: str) -> None:
    model, x = net(name), torch.tensor([[1, 2, 3], [2, 1, 3]])
    assert (model(x)[0, -1] - model(x)[1, -1]).abs().max() > 1e-3


def test_without_positions_the_last_token_sees_a_set() -> None:
    model, x = net("no positions, scale 1/d", depth=1), torch.tensor([[1, 2, 3], [2, 1, 3]])
    torch.testing.assert_close(model(x)[0, -1], model(x)[1, -1], rtol=0, atol=1e-13)  # the same sum, another order


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_it_starts_near_chance_and_with_a_quiet_residual_stream(style: Any) -> None:
    torch.manual_seed(0)
    model = GPT(style=style, depth=4, width=64, heads=4).make(token_facts(65, 32), 65)
    x = tokens(8, 33, 65)
    loss = float(F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).detach())
    # Scores of a normed stream times an embedding of 0.02: standard deviation 0.02 sqrt(64) = 0.16, which costs
    # about 0.16^2 / 2 = 0.013 nats.
    assert loss == pytest.approx(math.log(65), abs=0.06)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            writes = "attention.out" in name or "feed_forward.down" in name
            std = 0.02 / math.sqrt(8) if writes else 0.02
            # The standard error of a deviation is std / sqrt(2 n), n at least 2,048: five of them are 8 %.
            assert float(p.detach().std()) == pytest.approx(std, rel=0.08), name
        elif name.endswith("bias"):
            assert not p.any(), name


@pytest.mark.parametrize("name", ["gpt2", "llama, shared keys"])
def test_export_compile_and_copy_give_the_same_numbers(name: str) -> None:
    model, x = net(name).eval(), tokens(2, 8)
    program = torch.export.export(model, (x,), strict=False)
    # The same operations, some of them decomposed; scores are around 1.
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-12)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-12)
    torch.compiler.reset()
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_a_feed_forward_of_ones_own_for_each_block() -> None:
    made = [nn.Linear(16, 16), nn.Identity()]
    model = GPTNet(13, context=8, depth=2, width=16, heads=4, feed_forward=lambda index: made[index])
    assert [block.feed_forward for block in model.blocks] == made
    assert model(tokens(2, 8)).shape == (2, 8, 13)


def figures(option: GPT) -> dict[str, Any]:
    return {figure.name: figure.value for figure in option.derived(token_facts(65, 32))}


def test_one_dial() -> None:
    assert figures(GPT(depth=3)) == {
        "model.width": 192, "model.heads": 3, "model.hidden": 768, "model.context": 32
    }  # fmt: skip
    assert figures(GPT(width=320))["model.depth"] == 5
    assert figures(GPT())["model.depth"] == 2
    assert figures(GPT(style="llama", width=96))["model.hidden"] == 256
    assert figures(GPT(size="gpt2", depth=2)) == {
        "model.width": 768, "model.heads": 12, "model.hidden": 3072, "model.context": 32
    }  # fmt: skip
    with torch.device("meta"):
        wide = GPT(depth=12).make(token_facts(50_257, 1024), 50_257)
    assert count(wide) == 124_439_808  # twelve blocks are the smallest GPT-2


def test_what_a_recipe_says_overrides_the_size_and_the_style() -> None:
    facts = token_facts(65, 32)
    model = GPT(size="nano", style="llama", positions="learned", tied=True, kv_heads=1).make(facts, 65)
    assert model.head.weight is model.tokens.weight
    assert type(model.norm).__name__ == "RMSNorm"
    assert model.blocks[0].attention.key.out_features == 16
    assert len(model.blocks) == 3
    scaled = GPT(depth=1, attention_scale="1/d").make(facts, 65).blocks[0].attention
    assert scaled.scale == 1 / (64 / scaled.heads)
    assert GPT(style="llama", depth=1, rotary_base=500.0).make(facts, 65).positions.base == 500


def test_errors_say_what_to_do() -> None:
    with pytest.raises(RecipeError, match="heads: got 5, which does not divide the width 128; use 4"):
        GPT(heads=5)
    with pytest.raises(RecipeError, match="kv_heads: got 3, which does not divide the 4 heads; use 2"):
        GPT(width=64, heads=4, kv_heads=3)
    with pytest.raises(RecipeError, match="heads: 4 heads of width 3, but rotary positions turn pairs"):
        GPT(width=12, heads=4, style="llama")
    with pytest.raises(RecipeError, match="width: got 9, but sines and cosines come in pairs; make it even"):
        GPT(width=9, heads=3, positions="sinusoidal")
    with pytest.raises(RecipeError, match="rotary_base: has no effect on learned positions; remove it"):
        GPT(rotary_base=500.0)
    with pytest.raises(RecipeError, match="size: got 'gpt3'"):
        GPT(size="gpt3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 9 tokens, but positions are learned for 8"):
        net("gpt2").extend(tokens(1, 9), DecoderCache.empty(2, 9))
