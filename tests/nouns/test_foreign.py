"""Other people's models, optimizers, schedules, loaders and techniques, trained from end to end."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kingpost as kp
from kingpost import load_model
from kingpost.errors import RecipeError

MINE = """
from typing import Annotated, ClassVar
from annotated_types import Ge
import torch
from torch import nn
import kingpost as kp

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    def forward(self, x):
        return self.layers(x)

def ramp(step, total_steps, low=0.0):
    return low + (1 - low) * (step + 1) / total_steps

def ones(model, value=1.0):
    for p in model.parameters():
        nn.init.constant_(p, value)

@kp.checked
class Halve(kp.Technique):
    factor: Annotated[float, Ge(0)] = 0.5
    touches: ClassVar = frozenset({"schedule"})
    def mount(self, assembly):
        inner = assembly.schedule
        return assembly.with_(schedule=lambda step, total: self.factor * inner(step, total))

NOT_CALLABLE = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's, in the folder where they stand."""
    (tmp_path / "mine_for_kingpost.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "mine_for_kingpost"
    sys.modules.pop("mine_for_kingpost", None)


def small(**changes):
    fields = {"name": "a", "data": "digits", "model": "mlp", "budget": {"steps": 3}, "save": {"report": False}}
    return kp.Recipe(**fields | changes)


def rates(run):
    return [row["learning_rate"] for row in run.steps]


def test_everything_by_reference_is_made_again_from_the_file(mine, tmp_path):
    recipe = small(
        model={"name": f"{mine}:Net", "width": 7},
        initialise={"name": f"{mine}:ones", "value": 0.01},
        optimizer={"name": "torch.optim:NAdam", "lr": 0.1},
        schedule={"name": f"{mine}:ramp", "low": 0.1},
        techniques=["clip", {"name": f"{mine}:Halve", "factor": 0.25}],
    )
    assert recipe.not_reproducible == []
    again = kp.Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe and again.techniques[1].factor == 0.25
    run = kp.train(again, root=tmp_path / "runs", quiet=True)
    assert run.status == "finished"
    assert rates(run) == pytest.approx([0.1 * 0.25 * (0.1 + 0.9 * k / 3) for k in (1, 2, 3)])
    assert load_file(run.weights("last"))["layers.1.weight"].shape == (7, 64)
    assert load_model(run).layers[1].out_features == 7


def test_own_techniques_are_checked_like_others(mine):
    with pytest.raises(RecipeError) as caught:
        small(techniques=[{"name": f"{mine}:Halve", "factor": -1}])
    assert str(caught.value) == (
        "techniques.0.factor: got -1: should be greater than or equal to 0; expected a number >= 0"
    )
    with pytest.raises(RecipeError, match=r"^techniques.0: module 'mine_for_kingpost' has no 'Halv'; did you mean 'Ha"):
        small(techniques=[f"{mine}:Halv"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": {"name": "mine_for_kingpost:Net", "widht": 7}},
         r"^model.widht: missing a required argument: 'width'; did you mean 'width'\? known: width$"),
        ({"model": "mine_for_kingpost:ramp"}, r"^model: missing a required argument: 'step'; "),
        ({"model": "mine_for_kingpost:NOT_CALLABLE"},
         r"^model: got 3; pass a name, an object or what makes it; known: capsule, cnn, "),
        ({"optimizer": {"name": "torch.optim:NAdam", "lrr": 1}}, r"^optimizer.lrr: got an unexpected keyword argument"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_before_anything_is_called(mine, tmp_path, change, text):
    with pytest.raises(RecipeError, match=text):
        kp.train(small(**change), root=tmp_path / "runs", quiet=True)


def test_a_module_that_is_passed_in_is_trained_itself(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = model[1].weight.detach().clone()
    run = kp.train(small(model=model), root=tmp_path, quiet=True)
    assert not model[1].weight.equal(before)
    assert load_file(run.weights("last"))["1.weight"].equal(model[1].weight)


def test_training_a_passed_in_optimizer_is_training_by_hand(tmp_path):
    """One step over all samples in a known order: the plain PyTorch step on the same numbers."""
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 5, generator=draw), torch.arange(24) % 3
    torch.manual_seed(0)
    model, twin = nn.Linear(5, 3), nn.Linear(5, 3)
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, nesterov=True)
    loader = DataLoader(TensorDataset(x, y), batch_size=24)
    recipe = small(data=loader, model=model, optimizer=optimizer, batch_size=24)
    kp.train(recipe, root=tmp_path, quiet=True)
    by_hand = torch.optim.SGD(twin.parameters(), lr=0.3, momentum=0.9, nesterov=True)
    for _ in range(3):
        by_hand.zero_grad()
        nn.functional.cross_entropy(twin(x), y).backward()
        by_hand.step()
    torch.testing.assert_close(model.weight, twin.weight)  # sums of 24 in another order


def test_an_optimizer_of_another_model_is_refused(tmp_path):
    model, other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.Linear(64, 10)
    with pytest.raises(RecipeError) as caught:
        kp.train(
            small(model=model, optimizer=torch.optim.Adam(other.parameters())),
            root=tmp_path,
            quiet=True,
        )
    assert str(caught.value) == (
        "optimizer: the optimizer that was passed in does not hold 2 of the model's parameters, first '1.weight'; "
        "pass the optimizer's class with its arguments, or make it from this very model"
    )


def test_a_class_is_written_by_its_name():
    recipe = small(optimizer=torch.optim.NAdam, model=kp.call(nn.Linear, in_features=64, out_features=10))
    value = recipe.to_value()
    assert value["optimizer"] == {"name": "torch.optim.nadam:NAdam"}
    assert value["model"] == {"name": "torch.nn.modules.linear:Linear", "in_features": 64, "out_features": 10}
    assert kp.Recipe.from_yaml(recipe.to_yaml()) == recipe
    with pytest.raises(RecipeError, match=r"^an object of type function cannot be imported by name; define it in a"):
        kp.call(lambda: nn.Linear(1, 1))


def test_a_run_with_objects_cannot_be_resumed_from_its_file(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    run = kp.train(small(model=model), root=tmp_path, quiet=True)
    assert "# not reproducible from this file: model was an object\n" in (run.folder / "recipe.yaml").read_text()
    with pytest.raises(
        RecipeError, match=r"model: this recipe was made in Python with an object \(an object of type S"
    ):
        kp.resume(run.folder, quiet=True)
