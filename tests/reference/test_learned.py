"""The learned optimizer: Adam where its net is silent, its step written out, and its meta-gradient in closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from kingpost.errors import RecipeError, RunError
from kingpost.train.optimise import learned_tasks, learned_training
from kingpost.train.optimise.learned import (
    BUNDLED,
    FEATURES,
    HIDDEN,
    MEMORIES,
    TIMES,
    LearnedRule,
    fresh,
    load_learned,
    numbers,
    save_learned,
)
from kingpost.train.optimise.learned_training import Learning, MetaTraining, learn_optimizer, pes_gradient
from reference.plain import assert_same, by_hand, by_kingpost, net


def written(path: Path, theta: torch.Tensor) -> str:
    save_learned(path, theta, {"hidden": HIDDEN})
    return str(path)


def test_a_net_that_says_nothing_is_adam(tmp_path: Path) -> None:
    weights = written(tmp_path / "zero.safetensors", fresh(torch.Generator().manual_seed(0)))
    ours, _ = by_kingpost(tmp_path, net(), optimizer={"name": "learned", "weights": weights, "lr": 3.0})
    theirs, _ = by_hand(net(), lambda groups: torch.optim.Adam(groups, lr=0.003, foreach=False, fused=False))
    # Twelve steps in 64 bits; the division by the root enlarges rounding about a hundredfold.
    assert_same(ours, theirs, 1e-12)


def slow_move(p: list[float], gradients: list[list[float]], theta: torch.Tensor) -> list[float]:
    """The last of several steps, weight by weight, in plain Python."""
    n, steps = len(p), len(gradients)
    momenta = [[0.0] * n for _ in MEMORIES]
    squares = [0.0] * n
    for g in gradients:
        momenta = [[b * m + (1 - b) * x for m, x in zip(ms, g, strict=True)]
                   for b, ms in zip(MEMORIES, momenta, strict=True)]  # fmt: skip
        squares = [0.999 * v + 0.001 * x * x for v, x in zip(squares, g, strict=True)]
    means = [[m / (1 - b**steps) for m in ms] for b, ms in zip(MEMORIES, momenta, strict=True)]
    roots = [math.sqrt(v / (1 - 0.999**steps)) + 1e-8 for v in squares]

    def over_size(x: list[float]) -> list[float]:
        size = math.sqrt(sum(a * a for a in x) / n) + 1e-20
        return [a / size for a in x]

    logs = [math.log(r) for r in roots]
    columns = [over_size(x) for x in (p, gradients[-1], *means)]
    columns += [[min(10, max(-10, a / r)) for a, r in zip(x, roots, strict=True)] for x in (gradients[-1], *means)]
    columns += [[(a - sum(logs) / n) / 4 for a in logs]]
    columns += [[math.log(n) / 8] * n, [math.log(math.sqrt(sum(a * a for a in p) / n + 1e-6)) / 2 + 1] * n]
    columns += [[math.tanh(steps / t - 1)] * n for t in TIMES]
    numbers_ = theta.tolist()
    moved = []
    for i in range(n):
        x, at = [column[i] for column in columns], 0
        for inputs, outputs in ((FEATURES, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2)):
            matrix, bias = numbers_[at : at + inputs * outputs], numbers_[at + inputs * outputs :][:outputs]
            x = [bias[o] + sum(x[a] * matrix[a * outputs + o] for a in range(inputs)) for o in range(outputs)]
            x = [max(0.0, a) for a in x] if outputs != 2 else x
            at += inputs * outputs + outputs
        moved.append(p[i] - 0.7 * 0.001 * math.exp(x[0]) * (means[1][i] / roots[i] + x[1]))
    return moved


def test_the_step_is_the_one_written_out() -> None:
    draw = torch.Generator().manual_seed(1)
    theta = 0.5 * torch.randn(numbers(), generator=draw)
    p = torch.nn.Parameter(torch.randn(2, 3, generator=draw))
    gradients = [torch.randn(2, 3, generator=draw) for _ in range(3)]
    optimizer = LearnedRule([{"params": [p]}], 0.7, theta)
    for g in gradients:
        before = p.detach().flatten().tolist()
        p.grad = g
        optimizer.step()
    expected = slow_move(before, [g.flatten().tolist() for g in gradients], theta)
    # About a hundred operations on numbers around 1.
    torch.testing.assert_close(p.detach().flatten(), torch.tensor(expected), rtol=0, atol=1e-14)


PAIRS = 400_000
THETA, START = 0.4, 2.0


def drift(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """``x_t = x_0 - t theta``; the cost is then quadratic in theta, and smoothing leaves its gradient as it is."""
    return x - theta


def descent(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Gradient descent on ``(x - 1)^2 / 2`` at the rate theta: ``x_t - 1 = (1 - theta)^t (x_0 - 1)``."""
    return x - theta * (x - 1)


def estimates(dynamics: Callable[..., torch.Tensor], sigma: float, persistent: bool = True) -> torch.Tensor:
    """(Persistent) evolution strategies over two windows of 3 steps; one estimate a pair, ``(PAIRS,)``.

    The cost of a step is ``(x - 1)^2 / 2`` after it.
    """
    draw = torch.Generator().manual_seed(2)
    x = torch.full((2 * PAIRS,), START)
    noise_sum, total = torch.zeros(PAIRS), torch.zeros(PAIRS)
    for _ in range(2):
        noise = sigma * torch.randn(PAIRS, generator=draw)
        noise_sum = noise_sum + noise if persistent else noise
        thetas, cost = torch.cat([THETA + noise, THETA - noise]), torch.zeros(2 * PAIRS)
        for _ in range(3):
            x = dynamics(x, thetas)
            cost = cost + (x - 1) ** 2 / 2
        plus, minus = cost.chunk(2)
        each = (plus - minus) * noise_sum / (2 * sigma**2)
        mean = pes_gradient(plus, minus, noise_sum[:, None], sigma)
        # The same sum of 400,000 terms of size 10 or so, in another order.
        torch.testing.assert_close(mean[0], each.mean(), rtol=1e-9, atol=1e-11)
        total += each
    return total


DRIFT = sum(-t * (START - t * THETA - 1) for t in range(1, 7))
DESCENT = sum(-t * (1 - THETA) ** (2 * t - 1) * (START - 1) ** 2 for t in range(1, 7))


# A smoothed sixth power of theta differs by some 15 sigma^2 in relative terms, 1.5e-3 at sigma = 0.01.
@pytest.mark.parametrize(
    ("dynamics", "sigma", "exact", "bias"), [(drift, 0.3, DRIFT, 0.0), (descent, 0.01, DESCENT, 5e-3)]
)
def test_the_meta_gradient_is_that_of_the_closed_form(
    dynamics: Callable[..., torch.Tensor], sigma: float, exact: float, bias: float
) -> None:
    found = estimates(dynamics, sigma)
    error = float(found.std()) / math.sqrt(PAIRS)
    assert error < 0.05 * abs(exact), "too few pairs to tell anything"
    assert abs(float(found.mean()) - exact) < 4 * error + bias * abs(exact)  # 4 standard errors: 1 in 16,000


def test_a_window_that_forgets_is_biased() -> None:
    """Without the sum, the second window counts only its own part of the drift: ``x_3 - (t - 3) theta``."""
    short = sum(-t * (START - t * THETA - 1) for t in range(1, 4))
    short += sum(-(t - 3) * (START - t * THETA - 1) for t in range(4, 7))
    found = estimates(drift, 0.3, persistent=False)
    error = float(found.std()) / math.sqrt(PAIRS)
    assert abs(float(found.mean()) - short) < 4 * error
    assert abs(float(found.mean()) - DRIFT) > 20 * error


def test_the_nets_of_an_inner_problem_know_nothing_of_one_another() -> None:
    torch.set_default_dtype(torch.float32)
    task = learned_tasks.draw_task(0, "test")
    draw = torch.Generator().manual_seed(0)
    parts, (x, y) = task.start(3, draw), task.draw(3, draw)
    together = task.losses(parts, x, y)
    for index in range(3):
        h = x[index]
        for layer in range(len(task.widths) - 1):
            matrix = parts[2 * layer][index].view(task.widths[layer], task.widths[layer + 1])
            h = h @ matrix + parts[2 * layer + 1][index]
            h = learned_tasks.ACTIVATIONS[task.activation](h) if layer < len(task.widths) - 2 else h
        alone = torch.nn.functional.cross_entropy(h, y[index]) / math.log(task.widths[-1])
        torch.testing.assert_close(together[index], alone, rtol=1e-5, atol=1e-6)  # 32 bits, sums in another order


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(learned_training, "PROBLEMS", 1)


def bits(path: Path) -> tuple[bytes, dict[str, object]]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("theta").numpy().tobytes(), json.loads(file.metadata()["kingpost"])


@pytest.mark.usefixtures("small")
def test_meta_training_repeats_and_resumes_to_the_bit(tmp_path: Path) -> None:
    whole, again, parts = (tmp_path / f"{name}.safetensors" for name in ("whole", "again", "parts"))
    made = learn_optimizer(whole, steps=4, quiet=True)
    assert isinstance(made, Learning) and made.finished and made.steps == 4
    learn_optimizer(again, steps=4, quiet=True)
    learn_optimizer(parts, steps=2, quiet=True)
    learn_optimizer(parts, steps=4, quiet=True)
    assert bits(whole) == bits(again) == bits(parts)
    other = tmp_path / "other.safetensors"
    learn_optimizer(other, steps=4, seed=1, quiet=True)
    assert bits(other)[0] != bits(whole)[0]
    with pytest.raises(RunError, match="is of seed 0, not 1; use another file, or remove the folder"):
        learn_optimizer(whole, steps=5, seed=1, quiet=True)


@pytest.mark.usefixtures("small")
def test_an_inner_problem_ends_and_the_next_begins() -> None:
    training = MetaTraining(0)
    (problem,) = training.problems
    problem.step = problem.task.steps - 5  # it ends within the next window
    training.step()
    assert (problem.episode, problem.step > problem.task.steps - 5) == (0, True)
    training.step()
    assert (problem.episode, problem.step) == (1, learned_training.WINDOW)


def test_a_budget_is_needed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="either minutes or steps"):
        learn_optimizer(tmp_path / "x.safetensors", quiet=True)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(RecipeError, match="holds no learned optimizer"):
        load_learned(tmp_path / "x.safetensors")


def test_the_bundled_one_can_be_read_and_is_small() -> None:
    theta, about = load_learned(BUNDLED)
    assert len(theta) == numbers() and about["hidden"] == HIDDEN and theta.isfinite().all()
    assert BUNDLED.stat().st_size < 20_000
