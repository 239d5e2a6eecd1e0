import csv
import json
import os
import threading

import pytest
import torch
from torch import nn

import kingpost as kp
from kingpost import load_model
from kingpost.build.nets.mlp import MLPNet
from kingpost.errors import DataError, RecipeError, RunError
from kingpost.finding import Finding
from kingpost.run import Run, read_rows

RECIPE = kp.Recipe(
    name="a",
    data="digits",
    model=kp.MLP(widths=(16,)),
    budget={"epochs": 2},
    save={"report": False},
    layout={"name": "data-parallel", "device": "cpu"},
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return kp.train(RECIPE, root=tmp_path_factory.mktemp("runs"), quiet=True)


def test_a_name_is_never_used_twice(tmp_path):
    names = [Run.create(RECIPE, tmp_path).name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]


def test_a_name_is_never_used_twice_in_a_race(tmp_path):
    start, made = threading.Barrier(8), []

    def create():
        start.wait()
        made.extend(Run.create(RECIPE, tmp_path).name for _ in range(5))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == len(set(made)) == 40
    assert set(made) == {"a", *(f"a-{n}" for n in range(2, 41))} == set(os.listdir(tmp_path))


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    assert Run.create(RECIPE, tmp_path).name == "a-2"
    assert os.listdir(tmp_path / "a") == ["thesis.txt"]


def test_what_a_run_holds(trained):
    assert {p.relative_to(trained.folder).as_posix() for p in trained.folder.glob("*")} >= {
        "recipe.yaml", "environment.json", "data.json", "splits.safetensors", "results.csv", "steps.csv",
        "findings.json", "run.json", "weights", "checkpoints",
    }  # fmt: skip
    assert trained.recipe == RECIPE and trained.status == "finished"
    assert [path.name for path in trained.folder.glob(".*")] == [".lock"]


def test_tables_are_read_back(trained):
    with (trained.folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in trained.results] == [1, 2] and [row["step"] for row in trained.results] == [20, 40]
    assert [{key: float(cell) for key, cell in row.items()} for row in rows] == trained.results
    assert [row["step"] for row in trained.steps] == list(range(1, 41))
    assert all(type(row["step"]) is int and type(row["loss"]) is float for row in trained.steps)
    # The last batch of 1,259 samples has 43: an epoch's loss is the mean over samples, not over steps.
    weighted = sum(row["loss"] * (43 if row["step"] == 20 else 64) for row in trained.steps[:20]) / 1259
    assert trained.results[0]["train_loss_nats"] == pytest.approx(weighted)


def test_rows_with_other_columns_are_written_with_gaps(tmp_path):
    run = Run.create(RECIPE, tmp_path)
    run.write_results([{"epoch": 1, "x": 0.1}, {"epoch": 2, "y": -1e-30}])
    assert run.results == [{"epoch": 1, "x": 0.1}, {"epoch": 2, "y": -1e-30}]
    assert (run.folder / "results.csv").read_text() == "epoch,x,y\n1,0.1,\n2,,-1e-30\n"
    assert read_rows(tmp_path / "none.csv") == []


def test_findings_are_read_back(tmp_path):
    run = Run.create(RECIPE, tmp_path)
    findings = [Finding(symptom=f"s{n}", severity="note", remedy=kp.Patch.parse("seed=1")) for n in range(40)]
    run.write_findings(findings)
    assert run.findings == findings
    assert len(str(run).splitlines()) <= 30


def test_a_finished_run_in_words(trained):
    lines = str(trained).splitlines()
    assert lines[0] == f"run        {trained.folder}" and lines[1] == "status     finished"
    assert lines[2].startswith("position   epoch 2, step 40, ")
    assert [line.split()[0] for line in lines[3:]] == ["best", "test"] and len(lines) <= 30


def test_a_new_run_in_words(tmp_path):
    run = Run.create(RECIPE, tmp_path)
    assert str(run) == f"run        {run.folder}\nstatus     new"
    with pytest.raises(RunError, match=r"^run 'a' has no best weights yet \(status: new\)$"):
        run.weights()


def test_a_damaged_file_is_named(tmp_path):
    run = Run.create(RECIPE, tmp_path)
    (run.folder / "run.json").write_text('{"status": "fin')
    with pytest.raises(RunError, match=r"run.json is damaged: Unterminated string starting at: line 1 column 12"):
        _ = run.status


def test_no_such_run_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Run.create(RECIPE.with_(name="digits"))
    assert Run.open("digits").name == "digits" == Run.open("runs/digits").name
    with pytest.raises(RunError, match=r"^no run 'digit' here or in 'runs/'; did you mean 'digits'\? known: digits$"):
        Run.open("digit")


def by_hand(run, which, part):
    """The net of the recipe made without kingpost's assembly, with the run's weights, on the run's own split."""
    from safetensors.torch import load_file
    from sklearn.datasets import load_digits

    net = MLPNet(64, [16], 10)
    net.load_state_dict(load_file(run.weights(which)))
    split = load_file(run.folder / "splits.safetensors")[part]
    digits = load_digits()
    x = torch.tensor(digits.images[split], dtype=torch.float32)[:, None]
    fitted = run.data["fitted"]
    assert set(fitted) <= {"inputs"}, fitted
    if "inputs" in fitted:
        scale = fitted["inputs"][0]
        mean, std = (torch.tensor(scale[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        x = (x - mean) / std
    else:
        x = x / 16
    return net.eval()(x).softmax(1).detach(), torch.tensor(digits.target[split])


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize("part", ["test", "validation", "train"])
def test_predictions_are_those_of_the_plain_model(trained, which, part, tmp_path):
    expected, targets = by_hand(trained, which, part)
    made = kp.predict(trained, part=part, which=which)
    torch.testing.assert_close(made.values, expected, atol=1e-4, rtol=1e-4)  # scaling in 32 bits and in 64
    assert made.metrics["accuracy"] == pytest.approx(float((expected.argmax(1) == targets).float().mean()))
    log_likelihood = -expected[torch.arange(len(targets)), targets].log().mean()
    assert made.metrics["loss"] == pytest.approx(float(log_likelihood), rel=1e-4)

    made.save_to(tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(len(targets)))
    assert [int(row["predicted"]) for row in rows] == made.values.argmax(1).tolist()
    written = torch.tensor([[float(row[f"probability_{digit}"]) for digit in range(10)] for row in rows])
    torch.testing.assert_close(written, made.values, atol=1e-6, rtol=1e-5)


def test_the_figures_of_the_run_are_those_of_its_best_weights(trained):
    probabilities, targets = by_hand(trained, "best", "test")
    accuracy = float((probabilities.argmax(1) == targets).float().mean())
    assert trained.summary["test"]["accuracy"] == pytest.approx(accuracy)
    best = max(row["validation_accuracy"] for row in trained.results)
    assert trained.summary["best"]["validation_accuracy"] == best


def test_the_batch_size_of_predictions_does_not_matter(trained):
    torch.testing.assert_close(kp.predict(trained, batch_size=7).values, kp.predict(trained).values)


def test_a_loaded_model_is_plain_pytorch(trained):
    model = load_model(trained)
    assert isinstance(model, nn.Module) and not model.training and type(model) is MLPNet
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(type(p) is nn.Parameter for p in model.parameters())


def test_there_is_no_such_part(trained):
    with pytest.raises(
        DataError, match=r"^the data has no part 'tset'; did you mean 'test'\? known: test, train, validation$"
    ):
        kp.predict(trained, part="tset")


def test_only_budget_and_save_can_be_changed_on_resume(trained):
    with pytest.raises(RecipeError) as caught:
        kp.resume(trained.folder, "optimizer.lr=1", quiet=True)
    assert str(caught.value) == (
        "optimizer.lr: cannot be changed on resume; train a new run; only budget.* and save.* can"
    )


def test_a_run_is_plain_values_for_json(trained):
    value = json.loads(json.dumps(trained.to_value()))
    assert value["name"] == "a" and value["status"] == "finished" and value["findings"] == []
