"""Techniques that change the gradient before the update, against torch and slow twins written out unit by unit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.subjects import make, recipe_with, subjects
from contract.toys import Toy
from kingpost import catalogue
from kingpost.assembly import Step
from kingpost.errors import RecipeError
from kingpost.recipe import Recipe
from kingpost.source import Order
from kingpost.train.assemble import assemble, first_batch
from kingpost.train.gradients.batch_ramp import batches_at
from kingpost.train.gradients.noise import deviation
from reference.plain import assert_same, batches, by_kingpost, net, recipe

TOLERANCE = 1e-13  # twelve plain SGD steps in 64 bits, with numbers around 1


def kernels() -> nn.Module:
    """A net with every form of parameter: kernels, matrices, vectors and a number."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel, self.matrix, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 5), nn.Linear(5, 3)
            self.gain = nn.Parameter(torch.tensor(0.7))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(torch.tanh(self.matrix(self.gain * self.kernel(x).mean((2, 3)))))
            return out

    torch.manual_seed(3)
    return Scaled()


def by_twin(model: nn.Module, change: Callable[[nn.Module], object]) -> dict[str, Tensor]:
    """Twelve steps of plain SGD over all parameters, in the loop of every tutorial."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    for x, y in batches(12):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        change(model)
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def each_unit(p: Tensor) -> list[Tensor]:
    """A parameter's gradient, unit by unit; vectors and numbers are one unit."""
    assert p.grad is not None
    return [p.grad[i] for i in range(len(p))] if p.ndim > 1 else [p.grad]


def adaptive(model: nn.Module, ratio: float, eps: float, but: tuple[str, ...]) -> None:
    for name, p in model.named_parameters():
        if name in but:
            continue
        weights = [p.detach()[i] for i in range(len(p))] if p.ndim > 1 else [p.detach()]
        for w, g in zip(weights, each_unit(p), strict=True):
            longest = ratio * max(float((w**2).sum()) ** 0.5, eps)
            length = float((g**2).sum()) ** 0.5
            if length > longest:
                g *= longest / length


def centralised(model: nn.Module, kernels_only: bool) -> None:
    for p in model.parameters():
        if p.ndim > 2 or (p.ndim == 2 and not kernels_only):
            for g in each_unit(p):
                g -= g.sum() / g.numel()


def directed(model: nn.Module, together: bool) -> None:
    lengths = [float((p.grad**2).sum()) ** 0.5 for p in model.parameters() if p.grad is not None]
    whole = sum(length**2 for length in lengths) ** 0.5
    for p, length in zip(model.parameters(), lengths, strict=True):
        assert p.grad is not None
        p.grad /= whole if together else length


def clipped_each(model: nn.Module, bound: float) -> None:
    for p in model.parameters():
        torch.nn.utils.clip_grad_norm_([p], bound)  # adds 1e-6 to the norm


LAST = ("last.weight", "last.bias")
TWINS: dict[str, tuple[dict[str, Any], Callable[[nn.Module], object], float]] = {
    "clip-value": ({"value": 0.02}, lambda m: torch.nn.utils.clip_grad_value_(m.parameters(), 0.02), TOLERANCE),
    # Torch divides by the norm plus 1e-6: relative to norms around 0.05 that is 2e-5 of steps that sum up to 0.06.
    "clip-per-layer": ({"norm": 0.05}, lambda m: clipped_each(m, 0.05), 5e-6),
    "agc": ({"ratio": 0.02}, lambda m: adaptive(m, 0.02, 1e-3, LAST), TOLERANCE),
    "agc, all": ({"ratio": 0.02, "eps": 0.5, "exclude": []}, lambda m: adaptive(m, 0.02, 0.5, ()), TOLERANCE),
    "agc, some": (
        {"ratio": 0.01, "exclude": ["*.bias", "gain"]},
        lambda m: adaptive(m, 0.01, 1e-3, ("kernel.bias", "matrix.bias", "last.bias", "gain")),
        TOLERANCE,
    ),
    "centralise": ({}, lambda m: centralised(m, False), TOLERANCE),
    "centralise, kernels": ({"kernels_only": True}, lambda m: centralised(m, True), TOLERANCE),
    "gradient-normalise": ({}, lambda m: directed(m, True), TOLERANCE),
    "gradient-normalise, tensor": ({"per": "tensor"}, lambda m: directed(m, False), 1e-11),  # small norms divide
}


@pytest.mark.parametrize("case", TWINS)
def test_equals_its_twin(case: str, tmp_path: Path) -> None:
    fields, change, tolerance = TWINS[case]
    technique = {"name": case.partition(",")[0], **fields}
    ours, _ = by_kingpost(tmp_path, kernels(), techniques=[technique])
    theirs = by_twin(kernels(), change)
    assert_same(ours, theirs, tolerance)
    plain = by_twin(kernels(), lambda model: None)
    assert max(float((theirs[name] - plain[name]).abs().max()) for name in plain) > 1e-4, "the twin changes nothing"


def test_agc_refuses_names_that_are_not_there() -> None:
    made = recipe(kernels(), techniques=[{"name": "agc", "exclude": ["head.*"]}])
    with pytest.raises(RecipeError) as caught:
        assemble(made, made.data.open(), torch.device("cpu"))
    said = "techniques.agc.exclude: no parameter is called 'head.*'; there are: gain, kernel.weight, kernel.bias, "
    assert str(caught.value) == said + "matrix.weight ..."


# ---- noise


def noise_of(step: int, eta: float = 0.04, gamma: float = 0.55) -> Tensor:
    """What the technique adds to a gradient of zeros, 40,000 numbers."""
    model = nn.Linear(200, 200, bias=False)
    made = recipe(model, techniques=[{"name": "gradient-noise", "eta": eta, "gamma": gamma}])
    assembly = assemble(made, made.data.open(), torch.device("cpu"))
    model.weight.grad = torch.zeros(200, 200)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    assembly.update(model, optimizer, Step(index=step, seed=4))
    return before - model.weight.detach()


@pytest.mark.parametrize(("step", "gamma"), [(0, 0.55), (99, 0.55), (99, 0.0)])
def test_noise_is_normal_with_the_variance_of_the_paper(step: int, gamma: float) -> None:
    noise, std = noise_of(step, gamma=gamma), (0.04 / (1 + step) ** gamma) ** 0.5
    assert deviation(step, 0.04, gamma) == pytest.approx(std, rel=1e-15)  # one rounding
    # 40,000 draws: the mean is known to std / 200 and the deviation to a part in 283; five times that is 1 in 10^6.
    assert abs(float(noise.mean())) < 5 * std / 200
    assert float(noise.std()) == pytest.approx(std, rel=5 / 283)
    assert float((noise.abs() < std).double().mean()) == pytest.approx(0.6827, abs=5 * 0.0024)


def test_noise_is_the_same_for_a_step_and_another_for_the_next() -> None:
    assert torch.equal(noise_of(3), noise_of(3))
    both = torch.stack([noise_of(3, gamma=0.0).flatten(), noise_of(4, gamma=0.0).flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 5 / 200  # of independent draws: 1 / sqrt(40,000)


# ---- the batch that grows


@pytest.mark.parametrize("batches_at_the_end", [1, 2, 3, 7])
def test_the_ramp_reaches_each_size_for_an_equal_part(batches_at_the_end: int) -> None:
    over = 5 * batches_at_the_end
    sizes = [batches_at(step, batches_at_the_end, over) for step in range(over + 20)]
    assert sizes == [1 + step // 5 for step in range(over)] + [batches_at_the_end] * 20


@pytest.mark.parametrize("size", [8, 7])  # 24 samples: three full batches, or the last one of three samples
def test_batch_ramp_equals_updates_on_joined_batches(size: int, tmp_path: Path) -> None:
    ramp = {"name": "batch-ramp", "batches": 3, "over_steps": 6}
    ours, run = by_kingpost(
        tmp_path, net(), techniques=[{"name": "clip", "norm": 0.3}, ramp], batch_size=size, budget={"steps": 13}
    )
    assert len(run.steps) == 13  # of the loader
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    split, loaded = Toy().open().splits["train"], []
    for epoch in range(6):
        order = Order(batch_size=size, shuffle=True, seed=0, epoch=epoch)
        loaded += [(batch.inputs[0], batch.targets) for batch in split.batches(order)]
    # Sizes wanted at steps 0..12: 1 1 2 2 3 3 3 ...; an update is made when as many are there, so after these steps:
    for first, last in [(0, 0), (1, 1), (2, 3), (4, 6), (7, 9), (10, 12)]:
        x, y = (torch.cat(parts) for parts in zip(*loaded[first : last + 1], strict=True))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
    assert_same(ours, {name: p.detach() for name, p in model.named_parameters()}, TOLERANCE)


UPDATING = [
    (kind, name)
    for kind, name in subjects()
    if kind == "technique" and name != "batch-ramp" and "update" in make(kind, name).touches
]


@pytest.mark.parametrize(("kind", "name"), UPDATING, ids=lambda value: value)
def test_batch_ramp_comes_after_all_that_changes_a_gradient(kind: str, name: str) -> None:
    """What is listed after it would see the gradient of each batch, not that of an update."""
    subject = make(kind, name)
    made = recipe_with(kind, subject)
    plain = assemble(made.with_(techniques=()), made.data.open(), torch.device("cpu"))
    seen: list[Tensor] = []
    mounted = subject.mount(plain.with_(update=lambda model, optimizer, step: seen.extend(copies_of(model))))
    batch = first_batch(made, made.data.open(), torch.device("cpu"))
    step = Step(index=0, seed=0, items=plain.setting.task.items(batch.targets))
    optimizer = mounted.optimizer(mounted.model)
    mounted.gradient(mounted.model, mounted.objective, batch, step)
    before = copies_of(mounted.model)
    mounted.update(mounted.model, optimizer, step)
    changes = len(seen) != len(before) or any(not torch.equal(a, b) for a, b in zip(seen, before, strict=True))
    assert not changes or name in catalogue.find("technique", "batch-ramp").after  # type: ignore[attr-defined]


def test_batch_ramp_excludes_optimizers_that_take_more_than_a_gradient() -> None:
    names = catalogue.CATALOGUE["optimizer"]
    taking = {name for name in names if "gradient" in catalogue.find("optimizer", name).touches}  # type: ignore[attr-defined]
    assert taking == set(catalogue.find("technique", "batch-ramp").conflicts)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="'batch-ramp' and 'lbfgs' exclude each other"):
        recipe(net(), optimizer="lbfgs", techniques=["batch-ramp"])


def copies_of(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_noise_is_listed_before_clipping() -> None:
    with pytest.raises(
        RecipeError, match=r"'clip' must come after 'gradient-noise'; the right order: \[gradient-noise"
    ):
        Recipe.from_value({"name": "a", "data": "digits", "model": "mlp", "techniques": ["clip", "gradient-noise"]})
