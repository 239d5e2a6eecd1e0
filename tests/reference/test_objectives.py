"""Label smoothing and accumulation against plain functions of torch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kingpost.assembly import Batch, Step
from kingpost.task import Task
from kingpost.train.gradients.accumulate import accumulated
from kingpost.train.gradients.backward import backward
from kingpost.train.regularise.label_smoothing import smooth_labels, smoothed
from kingpost.train.tasks import Classification, LanguageModelling, MultiLabel, Regression

ROUNDING = 1e-13  # sums of at most a hundred numbers around 1, in 64 bits


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masked_tokens() -> Tensor:
    """``(7, 5)`` next tokens of a vocabulary of 6; rows hide 0 to 4 positions, so pieces count unequally."""
    targets = torch.randint(0, 6, (7, 5), generator=torch.Generator().manual_seed(3))
    for row in range(7):
        targets[row, 5 - row % 5 :] = -100
    return targets


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("kind", ["classes", "probabilities", "tokens"])
def test_label_smoothing_equals_torchs(kind: str, strength: float) -> None:
    task: Task = LanguageModelling() if kind == "tokens" else Classification()
    scores = (draw(7, 5, 6) if kind == "tokens" else draw(7, 6)).requires_grad_()
    targets = {
        "classes": torch.tensor([0, 5, 2, 2, 1, 4, 3]),
        "probabilities": draw(7, 6, seed=1).softmax(-1),
        "tokens": masked_tokens(),
    }[kind]
    loss = smoothed(task.objective, strength)(nn.Identity(), Batch((scores,), targets, 0, 7))
    (ours,) = torch.autograd.grad(loss.mean(), scores)
    flat = (scores.flatten(0, 1), targets.flatten()) if kind == "tokens" else (scores, targets)
    expected = F.cross_entropy(*flat, label_smoothing=strength)
    (theirs,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(torch.as_tensor(loss.mean()), expected, rtol=ROUNDING, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_smoothed_labels_are_the_mixture_one_by_one(strength: float) -> None:
    classes = torch.tensor([2, 0, 1])
    expected = [[(1 - strength) * (c == k) + strength / 4 for k in range(4)] for c in classes.tolist()]
    torch.testing.assert_close(smooth_labels(classes, strength, 4), torch.tensor(expected), rtol=0, atol=1e-16)
    soft = draw(3, 4).softmax(-1)
    mixed = [[(1 - strength) * p + strength / 4 for p in row] for row in soft.tolist()]
    torch.testing.assert_close(smooth_labels(soft, strength, 4), torch.tensor(mixed), rtol=0, atol=1e-16)


def test_smoothing_the_targets_equals_smoothing_the_loss() -> None:
    scores, classes = draw(5, 4), torch.tensor([0, 3, 1, 1, 2])
    loss = smoothed(Classification().objective, 0.3)(nn.Identity(), Batch((scores,), classes, 0, 5))
    by_targets = F.cross_entropy(scores, smooth_labels(classes, 0.3, 4))
    torch.testing.assert_close(torch.as_tensor(loss.mean()), by_targets, rtol=ROUNDING, atol=0)


PROBLEMS: dict[str, tuple[Task, Callable[[], nn.Module], Tensor, Callable[[Tensor, Tensor], Tensor]]] = {
    "classes": (Classification(), lambda: nn.Linear(4, 3), torch.tensor([0, 2, 1, 1, 0, 2, 2]), F.cross_entropy),
    "values": (Regression(), lambda: nn.Linear(4, 2), draw(7, 2, seed=5), F.mse_loss),
    "labels": (
        MultiLabel(),
        lambda: nn.Linear(4, 3),
        (draw(7, 3, seed=6) > 0).to(torch.float64),
        F.binary_cross_entropy_with_logits,
    ),
    "tokens": (
        LanguageModelling(),
        lambda: nn.Sequential(nn.Linear(4, 30), nn.Unflatten(1, (5, 6))),
        masked_tokens(),
        lambda scores, y: F.cross_entropy(scores.flatten(0, 1), y.flatten()),
    ),
}


@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_accumulated_gradient_is_that_of_the_mean_over_all_items(problem: str, pieces: int) -> None:
    """Seven samples in three pieces are 2, 2 and 3; for tokens the pieces also differ in what is hidden."""
    task, make, targets, mean_loss = PROBLEMS[problem]
    torch.manual_seed(0)
    model = make()
    plain = copy.deepcopy(model)
    batch = Batch((draw(7, 4, seed=9),), targets, 0, 7)
    step = Step(index=0, seed=0, items=task.items(targets))
    loss = accumulated(backward, pieces)(model, task.objective, batch, step)
    expected = mean_loss(plain(batch.inputs[0]), targets)
    expected.backward()
    torch.testing.assert_close(torch.as_tensor(loss.mean()), expected.detach(), rtol=ROUNDING, atol=0)
    assert loss.items == task.items(targets)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=ROUNDING)


def test_token_counts_differ_between_pieces() -> None:
    """The test above would pass with a mean of means if every piece had as many tokens."""
    batch = Batch((torch.zeros(7, 5),), masked_tokens(), 0, 7)
    counts = [LanguageModelling().items(piece.targets) for piece in batch.split(3)]
    assert len({count / len(piece) for count, piece in zip(counts, batch.split(3), strict=True)}) == 3
    assert sum(counts) == sum(t != -100 for row in masked_tokens().tolist() for t in row)


def test_a_piece_without_any_token_adds_nothing() -> None:
    targets = masked_tokens()
    targets[:3] = -100
    task, make, _, mean_loss = PROBLEMS["tokens"]
    torch.manual_seed(0)
    model = make()
    plain = copy.deepcopy(model)
    batch = Batch((draw(7, 4, seed=9),), targets, 0, 7)
    accumulated(backward, 3)(model, task.objective, batch, Step(index=0, seed=0, items=task.items(targets)))
    mean_loss(plain(batch.inputs[0]), targets).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=ROUNDING)
