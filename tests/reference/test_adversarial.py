"""Attacks and trainings on them, against loops over single samples and against autograd."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contract.toys import Toy
from kingpost.assembly import Assembly, Batch, Loss, Step
from kingpost.errors import RecipeError
from kingpost.train.adversarial.attack import Norm, divergence, in_use, project, within_ball
from kingpost.train.adversarial.free import Replay, free, replayed
from kingpost.train.adversarial.pgd import FGSM, PGD, pgd
from kingpost.train.adversarial.robust import attacked, robust_accuracy
from kingpost.train.adversarial.trades import Trades, traded
from kingpost.train.adversarial.virtual import VirtualAdversarial, smoothed_at, virtual_direction
from kingpost.train.assemble import assemble
from kingpost.train.evaluate import evaluate
from kingpost.train.gradients.accumulate import accumulated
from kingpost.train.gradients.backward import backward
from kingpost.train.predict import load_model
from kingpost.train.tasks import Classification
from kingpost.train.train import train
from reference.plain import net, recipe

OBJECTIVE = Classification().objective


def batch(rows: int = 9) -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch((torch.randn(rows, 5, generator=draw),), torch.randint(0, 3, (rows,), generator=draw), 0, rows)


def step(rows: int = 9) -> Step:
    return Step(index=4, seed=1, items=rows)


def small_net(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), *layers, nn.Tanh(), nn.Linear(7, 3))


def one_by_one(model: nn.Module, at: Tensor, targets: Tensor) -> Tensor:
    """The gradient of each sample's own loss, by a loop."""
    rows = []
    for x, y in zip(at, targets, strict=True):
        x = x.clone().requires_grad_()
        rows.append(torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), x)[0])
    return torch.stack(rows)


# ---- FGSM and PGD


def test_fgsm_is_the_sign_of_the_gradient() -> None:
    model, b = small_net().eval(), batch()
    got = FGSM(epsilon=0.3, random_start=False).perturb(model, OBJECTIVE, b, step()).inputs[0]
    assert torch.equal(got, b.inputs[0] + 0.3 * one_by_one(model, b.inputs[0], b.targets).sign())


def test_fgsm_with_random_start_equals_the_papers_three_lines() -> None:
    """Algorithm 3 of arXiv 2001.03994, with its step of 1.25 epsilon."""
    model, b = small_net().eval(), batch()
    d = within_ball(step(), "fgsm", b, 0.3, "linf")
    d = d + 1.25 * 0.3 * one_by_one(model, b.inputs[0] + d, b.targets).sign()
    expected = b.inputs[0] + d.clamp(-0.3, 0.3)
    got = FGSM(epsilon=0.3).perturb(model, OBJECTIVE, b, step()).inputs[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)  # x + clip(d) and clip(x + d) round differently


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("bounds", [(None, None), (-0.5, None), (-0.5, 0.8)])
def test_pgd_equals_a_loop(norm: Norm, bounds: tuple[float | None, float | None]) -> None:
    model, b = small_net().eval(), batch()
    low, high = bounds
    x = b.inputs[0].clamp(low, high) if low is not None else b.inputs[0]
    b = b.with_(inputs=(x,))
    start = within_ball(step(), "pgd", b, 0.4, norm)
    got = pgd(model, OBJECTIVE, b, 0.4, 5, 0.15, norm, start, low, high).inputs[0]

    def back(v: Tensor, i: int) -> Tensor:
        d = v - x[i]
        d = d.clamp(-0.4, 0.4) if norm == "linf" else d * min(1.0, 0.4 / float(d.norm()))
        v = x[i] + d
        return v if low is None else v.clamp(low, high)

    for i in range(len(x)):
        v = back(x[i] + start[i], i)
        for _ in range(5):
            g = one_by_one(model, v[None], b.targets[i : i + 1])[0]
            v = back(v + 0.15 * (g.sign() if norm == "linf" else g / g.norm()), i)
        # Batched and single matrix products differ in the last digits; five steps, each divided by a norm.
        torch.testing.assert_close(got[i], v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("low", [None, -0.4])
def test_attacks_stay_in_their_ball_and_range(dtype: torch.dtype, low: float | None) -> None:
    model, b = small_net().to(dtype), batch()
    b = b.with_(inputs=(b.inputs[0].to(dtype),))
    x = b.inputs[0]  # some numbers lie outside low..high themselves
    for attack in (
        FGSM(epsilon=0.2, low=low, high=0.9),
        FGSM(epsilon=0.2, step_size=5.0),
        PGD(epsilon=0.2, steps=6, low=low),
        PGD(epsilon=0.2, norm="l2", steps=6, step_size=1.0, low=low, high=0.9),
    ):
        got = attack.perturb(model, OBJECTIVE, b, step()).inputs[0]
        assert got.dtype == dtype
        assert not torch.equal(got, x)
        if isinstance(attack, FGSM) or attack.norm == "linf":
            assert bool(((got >= x - 0.2) & (got <= x + 0.2)).all())
        else:
            assert float((got - x).norm(dim=1).max()) <= 0.2 + 1e-6
        if attack.low is not None:
            assert bool((got >= x.clamp(max=attack.low)).all())
        if attack.high is not None:
            assert bool((got <= x.clamp(min=attack.high)).all())


def test_projection_gives_the_nearest_point() -> None:
    x, moved = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert torch.equal(project(moved, x, 1.0, "linf", None, None), torch.tensor([[1.0, 1.0]]))
    assert torch.equal(project(moved, x, 1.0, "linf", None, 0.5), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(project(moved, x, 1.0, "l2", None, None), torch.tensor([[0.6, 0.8]]), rtol=0, atol=1e-15)
    assert torch.equal(project(moved, x, 9.0, "l2", None, None), moved)
    assert torch.equal(project(moved, torch.tensor([[2.0, 2.0]]), 9.0, "linf", None, 1.0), torch.tensor([[2.0, 2.0]]))


def test_random_starts_fill_the_ball_evenly() -> None:
    b = Batch((torch.zeros(4000, 3),), torch.zeros(4000, dtype=torch.int64), 0, 4000)
    box, ball = (within_ball(step(4000), "p", b, 2.0, norm) for norm in ("linf", "l2"))  # type: ignore[arg-type]
    assert float(box.abs().max()) <= 2
    # U(-2, 2): mean square 4/3 with a standard deviation of 1.19; 12,000 draws, four standard errors.
    assert float(box.square().mean()) == pytest.approx(4 / 3, abs=4 * 1.19 / 12000**0.5)
    radius = ball.norm(dim=1) / 2
    assert float(radius.max()) <= 1 + 1e-12
    # The cube of the radius is U(0, 1): a deviation of 0.289. The mean direction of n has a length of about 1 / sqrt n.
    assert float((radius**3).mean()) == pytest.approx(0.5, abs=4 * 0.289 / 4000**0.5)
    assert float(F.normalize(ball).mean(0).norm()) < 4 / 4000**0.5


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_raises_the_loss_of_a_trained_net(norm: Norm, tmp_path: Path) -> None:
    model = net()
    run = train(recipe(model, budget={"steps": 60}), root=tmp_path, quiet=True)
    assert run.status == "finished"
    data = Toy().open()
    split = data.splits["train"]
    losses = []
    for steps in (1, 3, 10, 30):
        attack = PGD(epsilon=0.5, norm=norm, steps=steps, step_size=0.1, random_start=False)
        clean, hurt = attacked(model, split, Classification(), attack, 8, torch.device("cpu"))
        results = [
            evaluate(model, part, Classification(), data.facts, {}, 8, torch.device("cpu")) for part in (clean, hurt)
        ]
        assert results[1]["loss"] > results[0]["loss"]
        assert results[1]["accuracy"] <= results[0]["accuracy"]
        losses.append(results[1]["loss"])
    assert losses == sorted(losses), "more steps of so small a size should find higher losses"


def test_an_attack_leaves_the_model_as_it_was() -> None:
    model = small_net(nn.BatchNorm1d(7), nn.Dropout(0.5))
    model[2].eval()  # a part that somebody froze
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    PGD(steps=3).perturb(model, OBJECTIVE, batch(), step())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes

    def failing(model: nn.Module, batch: Batch) -> Loss:
        raise ValueError("pretended")

    with pytest.raises(ValueError, match="pretended"):
        PGD(steps=3).perturb(model, failing, batch(), step())
    assert [module.training for module in model.modules()] == modes


def test_an_attack_on_one_sample_does_not_depend_on_the_others() -> None:
    """Eval mode sees to that even with batch norm; and pieces draw what the whole draws."""
    model, b = small_net(nn.BatchNorm1d(7)), batch()
    whole = PGD(steps=3).perturb(model, OBJECTIVE, b, step()).inputs[0]
    parts = [PGD(steps=3).perturb(model, OBJECTIVE, piece, step()).inputs[0] for piece in b.split(4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-13)  # other shapes of matrix products


def test_training_on_pgd_is_the_gradient_at_the_attacked_batch() -> None:
    model, b, technique = small_net(), batch(), PGD(epsilon=0.3, steps=3)
    assembly = mounted(technique)
    assembly.gradient(model, OBJECTIVE, b, step())
    plain = small_net()
    F.cross_entropy(plain(technique.perturb(plain, OBJECTIVE, b, step()).inputs[0]), b.targets).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-14)  # the mean and the sum over 9 round differently


def mounted(technique: Any, **fields: Any) -> Assembly:
    data = Toy(**fields)
    return assemble(recipe(net(), data=data, techniques=[technique]), data.open(), torch.device("cpu"))


# ---- TRADES


def test_divergence_is_the_sum_of_its_definition() -> None:
    p, q = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3))
    a, b = p.softmax(-1), q.softmax(-1)
    by_hand = sum(float(x * math.log(x / y)) for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
    assert float(divergence(p, q)) == pytest.approx(by_hand, rel=1e-13)
    assert float(divergence(p, p)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("pieces", [1, 4])
def test_trades_equals_the_papers_loss(pieces: int) -> None:
    """Equation 5 of arXiv 1901.08573: mean of CE(f(x), y) + beta KL(f(x) || f(x')); gradients through both."""
    model, b, t = small_net(), batch(), Trades(epsilon=0.3, beta=2.5, steps=4, step_size=0.1)
    loss = traded(accumulated(backward, pieces), t.perturb, 2.5)(model, OBJECTIVE, b, step())
    plain = small_net()
    x = b.inputs[0]
    drawn = torch.randn(9, 5, generator=step().generator("trades"))
    moved = x + 0.001 * drawn
    with torch.no_grad():
        clean = plain(x).softmax(-1)
    for _ in range(4):
        moved = moved.detach().requires_grad_()
        kl = (clean * (clean.log() - plain(moved).log_softmax(-1))).sum()
        moved = moved + 0.1 * torch.autograd.grad(kl, moved)[0].sign()
        moved = x + (moved - x).clamp(-0.3, 0.3)
    p, q = plain(x).softmax(-1), plain(moved.detach()).softmax(-1)
    expected = F.cross_entropy(plain(x), b.targets) + 2.5 * (p * (p.log() - q.log())).sum() / 9
    expected.backward()
    torch.testing.assert_close(torch.as_tensor(loss.mean()), expected.detach(), rtol=1e-13, atol=0)
    for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=0, atol=1e-13)  # rounding of sums in another order


# ---- virtual adversarial training


def test_virtual_direction_is_that_of_largest_curvature() -> None:
    """With a small xi and many iterations it is the top eigenvector of the Hessian of the divergence."""
    model, b = small_net(), batch(3)
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(4))
    d = virtual_direction(model, OBJECTIVE, b, start, xi=1e-5, iterations=300)
    for i in range(3):
        x = b.inputs[0][i : i + 1]
        p = model(x).detach()
        hessian = torch.autograd.functional.hessian(lambda r, x=x, p=p: divergence(p, model(x + r)), torch.zeros(1, 5))
        values, vectors = torch.linalg.eigh(hessian.view(5, 5))
        assert values[-1] > 1.05 * values[-2], "too close for 300 iterations"
        # xi = 1e-5 bends the gradient by about xi, and its rounding is 1e-16 / xi.
        assert abs(float(d[i] @ vectors[:, -1])) == pytest.approx(1, abs=1e-4)
        assert float(d[i].norm()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("pieces", [1, 4])
def test_virtual_adversarial_equals_algorithm_1(pieces: int) -> None:
    model, b = small_net(), batch()
    t = VirtualAdversarial(epsilon=0.7, strength=1.5, xi=0.05, iterations=2)
    loss = smoothed_at(accumulated(backward, pieces), t)(model, OBJECTIVE, b, step())
    plain = small_net()
    x = b.inputs[0]
    d = F.normalize(torch.randn(9, 5, generator=step().generator("virtual-adversarial")))
    clean = plain(x).detach().softmax(-1)

    def kl(at: Tensor) -> Tensor:
        return (clean * (clean.log() - plain(at).log_softmax(-1))).sum()

    for _ in range(2):
        r = (0.05 * d).requires_grad_()
        d = F.normalize(torch.autograd.grad(kl(x + r), r)[0])
    expected = F.cross_entropy(plain(x), b.targets) + 1.5 * kl(x + 0.7 * d) / 9
    expected.backward()
    torch.testing.assert_close(torch.as_tensor(loss.mean()), expected.detach(), rtol=1e-12, atol=0)
    for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=0, atol=1e-12)  # a direction divided by a small length


def test_virtual_adversarial_counts_running_statistics_once() -> None:
    model, once = small_net(nn.BatchNorm1d(7)), small_net(nn.BatchNorm1d(7))
    smoothed_at(backward, VirtualAdversarial())(model, OBJECTIVE, batch(), step())
    once(batch().inputs[0])
    for name, value in once.named_buffers():
        assert torch.equal(model.get_buffer(name), value), name


# ---- free adversarial training


@pytest.mark.parametrize("pieces", [1, 4])
def test_free_training_equals_algorithm_1(pieces: int) -> None:
    """arXiv 1904.12843: weights and displacement both move by the gradient at x + d; d goes on to the next batch."""
    model, plain, replay = small_net(), small_net(), Replay(torch.zeros(9, 5))
    gradient = free(accumulated(backward, pieces), replay, 0.3, 0.3, None, None)
    d = torch.zeros(9, 5)
    for b in (batch(), batch(), batch(6), batch()):
        n = len(b)
        for net_ in (model, plain):
            net_.zero_grad()
        gradient(model, OBJECTIVE, b, step(n))
        own = d[:n].clone().requires_grad_()
        F.cross_entropy(plain(b.inputs[0] + own), b.targets).backward()
        d = torch.cat([(own + 0.3 * own.grad.sign()).clamp(-0.3, 0.3).detach(), d[n:]])
        torch.testing.assert_close(replay.shift, d, rtol=0, atol=1e-15)  # x + d - x rounds
        for mine, its in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, its.grad, rtol=0, atol=1e-13)
            with torch.no_grad():
                mine -= 0.1 * mine.grad
                its -= 0.1 * its.grad
    assert float(replay.shift.abs().max()) <= 0.3


def test_free_training_keeps_to_the_range() -> None:
    model, seen = small_net(), []
    x = torch.rand(9, 5, generator=torch.Generator().manual_seed(5))
    b = batch().with_(inputs=(x,))

    def looking(model: nn.Module, piece: Batch) -> Loss:
        seen.append(piece.inputs[0].detach())
        return OBJECTIVE(model, piece)

    replay = Replay(torch.zeros(9, 5))
    gradient = free(backward, replay, 0.4, 0.4, 0.0, 1.0)
    for _ in range(4):
        gradient(model, looking, b, step())
    assert len(seen) == 4
    assert not torch.equal(seen[3], x)
    assert all(float(s.min()) >= 0 and float(s.max()) <= 1 and float((s - x).abs().max()) <= 0.4 for s in seen)


def test_replays_give_each_batch_so_many_times() -> None:
    replay = Replay(torch.zeros(9, 5))
    give = replayed(lambda batch, step: batch, replay, 3)
    batches = [Batch((torch.full((n, 5), float(i)),), torch.full((n,), i), 0, n) for i, n in enumerate([9, 9, 9, 4, 9])]
    got = [give(b, Step(index=i, seed=0)) for i, b in enumerate(batches)]
    assert [int(b.targets[0]) for b in got] == [0, 0, 0, 3, 3]
    assert [(len(b), b.total) for b in got] == [(9, 9)] * 3 + [(4, 4)] * 2
    with pytest.raises(RecipeError, match="streamed data on several processes"):
        give(Batch((torch.zeros(2, 5),), torch.zeros(2), 0, 4), Step(index=0, seed=0))


# ---- what a run tells


def test_robust_accuracy_of_a_run_equals_a_loop(tmp_path: Path) -> None:
    mlp: Any = {"name": "mlp", "widths": [12]}
    run = train(recipe(mlp, budget={"steps": 30}), root=tmp_path, quiet=True)
    attack = PGD(epsilon=0.3, steps=4, random_start=False)
    found = robust_accuracy(run, attack, part="validation", device="cpu")
    model, split = load_model(run, device="cpu").double(), Toy().open().splits["validation"]
    x, y = split.inputs[0], split.targets  # type: ignore[attr-defined]
    hurt = attack.perturb(model, OBJECTIVE, Batch((x,), y, 0, len(y)), step()).inputs[0]
    with torch.no_grad():
        assert found.accuracy == pytest.approx(float((model(x).argmax(1) == y).double().mean()), abs=1e-6)
        assert found.robust_accuracy == pytest.approx(float((model(hurt).argmax(1) == y).double().mean()), abs=1e-6)
    assert found.samples == len(y)
    assert found.robust_accuracy < found.accuracy
    assert found.attack["epsilon"] == 0.3
    assert robust_accuracy(run, {"name": "fgsm"}, part="validation", samples=5, device="cpu").samples == 5
    with pytest.raises(RecipeError, match="'flip' is no attack"):
        robust_accuracy(run, "flip", part="validation", device="cpu")


def test_adversarial_training_pays_under_attack(tmp_path: Path) -> None:
    """On the toy: the net that was trained on PGD keeps a lower loss under PGD than the one that was not."""
    losses = []
    for techniques in ([], [PGD(epsilon=0.5, steps=5)]):
        model = net()
        fields = {"techniques": techniques, "budget": {"steps": 90}}
        train(recipe(model, **fields), root=tmp_path / str(len(techniques)), quiet=True)
        data = Toy().open()
        attack = PGD(epsilon=0.5, steps=20)
        _, hurt = attacked(model, data.splits["train"], Classification(), attack, 8, torch.device("cpu"))
        losses.append(evaluate(model, hurt, Classification(), data.facts, {}, 8, torch.device("cpu"))["loss"])
    assert losses[1] < 0.8 * losses[0], losses


@pytest.mark.parametrize("name", ["fgsm", "pgd", "trades", "virtual-adversarial", "free-adversarial"])
def test_tokens_are_refused(name: str) -> None:
    data = Toy(form="tokens")
    encoder: Any = {"name": "encoder", "depth": 1, "width": 8, "heads": 2}
    with pytest.raises(RecipeError, match=r"needs images .* but this data gives sequences of tokens"):
        assemble(
            recipe(encoder, data=data, techniques=[name]),
            data.open(),
            torch.device("cpu"),
        )


def test_a_range_must_have_a_width() -> None:
    with pytest.raises(RecipeError, match="high: got 0"):
        PGD(low=1.0, high=0.0)


def test_eval_mode_is_left_again() -> None:
    model = small_net(nn.Dropout(0.5)).train()
    with in_use(model):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())
