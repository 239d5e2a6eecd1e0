"""Sharpness-aware minimisation against a slow twin, written from the two lines of arXiv 2010.01412."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kingpost.assembly import Batch, Loss, Step
from kingpost.train.gradients.accumulate import accumulated
from kingpost.train.gradients.backward import backward, clear_gradients
from kingpost.train.regularise.sam import sharpness_aware
from kingpost.train.tasks import Classification

OBJECTIVE = Classification().objective


def batch(seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return Batch((torch.randn(9, 5, generator=draw),), torch.randint(0, 3, (9,), generator=draw), 0, 9)


def step() -> Step:
    return Step(index=0, seed=0, items=9)


def smooth_net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def norm_net(momentum: float | None = 0.1) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7, momentum=momentum), nn.Tanh(), nn.Linear(7, 3))


def slow_twin(model: nn.Module, at: Batch, rho: float) -> dict[str, Tensor]:
    """``e = rho * g(w) / |g(w)|``, then the gradient is ``g(w + e)``: equation 2 and line 6 of algorithm 1."""
    named = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def g(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        loss = F.cross_entropy(functional_call(model, weights, at.inputs), at.targets)
        return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))

    first = g(named)
    length = torch.cat([x.flatten() for x in first.values()]).norm()
    return g({name: (w + rho * first[name] / length).detach().requires_grad_() for name, w in named.items()})


@pytest.mark.parametrize("rho", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("pieces", [1, 4])
def test_equals_the_slow_twin(rho: float, pieces: int) -> None:
    model = smooth_net()
    expected = slow_twin(copy.deepcopy(model), batch(), rho)
    loss = sharpness_aware(accumulated(backward, pieces), rho)(model, OBJECTIVE, batch(), step())
    for name, p in model.named_parameters():
        # The norm's 1e-12 moves the weights by rho * 1e-12 at most; the rest is rounding.
        torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=5e-12)
    plain = smooth_net()
    at_w = F.cross_entropy(plain(*batch().inputs), batch().targets).detach()
    torch.testing.assert_close(torch.as_tensor(loss.mean()), at_w, rtol=1e-14, atol=0)  # the loss is that at w
    plain_grads = torch.autograd.grad(
        F.cross_entropy(plain(*batch().inputs), batch().targets), list(plain.parameters())
    )
    moved = max(float((p.grad - g).abs().max()) for p, g in zip(model.parameters(), plain_grads, strict=True))
    assert moved > 1e-4, "the ascent step made no difference, so this proves nothing"


def test_weights_are_restored_to_the_bit() -> None:
    model = smooth_net()
    before = copy.deepcopy(model.state_dict())
    sharpness_aware(backward, 0.3)(model, OBJECTIVE, batch(), step())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_statistics_are_counted_once(momentum: float | None) -> None:
    model, once = norm_net(momentum), norm_net(momentum)
    for seed in range(3):
        clear_gradients(model)
        sharpness_aware(backward, 0.3)(model, OBJECTIVE, batch(seed), step())
        once(*batch(seed).inputs)
    for name, value in once.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name
    assert int(model.get_buffer("1.num_batches_tracked")) == 3
    assert model[1].momentum == momentum


@pytest.mark.parametrize("momentum", [0.1, None])
def test_everything_is_put_back_when_the_second_pass_raises(momentum: float | None) -> None:
    model, once = norm_net(momentum), norm_net(momentum)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    calls = []

    def failing(model: nn.Module, batch: Batch) -> Loss:
        calls.append({name: p.detach().clone() for name, p in model.named_parameters()})
        loss = OBJECTIVE(model, batch)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("pretended")
        return loss

    with pytest.raises(torch.OutOfMemoryError, match="pretended"):
        sharpness_aware(backward, 0.3)(model, failing, batch(), step())
    assert not torch.equal(calls[1]["0.weight"], before["0.weight"]), "it failed before the weights were moved"
    once(*batch().inputs)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
    for name, value in once.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name
    assert model[1].momentum == momentum


def test_frozen_weights_stay_out_of_it() -> None:
    model = smooth_net()
    model[0].weight.requires_grad_(False)
    free = copy.deepcopy(model)
    sharpness_aware(backward, 0.5)(model, OBJECTIVE, batch(), step())
    named = {name: p for name, p in free.named_parameters() if p.requires_grad}
    first = torch.autograd.grad(F.cross_entropy(free(*batch().inputs), batch().targets), list(named.values()))
    length = sum(float((g**2).sum()) for g in first) ** 0.5
    moved = {
        name: (p + 0.5 * g / length).detach().requires_grad_()
        for (name, p), g in zip(named.items(), first, strict=True)
    }
    loss = F.cross_entropy(functional_call(free, moved, batch().inputs), batch().targets)
    for name, g in zip(moved, torch.autograd.grad(loss, list(moved.values())), strict=True):
        # Rounding, and the 1e-12 beside the norm.
        torch.testing.assert_close(model.get_parameter(name).grad, g, rtol=0, atol=5e-12)
    assert model[0].weight.grad is None
