"""Contrasts, adapters, probes and alignment against their definitions, written out slowly, or a published library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from kingpost.errors import RecipeError
from kingpost.train.pretrain.contrast import nt_xent, vicreg_loss
from kingpost.train.pretrain.views import jittered, resized_crop, stretched, swapped
from kingpost.train.probe import cka, linear_probe, ridge
from kingpost.train.transfer.freeze import StillBatchNorm2d, freeze, named_by
from kingpost.train.transfer.lora import LoRAConv1x1, LoRALinear, add_lora, merge_lora
from kingpost.train.transfer.unfreezing import layer_groups, waiting

CLOSE = 1e-12  # 64 bits, sums of a few dozen terms


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float) -> float:
    """Equation 1 of arXiv 2002.05709, one pair after another; the mean of both directions, summed over samples."""
    z = [row / row.norm() for row in torch.cat([a, b])]
    n, total = len(a), 0.0
    for i in range(2 * n):
        others = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * n) if k != i)
        partner = i + n if i < n else i - n
        total -= math.log(math.exp(float(z[i] @ z[partner]) / temperature) / others)
    return total / 2


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_nt_xent_equals_its_definition(temperature: float) -> None:
    a, b = draws(5, 4), draws(5, 4, seed=1)
    assert float(nt_xent(a, b, temperature)) == pytest.approx(slow_nt_xent(a, b, temperature), abs=CLOSE)
    assert float(nt_xent(3 * a, b, temperature)) == pytest.approx(float(nt_xent(a, b, temperature)), abs=CLOSE)


def test_nt_xent_of_equal_embeddings_is_the_logarithm_of_all_others() -> None:
    same = torch.ones(6, 3)
    assert float(nt_xent(same, same, 0.5)) == pytest.approx(6 * math.log(11), abs=CLOSE)


def test_vicreg_equals_its_three_terms_in_numpy() -> None:
    a, b = draws(7, 3), 0.3 * draws(7, 3, seed=1)
    x, y = a.numpy(), b.numpy()
    s = ((x - y) ** 2).mean()
    v = sum(np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean() for z in (x, y))
    c = sum((np.cov(z.T) ** 2).sum() - (np.diag(np.cov(z.T)) ** 2).sum() for z in (x, y)) / 3
    for factors in ((25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        wanted = factors[0] * s + factors[1] * v + factors[2] * c
        assert float(vicreg_loss(a, b, *factors)) == pytest.approx(wanted, abs=1e-10)


def test_vicreg_of_collapsed_embeddings_is_the_variance_term() -> None:
    same = torch.full((4, 2), 3.0)
    assert float(vicreg_loss(same, same)) == pytest.approx(2 * 25 * (1 - 0.01), abs=CLOSE)  # std is sqrt(1e-4)


def test_views_that_change_nothing_are_the_sample() -> None:
    x, middle = draws(3, 2, 6, 8), torch.full((3, 5), 0.5)
    assert torch.allclose(resized_crop(x, middle, 1.0, 0.0), x, atol=CLOSE)
    assert torch.allclose(resized_crop(x, middle, 1.0, 1.0), x.flip(3), atol=CLOSE)
    assert torch.allclose(jittered(x, torch.rand(3, 2), 0.0), x, atol=CLOSE)
    series = draws(3, 9, 2)
    assert torch.allclose(stretched(series, torch.rand(3, 2), 1.0), series, atol=CLOSE)
    half = stretched(series, torch.zeros(3, 2), 0.5)  # the first half, every other step between two
    assert torch.allclose(half[:, ::2], series[:, :5], atol=CLOSE)
    assert torch.allclose(half[:, 1::2], (series[:, :4] + series[:, 1:5]) / 2, atol=CLOSE)
    assert torch.equal(swapped(x, torch.tensor([1, 2, 0]), torch.rand(x.shape), 0.0), x)


@pytest.mark.parametrize("shape", [(40, 5), (8, 30)], ids=["samples", "features"])
def test_cka_of_the_same_features_is_one_and_does_not_see_turns_or_scale(shape: tuple[int, int]) -> None:
    x, y = draws(*shape), draws(*shape, seed=3) + draws(*shape)
    turn = torch.linalg.qr(draws(shape[1], shape[1], seed=2))[0]
    assert cka(x, x) == pytest.approx(1, abs=CLOSE)
    assert cka(x, -7 * x @ turn + 4) == pytest.approx(1, abs=CLOSE)
    assert cka(x @ turn, y) == pytest.approx(cka(x, y), abs=CLOSE)
    assert cka(x, y) == pytest.approx(cka(y, x), abs=CLOSE) and cka(x, y) < 0.99


def test_cka_equals_hsic_with_centring_matrices() -> None:
    x, y = draws(12, 4), draws(12, 3, seed=1)
    h = torch.eye(12) - torch.full((12, 12), 1 / 12)

    def hsic(k: torch.Tensor, m: torch.Tensor) -> float:
        return float(torch.trace(k @ h @ m @ h))

    k, m = x @ x.T, y @ y.T
    assert cka(x, y) == pytest.approx(hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m)), abs=CLOSE)


@pytest.mark.parametrize("shape", [(30, 5), (10, 25)], ids=["samples", "features"])
def test_ridge_equals_scikit_learn(shape: tuple[int, int]) -> None:
    from sklearn.linear_model import Ridge

    x, y = draws(*shape), draws(shape[0], 2, seed=1)
    w, b = ridge(x, y, 0.7)
    theirs = Ridge(alpha=0.7).fit(x.numpy(), y.numpy())
    assert np.allclose(w.T.numpy(), theirs.coef_, atol=1e-10) and np.allclose(b.numpy(), theirs.intercept_, atol=1e-10)


def test_linear_probe_equals_scikit_learn() -> None:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    x, y = draws(60, 6), torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(1))
    x[:, 0] += y
    other, wanted = x[40:], y[40:]
    scaler = StandardScaler().fit(x[:40].numpy())
    model = RidgeClassifier(alpha=40 * 0.1).fit(scaler.transform(x[:40].numpy()), y[:40].numpy())
    theirs = model.score(scaler.transform(other.numpy()), wanted.numpy())
    assert linear_probe((x[:40], y[:40]), (other, wanted), 3, strengths=[0.1]) == pytest.approx(theirs, abs=CLOSE)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(5 * 4, 7), nn.Tanh(), nn.Linear(7, 3, bias=False),
    )  # fmt: skip


def test_adapters_that_begin_change_nothing_and_merged_ones_give_the_same() -> None:
    model, x = net().eval(), draws(4, 2, 4, 4)
    before, names = model(x), [name for name, _ in model.named_parameters()]
    assert add_lora(model, ("*",), rank=2, alpha=3.0) == ["2", "5", "7"]
    assert isinstance(model[2], LoRAConv1x1) and isinstance(model[5], LoRALinear)
    assert torch.equal(model(x), before)  # B is zero
    for name, p in model.named_parameters():
        if "lora_up" in name:
            nn.init.normal_(p)
    adapted = model(x)
    assert not torch.allclose(adapted, before)
    w = model[5].weight + 1.5 * model[5].lora_up @ model[5].lora_down
    assert torch.allclose(model[5](torch.ones(20)), w @ torch.ones(20) + model[5].bias, atol=CLOSE)
    merged = merge_lora(model)
    assert [name for name, _ in merged.named_parameters()] == names
    assert type(merged[2]) is nn.Conv2d and type(merged[5]) is nn.Linear
    assert torch.allclose(merged(x), adapted, atol=CLOSE)


@pytest.mark.parametrize(("rank", "alpha"), [(0, 8.0), (2, 0.0)])
def test_adapters_of_no_rank_or_no_strength_are_the_identity(rank: int, alpha: float) -> None:
    model, x = net().eval(), draws(4, 2, 4, 4)
    before = model(x)
    add_lora(model, ("*",), rank, alpha)
    for name, p in model.named_parameters():
        if "lora_up" in name:
            nn.init.ones_(p)
    assert (rank == 0) == (not any("lora" in name for name, _ in model.named_parameters()))
    assert torch.equal(model(x), before)
    assert torch.equal(merge_lora(model)(x), before)


def test_frozen_batch_norms_keep_their_statistics() -> None:
    model = net()
    freeze(model, ["1"])
    assert type(model[1]) is StillBatchNorm2d
    before = {name: b.clone() for name, b in model.named_buffers()}
    x = draws(4, 2, 4, 4)
    model.train()
    inside = model[0](x)
    assert torch.equal(model[1](inside), net().eval()[1](inside))  # running statistics, in training too
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    other = net().train()
    freeze(other, ["1"], norms=False)
    other(x)
    assert not torch.equal(other[1].running_mean, before["1.running_mean"])


def test_patterns_name_parameters_and_modules_and_never_nothing() -> None:
    names = ["stem.weight", "stages.0.weight", "stages.10.weight", "head.bias"]
    assert named_by(names, ["stages.1*"]) == {"stages.10.weight"}
    assert named_by(names, ["stages"]) == {"stages.0.weight", "stages.10.weight"}
    with pytest.raises(RecipeError, match=r"'stage' matches no parameter; did you mean 'stages.0'"):
        named_by(names, ["stage"])
    with pytest.raises(RecipeError, match=r"matches no linear layer or 1x1 convolution; did you mean '5'"):
        add_lora(net(), ("55",), 1, 1.0)


def test_groups_go_from_the_input_to_the_head() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 1)  # made first, used last
            self.stem, self.blocks = nn.Linear(1, 2), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    groups = layer_groups(Net())
    assert [group[0] for group in groups] == ["stem.weight", "blocks.0.weight", "blocks.1.weight", "head.weight"]


def test_groups_join_at_equal_distances() -> None:
    assert [waiting(5, step, 100, 0.4) for step in (0, 9, 10, 19, 20, 39, 40, 99)] == [4, 4, 3, 3, 2, 1, 0, 0]
    assert [waiting(2, step, 3, 1.0) for step in range(3)] == [1, 1, 1]
    assert waiting(3, 0, 10, 0.0) == 0
