"""Spectral norm, standardised weights, dropped channels and squares, adaptive sharpness, averages, balanced order."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel, update_bn

import kingpost as kp
from kingpost.assembly import Batch, Step
from kingpost.data.tensors import TensorSplit
from kingpost.source import DataFacts, Dataset, Order, balanced_indices
from kingpost.train.assemble import assemble
from kingpost.train.gradients.backward import backward
from kingpost.train.regularise.channel_dropout import DropChannels, drop_squares
from kingpost.train.regularise.ema import Average
from kingpost.train.regularise.sam import sharpness_aware
from kingpost.train.regularise.spectral_norm import add_spectral_norm, refine
from kingpost.train.regularise.swa import Mean, statistics_of
from kingpost.train.regularise.weight_standardisation import WeightStandardisation, standardised
from kingpost.train.tasks import Classification
from reference.plain import assert_same, by_hand, by_kingpost, net


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))


def batch(seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return Batch((torch.randn(6, 1, 4, 4, generator=draw),), torch.tensor([0, 1, 2, 2, 1, 0]), 0, 6)


# ---- spectral norm


def test_largest_singular_value_is_the_bound() -> None:
    model = small_net()
    names = [name for name, _ in model.named_parameters()]
    add_spectral_norm(model, bound=0.7)
    refine(model, 2000)
    for layer in (model[0], model[3]):
        sigma = torch.linalg.matrix_norm(layer.used().detach().flatten(1), 2)
        assert float(sigma) == pytest.approx(0.7, rel=1e-12)  # power iteration has converged to rounding
    assert [name for name, _ in model.named_parameters()] == names


def test_gradient_flows_through_the_singular_value() -> None:
    """``d loss(W / sigma(W)) / dW`` with sigma from a full decomposition."""
    model, plain = small_net(), small_net()
    add_spectral_norm(model)
    refine(model, 2000)
    ours = torch.autograd.grad(F.cross_entropy(model(*batch().inputs), batch().targets), list(model.parameters()))
    normed = {
        name: p / torch.linalg.matrix_norm(p.flatten(1), 2) if p.ndim > 1 else p for name, p in plain.named_parameters()
    }
    loss = F.cross_entropy(functional_call(plain, normed, batch().inputs), batch().targets)
    for a, b in zip(ours, torch.autograd.grad(loss, list(plain.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)  # what is left of the power iteration


def test_equals_torchs_parametrisation() -> None:
    """Both go on until nothing changes; their order of half rounds differs (ours is that of the paper)."""
    layer = nn.Sequential(nn.Linear(5, 4))
    theirs = torch.nn.utils.parametrizations.spectral_norm(copy.deepcopy(layer[0]), n_power_iterations=500)
    add_spectral_norm(layer)
    refine(layer, 500)
    with torch.no_grad():
        torch.testing.assert_close(layer[0].used(), theirs.weight, rtol=1e-12, atol=0)


# ---- weight standardisation


def test_filters_have_mean_zero_and_variance_one() -> None:
    w = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(1)) * 5 + 2
    for raw, found in zip(w, standardised(w), strict=True):
        numbers = raw.flatten().tolist()
        mean = sum(numbers) / len(numbers)
        variance = sum((x - mean) ** 2 for x in numbers) / len(numbers)
        expected = [(x - mean) / (variance + 1e-5) ** 0.5 for x in numbers]
        assert found.flatten().tolist() == pytest.approx(expected, abs=1e-14)


def test_two_ways_to_use_a_weight_are_refused_together() -> None:
    recipe = kp.Recipe(
        name="a",
        data="digits",
        model={"name": "cnn", "widths": [4, 4]},
        techniques=[WeightStandardisation(), kp.SpectralNorm()],
    )
    from kingpost.train.assemble import assemble

    with pytest.raises(kp.RecipeError, match="which uses its weight in a way of its own"):
        assemble(recipe, recipe.data.open(), torch.device("cpu"))


# ---- dropped channels and squares


def test_whole_channels_are_dropped_and_the_rest_is_scaled() -> None:
    torch.manual_seed(0)
    y = DropChannels(0.3)(torch.ones(400, 50, 2, 2))
    assert torch.equal(y, y[..., :1, :1].expand_as(y))
    share = float((y[..., 0, 0] == 0).double().mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 20_000) ** 0.5
    assert set(y.unique().tolist()) == {0.0, 1 / 0.7}


@pytest.mark.parametrize("side", [1, 2, 3])
def test_dropped_squares_are_squares_and_the_sum_of_ones_is_kept(side: int) -> None:
    torch.manual_seed(1)
    dropped = drop_squares(torch.ones(64, 8, 9, 7), 0.1, side)
    zero = dropped == 0
    # Opening by the square: each zero belongs to a whole square of zeros.
    opened = -F.max_pool2d(-zero.double(), side, 1)
    covered = F.max_pool2d(F.pad(opened, [side - 1] * 4), side, 1)
    assert torch.equal(covered, zero.double()) and bool(zero.any())
    assert float(dropped.mean()) == pytest.approx(1.0, rel=1e-12)  # scaled by numbers / numbers left
    rate = 0.1 / side**2 * 63 / ((9 - side + 1) * (7 - side + 1))
    expected = 0.0  # a place is dropped unless none of the squares that would cover it begins
    for row in range(9):
        for column in range(7):
            places = sum(
                0 <= row - i <= 9 - side and 0 <= column - j <= 7 - side for i in range(side) for j in range(side)
            )
            expected += (1 - (1 - rate) ** places) / 63
    share = zero.double().mean((1, 2, 3))
    assert abs(float(share.mean()) - expected) < 4 * float(share.std()) / 8  # standard error over 64 samples


# ---- adaptive sharpness


@pytest.mark.parametrize("rho", [0.1, 2.0])
def test_adaptive_sharpness_equals_a_slow_twin(rho: float) -> None:
    """Equation 8 of arXiv 2102.11600: ``e = rho T^2 g / |T g|``, ``T = |w| + eta`` for weights, 1 for biases."""
    model = small_net()
    named = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def g(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        loss = F.cross_entropy(functional_call(model, weights, batch().inputs), batch().targets)
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    first = g(named)
    t = {name: w.detach().abs() + 0.01 if w.ndim > 1 else torch.ones_like(w) for name, w in named.items()}
    length = torch.cat([(t[name] * first[name]).flatten() for name in named]).norm()
    moved = {name: (w + rho * t[name] ** 2 * first[name] / length).detach() for name, w in named.items()}
    expected = g({name: w.requires_grad_() for name, w in moved.items()})
    before = copy.deepcopy(model.state_dict())
    step = Step(index=0, seed=0, items=6)
    sharpness_aware(backward, rho, adaptive=True)(model, Classification().objective, batch(), step)
    for name, p in model.named_parameters():
        # The 1e-12 beside the norm moves weights by rho * 1e-12 at most; the rest is rounding.
        torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=1e-11)
        assert torch.equal(p, before[name])


def test_adaptive_sharpness_does_not_depend_on_the_scale_of_the_layers() -> None:
    """A ReLU net with weights ``(a W1, W2 / a)`` computes the same, and so must the loss at the moved weights."""

    def worst(a: float, adaptive: bool) -> float:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(16, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False))
        with torch.no_grad():
            model[0].weight.mul_(a), model[2].weight.div_(a)
        flat = batch().with_(inputs=(batch().inputs[0].flatten(1),))
        seen = []

        def objective(m: nn.Module, b: Batch) -> kp.Loss:
            loss = Classification().objective(m, b)
            seen.append(float(loss.data.detach()))
            return loss

        step = Step(index=0, seed=0, items=6)
        sharpness_aware(backward, 0.3, adaptive, eta=1e-12)(model, objective, flat, step)
        return seen[1]

    assert worst(1.0, adaptive=True) == pytest.approx(worst(10.0, adaptive=True), rel=1e-9)  # eta and 1e-12
    assert worst(1.0, adaptive=False) != pytest.approx(worst(10.0, adaptive=False), rel=1e-2)


# ---- averages


def norm_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 2))


def moved(model: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=draw), alpha=0.1)
        model(torch.randn(8, 4, generator=draw))


def test_mean_of_weights_and_its_statistics_equal_torchs() -> None:
    """The mean against ``AveragedModel``; the statistics of its batch norm against ``update_bn``."""
    model, mean, history = norm_net(), Mean(), []
    theirs = AveragedModel(model)
    for seed in range(7):
        moved(model, seed)
        mean.add(model)
        theirs.update_parameters(model)
        history.append(model[0].weight.detach().clone())
    expected = torch.stack(history).mean(0)
    torch.testing.assert_close(mean.values["0.weight"], expected, rtol=0, atol=1e-15)  # seven roundings below 1
    draw = torch.Generator().manual_seed(50)
    samples = [torch.randn(n, 4, generator=draw) for n in (8, 8, 5)]
    batches = [Batch((x,), torch.zeros(len(x)), 0, len(x)) for x in samples]
    theirs.module[2].eval()  # torch's function leaves dropout on, which changes nothing in front of the norm
    update_bn(samples, theirs)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    with mean.in_place(model) as placed, statistics_of(model, lambda: batches):
        assert placed
        for name, value in theirs.module.state_dict().items():
            torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-14)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and model[1].momentum == 0.1


def test_swa_through_training(tmp_path: Path) -> None:
    ours, run = by_kingpost(tmp_path, net(), techniques=[{"name": "swa", "start": 0.5, "every": 2}])
    theirs, _ = by_hand(net(), lambda g: torch.optim.SGD(g, lr=0.1, foreach=False))
    assert_same(ours, theirs, 1e-12)  # the trained weights themselves are not averaged
    counted = [by_hand(net(), lambda g: torch.optim.SGD(g, lr=0.1), steps=n)[0] for n in (8, 10, 12)]
    mean = {name: sum(weights[name] for weights in counted) / 3 for name in counted[0]}
    assert_same(load_file(run.weights("last")), mean, 1e-12)  # type: ignore[arg-type]


def test_the_moving_average_leaves_buffers_alone_that_are_not_saved() -> None:
    model, average = nn.BatchNorm1d(3), Average(0.5)
    model.register_buffer("noise", torch.zeros(2), persistent=False)
    average.add(model)
    assert set(average.values) == {"weight", "bias", "running_mean", "running_var"}


def test_early_stopping_goes_back_to_the_best_weights(tmp_path: Path) -> None:
    from kingpost.train.evaluate import evaluate

    recipe = kp.Recipe(
        name="stop",
        data="digits",
        model={"name": "mlp", "widths": [16]},
        optimizer={"name": "sgd", "lr": 1.0, "momentum": 0.0},
        techniques=[kp.EarlyStopping(patience=2)],
        budget={"epochs": 40},
        layout={"name": "data-parallel", "threads": 1},
        save={"report": False},
    )
    torch.set_default_dtype(torch.float32)
    run = kp.train(recipe, root=tmp_path, quiet=True)
    scores = [row["validation_accuracy"] for row in run.results]
    best = int(run.summary["best"]["epoch"])
    assert len(scores) < 40 and scores[best - 1] == max(scores) > scores[-1]
    model, data = kp.load_model(run, "best"), recipe.data.open()
    judged = evaluate(model, data.splits["test"], Classification(), data.facts, {}, 64, torch.device("cpu"))
    assert judged["accuracy"] == run.summary["test"]["accuracy"]


# ---- balanced sampling


def test_a_balanced_pass_has_equal_classes_and_wastes_nothing() -> None:
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 7 + [3] * 3)
    for seed in range(5):
        indices = balanced_indices(labels, torch.Generator().manual_seed(seed))
        assert labels[indices].bincount().tolist() == [25, 25, 25, 25]
        for label in range(4):
            times = indices[labels[indices] == label].bincount(minlength=100)[labels == label]
            assert int(times.max()) - int(times.min()) <= 1, "one sample was taken twice before another was taken once"
    again = balanced_indices(labels, torch.Generator().manual_seed(4))
    assert torch.equal(indices, again) and not torch.equal(labels[indices], labels[indices].sort().values)


def test_counts_that_do_not_divide_differ_by_one() -> None:
    labels = torch.tensor([0] * 8 + [1, 2])
    found = labels[balanced_indices(labels, torch.Generator().manual_seed(0))].bincount()
    assert sorted(found.tolist()) == [3, 3, 4]


def test_a_pass_can_begin_in_the_middle() -> None:
    labels = torch.tensor([0] * 30 + [1] * 4)
    split = TensorSplit((torch.arange(34.0)[:, None],), labels)
    order = {"batch_size": 5, "shuffle": True, "seed": 1, "epoch": 2, "balanced": True}
    whole, tail = (list(split.batches(Order(**order, start=start))) for start in (0, 3))  # type: ignore[arg-type]
    assert len(whole) == 7
    for a, b in zip(whole[3:], tail, strict=True):
        assert torch.equal(a.inputs[0], b.inputs[0])


def test_classes_are_counted_in_the_training_part() -> None:
    facts = DataFacts(task="classification", inputs=(((1,), torch.float64),), classes=("a", "b", "c"))
    split = TensorSplit((torch.zeros(5, 1),), torch.tensor([0, 0, 2, 0, 2]))
    assert Dataset(facts=facts, splits={"train": split}, fingerprint="").facts.class_counts == (3, 0, 2)
    strange = TensorSplit((torch.zeros(2, 1),), torch.tensor([0, 7]))
    assert Dataset(facts=facts, splits={"train": strange}, fingerprint="").facts.class_counts == ()


def test_data_that_is_not_in_memory_is_refused() -> None:
    with pytest.raises(kp.DataError, match="needs the class of each sample in memory"):
        Order(batch_size=2, shuffle=True, balanced=True).indices(4)


def test_the_technique_balances_every_pass_over_the_data() -> None:
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    source = kp.Arrays(inputs=torch.randn(100, 3), targets=labels, validation=0.0)
    recipe = kp.Recipe(name="toy", data=source, model="mlp", techniques=[kp.BalancedSampling()])
    dataset = recipe.data.open()
    own = assemble(recipe, dataset, torch.device("cpu")).order
    for epoch in range(3):
        passed = dataset.splits["train"].batches(own(Order(batch_size=30, shuffle=True, seed=1, epoch=epoch)))
        counts = torch.cat([batch.targets for batch in passed]).bincount().tolist()
        assert sorted(counts) == [33, 33, 34]  # 100 samples, three classes
