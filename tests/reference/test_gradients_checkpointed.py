"""Checkpointed activations: the same loss, gradients and statistics to the bit, and memory by closed forms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kingpost as kp
from contract.subjects import make, recipe_with
from contract.toys import Toy
from kingpost.assembly import Assembly, Step
from kingpost.errors import RecipeError
from kingpost.net import all_nets
from kingpost.recipe import Recipe
from kingpost.train.assemble import assemble, first_batch
from kingpost.train.gradients.checkpoint_activations import Recomputed, blocks_of, recompute
from reference.plain import net, recipe


def assembled(made: Recipe) -> Assembly:
    assembly = assemble(made, made.data.open(), torch.device("cpu"))
    assembly.model.train()
    return assembly


def one_step(made: Recipe) -> tuple[Assembly, dict[str, Tensor]]:
    """Loss, gradients and buffers after one pass on the first batch, dropout included."""
    assembly = assembled(made)
    batch = first_batch(made, made.data.open(), torch.device("cpu"))
    step = Step(index=0, seed=0, items=assembly.setting.task.items(batch.targets))
    torch.manual_seed(7)
    loss = assembly.gradient(assembly.model, assembly.objective, batch, step)
    drawn = torch.rand(1)  # the generator stands where it would without checkpointing
    named = {f"gradient of {name}": p.grad for name, p in assembly.model.named_parameters() if p.grad is not None}
    return assembly, {"loss": loss.data, "drawn": drawn, **named, **dict(assembly.model.named_buffers())}


NETS = [name for name, cls in all_nets().items() if cls.example is not None]


@pytest.mark.parametrize("name", NETS)
def test_every_net_with_blocks_gives_the_same_to_the_bit(name: str) -> None:
    plain = recipe_with("model", make("model", name)).with_(techniques=(kp.Dropout(p=0.2),))
    assembly, expected = one_step(plain)
    checkpointing = plain.with_(techniques=(*plain.techniques, kp.CheckpointActivations()))
    if not blocks_of(assembly.model):
        with pytest.raises(RecipeError, match=r"techniques.checkpoint-activations.blocks: \w+ has no repeated blocks"):
            one_step(checkpointing)
        return
    again, got = one_step(checkpointing)
    assert any(isinstance(module, Recomputed) for module in again.model.modules())
    assert got.keys() == expected.keys()
    assert [key for key in got if not torch.equal(got[key], expected[key])] == []


def blocks(depth: int = 4, norm: bool = False) -> nn.Module:
    """``depth`` blocks of two layers 8 -> 8, between two linear layers."""
    torch.manual_seed(2)
    body = []
    for _ in range(depth):
        between = [nn.BatchNorm1d(8)] if norm else []
        body.append(nn.Sequential(nn.Linear(8, 8), *between, nn.Tanh(), nn.Linear(8, 8), nn.Tanh()))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), *body, nn.Linear(8, 3))


def saved_bytes(made: Recipe) -> int:
    return int(kp.plan(made)["activations"])


@pytest.mark.parametrize("depth", [2, 3, 6])
def test_activation_bytes_are_those_of_the_closed_form(depth: int) -> None:
    """A block keeps what each tanh gives, which the next layer needs too: 8 samples x 8 units x 8 bytes each."""
    unit = 8 * 8 * 8
    plain = saved_bytes(recipe(blocks(depth)))
    deeper = saved_bytes(recipe(blocks(depth + 1)))
    assert deeper - plain == 2 * unit
    technique = {"name": "checkpoint-activations"}
    checkpointed = saved_bytes(recipe(blocks(depth), techniques=[technique]))
    assert saved_bytes(recipe(blocks(depth + 1), techniques=[technique])) - checkpointed == unit  # its input
    assert checkpointed < plain


def test_statistics_of_batch_norm_count_a_batch_once() -> None:
    plain, ours = blocks(norm=True), blocks(norm=True)
    for block in blocks_of(ours).values():
        recompute(block)
    x = torch.randn(8, 64)
    for model in (plain, ours):
        for _ in range(3):
            model(x).square().sum().backward()
    state = plain.state_dict()
    assert int(state["2.1.num_batches_tracked"]) == 3
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())


def test_a_copy_computes_with_its_own_weights() -> None:
    model = blocks()
    for block in blocks_of(model).values():
        recompute(block)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other(torch.randn(4, 64)).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in other.parameters())


def passes(model: nn.Module, x: Tensor) -> int:
    """How often the first tanh of the first block runs in a forward and a backward pass."""
    counted: list[int] = []
    handle = model.get_submodule("2.1").register_forward_hook(lambda *_: counted.append(1))
    out = model(x)
    if out.requires_grad:
        out.sum().backward()
    handle.remove()
    return len(counted)


def test_nothing_is_computed_twice_outside_of_training() -> None:
    model = blocks()
    recompute(model.get_submodule("2"))
    x = torch.randn(4, 64)
    assert passes(model, x) == 2
    with torch.no_grad():
        assert passes(model, x) == 1
    model.eval()
    assert passes(model, x) == 1


@pytest.mark.parametrize(
    ("fields", "chosen"),
    [
        ({}, ["2", "3", "4", "5"]),
        ({"every": 2}, ["2", "4"]),
        ({"blocks": ["3", "5"]}, ["3", "5"]),
        ({"blocks": ["2*", "5.*"]}, ["2", "5.0", "5.1", "5.2", "5.3"]),  # what is inside of 2 comes with it
    ],
)
def test_which_blocks_are_chosen(fields: dict[str, Any], chosen: list[str]) -> None:
    model = assembled(recipe(blocks(), techniques=[{"name": "checkpoint-activations", **fields}])).model
    assert [name for name, module in model.named_modules() if isinstance(module, Recomputed)] == chosen
    assert [*model.state_dict()] == [*blocks().state_dict()]


def test_names_that_are_not_there_are_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"blocks: no module is called 'layers\.\*'; there are: 0, 1, 2, 2\.0, 2\.1, "
    ):
        assembled(recipe(blocks(), techniques=[{"name": "checkpoint-activations", "blocks": ["layers.*"]}]))
    with pytest.raises(
        RecipeError, match="Sequential has no repeated blocks to compute again; name modules; there are"
    ):
        assembled(recipe(net(), techniques=["checkpoint-activations"]))


def test_computed_again_is_counted_in_the_plan() -> None:
    made = Recipe(
        name="a", data=Toy(task="language-modelling"), model={"name": "gpt", "depth": 3, "width": 8, "heads": 2},
        batch_size=8, layout={"name": "data-parallel", "threads": 1},
    )  # fmt: skip
    again = made.with_(techniques=(kp.CheckpointActivations(),))
    plain, checkpointed = kp.plan(made), kp.plan(again)
    # The backward pass is twice the forward one, so a second forward pass of most of the net adds less than a third.
    assert 1.15 < checkpointed["compute per step"] / plain["compute per step"] < 4 / 3
    assert checkpointed["activations"] < plain["activations"]
