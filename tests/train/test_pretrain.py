"""Tasks that make their own targets: what they ask, that they learn, and the contracts that all training keeps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import kingpost as kp
from contract.subjects import differences, example_model, largest_difference, plus, state_of, without_times
from contract.toys import Toy
from kingpost.assembly import Batch, Loss
from kingpost.errors import RecipeError, RunError
from kingpost.recipe import Recipe
from kingpost.train.pretrain.masked import MaskableEmbedding, MaskedColumns, MaskedImage, mask_tokens
from kingpost.train.pretrain.pretext import answer_at_positions, positions_of

# Task, its fields, the net, the form of the toy, and whether samples of a batch are compared with one another.
CASES: dict[str, tuple[dict[str, Any], Any, str, bool]] = {
    "simclr": ({"hidden": 8, "embedding": 4}, {"name": "mlp", "widths": [16]}, "", True),
    "vicreg": ({"hidden": 8, "embedding": 4}, {"name": "recurrent"}, "recordings", True),
    "masked-tokens": ({}, "encoder", "tokens", False),
    "masked-columns": ({}, "mlp", "codes", False),
    "masked-image": ({"patch": 2}, "vit", "", False),
    "denoise": ({"drop": 0.1}, "mlp", "series", False),
}
every_task = pytest.mark.parametrize("name", CASES)


def recipe(name: str, **changes: Any) -> Recipe:
    fields, model, form, _ = CASES[name]
    base: dict[str, Any] = {
        "name": "toy",
        "data": Toy(form=form),
        "model": example_model(model),
        "task": {"name": name, **fields},
        "batch_size": 8,
        "budget": {"epochs": 2},
        "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
        "save": {"report": False, "every_steps": 1, "keep": 100},
    }
    return Recipe.from_value({**base, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], kp.Run]:
    runs: dict[str, kp.Run] = {}

    def get(made: Recipe) -> kp.Run:
        key = made.to_yaml()
        if key not in runs:
            runs[key] = kp.train(made, root=tmp_path_factory.mktemp("runs"), quiet=True)
        return runs[key]

    return get


@every_task
def test_validation_is_judged_by_the_same_question_at_each_epoch(
    name: str, trained: Callable[[Recipe], kp.Run]
) -> None:
    run = trained(recipe(name))
    assert len(run.results) == 2 and all(any("validation_loss" in key for key in row) for row in run.results)
    still = {"name": "sgd", "lr": 1e-12}
    rows = trained(recipe(name, optimizer=still)).results
    key = next(key for key in rows[0] if key.startswith("validation_loss"))
    assert rows[0][key] == pytest.approx(rows[1][key], rel=1e-6)  # the weights hardly moved, and nor did the question
    assert Recipe.from_yaml(recipe(name).to_yaml()) == recipe(name)
    assert (
        kp.plan(recipe(name))["parameters"] == sum(p.numel() for p in load_file(run.weights("best")).values())
        or name == "never"
    )


@every_task
def test_it_learns(name: str, tmp_path: Path) -> None:
    run = kp.train(recipe(name, budget={"steps": 90}, optimizer={"name": "adamw", "lr": 1e-2}), tmp_path, quiet=True)
    losses = [row["loss"] for row in run.steps]
    assert sum(losses[-15:]) < 0.95 * sum(losses[:15])


@every_task
def test_it_resumes_bit_for_bit(name: str, trained: Callable[[Recipe], kp.Run], tmp_path: Path) -> None:
    whole = trained(recipe(name))
    copy = Path(shutil.copytree(whole.folder, tmp_path / "toy"))
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.split("-")[1]) > 4:
            shutil.rmtree(checkpoint)
    again = kp.resume(copy, quiet=True)
    assert differences(without_times(state_of(whole)), without_times(state_of(again))) == []
    assert (copy / "steps.csv").read_bytes() == (whole.folder / "steps.csv").read_bytes()


@every_task
def test_micro_batches_add_up(name: str, trained: Callable[[Recipe], kp.Run]) -> None:
    if CASES[name][3]:
        pytest.skip("accumulation: the samples of a batch are compared with one another")
    whole, split = recipe(name), plus(recipe(name), {"name": "accumulate", "micro_batches": 4})
    a, b = (state_of(trained(made))["model"] for made in (whole, split))
    assert largest_difference(a, b) < 1e-9  # as in the contract suite


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # where torch cuts a graph
@every_task
def test_compiled_equals_eager(name: str, trained: Callable[[Recipe], kp.Run]) -> None:
    if name == "vicreg":
        pytest.skip("compile: torch does not compile recurrent layers")
    torch.compiler.reset()
    compiled = plus(recipe(name), {"name": "compile", "backend": "aot_eager"})
    a, b = (state_of(trained(made))["model"] for made in (recipe(name), compiled))
    assert largest_difference(a, b) < 1e-9


@every_task
def test_the_trunk_keeps_its_names_and_starts_another_run(
    name: str, trained: Callable[[Recipe], kp.Run], tmp_path: Path
) -> None:
    parent = trained(recipe(name))
    start = {"name": "weights-file", "run": str(parent.folder)}
    changes: dict[str, Any] = {"task": None, "initialise": start, "budget": {"steps": 1}}
    run = kp.train(recipe(name, **changes), tmp_path, quiet=True)
    assert run.summary["parent"]["run"] == str(parent.folder)
    plain, pretext = (set(load_file(r.weights("last"))) for r in (run, parent))
    head = {key for key in plain if key.startswith(("head.", "layers.2."))}
    assert plain - pretext <= head and (plain & pretext) - head


def test_there_is_nothing_to_predict(trained: Callable[[Recipe], kp.Run]) -> None:
    with pytest.raises(RunError, match=r"learned 'denoise', which predicts nothing"):
        kp.predict(trained(recipe("denoise")), part="validation")


def test_tokens_are_masked_in_the_proportions_of_bert() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens, chosen = torch.full((200, 500), 3), torch.rand(200, 500, generator=draw) < 0.15
    others = torch.full_like(tokens, 7)
    seen, wanted = mask_tokens(tokens, chosen, torch.rand(200, 500, generator=draw), others, mask=9)
    n = int(chosen.sum())
    # Standard errors of these shares are below 0.004 with 15,000 chosen tokens.
    assert float((seen == 9).sum() / n) == pytest.approx(0.8, abs=0.015)
    assert float((seen == 7).sum() / n) == pytest.approx(0.1, abs=0.015)
    assert float((seen[chosen] == 3).sum() / n) == pytest.approx(0.1, abs=0.015)
    assert torch.equal(seen[~chosen], tokens[~chosen])
    assert torch.equal(wanted, torch.where(chosen, tokens, -100))


def test_the_padding_is_never_chosen_and_every_sample_is_asked_something() -> None:
    made = recipe("masked-tokens")
    dataset = made.data.open()
    assert made.task is not None
    task = made.task.for_data(dataset.facts)
    tokens = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]]).repeat(50, 1)
    posed = task.pose(Batch((tokens,), torch.zeros(100), 0, 100), torch.Generator().manual_seed(0))
    assert bool((posed.targets[tokens == 0] == -100).all()) and bool((posed.inputs[0][tokens == 0] == 0).all())
    assert bool(((posed.targets != -100).sum(1) >= 1).all())


def test_pieces_of_a_batch_are_asked_what_the_whole_is() -> None:
    whole = Batch((torch.randn(8, 1, 4, 4),), torch.zeros(8), 0, 8)
    task = MaskedImage(patch=2, part=0.5)

    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    together = task.pose(whole, draw())
    apart = [task.pose(whole.rows(a, b), draw()) for a, b in ((0, 3), (3, 8))]
    assert torch.equal(torch.cat([piece.targets for piece in apart]), together.targets)
    hidden = together.targets[:, 1]
    assert torch.equal(hidden.flatten(1).sum(1), torch.full((8,), 8.0))  # 2 of 4 patches of 4 pixels
    blocks = hidden.unflatten(3, (2, 2)).unflatten(2, (2, 2))
    assert torch.equal(blocks.amax((3, 5)), blocks.amin((3, 5)))  # whole patches
    assert bool((together.inputs[0][hidden == 1] == 0).all())


def test_columns_are_judged_where_they_were_hidden_alone() -> None:
    facts = Toy(form="codes").open().facts
    task = MaskedColumns().for_data(facts)
    cells = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0]])
    hidden = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    outputs = torch.zeros(1, 4 + 3 + 5)
    wanted = 1.0 + torch.log(torch.tensor(5.0))  # one squared error, one guess among five
    assert float(task.criterion(outputs, torch.stack([cells, hidden], 2))) == pytest.approx(float(wanted))
    assert task.items(torch.stack([cells, hidden], 2)) == 2


def test_a_mask_beside_the_table() -> None:
    table = nn.Embedding(5, 3, padding_idx=0)
    masked = MaskableEmbedding(table)
    x = torch.tensor([[0, 4, 5]])
    assert torch.equal(masked(x)[0, :2], table(x[:, :2])[0]) and torch.equal(masked(x)[0, 2], masked.mask)
    assert [name for name, _ in masked.named_parameters()] == ["weight", "mask"]


def test_positions_are_found_and_answered_at() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    x = torch.randn(2, 1, 4, 4)
    path, shape = positions_of(model, x)
    assert (path, tuple(shape)) == ("1", (2, 4, 2, 2))
    decoder = nn.Conv2d(4, 3, 1)
    changed = answer_at_positions(model, path, decoder, x)
    assert torch.equal(changed(x), decoder(model[1](model[0](x))))
    assert [name for name, _ in changed.named_parameters()] == [
        "0.weight",
        "0.bias",
        "4.decoder.weight",
        "4.decoder.bias",
    ]
    with pytest.raises(RecipeError, match=r"no layer of Sequential has positions"):
        positions_of(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2))


def test_views_of_a_sample_are_two_and_the_loss_is_a_sum() -> None:
    task = kp.SimCLR(embedding=4)
    batch = task.pose(Batch((torch.randn(6, 1, 8, 8),), torch.zeros(6), 0, 6), torch.Generator().manual_seed(0))
    assert batch.inputs[0].shape == batch.targets.shape and not torch.equal(batch.inputs[0], batch.targets)
    found: Loss = task.objective(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), batch)
    assert (found.items, tuple(found.outputs.shape)) == (6, (12, 4))


@pytest.mark.parametrize(
    ("task", "form", "said"),
    [
        ("simclr", "tokens", "this data is 'tokens'"),
        ("masked-tokens", "", "samples are 'image', not tokens"),
        ("masked-image", "codes", "samples are 'table', not images"),
        ("masked-columns", "", "samples are 'image', not rows of a table"),
        ("denoise", "tokens", "which noise cannot be added to"),
        ({"name": "masked-image", "patch": 3}, "", "3 does not divide 8 x 8 pixels"),
    ],
)
def test_data_that_does_not_fit_is_refused(task: Any, form: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        kp.plan(recipe("denoise", task=task, data=Toy(form=form), model={"name": "mlp", "widths": [4]}))
