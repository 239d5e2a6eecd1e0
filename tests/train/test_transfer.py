"""From one run to the next: what is taken over, what stays frozen, and what is said of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import kingpost as kp
from contract.toys import Toy
from kingpost.errors import RecipeError, RunError
from kingpost.recipe import Recipe
from kingpost.train import checkpoint
from kingpost.train.transfer.lora import merge_lora
from kingpost.train.transfer.unfreezing import layer_groups

SMALL: dict[str, Any] = {
    "model": {"name": "cnn", "depth": 2, "width": 4},
    "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    "batch_size": 8,
    "budget": {"epochs": 2},
    "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
    "save": {"report": False, "every_steps": 1, "keep": 100},
}


def recipe(**changes: Any) -> Recipe:
    return Recipe.from_value({"name": "toy", "data": Toy(), **SMALL, **changes})


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> kp.Run:
    return kp.train(recipe(), root=tmp_path_factory.mktemp("parent"), quiet=True)


def child(parent: kp.Run, root: Path, **changes: Any) -> kp.Run:
    start = {"name": "weights-file", "run": str(parent.folder)}
    return kp.train(recipe(initialise=start, **changes), root=root, quiet=True)


def weights(run: kp.Run) -> dict[str, torch.Tensor]:
    return load_file(run.weights("last"))


def test_a_run_starts_from_another_and_says_so(parent: kp.Run, tmp_path: Path) -> None:
    run = child(parent, tmp_path, data=Toy(task="regression"), techniques=["linear-probe"])
    found = run.summary["parent"]
    assert (found["run"], found["weights"]) == (str(parent.folder), "best") and len(found["sha256"]) == 64
    old, new = load_file(parent.weights("best")), weights(run)
    for name in old:
        if not name.startswith("head."):
            assert torch.equal(old[name], new[name]), name  # running statistics of the batch norms, too
    assert "starts at" in str(run) and found["sha256"][:12] in str(run)


def test_a_head_of_another_size_is_left_and_said(parent: kp.Run, tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float32)  # that of the digits
    run = child(parent, tmp_path, data="digits", budget={"steps": 1})
    (finding,) = run.findings
    assert finding.symptom == "2 tensors were not set by the initialiser: head.bias, head.weight"
    assert finding.cause == "(3,) in the file, (10,) in the model; (3, 8) in the file, (10, 8) in the model"


def test_a_trunk_that_does_not_fit_is_an_error(parent: kp.Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"initialise: the weights do not fit the model"):
        child(parent, tmp_path, model={"name": "cnn", "depth": 3, "width": 4})
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match=r"exactly one of path and run must be given, got both"):
        kp.WeightsFile(path="a.safetensors", run="b")
    with pytest.raises(RunError, match=r"no run 'absent'"):
        kp.train(recipe(initialise={"name": "weights-file", "run": "absent"}), root=tmp_path, quiet=True)


def test_a_run_needs_its_parent_only_to_start(parent: kp.Run, tmp_path: Path) -> None:
    copy = kp.Run(Path(shutil.copytree(parent.folder, tmp_path / "parent")))
    run = child(copy, tmp_path)
    shutil.rmtree(copy.folder)
    assert len(kp.predict(run, part="validation").values) == 12
    assert kp.resume(run.folder, "budget.epochs=3", quiet=True).status == "finished"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_parameters_keep_every_bit(optimizer: str, parent: kp.Run, tmp_path: Path) -> None:
    strong = {"name": optimizer, "lr": 0.05, "weight_decay": 0.3}
    run = child(parent, tmp_path, optimizer=strong, techniques=[{"name": "freeze", "patterns": ["stages.0"]}])
    old, new = load_file(parent.weights("best")), weights(run)
    same = {name for name in old if torch.equal(old[name], new[name])}
    assert same == {name for name in old if name.startswith("stages.0.")}


def test_freezing_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"every parameter is frozen"):
        kp.train(recipe(techniques=["freeze"]), root=tmp_path, quiet=True)


def test_only_adapters_and_the_head_learn(tmp_path: Path) -> None:
    mlp = {"name": "mlp", "widths": [8, 8]}
    first = kp.train(recipe(model=mlp), root=tmp_path, quiet=True)
    run = child(first, tmp_path, model=mlp, techniques=[{"name": "lora", "rank": 2}])
    old, new = load_file(first.weights("best")), weights(run)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"layers.4.weight", "layers.4.bias"}
    assert set(new) - set(old) == {f"layers.{n}.lora_{part}" for n in (0, 2) for part in ("up", "down")}
    assert all(bool((new[f"layers.{n}.lora_up"] != 0).any()) for n in (0, 2))
    model = kp.load_model(run)
    x = torch.randn(5, 1, 8, 8)
    scores = model(x)
    merged = merge_lora(model)
    assert torch.allclose(merged(x), scores, atol=1e-12)  # one more rounding a weight
    assert {name for name, _ in merged.named_parameters()} == set(old)
    bare = kp.plan(recipe(model=mlp, techniques=[{"name": "lora", "rank": 2, "head": False}]))
    assert bare["parameters"] == 2 * (64 + 8) + 2 * (8 + 8)


def test_layers_that_wait_do_not_move_at_all(tmp_path: Path) -> None:
    strong = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.3}
    run = kp.train(recipe(optimizer=strong, techniques=["gradual-unfreezing"]), root=tmp_path, quiet=True)
    assert [row["groups_trained"] for row in run.steps] == [1, 1, 2, 3, 3, 3]  # 6 steps, 3 groups, half of the run
    groups = layer_groups(kp.load_model(run))
    states = [
        checkpoint._load(path, torch.device("cpu"))["model"] for path in checkpoint.all_in(run.folder / "checkpoints")
        if "epoch-000000" in path.name or path.name.endswith("6-epoch-000002")
    ]  # fmt: skip
    after_one, after_two = states[0], states[1]
    for name in (*groups[0], *groups[1]):
        assert torch.equal(after_one[name], after_two[name]), name
    assert not torch.equal(after_one[groups[2][0]], after_two[groups[2][0]])


@pytest.mark.parametrize("technique", ["linear-probe", "lora"])
def test_a_tied_head_cannot_be_trained_alone(technique: str) -> None:
    gpt = {"name": "gpt", "depth": 1, "width": 8, "heads": 2, "tied": True}
    with pytest.raises(RecipeError, match=r"the head 'head' shares its weight with 'tokens.weight'"):
        kp.plan(recipe(data=Toy(task="language-modelling"), model=gpt, techniques=[technique]))


def test_probe_of_a_run(parent: kp.Run, tmp_path: Path) -> None:
    from kingpost.train.probe import probe

    made = probe(parent)
    assert [layer.path for layer in made.layers] == ["stages.0", "stages.1", "head"]
    assert [layer.features for layer in made.layers] == [4, 8, 3]
    assert made.metric == "accuracy" and made.samples == (24, 12)
    for index, row in enumerate(made.alignment):
        assert row[index] == pytest.approx(1, abs=1e-6)  # features are kept in 32 bits
    assert all(0 <= layer.moved <= 1 for layer in made.layers)
    other = probe(parent, recipe(data=Toy(task="regression")))
    assert other.metric == "r2" and "probe of toy on" in str(other)
    from kingpost.report.probing import probe_page

    page = probe_page(tmp_path / "probe.html", made.to_value()).read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "stages.1" in page
