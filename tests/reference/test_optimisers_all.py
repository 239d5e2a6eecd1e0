"""What every optimizer of the catalogue must do; none is named here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.subjects import make, recipe_with, subjects
from kingpost import catalogue
from kingpost.assembly import Batch, Loss, Setting, Step
from kingpost.technique import Technique
from kingpost.train import checkpoint
from kingpost.train.assemble import plain_assembly
from kingpost.train.gradients.backward import clear_gradients
from kingpost.train.planning import plan
from kingpost.train.tasks import Classification, Regression

NAMES = sorted(name for kind, name in subjects() if kind == "optimizer")
all_optimizers = pytest.mark.parametrize("name", NAMES)
RATES = (300.0, 10.0, 1.0, 0.1, 0.02, 0.0007)


class Loop:
    """A few lines of training around an optimizer option: its own gradient and update, on one batch."""

    def __init__(self, option: Technique, model: nn.Module, at: Batch, task: Any, objective: Any = None) -> None:
        setting = Setting(
            task=task, data=None, batch_size=len(at), total_steps=100, seed=0,
            device=torch.device("cpu"), first_batch=lambda: at,
        )  # type: ignore[arg-type]  # fmt: skip
        self.assembly = option.mount(plain_assembly(setting).with_(model=model))
        self.model, self.at, self.objective = model, at, objective or task.objective
        self.items = task.items(at.targets)
        self.optimizer = self.assembly.optimizer(model)
        self.index = 0

    def step(self) -> float:
        step = Step(index=self.index, seed=0, items=self.items)
        a, self.index = self.assembly, self.index + 1
        loss = a.gradient(self.model, self.objective, self.at, step)
        a.update(self.model, self.optimizer, step)
        clear_gradients(self.model)
        return float(loss.mean())

    def judged(self) -> float:
        """The loss of the weights that are judged."""
        with self.assembly.evaluate(self.model), torch.no_grad():
            return float(self.objective(self.model, self.at).mean())


def option_with(name: str, lr: float) -> Technique:
    cls = catalogue.find("optimizer", name)
    known = cls.__dataclass_fields__  # type: ignore[attr-defined]
    fields: dict[str, Any] = {key: lr for key in ("lr", "adamw_lr", "other_lr") if key in known}
    fields |= {key: 0.0 for key in ("weight_decay",) if key in known}
    return make("optimizer", name, **fields)


class Point(nn.Module):
    """Numbers to be found, as a matrix of two rows, beside the layer that makes it a net."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start)[:, None])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def least(name: str, problem: str, steps: int) -> tuple[float, float]:
    """The loss at the start, and the least that any of a few rates reaches: methods differ in their unit of rate."""
    if reason := make("optimizer", name).exceptions.get("convergence"):
        pytest.skip(f"convergence: {reason}")
    found = []
    for lr in RATES:
        loop = PROBLEMS[problem](option_with(name, lr))
        first = loop.judged()
        for _ in range(steps):
            loop.step()
            if not loop.judged() < 1e6:
                break
        found.append(loop.judged())
    return first, min(value for value in found if value == value)


def quadratic(option: Technique) -> Loop:
    """Least squares in two numbers, of condition 10."""
    x = torch.tensor([[1.0, 0.2], [0.0, 3.0], [0.5, -1.0], [1.0, 1.0]])
    at = Batch((x,), x @ torch.tensor([[1.0], [-0.5]]), 0, 4)
    torch.manual_seed(0)
    return Loop(option, Point([-1.0, 1.5]), at, Regression())


def rosenbrock(option: Technique) -> Loop:
    """``(1 - a)^2 + 100 (b - a^2)^2`` from (-1.2, 1), the classic start; per item of a batch of one."""

    def objective(model: nn.Module, batch: Batch) -> Loss:
        out = model(torch.eye(2))
        a, b = out[0, 0], out[1, 0]
        return Loss((1 - a) ** 2 + 100 * (b - a * a) ** 2, 1, out[:1])

    at = Batch((torch.eye(2)[:1],), torch.zeros(1, 1), 0, 1)
    return Loop(option, Point([-1.2, 1.0]), at, Regression(), objective)


PROBLEMS = {"quadratic": quadratic, "rosenbrock": rosenbrock}


@all_optimizers
def test_converges_on_a_quadratic(name: str) -> None:
    first, last = least(name, "quadratic", 100)
    assert first > 1 and last < 0.05 * first, (first, last)


@all_optimizers
def test_lowers_rosenbrocks_function(name: str) -> None:
    first, last = least(name, "rosenbrock", 100)
    assert first == pytest.approx(24.2)  # the classic value at the classic start
    assert last < 0.5 * first, last


def small_net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    stem = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*stem, nn.Linear(36, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def small_batch(dtype: torch.dtype = torch.float64) -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch((torch.randn(12, 1, 5, 5, generator=draw).to(dtype),), torch.arange(12) % 3, 0, 12)


@all_optimizers
def test_lowers_the_loss_of_a_small_net(name: str) -> None:
    loop = Loop(make("optimizer", name), small_net(), small_batch(), Classification())
    losses = [loop.step() for _ in range(40)]
    assert loop.judged() < 0.9 * losses[0]


@all_optimizers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    loop = Loop(make("optimizer", name), small_net(dtype), small_batch(dtype), Classification())
    for _ in range(3):
        loop.step()
    assert all(p.dtype == dtype and p.isfinite().all() for p in loop.model.parameters())
    held = [v for state in loop.optimizer.state.values() for k, v in state.items() if isinstance(v, Tensor) and v.ndim]
    assert all(v.dtype == dtype for v in held)


@all_optimizers
def test_state_goes_through_a_checkpoint_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Saved after three steps and loaded by a new optimizer, which then makes the same three steps."""
    whole = Loop(make("optimizer", name), small_net(), small_batch(), Classification())
    for _ in range(3):
        whole.step()
    state = {"model": whole.model.state_dict(), "optimizer": whole.optimizer.state_dict()}
    path = checkpoint.save(tmp_path, 3, 0, state, keep=1)
    for _ in range(3):
        whole.step()
    loaded = checkpoint._load(path, torch.device("cpu"))
    again = Loop(make("optimizer", name), small_net(), small_batch(), Classification())
    again.model.load_state_dict(loaded["model"])
    again.optimizer.load_state_dict(loaded["optimizer"])
    again.index = 3
    for _ in range(3):
        again.step()
    for (key, a), b in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@all_optimizers
def test_a_plan_says_what_it_does(name: str) -> None:
    figures = {f.name: f for f in plan(recipe_with("optimizer", make("optimizer", name))).figures}
    assert {"update rule", "weight decay", "optimizer state"} <= figures.keys()
    decays = getattr(make("optimizer", name), "weight_decay", 0.0)
    matrices, vectors = (2, 2) if decays else (0, 4)
    assert figures["weight decay"].reason == f"{matrices} tensors decay, {vectors} do not"


@all_optimizers
def test_gradients_are_left_as_they_were(name: str) -> None:
    """What is logged or clipped after the step must be the gradient itself."""
    loop = Loop(make("optimizer", name), small_net(), small_batch(), Classification())
    step = Step(index=0, seed=0, items=12)
    loop.assembly.gradient(loop.model, loop.objective, loop.at, step)
    before = [copy.deepcopy(p.grad) for p in loop.model.parameters()]
    if isinstance(loop.optimizer, torch.optim.LBFGS):
        pytest.skip("it takes gradients of its own")
    loop.assembly.update(loop.model, loop.optimizer, step)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, loop.model.parameters(), strict=True))  # type: ignore[arg-type]


def test_cross_entropy_is_what_the_loop_minimises() -> None:
    """The loop above is one of its own, so it is checked against two lines of torch."""
    loop = Loop(make("optimizer", "sgd", lr=0.1, momentum=0.0), small_net(), small_batch(), Classification())
    twin = small_net()
    loop.step()
    loss = F.cross_entropy(twin(small_batch().inputs[0]), small_batch().targets)
    loss.backward()
    for p, q in zip(loop.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad, rtol=0, atol=1e-15)  # type: ignore[operator]
