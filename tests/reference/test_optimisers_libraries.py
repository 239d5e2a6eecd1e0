"""Our own optimizers, step by step, against pytorch_optimizer and schedulefree, and against papers written out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kingpost.train.optimise.adan import AdanRule
from kingpost.train.optimise.lion import LionRule
from kingpost.train.optimise.lookahead import SlowWeights
from kingpost.train.optimise.muon import MuonRule, orthogonalised
from kingpost.train.optimise.schedule_free import ScheduleFree, ScheduleFreeAdamWRule, ScheduleFreeSGDRule
from kingpost.train.optimise.second_order import AdaHessianRule, SophiaRule
from kingpost.train.optimise.shampoo import ShampooRule
from kingpost.train.optimise.soap import SOAPRule
from kingpost.train.optimise.trust import LAMBRule, LARSRule

STEPS = 12
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def smooth() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3))


def problem(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    return torch.randn(7, 2, 5, 5, generator=draw), torch.randint(0, 3, (7,), generator=draw)


def walked(make: Make, **hooks: Any) -> list[list[Tensor]]:
    """The weights after each step of the same small net on the same batches."""
    model = smooth()
    optimizer, path = make(list(model.parameters())), []
    for step in range(STEPS):
        x, y = problem(step)
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if "before" in hooks:
            hooks["before"](optimizer, model, step)
        optimizer.step()
        if "after" in hooks:
            hooks["after"](optimizer, model, step)
        path.append([p.detach().clone() for p in model.parameters()])
    return path


def assert_equal_paths(ours: list[list[Tensor]], theirs: list[list[Tensor]], tolerance: float) -> None:
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=tolerance, msg=lambda m, step=step: f"step {step}: {m}")
    first, last = ours[0], ours[-1]
    assert max(float((p - q).abs().max()) for p, q in zip(first, last, strict=True)) > 1e-3


def library() -> Any:
    return pytest.importorskip("pytorch_optimizer")


# Rounding of 1e-16 a step, enlarged by the division by a root; eps is so small that its place does not matter.
CLOSE, TINY = 1e-12, 1e-15


def test_lion() -> None:
    theirs = library().Lion
    options = {"lr": 0.01, "weight_decay": 0.2}
    ours = walked(lambda p: LionRule(p, beta1=0.8, beta2=0.95, **options))
    assert_equal_paths(ours, walked(lambda p: theirs(p, betas=(0.8, 0.95), **options)), CLOSE)


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars(nesterov: bool) -> None:
    theirs = library().LARS
    options = {"lr": 0.5, "momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.01}
    ours = walked(lambda p: LARSRule(p, trust=0.05, **options))
    assert_equal_paths(ours, walked(lambda p: theirs(p, trust_coefficient=0.05, **options)), CLOSE)


def test_lamb_without_correction() -> None:
    theirs = library().Lamb
    options = {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": TINY}
    ours = walked(lambda p: LAMBRule(p, most=10.0, correct=False, **options))
    # Their trust ratio has eps in its divisor as well, hence no more than 1e-13 of a step of length 0.02 |w|.
    assert_equal_paths(ours, walked(lambda p: theirs(p, weight_decouple=False, adam_debias=True, **options)), CLOSE)


class PaperLAMB(torch.optim.Optimizer):
    """Algorithm 2 of arXiv 1904.00962, one line after the other."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            s = self.state[p]
            t = s["t"] = s.get("t", 0) + 1
            s["m"] = 0.8 * s.get("m", 0) + 0.2 * p.grad
            s["v"] = 0.95 * s.get("v", 0) + 0.05 * p.grad**2
            r = (s["m"] / (1 - 0.8**t)) / ((s["v"] / (1 - 0.95**t)).sqrt() + 1e-6)
            u = r + 0.1 * p
            p -= 0.02 * min(float(p.norm()), 1.5) / u.norm() * u


def test_lamb_as_in_the_paper() -> None:
    ours = walked(lambda p: LAMBRule(p, lr=0.02, betas=(0.8, 0.95), weight_decay=0.1, eps=1e-6, most=1.5))
    assert_equal_paths(ours, walked(lambda p: PaperLAMB(p, {})), CLOSE)


def test_adan() -> None:
    theirs = library().Adan
    options = {"lr": 0.01, "betas": (0.9, 0.8, 0.95), "weight_decay": 0.1, "eps": 1e-8}
    ours = walked(lambda p: AdanRule(p, **options))
    assert_equal_paths(ours, walked(lambda p: theirs(p, weight_decouple=False, **options)), CLOSE)


def matrices(params: list[nn.Parameter]) -> list[nn.Parameter]:
    """Only matrices move, for libraries that treat other tensors in another way."""
    return [p for p in params if p.ndim == 2]


def test_shampoo_on_matrices() -> None:
    theirs = library().Shampoo
    ours = walked(lambda p: ShampooRule(matrices(p), lr=0.1, eps=1e-6))
    # Eigenvalues of a few 1e-6 to the power -1/4, from two decompositions: a relative 1e-10 of the root.
    assert_equal_paths(ours, walked(lambda p: theirs(matrices(p), lr=0.1, matrix_eps=1e-6)), 1e-9)


def pushed(make: Make) -> list[list[Tensor]]:
    """The weights after each of twelve random gradients, which have full rank: else the eigenvectors are not unique."""
    draw = torch.Generator().manual_seed(8)
    shapes = [(4, 4), (4, 2, 3, 3), (6,)]
    params, path = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes], []
    optimizer = make(params)
    for _ in range(STEPS):
        for p in params:
            p.grad = torch.randn(p.shape, generator=draw) + p.detach()
        optimizer.step()
        path.append([p.detach().clone() for p in params])
    return path


@pytest.mark.parametrize("every", [100, 3])
def test_soap(every: int) -> None:
    theirs = library().SOAP
    options = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}
    ours = pushed(lambda p: SOAPRule(p, memory=0.9, every=every, **options))
    path = pushed(lambda p: theirs(p, shampoo_beta=0.9, precondition_frequency=every, **options))
    # Their refreshment decomposes in 32 bits: an error of 1e-7 in the basis, so of some 1e-9 in steps of 0.01.
    assert_equal_paths(ours, path, CLOSE if every == 100 else 1e-7)


def diagonals(model: nn.Module, step: int) -> list[Tensor]:
    """Stand-ins for an estimate; some are negative."""
    draw = torch.Generator().manual_seed(100 + step)
    return [torch.randn(p.shape, generator=draw) + 0.5 for p in model.parameters()]


def test_adahessian() -> None:
    theirs = library().AdaHessian
    options = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-4}

    def give(optimizer: Any, model: nn.Module, step: int) -> None:
        optimizer.curvature = dict(zip(model.parameters(), diagonals(model, step), strict=True))

    class Given(theirs):  # type: ignore[misc, valid-type]
        def step(self) -> None:  # type: ignore[override]
            super().step(hessian=self.given)

    def set_theirs(optimizer: Any, model: nn.Module, step: int) -> None:
        optimizer.given = diagonals(model, step)

    ours = walked(lambda p: AdaHessianRule(p, power=0.7, average_kernels=False, **options), before=give)
    path = walked(lambda p: Given(p, hessian_power=0.7, **options), before=set_theirs)
    assert_equal_paths(ours, path, CLOSE)
    averaged = walked(lambda p: AdaHessianRule(p, power=0.7, **options), before=give)
    assert not torch.equal(averaged[-1][0], ours[-1][0])  # the kernel
    assert torch.equal(averaged[0][2], ours[0][2])  # a matrix


def test_sophia() -> None:
    theirs = library().SophiaH
    gamma, options = 0.02, {"betas": (0.8, 0.95)}

    def give(optimizer: Any, model: nn.Module, step: int) -> None:
        if step % 3 == 0:
            optimizer.curvature = dict(zip(model.parameters(), diagonals(model, step), strict=True))
        else:
            optimizer.curvature = {}

    class Given(theirs):  # type: ignore[misc, valid-type]
        def step(self) -> None:  # type: ignore[override]
            super().step(hessian=self.given)

    def set_theirs(optimizer: Any, model: nn.Module, step: int) -> None:
        optimizer.update_period = 3
        optimizer.given = diagonals(model, step) if step % 3 == 0 else None

    own = {"lr": 0.02, "gamma": gamma, "eps": gamma * 1e-3, "weight_decay": 0.1}
    ours = walked(lambda p: SophiaRule(p, **own, **options), before=give)
    # Theirs clips m / h at p; ours m / (gamma h) at 1: the same with p = gamma, a rate of lr / p and a decay of wd * p.
    path = walked(
        lambda p: Given(p, lr=0.02 / gamma, p=gamma, eps=1e-3, weight_decay=0.1 * gamma, **options), before=set_theirs
    )
    assert_equal_paths(ours, path, CLOSE)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_schedule_free(kind: str) -> None:
    free = pytest.importorskip("schedulefree")
    options = {"weight_decay": 0.05}
    makers: dict[str, tuple[Make, Make]] = {
        "sgd": (
            lambda p: ScheduleFreeSGDRule(p, lr=0.3, beta=0.8, **options),
            lambda p: free.SGDScheduleFree(p, lr=0.3, momentum=0.8, foreach=False, **options),
        ),
        "adamw": (
            lambda p: ScheduleFreeAdamWRule(p, lr=0.02, betas=(0.8, 0.95), **options),
            lambda p: free.AdamWScheduleFree(p, lr=0.02, betas=(0.8, 0.95), foreach=False, **options),
        ),
    }
    judged: dict[str, list[Tensor]] = {"ours": [], "theirs": []}

    def vary(optimizer: Any, model: nn.Module, step: int) -> None:
        """A warm-up, so that the weights of the average differ."""
        optimizer.param_groups[0]["lr"] = (0.3 if kind == "sgd" else 0.02) * min(1.0, (step + 1) / 4)
        if not isinstance(optimizer, ScheduleFree):
            optimizer.train()

    def judge_ours(optimizer: Any, model: nn.Module, step: int) -> None:
        before = copy.deepcopy(model.state_dict())
        with optimizer.averaged(), optimizer.averaged():
            judged["ours"] += [p.detach().clone() for p in model.parameters()]
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    def judge_theirs(optimizer: Any, model: nn.Module, step: int) -> None:
        optimizer.eval()
        judged["theirs"] += [p.detach().clone() for p in model.parameters()]
        optimizer.train()

    ours = walked(makers[kind][0], before=vary, after=judge_ours)
    theirs = walked(makers[kind][1], before=vary, after=judge_theirs)
    assert_equal_paths(ours, theirs, CLOSE)
    for a, b in zip(judged["ours"], judged["theirs"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=CLOSE)
    assert not torch.allclose(judged["ours"][-1], ours[-1][-1], atol=1e-4)


def test_lookahead() -> None:
    theirs = library().Lookahead
    slow = SlowWeights(every=3, share=0.4)

    def make(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(p, lr=0.2, momentum=0.7)

    ours = walked(make, before=lambda o, m, s: slow.begin(m), after=lambda o, m, s: slow.follow(m))
    path = walked(lambda p: theirs(make(p), k=3, alpha=0.4, pullback_momentum="none"))
    assert_equal_paths(ours, path, CLOSE)


@pytest.mark.parametrize(("scale", "theirs"), [("original", "original"), ("match-adamw", "match_rms_adamw")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_torchs(scale: Any, theirs: str, nesterov: bool) -> None:
    options = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    ours = walked(lambda p: MuonRule(matrices(p), scale=scale, half=True, **options))
    path = walked(lambda p: torch.optim.Muon(matrices(p), adjust_lr_fn=theirs, **options))
    # Both iterate in bfloat16; the same operations in the same order, so the same bits but for the last of the rest.
    assert_equal_paths(ours, path, CLOSE)


def test_muon_moves_a_kernel_as_a_matrix_and_the_rest_as_adamw_does() -> None:
    def ours(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        vectors = {"params": [p for p in params if p.ndim < 2], "rule": "AdamW", "lr": 0.01}
        hidden = {"params": [p for p in params if p.ndim >= 2]}
        return MuonRule([hidden, vectors], lr=0.02, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-8)

    class Twin(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self) -> None:  # type: ignore[override]
            self.adamw.step()
            for p in self.param_groups[0]["params"]:
                m = self.state[p]["m"] = 0.95 * self.state[p].get("m", 0) + 0.05 * p.grad
                x = (0.05 * p.grad + 0.95 * m).reshape(len(p), -1)
                tall = x.shape[0] > x.shape[1]
                x = (x.T if tall else x) / x.norm()
                for _ in range(5):
                    y = x @ x.T
                    x = 3.4445 * x + (-4.775 * y + 2.0315 * y @ y) @ x
                x = x.T if tall else x
                factor = max(1, x.shape[0] / x.shape[1]) ** 0.5
                p.copy_(p * (1 - 0.02 * 0.1) - 0.02 * factor * x.reshape(p.shape))

    def theirs(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        twin = Twin([p for p in params if p.ndim >= 2], {})
        rest = [p for p in params if p.ndim < 2]
        twin.adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1, foreach=False)
        return twin

    assert_equal_paths(walked(ours), walked(theirs), CLOSE)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3)])
def test_newton_schulz_keeps_singular_vectors_and_evens_their_values(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(1)
    matrix = torch.randn(shape, generator=draw)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonalised(matrix) @ vh.T
    values = turned.diagonal()
    torch.testing.assert_close(turned, torch.diag(values), rtol=0, atol=1e-12)  # an odd polynomial of the matrix
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3  # what five of these steps reach (Jordan, 2024)
