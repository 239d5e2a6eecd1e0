"""Initialisers against closed forms and against torch.nn.init with the same generator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from contract.toys import Toy
from kingpost import seeds
from kingpost.build.initialise.weights import initialise_weights
from kingpost.build.nets.gpt import GPTNet
from kingpost.train.assemble import assemble
from reference.plain import recipe

# For nn.Linear(300, 200): variance, and the bound of the distribution if it has one.
LAW: dict[str, tuple[dict[str, Any], float, Callable[[Tensor, torch.Generator], object] | None]] = {
    "naive normal": (
        {"name": "naive-normal", "std": 0.03},
        0.03**2,
        lambda w, g: nn.init.normal_(w, std=0.03, generator=g),
    ),
    "naive uniform": (
        {"name": "naive-uniform", "bound": 0.06},
        0.06**2 / 3,
        lambda w, g: nn.init.uniform_(w, -0.06, 0.06, generator=g),
    ),
    "xavier uniform": (
        {"name": "xavier", "gain": 1.5},
        1.5**2 * 2 / (300 + 200),
        lambda w, g: nn.init.xavier_uniform_(w, gain=1.5, generator=g),
    ),
    "xavier normal": (
        {"name": "xavier", "distribution": "normal"},
        2 / (300 + 200),
        lambda w, g: nn.init.xavier_normal_(w, generator=g),
    ),
    "he normal": ({"name": "he"}, 2 / 300, lambda w, g: nn.init.kaiming_normal_(w, generator=g)),
    "he uniform": (
        {"name": "he", "distribution": "uniform"},
        2 / 300,
        lambda w, g: nn.init.kaiming_uniform_(w, generator=g),  # a = 0: the gain of ReLU
    ),
    "truncated normal": (
        {"name": "truncated-normal", "std": 0.03},
        # Of a normal cut at c: 1 - 2 c phi(c) / (2 Phi(c) - 1), here 0.7737.
        0.03**2 * (1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))),
        None,  # torch draws until it fits; ours is compared with the distribution itself
    ),
    "orthogonal": (
        {"name": "orthogonal", "gain": 1.5},
        1.5**2 / 300,  # 200 orthonormal rows of 300
        lambda w, g: nn.init.orthogonal_(w, gain=1.5, generator=g),
    ),
    "he fan_out": (
        {"name": "he", "mode": "fan_out"},
        2 / 200,
        lambda w, g: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu", generator=g),
    ),
}
UNIFORM = {"naive uniform", "xavier uniform", "he uniform"}


def set_up(model: nn.Module, technique: dict[str, Any], seed: int = 0) -> nn.Module:
    """The model with its starting weights, through the recipe."""
    made = recipe(model, initialise=technique, seed=seed)
    return assemble(made, Toy().open(), torch.device("cpu")).model


@pytest.mark.parametrize("law", LAW)
def test_variance_is_that_of_the_formula(law: str) -> None:
    technique, variance, _ = LAW[law]
    weight = set_up(nn.Sequential(nn.Linear(300, 200)), technique)[0].weight.detach()
    n = weight.numel()
    # Standard errors: sqrt(v / n) of the mean, and v sqrt((k - 1) / n) of the variance, kurtosis k 3 or 9/5 (a cut
    # normal's is between; an orthogonal matrix's variance is exact). Four each.
    kurtosis = 9 / 5 if law in UNIFORM else 3
    assert float(weight.mean()) == pytest.approx(0, abs=4 * math.sqrt(variance / n))
    assert float(weight.var()) == pytest.approx(variance, abs=4 * variance * math.sqrt((kurtosis - 1) / n))
    largest = float(weight.abs().max()) / math.sqrt(variance)
    if law == "truncated normal":
        assert 0.99 * 0.06 < largest * math.sqrt(variance) <= 0.06
    else:
        assert (largest <= math.sqrt(3)) == (law in UNIFORM)  # a uniform one ends there, 60,000 normal ones pass it


@pytest.mark.parametrize("law", LAW)
@pytest.mark.parametrize("shape", ["linear", "convolution", "transposed convolution"])
def test_equals_torch_with_the_same_generator(law: str, shape: str) -> None:
    technique, _, fill = LAW[law]
    layer = {
        "linear": lambda: nn.Linear(5, 7),
        "convolution": lambda: nn.Conv2d(4, 6, 3),
        "transposed convolution": lambda: nn.ConvTranspose1d(4, 6, 3),
    }[shape]
    model = nn.Sequential(layer())
    done = set_up(model, technique, seed=11)[0].weight.detach()
    done = done.transpose(0, 1) if shape == "transposed convolution" else done  # torch does not know that it is one
    expected = torch.empty(done.shape)
    if fill is None:
        edges = scipy.stats.truncnorm(-2, 2, scale=0.03)
        assert scipy.stats.kstest(done.flatten().numpy(), edges.cdf).pvalue > 1e-3  # one seed, drawn once
        return
    fill(expected, seeds.generator(seeds.derive(11, "initialise"), "initialise", "0.weight"))
    if law == "orthogonal":  # QR of one matrix, and of a stack of one: the same algorithm, other kernels
        torch.testing.assert_close(done, expected, rtol=0, atol=1e-14)
    elif "xavier" in law or "he" in law or "uniform" in law:  # the same factors, multiplied in another order
        torch.testing.assert_close(done, expected, rtol=1e-14, atol=0)
    else:
        assert torch.equal(done, expected)
    assert not model[0].bias.any()


def test_groups_and_gates_count_for_themselves() -> None:
    """Each output of a grouped convolution sees its group alone; each gate of an LSTM is a matrix of its own."""
    model = set_up(nn.Sequential(nn.Conv1d(64, 128, 5, groups=4)), {"name": "he", "mode": "fan_out"})
    fan_out, n = 128 / 4 * 5, 128 * 16 * 5
    # The variance of n normal numbers has a relative standard error of sqrt(2 / n). Four.
    assert float(model[0].weight.detach().var()) == pytest.approx(2 / fan_out, rel=4 * math.sqrt(2 / n))
    lstm = set_up(nn.LSTM(30, 40), {"name": "xavier", "forget_bias": 1.0})
    # Uniform: kurtosis 9/5.
    error = 4 * math.sqrt(0.8 / 4800)
    assert float(lstm.weight_ih_l0.detach().var()) == pytest.approx(2 / (30 + 40), rel=error)
    whole = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().view(4, 40)
    assert torch.equal(whole, torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None].expand(4, 40))
    orthogonal = set_up(nn.GRU(30, 40), {"name": "orthogonal"}).weight_hh_l0.detach().view(3, 40, 40)
    for gate in orthogonal:
        torch.testing.assert_close(gate @ gate.T, torch.eye(40), rtol=0, atol=1e-13)  # sums of 40 products


def test_two_models_agree_where_they_share_name_and_shape() -> None:
    def model(width: int, first: bool) -> nn.Module:
        layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, width), "c": nn.Linear(width, 3)}
        return nn.ModuleDict({**({"zero": nn.Linear(2, 2)} if first else {}), **layers})

    torch.manual_seed(1)
    small = set_up(model(4, False), {"name": "he"})
    torch.manual_seed(2)
    large = set_up(model(9, True), {"name": "he"})
    assert torch.equal(small["a"].weight, large["a"].weight)
    assert torch.equal(small["b"].weight, large["b"].weight[:4])  # even rows agree: He's spread hangs on the columns
    again = set_up(model(4, False), {"name": "he"}, seed=1)
    assert not torch.equal(small["a"].weight, again["a"].weight)


def test_layers_of_the_same_shape_differ() -> None:
    model = set_up(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {"name": "xavier"})
    assert not torch.equal(model[0].weight, model[1].weight)


def test_what_is_not_a_matrix_product_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4, bias=False), nn.LayerNorm(4), nn.BatchNorm1d(4))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert initialise_weights(model, lambda w, g: nn.init.ones_(w), seed=0).done == {"1.weight": "set"}
    for name, p in model.named_parameters():
        assert torch.equal(p, torch.ones_like(p) if name == "1.weight" else before[name]), name


def test_a_head_tied_to_an_embedding_stays_an_embedding() -> None:
    torch.manual_seed(0)
    model = GPTNet(11, context=4, depth=1, width=8, heads=2)
    before = model.tokens.weight.detach().clone()
    done = initialise_weights(model, lambda w, g: nn.init.ones_(w), seed=0).done
    assert "head.weight" not in done and "tokens.weight" not in done
    assert torch.equal(model.head.weight, before)
    assert model.head.weight is model.tokens.weight
