"""The multi-task task, the margin loss, and methods that weigh heads: closed forms and slow twins."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, mean_absolute_error, r2_score
from torch import Tensor, nn

from kingpost.assembly import Batch, Loss, Step
from kingpost.errors import RecipeError
from kingpost.source import DataFacts, Head
from kingpost.train.gradients.accumulate import accumulated
from kingpost.train.gradients.backward import backward, clear_gradients
from kingpost.train.multi_task import MultiTask
from kingpost.train.objectives.gradnorm import Balance, balanced
from kingpost.train.objectives.margin import MarginLoss, margin_loss, with_margin
from kingpost.train.objectives.uncertainty import uncertain
from kingpost.train.regularise.l2 import penalised

NAN = float("nan")
FACTS = DataFacts(
    task="multi-task",
    inputs=(((4,), torch.float64),),
    target_shape=(2,),
    heads=(Head(name="kind", classes=("a", "b", "c")), Head(name="size")),
)


@pytest.fixture(autouse=True)
def in_64_bits():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(rows: int = 8) -> Tensor:
    kinds = torch.arange(rows).remainder(3).double()
    targets = torch.stack([kinds, numbers(rows, seed=5)], 1)
    targets[1, 0] = targets[4, 1] = NAN
    targets[6] = NAN
    return targets


def test_the_loss_is_the_sum_over_heads_and_known_labels() -> None:
    task, outputs, targets = MultiTask(weights={"size": 0.5}).for_data(FACTS), numbers(8, 4), labels()
    expected = [0.0, 0.0]
    for row, (kind, size) in zip(outputs, targets.tolist(), strict=True):
        if not math.isnan(kind):
            expected[0] += float(-(row[:3] - row[:3].exp().sum().log())[int(kind)])
        if not math.isnan(size):
            expected[1] += 0.5 * float((row[3] - size) ** 2)
    assert task.losses(outputs, targets).tolist() == pytest.approx(expected)
    assert float(task.criterion(outputs, targets)) == pytest.approx(sum(expected))
    assert task.items(targets) == 8
    pieces = [task.criterion(o, t) for o, t in zip(outputs.split(3), targets.split(3), strict=True)]
    assert float(sum(pieces)) == pytest.approx(sum(expected))


def test_missing_labels_send_no_gradient() -> None:
    task, outputs = MultiTask().for_data(FACTS), numbers(8, 4).requires_grad_()
    task.criterion(outputs, labels()).backward()
    grad = outputs.grad
    assert grad is not None and grad.isfinite().all()
    assert not grad[1, :3].any() and grad[1, 3] != 0 and not grad[4, 3] and grad[4, :3].all() and not grad[6].any()


def test_metrics_are_those_of_scikit_learn_on_known_labels() -> None:
    task, outputs, targets = MultiTask().for_data(FACTS), numbers(40, 4), labels(40)
    metrics = task.metrics(FACTS)
    for o, t in zip(task.predictions(outputs).split(7), targets.split(7), strict=True):
        for metric in metrics.values():
            metric.update(o, t)
    known = ~targets.isnan()
    kinds, sizes = known[:, 0], known[:, 1]
    expected = {
        "accuracy_kind": accuracy_score(targets[kinds, 0], outputs[kinds, :3].argmax(1)),
        "r2_size": r2_score(targets[sizes, 1], outputs[sizes, 3]),
        "mean_absolute_error_size": mean_absolute_error(targets[sizes, 1], outputs[sizes, 3]),
    }
    expected["score"] = (expected["accuracy_kind"] + expected["r2_size"]) / 2
    # torchmetrics sums in 32 bits.
    assert {k: float(m.compute()) for k, m in metrics.items()} == pytest.approx(expected, rel=1e-5)


def test_predictions_are_probabilities_and_values() -> None:
    out = MultiTask().for_data(FACTS).predictions(numbers(5, 4))
    torch.testing.assert_close(out, torch.cat([numbers(5, 4)[:, :3].softmax(1), numbers(5, 4)[:, 3:]], 1))
    assert MultiTask(weights={"size": 2.0}).chance_loss(FACTS) == pytest.approx(math.log(3) + 2)


def test_the_task_says_what_is_wrong() -> None:
    with pytest.raises(RecipeError, match=r"task.weights: no head 'sise'; did you mean 'size'\?"):
        MultiTask(weights={"sise": 1.0}).for_data(FACTS)
    plain = DataFacts(task="regression", inputs=FACTS.inputs)
    with pytest.raises(RecipeError, match=r"task\.heads: this data does not say what its heads are"):
        MultiTask().for_data(plain)
    assert MultiTask(heads=(("u", 0), ("v", 4))).for_data(plain).outputs_per_sample(plain) == 5
    with pytest.raises(RecipeError, match=r"gives \(8, 3\) for targets \(8, 2\); 2 heads need outputs \(B, 4\)"):
        MultiTask().for_data(FACTS).criterion(numbers(8, 3), labels())


@pytest.mark.parametrize(
    ("presence", "target", "expected"),
    [
        ([0.9, 0.1, 0.1], 0, 0.0),  # at the margins, nothing
        ([1.0, 0.0, 0.05], 0, 0.0),
        ([0.0, 0.0, 0.0], 1, 0.81),
        ([0.5, 0.1, 0.1], 0, 0.16),
        ([0.9, 0.6, 0.1], 0, 0.5 * 0.25),
        ([0.2, 0.4, 1.0], 0, 0.49 + 0.5 * (0.09 + 0.81)),
    ],
)
def test_margin_loss_in_closed_form(presence: list[float], target: int, expected: float) -> None:
    assert float(margin_loss(torch.tensor([presence]), torch.tensor([target]))) == pytest.approx(expected, abs=1e-15)
    shares = F.one_hot(torch.tensor([target]), 3).double()
    assert float(margin_loss(torch.tensor([presence]), shares)) == pytest.approx(expected, abs=1e-15)


def test_margin_loss_takes_log_odds_and_is_a_sum() -> None:
    outputs, targets = numbers(6, 3).requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 2])

    def plain(model: nn.Module, batch: Batch) -> Loss:
        return Loss(model(*batch.inputs).sum() * 0 + 7, len(batch), model(*batch.inputs))

    objective = with_margin(plain, 0.9, 0.1, 0.5)
    whole = objective(nn.Identity(), Batch((outputs,), targets, 0, 6))
    torch.testing.assert_close(whole.data, margin_loss(1 / (1 + (-outputs).exp()), targets))
    pieces = [objective(nn.Identity(), b).data for b in Batch((outputs,), targets, 0, 6).split(4)]
    torch.testing.assert_close(sum(pieces), whole.data)
    with pytest.raises(RecipeError, match=r"absent: got 0.95; less than present=0.9"):
        MarginLoss(absent=0.95)


def test_uncertainty_is_the_likelihood_of_a_gaussian_and_of_a_temperature() -> None:
    """For values, -ln N(y | f, exp(s)) summed, up to ln(2 pi) / 2 a sample."""
    y, f, s = numbers(9), numbers(9, seed=1), torch.tensor([0.7])
    got = uncertain((y - f).square().sum()[None], s, [True], items=9)
    exact = -torch.distributions.Normal(f, (s / 2).exp()).log_prob(y).sum() - 9 * math.log(2 * math.pi) / 2
    torch.testing.assert_close(got, exact)
    classes = uncertain(torch.tensor([5.0]), torch.tensor([0.4]), [False], items=9)
    assert float(classes) == pytest.approx(math.exp(-0.4) * 5 + 9 * 0.4 / 2)


def test_uncertainty_settles_where_the_variance_is_the_mean_squared_error() -> None:
    losses = torch.tensor([8.0 * 10, 0.3 * 10])  # of ten samples: a value's and a class head's
    # d/ds = 0: exp(s) is the mean squared error, and twice the mean cross-entropy.
    s = torch.tensor([8.0, 0.6]).log().requires_grad_()
    uncertain(losses, s, [True, False], items=10).backward()
    assert s.grad is not None and s.grad.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    for wrong in (-0.1, 0.1):
        assert uncertain(losses, s + wrong, [True, False], 10) > uncertain(losses, s, [True, False], 10)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))


def head_gradients(model: nn.Module, task: MultiTask, x: Tensor, targets: Tensor) -> list[list[Tensor]]:
    losses = task.losses(model(x), targets) / len(x)
    return [list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)) for loss in losses]


def test_gradnorm_is_the_papers_rule_written_out() -> None:
    """Four steps against a twin that takes each head's gradient by autograd and moves the weights by the formula."""
    task, x, targets = MultiTask(weights={"size": 3.0}).for_data(FACTS), numbers(8, 4, seed=2), labels()
    model, twin = net(), net()
    balance = Balance(2, alpha=1.5, lr=0.1)
    gradient = balanced(backward, balance, task)
    weights, start = [1.0, 1.0], []
    for index in range(4):
        clear_gradients(model)
        step = Step(index=index, seed=0, items=8)
        loss = gradient(model, task.objective, Batch((x,), targets, 0, 8), step)
        heads = head_gradients(twin, task, x, targets)
        sums = task.losses(twin(x), targets).detach()
        assert float(loss.data) == pytest.approx(float(sums.sum()))
        for p, a, b in zip(model.parameters(), *heads, strict=True):
            torch.testing.assert_close(p.grad, weights[0] * a + weights[1] * b)
        assert [step.log["weight_kind"], step.log["weight_size"]] == pytest.approx(weights)

        # The last layer's rows belong to one head each, but as a tensor both reach it: it counts as shared.
        lengths = [math.sqrt(sum(float(g.square().sum()) for g in grads)) for grads in heads]
        means = (sums / 8).tolist()
        start = start or means
        ratios = [m / s for m, s in zip(means, start, strict=True)]
        speed = [(r / (sum(ratios) / 2)) ** 1.5 for r in ratios]
        scaled = [w * g for w, g in zip(weights, lengths, strict=True)]
        mean = sum(scaled) / 2
        slopes = [math.copysign(1, s - mean * v) * g / mean for s, v, g in zip(scaled, speed, lengths, strict=True)]
        moved = [max(0.01, w - 0.1 * d) for w, d in zip(weights, slopes, strict=True)]
        weights = [2 * m / sum(moved) for m in moved]
        assert balance.weights.tolist() == pytest.approx(weights)
        with torch.no_grad():
            for p, q in zip(model.parameters(), twin.parameters(), strict=True):
                p -= 0.5 * p.grad
                q.copy_(p)
    assert len(set(map(float, balance.weights))) == 2


def test_gradnorm_makes_gradients_equally_long_where_nothing_else_pulls() -> None:
    balance = Balance(3, alpha=0.0, lr=0.002)
    for _ in range(3000):
        balance.move(torch.tensor([10.0, 1.0, 4.0]), torch.ones(3))
    scaled = balance.weights * torch.tensor([10.0, 1.0, 4.0])
    # Steps of a fixed size end in a small swing: 0.002 * 10 / mean of them, on weights around 0.2 to 2.2.
    assert float(scaled.max() / scaled.min()) < 1.1
    assert float(balance.weights.sum()) == pytest.approx(3)


def test_gradnorm_gives_a_slow_head_more() -> None:
    balance = Balance(2, alpha=1.0, lr=0.01)
    balance.move(torch.ones(2), torch.tensor([1.0, 1.0]))
    for _ in range(20):
        balance.move(torch.ones(2), torch.tensor([0.9, 0.1]))
    assert balance.weights[0] > 1.1


def test_gradnorm_adds_up_over_pieces_and_counts_penalties_once() -> None:
    task, x, targets = MultiTask().for_data(FACTS), numbers(8, 4, seed=2), labels()
    batch, found = Batch((x,), targets, 0, 8), []
    for inner in (backward, accumulated(backward, 3)):
        model, balance = net(), Balance(2, alpha=1.5, lr=0.1)
        balance.weights = torch.tensor([0.4, 1.6])
        loss = balanced(inner, balance, task)(
            model, penalised(task.objective, 0.3), batch, Step(index=0, seed=0, items=8)
        )
        a, b = head_gradients(model, task, x, targets)
        for p, g, h in zip(model.parameters(), a, b, strict=True):
            decay = 0.3 * p if p.ndim > 1 else 0.0
            torch.testing.assert_close(p.grad, 0.4 * g + 1.6 * h + decay)
        norm = sum(float(p.detach().square().sum()) for p in model.parameters() if p.ndim > 1)
        assert float(loss.penalty) == pytest.approx(0.3 * norm / 2)
        found.append(balance.weights)
    torch.testing.assert_close(*found)


def test_gradnorm_keeps_its_state_and_survives_what_is_not_finite() -> None:
    lengths, losses = numbers(2, 2).abs(), numbers(2, 2, seed=1).abs()
    one, two = Balance(2, 1.5, 0.1), Balance(2, 1.5, 0.1)
    one.move(lengths[0], losses[0])
    two.load_state_dict(one.state_dict())
    for balance in (one, two):
        balance.move(lengths[1], losses[1])
    assert torch.equal(one.weights, two.weights) and torch.equal(one.start, two.start)
    before = one.weights.clone()
    one.move(torch.tensor([NAN, 1.0]), torch.ones(2))
    assert torch.equal(one.weights, before)
