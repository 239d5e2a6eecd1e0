"""Loss scaling against torch.amp.GradScaler, over steps some of which overflow."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from contract.toys import Toy
from kingpost.assembly import Batch, Loss, Step
from kingpost.train import checkpoint
from kingpost.train.gradients.backward import backward, clear_gradients
from kingpost.train.precision import LossScale, scaled
from kingpost.train.train import train
from reference.plain import recipe

OVERFLOWS = {2, 3, 9, 10, 11, 20}
PATIENCE, STEPS = 4, 24


def factor(index: int) -> float:
    return float("inf") if index in OVERFLOWS else 1.0


def inputs(index: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(index))


@pytest.mark.parametrize("start", [1024.0, 1.0])
def test_equals_torchs_grad_scaler(start: float) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    scale = LossScale(start, patience=PATIENCE)
    scaler = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=PATIENCE)
    our_optimizer, their_optimizer = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (ours, theirs))
    seen = []
    for index in range(STEPS):

        def objective(model: nn.Module, batch: Batch, index: int = index) -> Loss:
            outputs = model(*batch.inputs)
            return Loss(outputs.square().sum() * factor(index), 10, outputs)

        before = ours.weight.detach().clone()
        seen.append(scale.scale)
        assert scale.scale == scaler.get_scale()  # powers of two, so exact
        batch = Batch((inputs(index),), torch.zeros(5, 2), 0, 5)
        step = Step(index=index, seed=0, items=10)
        loss = scaled(backward, scale)(ours, objective, batch, step)
        assert loss.finite == (index not in OVERFLOWS)
        assert step.log["loss_scale"] == seen[-1]
        if loss.finite:
            our_optimizer.step()
        clear_gradients(ours)

        their_optimizer.zero_grad()
        scaler.scale(theirs(inputs(index)).square().mean() * factor(index)).backward()
        scaler.step(their_optimizer)
        scaler.update()

        if index in OVERFLOWS:
            assert torch.equal(ours.weight, before)
        else:
            assert not torch.equal(ours.weight, before)
        # Scales are powers of two, which change no digits; a sum over 10 against a mean rounds differently.
        torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-14)
    assert len(set(seen)) > 3, "the scale should have been halved and doubled"
    assert scale.scale == scaler.get_scale()


def test_the_loss_comes_back_in_its_own_unit() -> None:
    model = nn.Linear(3, 1)
    batch = Batch((inputs(0),), torch.zeros(5, 1), 0, 5)

    def objective(model: nn.Module, batch: Batch) -> Loss:
        outputs = model(*batch.inputs)
        return Loss(outputs.square().sum(), 5, outputs, penalty=0.25 * model.weight.square().sum())

    plain = objective(model, batch)
    loss = scaled(backward, LossScale(4096.0))(model, objective, batch, Step(index=0, seed=0, items=5))
    assert float(loss.data) == float(plain.data.detach())  # times and divided by a power of two: exact
    assert float(loss.penalty) == float(torch.as_tensor(plain.penalty).detach())
    expected = torch.autograd.grad(plain.mean(), list(model.parameters()))
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=1e-14)  # sum and mean round differently


def test_skipped_steps_leave_the_weights_alone_in_training(tmp_path: Path) -> None:
    """From a scale of 2^40 float16 overflows; it is halved until the gradients fit, and only then are weights moved."""
    torch.set_default_dtype(torch.float32)  # autocast leaves 64 bits alone
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    run = train(
        recipe(
            model,
            data=Toy(dtype="float32"),
            techniques=[{"name": "fp16", "scale": 2.0**40}],
            budget={"steps": 40},
            save={"report": False, "every_steps": 1, "keep": 1000},
        ),
        root=tmp_path,
        quiet=True,
    )
    scales = [row["loss_scale"] for row in run.steps]
    first_kept = next(i for i, (a, b) in enumerate(itertools.pairwise(scales)) if a == b)
    assert 5 < first_kept < 35
    assert scales[: first_kept + 1] == [2.0 ** (40 - i) for i in range(first_kept + 1)]
    states = {}
    for path in checkpoint.all_in(run.folder / "checkpoints"):
        state = checkpoint._load(path, torch.device("cpu"))
        states[state["position"]["step"]] = state["model"]
    for done in range(1, first_kept + 1):
        assert all(torch.equal(states[done][name], value) for name, value in start.items()), done
    assert not torch.equal(states[first_kept + 1]["1.weight"], start["1.weight"])
