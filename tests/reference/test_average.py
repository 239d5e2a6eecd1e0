"""The moving average against torch.optim.swa_utils, and the swap that judges it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kingpost.train.regularise.ema import Average
from reference.plain import assert_same, by_hand, by_kingpost, net


def norm_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def moved(model: nn.Module, seed: int) -> None:
    """A step of some kind: new weights, and new running statistics."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=draw), alpha=0.1)
        model(torch.randn(8, 4, generator=draw))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_equals_torchs_averaged_model(decay: float) -> None:
    """torch also 'averages' whole numbers (num_batches_tracked), by cutting them off; kingpost leaves them alone."""
    model, average = norm_net(), Average(decay)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    for seed in range(10):
        moved(model, seed)
        average.add(model)
        theirs.update_parameters(model)
    expected = {k: v for k, v in theirs.module.state_dict().items() if v.is_floating_point()}
    assert_same(average.values, expected, 1e-15)  # ten times lerp, which is the same kernel or one rounding apart


def test_average_is_the_weighted_sum() -> None:
    """``a_n = d^n w_0 + (1 - d) sum_k d^(n-k) w_k``, written out."""
    model, average, history = norm_net(), Average(0.7), []
    for seed in range(6):
        moved(model, seed)
        average.add(model)
        history.append(model[0].weight.detach().clone())
    expected = 0.7**5 * history[0] + sum(0.3 * 0.7 ** (5 - k) * history[k] for k in range(1, 6))
    torch.testing.assert_close(average.values["0.weight"], expected, rtol=0, atol=1e-15)  # six roundings below 1


def test_warm_up_remembers_less_at_first() -> None:
    """The decay at step n is the smaller of ``decay`` and ``(1 + n) / (10 + n)``, written out."""
    model, average = norm_net(), Average(0.3, warmup=True)
    expected = None
    for n in range(1, 8):
        moved(model, n)
        average.add(model)
        weight = model[0].weight.detach().clone()
        decay = min(0.3, (1 + n) / (10 + n))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    torch.testing.assert_close(average.values["0.weight"], expected, rtol=0, atol=1e-15)  # seven roundings below 1


def test_through_training(tmp_path: Path) -> None:
    ours, run = by_kingpost(tmp_path, net(), techniques=[{"name": "ema", "decay": 0.6, "warmup": False}])
    theirs, _ = by_hand(net(), lambda g: torch.optim.SGD(g, lr=0.1, foreach=False))
    assert_same(ours, theirs, 1e-12)  # the trained weights themselves are not averaged; rounding of twelve steps
    after_step = [by_hand(net(), lambda g: torch.optim.SGD(g, lr=0.1), steps=n)[0] for n in range(1, 13)]
    average = after_step[0]
    for weights in after_step[1:]:
        average = {name: 0.6 * average[name] + 0.4 * weights[name] for name in average}
    assert_same(load_file(run.weights("last")), average, 1e-12)  # what is kept is the average


def test_the_swap_is_exact() -> None:
    model, average = norm_net(), Average(0.9)
    for seed in range(3):
        moved(model, seed)
        average.add(model)
    own, averaged = copy.deepcopy(model.state_dict()), copy.deepcopy(average.values)
    for _ in range(3):
        with average.in_place(model):
            for name, value in averaged.items():
                assert torch.equal(model.state_dict()[name], value), name
        for name, value in own.items():
            assert torch.equal(model.state_dict()[name], value), name
    for name, value in averaged.items():
        assert torch.equal(average.values[name], value), name


def test_nested_contexts_hold_the_average_all_the_way_in() -> None:
    model, average = norm_net(), Average(0.9)
    for seed in range(3):
        moved(model, seed)
        average.add(model)
    own, averaged = copy.deepcopy(model.state_dict()), copy.deepcopy(average.values)
    with average.in_place(model):
        with average.in_place(model):
            assert torch.equal(model[0].weight, averaged["0.weight"])
        assert torch.equal(model[0].weight, averaged["0.weight"])
    assert all(torch.equal(model.state_dict()[name], value) for name, value in own.items())
    assert all(torch.equal(average.values[name], value) for name, value in averaged.items())


def test_the_weights_come_back_after_an_error() -> None:
    model, average = norm_net(), Average(0.9)
    for seed in range(3):
        moved(model, seed)
        average.add(model)
    own = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyError), average.in_place(model):
        raise KeyError
    assert all(torch.equal(model.state_dict()[name], value) for name, value in own.items())


def test_tied_weights_are_swapped_once() -> None:
    model, average = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), Average(0.5)
    model[1].weight = model[0].weight
    average.add(model)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    average.add(model)
    own = model[0].weight.detach().clone()
    with average.in_place(model):
        # lerp halfway: one rounding of numbers below 2.
        torch.testing.assert_close(model[1].weight.detach(), own - 0.5, rtol=0, atol=5e-16)
    assert torch.equal(model[1].weight, own)
