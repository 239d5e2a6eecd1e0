"""Committees against numpy, explicit members and sums written out."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy as scipys_entropy
from torch import Tensor, nn

import kingpost as kp
from contract.toys import Toy
from kingpost.assembly import Batch, Step
from kingpost.source import Order
from kingpost.train.ensemble.batch_ensemble import BatchEnsembleNet, Fast, over_members, replace_layers
from kingpost.train.ensemble.committee import (
    DropoutSamples,
    Nets,
    Weights,
    mean_of_classes,
    mean_of_labels,
    mean_of_values,
)
from kingpost.train.ensemble.members import with_own_statistics
from kingpost.train.ensemble.snapshots import Kept, keeping, repeated
from kingpost.train.ensemble.swag import Moments, collecting
from kingpost.train.ensemble.uncertainty import decompose, decompose_labels, mean_and_variance
from kingpost.train.optimise.schedules_decay import cosine


def votes(members: int = 5, samples: int = 7, classes: int = 4) -> Tensor:
    return 2 * torch.randn(members, samples, classes, generator=torch.Generator().manual_seed(0))


def test_mean_and_variance_are_numpys() -> None:
    x = votes()
    mean, variance = mean_and_variance(x)
    # Sums of five numbers around 1.
    np.testing.assert_allclose(mean, np.mean(x.numpy(), 0), rtol=0, atol=1e-15)
    np.testing.assert_allclose(variance, np.var(x.numpy(), 0), rtol=0, atol=1e-14)


def test_the_entropy_splits_into_two_parts_that_add_up() -> None:
    p = votes().softmax(-1)
    parts = decompose(p)
    np.testing.assert_allclose(parts.total, scipys_entropy(p.mean(0).numpy(), axis=-1), atol=1e-14)
    np.testing.assert_allclose(parts.aleatoric, scipys_entropy(p.numpy(), axis=-1).mean(0), atol=1e-14)
    torch.testing.assert_close(parts.aleatoric + parts.epistemic, parts.total, rtol=0, atol=1e-15)
    # The mutual information is also the mean divergence of the members from their mean.
    divergence = (p * (p / p.mean(0)).log()).sum(-1).mean(0)
    torch.testing.assert_close(parts.epistemic, divergence, rtol=0, atol=1e-14)
    assert (parts.epistemic > 0.01).all()
    alike = decompose(p[:1].expand(3, -1, -1))
    assert alike.epistemic.abs().max() < 1e-15


def test_labels_add_up_too() -> None:
    p = votes().sigmoid()
    parts = decompose_labels(p)
    single = [decompose(torch.stack([p[..., i], 1 - p[..., i]], -1)) for i in range(4)]
    torch.testing.assert_close(
        parts.epistemic, torch.stack([one.epistemic for one in single]).sum(0), rtol=0, atol=1e-14
    )


def test_the_combined_output_predicts_the_mean_of_the_predictions() -> None:
    x = votes()
    torch.testing.assert_close(mean_of_classes(x).softmax(-1), x.softmax(-1).mean(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(mean_of_labels(x).sigmoid(), x.sigmoid().mean(0), rtol=0, atol=1e-14)
    assert torch.equal(mean_of_values(x), x.mean(0))
    certain = torch.tensor([[[800.0, -800.0]], [[-800.0, 800.0]]])  # probabilities that are 0 and 1 to the last digit
    assert mean_of_labels(certain).abs().max() == 0 and mean_of_classes(certain).isfinite().all()


def test_weights_vote_like_the_nets_they_are_from() -> None:
    nets = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval() for _ in range(3)]
    for net in nets:
        net[1].running_mean.normal_()
    x = torch.randn(5, 3)
    one = Weights(nets[0], [net.state_dict() for net in nets], mean_of_classes)
    assert torch.equal(one.votes(x), Nets(nets, mean_of_classes).votes(x))
    assert torch.equal(one.votes(x)[2], nets[2](x))


def test_dropout_stays_on_repeats_and_leaves_the_net_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(3, 50), nn.BatchNorm1d(50), nn.Dropout(0.5), nn.Linear(50, 2)).eval()
    x, before = torch.randn(6, 3), {name: value.clone() for name, value in net.state_dict().items()}
    committee = DropoutSamples(net, 400, mean_of_values, seed=3)
    state = torch.get_rng_state()
    found = committee.votes(x)
    assert torch.equal(found, committee.votes(x)) and torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    # The last layer is linear, so the mean over masks is the output without any, and the variance is known.
    hidden = net[1](net[0](x))
    expected = hidden.square() @ net[3].weight.square().T
    error = (expected / 400).sqrt()
    assert ((found.mean(0) - net(x)).abs() < 4.5 * error).all()  # twelve numbers, each within 4.5 standard errors
    torch.testing.assert_close(found.var(0), expected, rtol=0.4, atol=0)  # 400 draws: 7 % a standard error
    with pytest.raises(kp.RecipeError, match="no dropout that could stay on"):
        DropoutSamples(nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.0)), 2, mean_of_values)


# ---- snapshots and SWAG


def walk(update: Any, model: nn.Module, steps: int) -> list[dict[str, Tensor]]:
    """Steps that move the weights at random; returns them after each."""
    path = []
    for index in range(steps):
        update(model, None, Step(index, 0))
        path.append({name: p.detach().clone() for name, p in model.named_parameters()})
    return path


def wandering(model: nn.Module, optimizer: object, step: Step) -> None:
    draw = torch.Generator().manual_seed(step.index)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn(p.shape, generator=draw)


def test_snapshots_are_the_weights_at_cycle_ends() -> None:
    model, kept = nn.Linear(2, 2), Kept()
    path = walk(keeping(wandering, kept, 10, 3), model, 10)
    assert kept.steps == [3, 6, 10]
    for step, weights in zip(kept.steps, kept.weights, strict=True):
        assert all(torch.equal(weights[name], path[step - 1][name]) for name in weights)
    again = Kept()
    again.load_state_dict(kept.state_dict())
    assert again.steps == kept.steps
    with pytest.raises(kp.RecipeError, match="give it in steps or epochs"):
        keeping(wandering, kept, 10, 3)(model, None, Step(10, 0))  # type: ignore[arg-type]


def test_the_repeated_cosine_is_the_papers() -> None:
    """Huang et al., equation 2, with t from 0: ``(1 + cos(pi mod(t, T / M) / (T / M))) / 2``."""
    factor = repeated(cosine, 3)
    for t in range(12):
        assert factor(t, 12) == pytest.approx((1 + math.cos(math.pi * (t % 4) / 4)) / 2, abs=1e-15)


def test_swag_keeps_the_moments_of_the_weights() -> None:
    model, moments = nn.Linear(3, 2), Moments(rank=3)
    path = walk(collecting(wandering, moments, 3, 2, 12), model, 12)
    counted = [path[done - 1] for done in range(3, 13, 2)]
    assert moments.count == len(counted) == 5
    for name in ("weight", "bias"):
        x = torch.stack([weights[name] for weights in counted])
        # Running means of five numbers below 10.
        torch.testing.assert_close(moments.mean[name], x.mean(0), rtol=0, atol=1e-14)
        torch.testing.assert_close(moments.variance[name], x.var(0, correction=0), rtol=0, atol=1e-13)
        expected = [x[i] - x[: i + 1].mean(0) for i in range(2, 5)]  # each from the mean at that time, as published
        torch.testing.assert_close(torch.stack(moments.deviations[name]), torch.stack(expected), rtol=0, atol=1e-14)


def test_draws_have_the_covariance_that_swag_states() -> None:
    model, moments = nn.Linear(2, 1), Moments(rank=3)
    walk(collecting(wandering, moments, 1, 1, 8), model, 8)
    draws = moments.samples(4000, seed=0)
    x = torch.stack([torch.cat([one["weight"].flatten(), one["bias"]]) for one in draws])
    flat = lambda named: torch.cat([named["weight"].flatten(), named["bias"]])  # noqa: E731
    variance = flat(moments.variance)
    deviations = torch.stack([torch.cat([w.flatten(), b]) for w, b in zip(*moments.deviations.values(), strict=True)])
    expected = (variance.diag() + deviations.T @ deviations / 2) / 2
    scale = expected.diag().sqrt()
    correlation = lambda c: c / scale[:, None] / scale  # noqa: E731
    # 4,000 draws: standard errors of at most sqrt(2 / 4,000) = 0.022.
    torch.testing.assert_close(correlation(x.T.cov()), correlation(expected), rtol=0, atol=0.09)
    assert ((x.mean(0) - flat(moments.mean)).abs() < 4.5 * scale / math.sqrt(4000)).all()


def test_drawn_weights_get_batch_statistics_of_their_own() -> None:
    split = Toy().open().splits["train"]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3)).eval()
    own = {name: value.clone() for name, value in net.state_dict().items()}
    drawn = {"1.weight": torch.randn(3, 64), "1.bias": torch.randn(3)}
    found = with_own_statistics(net, drawn, split, batch_size=24)
    (batch,) = split.batches(Order(batch_size=24))
    z = F.linear(batch.inputs[0].flatten(1), drawn["1.weight"], drawn["1.bias"])
    torch.testing.assert_close(found["2.running_mean"], z.mean(0), rtol=0, atol=1e-13)  # a mean of 24 numbers
    torch.testing.assert_close(found["2.running_var"], z.var(0), rtol=0, atol=1e-12)
    assert all(torch.equal(own[name], value) for name, value in net.state_dict().items())
    assert net[2].momentum == 0.1 and not net[2].training


# ---- BatchEnsemble


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 4, 3, stride=2), nn.Linear(4 * 9, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).tanh().flatten(1))


def explicit(net: Small, member: int, x: Tensor) -> Tensor:
    """One member with its weights written out: ``W * (s r^T)``."""
    conv, linear = net.conv, net.linear
    pick = lambda fast, name: getattr(fast, name).view(fast.members, -1)[member]  # noqa: E731
    kernel = conv.weight * pick(conv.fast, "s")[:, None, None, None] * pick(conv.fast, "r")[None, :, None, None]
    h = F.conv2d(x, kernel, conv.bias + pick(conv.fast, "bias"), stride=2).tanh().flatten(1)
    matrix = linear.weight * torch.outer(pick(linear.fast, "s"), pick(linear.fast, "r"))
    return F.linear(h, matrix, pick(linear.fast, "bias"))


def batch_ensemble() -> tuple[Small, BatchEnsembleNet]:
    torch.manual_seed(0)
    net = replace_layers(Small(), 3, seed=0)
    for fast in (module for module in net.modules() if isinstance(module, Fast)):
        for p in fast.parameters():
            nn.init.normal_(p)
    return net, BatchEnsembleNet(net, 3, mean_of_classes)  # type: ignore[return-value]


def test_batch_ensemble_is_its_members_written_out() -> None:
    net, model = batch_ensemble()
    x, y = torch.randn(5, 2, 8, 8), torch.tensor([0, 1, 2, 1, 0])
    slow = torch.stack([explicit(net, member, x) for member in range(3)])
    model.eval()
    # Two layers of sums of some 40 products.
    torch.testing.assert_close(model.votes(x), slow, rtol=0, atol=1e-13)
    torch.testing.assert_close(model(x).softmax(1), slow.softmax(-1).mean(0), rtol=0, atol=1e-13)
    model.train()
    objective = over_members(kp.Classification().objective, 3)
    loss = objective(model, Batch((x,), y, 0, 5))
    expected = sum(F.cross_entropy(one, y, reduction="sum") for one in slow) / 3
    torch.testing.assert_close(loss.data, expected, rtol=1e-13, atol=0)
    assert loss.items == 5 and loss.outputs.shape == (5, 3)
    parameters = list(net.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss.data, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_batch_ensemble_keeps_names_weights_and_ties() -> None:
    plain = Small()
    named = dict(plain.named_parameters())
    net = replace_layers(plain, 4, seed=0)
    assert all(dict(net.named_parameters())[name] is p for name, p in named.items())
    more = {name: tuple(p.shape) for name, p in net.named_parameters() if name not in named}
    assert more["conv.fast.r"] == (8,) and more["linear.fast.s"] == (12,)  # flat, so that nothing decays
    assert set(net.conv.fast.r.tolist()) == {-1.0, 1.0}


# ---- from runs


def recipe(name: str, **fields: Any) -> kp.Recipe:
    plain = {
        "name": name,
        "data": "digits",
        "model": {"name": "mlp", "widths": [16]},
        "budget": {"steps": 12},
        "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
        "save": {"report": False},
    }
    return kp.Recipe.from_value({**plain, **fields})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, kp.Run]:
    torch.set_default_dtype(torch.float32)
    root = tmp_path_factory.mktemp("runs")
    techniques = [{"name": "dropout", "p": 0.2}, {"name": "snapshots", "cycles": 3}, "swag"]
    recipes = [
        recipe("one", techniques=techniques, schedule="cosine"),
        recipe("two", seed=1, model={"name": "mlp", "widths": [8]}),
        recipe("batch", techniques=[{"name": "batch-ensemble", "members": 2}]),
        recipe("value", data={"name": "bundled", "which": "diabetes"}, techniques=[{"name": "dropout", "p": 0.2}]),
    ]
    return {one.name: kp.train(one, root=root, quiet=True) for one in recipes}


@pytest.fixture(autouse=True)
def in_32_bits(in_64_bits: None, request: pytest.FixtureRequest) -> None:
    if "runs" in request.fixturenames:
        torch.set_default_dtype(torch.float32)


def test_several_runs_predict_the_mean_of_theirs(runs: dict[str, kp.Run]) -> None:
    both = kp.predict([runs["one"], runs["two"]])
    single = torch.stack([kp.predict(runs[name]).values for name in ("one", "two")])
    torch.testing.assert_close(both.values, single.mean(0), rtol=0, atol=1e-6)  # 32 bits
    rows = list(csv.DictReader(io.StringIO(both.to_csv())))
    spread = [[float(row[f"spread_{digit}"]) for digit in range(10)] for row in rows]
    np.testing.assert_allclose(spread, single.numpy().std(0), rtol=1e-4, atol=1e-6)  # six digits are written
    for row in rows:
        parts = [float(row[f"{name}_nats"]) for name in ("aleatoric", "epistemic", "entropy")]
        assert parts[0] + parts[1] == pytest.approx(parts[2], abs=1e-4)
    assert both.metrics["members"] == 2
    targets = torch.tensor([int(row["target"]) for row in rows])
    expected = float(F.nll_loss(single.mean(0).log(), targets))
    assert both.metrics["loss"] == pytest.approx(expected, rel=1e-4)
    committee = kp.ensemble([runs["one"], runs["two"]])
    assert committee.votes(torch.zeros(3, 1, 8, 8)).shape == (2, 3, 10)


@pytest.mark.parametrize(("voters", "members"), [("snapshots", 3), ("swag", 4), ("dropout", 4)])
def test_one_run_lets_what_it_kept_vote(voters: Any, members: int, runs: dict[str, kp.Run]) -> None:
    made = kp.predict(runs["one"], voters=voters, samples=4, alpha=0.1)
    assert made.metrics["members"] == members
    assert max(made.beside["epistemic_nats"]) > 1e-7  # type: ignore[type-var]
    assert "coverage" in made.metrics and "set" in made.beside
    again = kp.predict(runs["one"], voters=voters, samples=4, alpha=0.1)
    assert again.to_csv() == made.to_csv()


def test_a_batch_ensemble_is_a_committee_by_itself(runs: dict[str, kp.Run]) -> None:
    made = kp.predict(runs["batch"])
    assert made.metrics["members"] == 2 and "epistemic_nats" in made.beside
    assert made.metrics["accuracy"] == pytest.approx(runs["batch"].summary["test"]["accuracy"])


@pytest.mark.parametrize("sets", ["residual", "cqr"])
def test_values_get_spread_and_intervals_in_their_own_unit(sets: Any, runs: dict[str, kp.Run]) -> None:
    made = kp.predict(runs["value"], voters="dropout", samples=5, alpha=0.2, sets=sets)
    (name,) = [key.removeprefix("low_") for key in made.beside if key.startswith("low_")]
    low, high = (torch.tensor(made.beside[f"{end}_{name}"]) for end in ("low", "high"))
    assert made.targets is not None
    y = made.targets.flatten()
    assert made.metrics[f"coverage_{name}"] == pytest.approx(float(((y >= low) & (y <= high)).double().mean()))
    assert (high - low).mean() > 30  # the target's standard deviation is 77
    assert f"spread_{name}" in made.beside and "entropy_nats" not in made.beside
    if sets == "residual":
        width = high - low
        torch.testing.assert_close(width, width[:1].expand(len(width)), rtol=1e-4, atol=1e-3)


def test_runs_on_other_data_are_refused(runs: dict[str, kp.Run]) -> None:
    with pytest.raises(kp.RunError, match="'one' and 'value' differ in their data"):
        kp.predict([runs["one"], runs["value"]])
    with pytest.raises(kp.RunError, match="several runs vote already; 'swag' is for a single one"):
        kp.predict([runs["one"], runs["two"]], voters="swag")
    with pytest.raises(kp.RunError, match="an ensemble needs at least 2 runs, got 1"):
        kp.ensemble([runs["one"]])
