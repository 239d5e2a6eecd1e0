"""Mixtures of experts: a slow twin written token by token, the balance loss in closed form, and the net with them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kingpost.assembly import Batch, Loss, Setting
from kingpost.build.blocks.experts import Experts, balance_loss, balanced, places
from kingpost.build.blocks.feed_forward import FeedForward, GatedFeedForward
from kingpost.build.nets.gpt import GPT
from kingpost.build.nets.moe import MoE
from kingpost.errors import RecipeError
from kingpost.net import token_facts
from kingpost.train.assemble import plain_assembly
from kingpost.train.tasks import LanguageModelling
from net_checks import survives

D = 6


def layer(experts: int = 4, top: int = 2, gated: bool = False) -> Experts:
    torch.manual_seed(0)
    made = Experts(D, experts, top, lambda: (GatedFeedForward if gated else FeedForward)(D, 10))
    nn.init.normal_(made.router.weight)  # so that the experts are used unevenly
    return made


def token_by_token(mixture: Experts, x_nd: Tensor) -> Tensor:
    """The definition: one token after another, its experts in order of their probability."""
    rows = []
    for x_d in x_nd:
        p_e = (mixture.router.weight @ x_d).exp()
        p_e = p_e / p_e.sum()
        chosen = sorted(range(len(p_e)), key=lambda e: -float(p_e[e].detach()))[: mixture.top]
        whole = sum(p_e[e] for e in chosen) if mixture.top > 1 else torch.ones(())
        rows.append(sum((p_e[e] / whole * mixture.experts[e](x_d) for e in chosen), torch.zeros(D)))
    return torch.stack(rows)


# From one token, of which most experts see none, to so many that blocks have more than one row; one expert for all.
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize(("experts", "top", "tokens"), [(4, 2, 1), (4, 1, 7), (4, 2, 61), (5, 3, 200), (1, 1, 3)])
def test_both_ways_of_computing_equal_the_slow_twin(experts: int, top: int, tokens: int, gated: bool) -> None:
    mixture = layer(experts, top, gated)
    x = torch.randn(tokens, D, requires_grad=True)
    weight = torch.randn(tokens, D)
    parameters = [x, *mixture.parameters()]
    expected = token_by_token(mixture, x)
    wanted = torch.autograd.grad((expected * weight).sum(), parameters, allow_unused=True)
    for way in ("_in_turn", "_in_blocks"):
        p, chosen = mixture.router(x).softmax(-1).topk(top, -1)
        gates = p / p.sum(-1, keepdim=True) if top > 1 else p
        y = (gates.unsqueeze(-1) * getattr(mixture, way)(x, chosen)).sum(1)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)  # 64 bits, sums of at most 10 terms
        got = torch.autograd.grad((y * weight).sum(), parameters, allow_unused=True)
        for a, b, p in zip(got, wanted, parameters, strict=True):  # no gradient: an expert that nobody chose
            zero = torch.zeros_like(p)
            torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=0, atol=1e-11)
    torch.testing.assert_close(mixture(x.view(1, tokens, D)), expected.view(1, tokens, D), rtol=0, atol=1e-12)


def test_a_token_does_not_depend_on_the_others() -> None:
    mixture, x = layer().eval(), torch.randn(40, D)
    whole = mixture(x)
    order = torch.randperm(40)
    torch.testing.assert_close(mixture(x[order]), whole[order], rtol=0, atol=1e-13)
    torch.testing.assert_close(mixture(x[:3]), whole[:3], rtol=0, atol=1e-13)


@pytest.mark.parametrize("skewed", [False, True], ids=["even", "one expert gets all"])
def test_places_are_free_and_of_the_right_expert(skewed: bool) -> None:
    for count, rows in [(1, 1), (7, 2), (60, 4), (61, 8)]:
        chosen = torch.zeros(count, dtype=torch.long) if skewed else torch.randint(0, 5, (count,))
        blocks = count // rows + 5
        place, owner = places(chosen, 5, rows, blocks)
        assert len(set(place.tolist())) == count and int(place.max()) < blocks * rows
        assert torch.equal(owner[place // rows], chosen)


def test_the_cost_is_that_of_the_chosen_experts() -> None:
    mixture, x = Experts(D, 8, 2, lambda: FeedForward(D, 12)), torch.randn(512, D)
    per_token = 2 * (2 * D * 12 * 2) + 2 * D * 8  # two experts of two matrices, and the router
    with FlopCounterMode(display=False) as counter:
        mixture(x)
    assert counter.get_total_flops() == 512 * per_token
    chosen = torch.randint(0, 8, (512, 2))
    with FlopCounterMode(display=False) as counter:
        mixture._in_blocks(x, chosen)
    assert counter.get_total_flops() <= 1.25 * 512 * (per_token - 2 * D * 8)


def test_balance_loss_in_closed_form() -> None:
    indifferent = torch.full((12, 4), 0.25)
    even = torch.arange(24).view(12, 2) % 4
    assert float(balance_loss(indifferent, even)) == pytest.approx(1.0, abs=1e-12)
    certain = torch.eye(4)[torch.zeros(12, dtype=torch.long)]
    assert float(balance_loss(certain, torch.zeros(12, 1, dtype=torch.long))) == pytest.approx(4.0, abs=1e-12)
    p = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8]])
    # f = (2/3, 1/3), P = (0.5, 0.5): 2 (2/3 + 1/3) / 2.
    assert float(balance_loss(p, p.argmax(1, keepdim=True))) == pytest.approx(1.0, abs=1e-12)


def test_balance_equals_that_of_transformers() -> None:
    """The reference counts each of the chosen experts fully, ours divides by how many are chosen."""
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    logits = torch.randn(50, 8)
    theirs = mixtral.load_balancing_loss_func((logits,), 8, 2)
    p = logits.softmax(-1)
    assert float(2 * balance_loss(p, p.topk(2, -1).indices)) == pytest.approx(float(theirs), abs=1e-6)  # in 32 bits


def _value(x: Tensor | float) -> float:
    return float(x.detach()) if isinstance(x, Tensor) else float(x)


def plain(model: nn.Module, batch: Batch) -> Loss:
    outputs = model(*batch.inputs)
    return Loss(outputs.square().sum(), len(batch), outputs)


def test_the_objective_takes_the_losses_of_all_layers() -> None:
    model = nn.Sequential(layer(), layer(top=1))
    x = torch.randn(9, D)
    batch = Batch((x,), x, 0, 9)
    logits = [(m.router.weight @ x_in.T).T for m, x_in in zip(model, (x, model[0](x)), strict=True)]  # type: ignore[union-attr,operator]
    expected = sum(
        0.1 * balance_loss(s.softmax(-1), s.topk(top, -1).indices) + 0.02 * s.logsumexp(-1).square().mean()
        for s, top in zip(logits, (2, 1), strict=True)
    )
    loss = balanced(plain, 0.1, 0.02)(model, batch)
    assert isinstance(loss.penalty, Tensor)
    assert _value(loss.penalty) == pytest.approx(_value(expected) / 2, abs=1e-12)
    loss.penalty.backward()
    assert model[0].router.weight.grad is not None and model[0].balance is None  # type: ignore[union-attr]
    model.eval()
    assert balanced(plain, 0.1)(model, batch).penalty == 0


def test_training_on_the_balance_loss_evens_out_the_use() -> None:
    mixture = layer(experts=4, top=1)
    x = torch.randn(256, D) + 1  # a mean that favours one expert

    def busiest() -> float:
        return float(torch.bincount(mixture.router(x).argmax(-1), minlength=4).max()) / 256

    before = busiest()
    optimizer = torch.optim.SGD(mixture.router.parameters(), lr=0.5)
    batch = Batch((x,), x, 0, 256)
    for _ in range(100):
        optimizer.zero_grad()
        loss = balanced(plain, 1.0)(mixture, batch)
        assert isinstance(loss.penalty, Tensor)
        loss.penalty.backward()
        optimizer.step()
    assert before > 0.4 > 0.3 > busiest()


def mounted(net: MoE | GPT) -> tuple[nn.Module, Loss]:
    facts = token_facts(11, 8)
    setting = Setting(
        task=LanguageModelling(), data=facts, batch_size=4, total_steps=1, seed=0, device=torch.device("cpu"),
        first_batch=lambda: None,  # type: ignore[arg-type,return-value]
    )  # fmt: skip
    torch.manual_seed(0)
    assembly = net.mount(plain_assembly(setting))
    tokens = torch.randint(0, 11, (4, 9))
    return assembly.model, assembly.objective(assembly.model, Batch((tokens[:, :-1],), tokens[:, 1:], 0, 4))


def test_the_net_never_trains_without_balance() -> None:
    _, loss = mounted(MoE(depth=4, width=8, heads=2))
    # The router's scores start near zero: 0.01 x 1 for the balance, 0.001 (ln 8)^2 for their size.
    assert _value(loss.penalty) == pytest.approx(0.01 + 0.001 * math.log(8) ** 2, rel=0.02)
    _, loss = mounted(MoE(depth=4, width=8, heads=2, balance=0.0, router_size=0.0))
    assert _value(loss.penalty) == 0
    assert MoE().exceptions.keys() == {"accumulation", "two processes"} and not MoE(balance=0.0).exceptions


def test_every_other_block_has_experts_and_a_token_costs_the_same() -> None:
    model, _ = mounted(MoE(depth=4, width=16, heads=2))
    assert [any(isinstance(m, Experts) for m in block.modules()) for block in model.blocks] == [False, True] * 2  # type: ignore[union-attr,operator]
    dense, _ = mounted(GPT(depth=4, width=16, heads=2))
    tokens, costs = torch.zeros(4, 8, dtype=torch.long), []
    for net in (model, dense):
        with FlopCounterMode(display=False) as counter:
            net(tokens)
        costs.append(counter.get_total_flops())
    routers = 2 * (4 * 8) * 2 * 16 * 8
    assert costs[0] - routers == costs[1]
    ours, theirs = (sum(p.numel() for p in net.parameters()) for net in (model, dense))
    assert ours > 1.5 * theirs


def test_figures_say_how_many_parameters_a_token_uses() -> None:
    figures = {f.name: f for f in MoE(depth=2, width=16, heads=2).derived(token_facts(11, 8))}
    model = MoE(depth=2, width=16, heads=2).make(token_facts(11, 8), 11)
    idle = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name) * 6 // 8
    assert figures["parameters of a token"].value == sum(p.numel() for p in model.parameters()) - idle
    assert figures["model.hidden"].value == 32


def test_survives_everything(tmp_path: Path) -> None:
    net = MoE(depth=1, every=1, width=8, heads=2)
    survives(lambda: net.make(token_facts(11, 8), 11), (torch.randint(0, 11, (3, 8)),), tmp_path)


def test_exports_with_an_open_number_of_sequences() -> None:
    net = MoE(depth=1, every=1, width=8, heads=2).make(token_facts(11, 8), 11).eval()
    tokens = torch.randint(0, 11, (5, 8))
    batch = torch.export.Dim("batch", min=1, max=512)
    exported = torch.export.export(net, (tokens,), dynamic_shapes=({0: batch},), strict=False).module()
    for rows in (1, 2, 5):
        torch.testing.assert_close(exported(tokens[:rows]), net(tokens[:rows]), rtol=0, atol=1e-12)


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="top: got 5 of 4 experts, expected 1 to 4"):
        layer(top=5)
    with pytest.raises(RecipeError, match="top: got 3, but there are 2 experts"):
        MoE(experts=2, top=3)
    with pytest.raises(RecipeError, match="heads: got 5, which does not divide the width 128; use 4"):
        MoE(heads=5)
