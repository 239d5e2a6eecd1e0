"""Dropped attention weights and branches against masks that can be read off, and their means against no dropping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import kingpost as kp
from contract.toys import Toy
from kingpost.build.blocks.attention import Attention
from kingpost.build.blocks.stochastic_depth import StochasticDepth
from kingpost.train.assemble import assemble

WIDTH, P = 6, 0.3


def mounted(technique: kp.Technique, model: object) -> nn.Module:
    """A network with the technique, in training."""
    recipe = kp.Recipe(name="toy", data=Toy(), model=model, techniques=[technique])  # type: ignore[arg-type]
    return assemble(recipe, recipe.data.open(), torch.device("cpu")).model.train()


class Look(nn.Module):
    """An attention layer whose answer is its weights: values and output are the identity, and so is what it sees."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = Attention(WIDTH, heads=1, bias=False)
        self.head = nn.LazyLinear(3)
        with torch.no_grad():
            for layer in (self.attention.value, self.attention.out):
                layer.weight.copy_(torch.eye(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Scores that nobody looks at."""
        y: Tensor = self.head(self.attention(x.flatten(1)[:, : WIDTH * WIDTH].view(-1, WIDTH, WIDTH)).flatten(1))
        return y

    def weights(self, samples: int) -> Tensor:
        """What each of ``WIDTH`` positions looks at, ``(samples, WIDTH, WIDTH)``."""
        found: Tensor = self.attention(torch.eye(WIDTH).expand(samples, WIDTH, WIDTH)).detach()
        return found


def test_attention_weights_are_dropped_one_by_one_and_keep_their_mean() -> None:
    model = Look()
    model(torch.zeros(2, 1, 8, 8))  # gives the lazy layer its shape
    look = mounted(kp.AttentionDropout(p=P), model)
    assert isinstance(look, Look)
    whole = look.eval().weights(1)
    torch.testing.assert_close(whole.sum(-1), torch.ones(1, WIDTH))
    n = 4000
    dropped = look.train().weights(n)
    kept = dropped > 0
    # 1e-5: the fused kernel works in 32 bits.
    torch.testing.assert_close(dropped, torch.where(kept, whole / (1 - P), 0.0), rtol=1e-5, atol=1e-6)
    share, deviation = kept.double().mean(0), math.sqrt(P * (1 - P) / n)
    assert float((share - (1 - P)).abs().max()) < 5 * deviation  # five standard errors of a share of n draws
    pairs = torch.corrcoef(kept.double().flatten(1).T).fill_diagonal_(0)
    assert float(pairs.abs().max()) < 5 / math.sqrt(n), "weights are dropped independently"


def test_branches_are_dropped_more_the_deeper_they_are() -> None:
    model = mounted(kp.StochasticDepthRule(p=P), {"name": "resnet", "depth": 3, "width": 4})
    drops = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    assert [drop.p for drop in drops] == pytest.approx([P * (i + 1) / len(drops) for i in range(len(drops))], rel=1e-12)
    n, last = 4000, drops[-1]
    y = last(torch.ones(n, 2, 1, 1)).flatten(1)
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1 / (1 - P)))} and torch.equal(y[:, 0], y[:, 1])
    share = float((y[:, 0] == 0).double().mean())
    assert abs(share - P) < 5 * math.sqrt(P * (1 - P) / n)  # five standard errors


def test_transformer_blocks_get_a_drop_at_the_end_of_each_branch() -> None:
    model = mounted(kp.StochasticDepthRule(p=P), {"name": "vit", "depth": 2, "width": 8, "patch": 4})
    rates = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([P / 4, P / 2, 3 * P / 4, P], rel=1e-12)  # rounding of one product
    x = torch.randn(2, 1, 8, 8)
    plain = mounted(kp.StochasticDepthRule(p=0.0), {"name": "vit", "depth": 2, "width": 8, "patch": 4})
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=0)
