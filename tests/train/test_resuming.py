"""Who may resume what: one process at a time, never shorter, and objects only with their recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import nn

import kingpost as kp
from kingpost.train.train import resume, train


def recipe(**changes: object) -> kp.Recipe:
    fields: dict[str, object] = {
        "name": "a",
        "data": "contract.toys:Toy",
        "model": {"name": "mlp", "widths": [8]},
        "batch_size": 8,
        "budget": {"epochs": 2},
        "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
        "save": {"report": False},
    }
    return kp.Recipe.from_value({**fields, **changes})


def test_a_run_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    run = train(recipe(), root=tmp_path, quiet=True)
    before = (run.folder / "recipe.yaml").read_bytes()
    with (
        FileLock(run.folder / ".lock"),
        pytest.raises(kp.RunError, match=r"another process is at work on run 'a'; wait until it ends, or stop it"),
    ):
        resume(run.folder, "budget.epochs=3", quiet=True)
    assert (run.folder / "recipe.yaml").read_bytes() == before
    assert resume(run.folder, "budget.epochs=3", quiet=True).summary["epoch"] == 3


def test_a_run_cannot_be_made_shorter(tmp_path: Path) -> None:
    run = train(recipe(), root=tmp_path, quiet=True)
    with pytest.raises(kp.RecipeError, match=r"^budget.epochs: got 1, but 2 epochs are done; train a new run instead$"):
        resume(run.folder, "budget.epochs=1", quiet=True)
    assert run.recipe.budget.epochs == 2


def test_objects_come_back_with_their_recipe(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    mine = recipe(model=net)
    run = train(mine, root=tmp_path, quiet=True)
    with pytest.raises(kp.RecipeError, match=r"pass recipe=\.\.\. "):
        kp.load_model(run)
    trained = {name: value.clone() for name, value in net.state_dict().items()}
    nn.init.zeros_(net[1].weight)
    loaded = kp.load_model(run, device="cpu", recipe=mine)
    assert loaded is net
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trained[name])
    inputs = mine.data.open().splits["validation"].inputs[0]
    expected = loaded(inputs).softmax(-1).detach()
    torch.testing.assert_close(kp.predict(run, part="validation", recipe=mine).values, expected)
    assert kp.resume(run.folder, "budget.epochs=3", quiet=True, recipe=mine).summary["epoch"] == 3


def test_what_fails_before_it_begins_leaves_its_name_free(tmp_path: Path) -> None:
    tokens = {"name": "contract.toys:Toy", "task": "language-modelling"}
    gpt = {"name": "gpt", "depth": 1, "width": 8, "heads": 2}
    stopping = recipe(techniques=["crop"], data=tokens, model=gpt)
    with pytest.raises(kp.RecipeError, match="needs images"):
        train(stopping, root=tmp_path, quiet=True)
    assert list(tmp_path.iterdir()) == []


@kp.checked
class Forgetful(kp.Technique):
    """Its mount returns nothing."""

    touches = frozenset({"update"})

    def mount(self, assembly: kp.Assembly) -> kp.Assembly:
        assembly.with_(update=assembly.update)  # type: ignore[return-value]


def test_a_mount_that_returns_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(kp.RecipeError, match=r"mount returned NoneType, expected the assembly; return assembly.with_"):
        train(recipe(techniques=[Forgetful()]), root=tmp_path, quiet=True)


class NanInUse(nn.Module):
    """Harmless in training, NaN in evaluation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else x * float("nan")


def test_a_validation_that_is_not_finite_is_said_once(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), NanInUse())
    run = train(recipe(model=net), root=tmp_path, quiet=True)
    (finding,) = run.findings
    assert finding.symptom == "not finite on the validation part: loss"
    assert (finding.severity, finding.place) == ("warning", "epoch 1")


def test_early_stopping_wants_a_validation_part(tmp_path: Path) -> None:
    arrays = kp.Arrays(inputs=torch.randn(16, 64), targets=torch.arange(16) % 2, validation=0.0)
    with pytest.raises(kp.RecipeError, match=r"^techniques.early-stopping: needs a validation part"):
        train(recipe(data=arrays, techniques=["early-stopping"]), root=tmp_path, quiet=True)


def test_seconds_and_several_processes_exclude_each_other() -> None:
    with pytest.raises(kp.RecipeError, match=r"^budget.seconds: several processes have several clocks"):
        recipe(budget={"seconds": 5.0}).patched("layout.data=2")
