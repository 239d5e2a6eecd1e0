"""Damage, kills, signals and changed minds: what a resumed run makes of them."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from contract.subjects import largest_difference
from kingpost.errors import RecipeError, RunError
from kingpost.run import Run
from kingpost.train import checkpoint
from kingpost.train.train import resume, train
from train.parts import cut_back, different, model_state, recipe

SAVE = {"report": False, "every_steps": 1, "keep": 100}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of six steps with every checkpoint kept."""
    return train(recipe(save=SAVE), root=tmp_path_factory.mktemp("whole"), quiet=True)


def newest(run: Run) -> Path:
    return checkpoint.all_in(run.folder / "checkpoints")[-1]


def flip_a_byte(path: Path) -> None:
    data = bytearray((path / "state.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.safetensors").write_bytes(data)


def flip_a_byte_of_the_manifest(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    at = text.index("best_score")
    (path / "manifest.json").write_text(text[:at] + "c" + text[at + 1 :])


def truncate_the_manifest(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text[: len(text) // 2])


def empty_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_text("")


def remove_the_tensors(path: Path) -> None:
    (path / "state.safetensors").unlink()


def remove_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


DAMAGE: list[Callable[[Path], None]] = [
    flip_a_byte,
    flip_a_byte_of_the_manifest,
    truncate_the_manifest,
    empty_the_manifest,
    remove_the_tensors,
    remove_the_manifest,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None], whole: Run, tmp_path: Path
) -> None:
    run = cut_back(whole, 4, tmp_path)
    hurt = newest(run)
    damage(hurt)
    again = resume(run.folder, quiet=True)
    assert again.status == "finished"
    assert [finding.place for finding in again.findings] == [str(hurt)]
    assert again.findings[0].severity == "warning"
    assert "a damaged checkpoint was passed over; the one before it is used" in again.findings[0].symptom
    assert again.findings[0].cause
    again.write_findings([])
    found = [d for d in different(again, whole) if not d.startswith(".findings")]
    assert found == []
    assert len(checkpoint.all_in(run.folder / "checkpoints")) == len(
        checkpoint.all_in(whole.folder / "checkpoints")
    )  # the damaged place was reached again, and is whole now


def test_two_damaged_ones_give_way_to_the_third(whole: Run, tmp_path: Path) -> None:
    run = cut_back(whole, 5, tmp_path)
    for path in checkpoint.all_in(run.folder / "checkpoints")[-2:]:
        flip_a_byte(path)
    again = resume(run.folder, quiet=True)
    assert len(again.findings) == 2
    assert [d for d in different(again, whole) if not d.startswith(".findings")] == []


def test_when_all_are_damaged_it_says_so(whole: Run, tmp_path: Path) -> None:
    run = cut_back(whole, 2, tmp_path)
    paths = checkpoint.all_in(run.folder / "checkpoints")
    for path in paths:
        remove_the_tensors(path)
    with pytest.raises(RunError, match=rf"all {len(paths)} checkpoints in .* are damaged; train again from the recipe"):
        resume(run.folder, quiet=True)
    assert run.status == "failed"


def test_without_a_checkpoint_it_starts_again(whole: Run, tmp_path: Path) -> None:
    run = cut_back(whole, 0, tmp_path)
    assert different(resume(run.folder, quiet=True), whole) == []


def test_leftovers_of_a_kill_are_removed(whole: Run, tmp_path: Path) -> None:
    run = cut_back(whole, 4, tmp_path)
    half = run.folder / "checkpoints/.step-000000005-epoch-000001.tmp"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    strays = [run.folder / ".results.csv.abc.tmp", run.folder / "weights/.best.safetensors.abc.tmp"]
    for stray in strays:
        stray.write_bytes(b"half")
    again = resume(run.folder, quiet=True)
    left = [path for path in run.folder.rglob(".*") if path.name != ".lock"]
    assert left == []
    assert different(again, whole) == []


def test_the_step_history_is_cut_back_to_the_checkpoint(whole: Run, tmp_path: Path) -> None:
    run = cut_back(whole, 4, tmp_path)
    with (run.folder / "steps.csv").open("a") as file:
        file.write("7,3,0.1,0.1,0.")  # a kill in the middle of a row
    again = resume(run.folder, quiet=True)
    assert [row["step"] for row in again.steps] == [1, 2, 3, 4, 5, 6]
    assert (again.folder / "steps.csv").read_bytes() == (whole.folder / "steps.csv").read_bytes()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_resume_of_a_finished_run_changes_nothing_and_says_so(
    whole: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(Path(shutil.copytree(whole.folder, tmp_path / "toy")))
    before = snapshot(run.folder)
    again = resume(run.folder)
    assert again.status == "finished"
    assert snapshot(run.folder) == before
    assert "is finished; nothing to do" in " ".join(capfd.readouterr().err.split())


def test_a_longer_budget_goes_on_from_the_end(whole: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(whole.folder, tmp_path / "toy")))
    again = resume(run.folder, "budget.epochs=4", quiet=True)
    straight = train(recipe(save=SAVE, budget={"epochs": 4}), root=tmp_path / "straight", quiet=True)
    assert again.status == "finished"
    assert again.recipe.budget.epochs == 4
    assert different(again, straight) == []
    assert len(again.results) == 4


def test_other_keys_cannot_be_changed(whole: Run, tmp_path: Path) -> None:
    run = cut_back(whole, 4, tmp_path)
    before = snapshot(run.folder)
    with pytest.raises(RecipeError, match=r"optimizer.lr: cannot be changed on resume; train a new run; only budget"):
        resume(run.folder, "optimizer.lr=0.2", quiet=True)
    assert snapshot(run.folder) == before


def test_changed_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(recipe(data={"name": "train.parts:Odd", "mark": "a" * 64}, save=SAVE), root=tmp_path, quiet=True)
    half = cut_back(run, 4, tmp_path / "half")
    weights = (half.folder / "weights/last.safetensors").read_bytes()
    monkeypatch.setenv("KINGPOST_MARK", "b" * 64)
    with pytest.raises(
        RunError, match=r"the data of run 'toy' has changed since it began \(fingerprint b{12}, was a{12}"
    ):
        resume(half.folder, quiet=True)
    assert (half.folder / "weights/last.safetensors").read_bytes() == weights
    assert half.data["fingerprint_sha256"] == "a" * 64
    monkeypatch.delenv("KINGPOST_MARK")
    assert different(resume(half.folder, quiet=True), run) == []  # and once the data is back, it goes on


@pytest.mark.parametrize("at", [0, 2, 3, 5])  # first of the run, last and first of an epoch, last of the run
def test_a_signal_saves_and_the_resumed_run_has_the_same_bits(at: int, tmp_path: Path) -> None:
    import signal

    techniques = [{"name": "train.parts:StopAt", "at": at}, "mixup"]
    handler = signal.getsignal(signal.SIGTERM)
    run = train(recipe(techniques=techniques), root=tmp_path, quiet=True)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert run.status == "stopped"
    assert run.summary["signal"] == signal.SIGTERM
    assert f"stopped by SIGTERM; go on with: kingpost resume {run.folder}" in run.summary["message"]
    assert len(run.steps) == at + 1  # the step that was under way was finished
    again = resume(run.folder, quiet=True)
    assert again.status == "finished"
    whole = train(recipe(techniques=[{"name": "train.parts:StopAt"}, "mixup"]), root=tmp_path / "whole", quiet=True)
    assert different(again, whole) == []


def test_runs_in_threads(tmp_path: Path) -> None:
    """Signals cannot be caught there. Runs at once share torch's generator, so an initialiser sets their weights."""
    initialised = recipe(initialise="he")
    alone = train(initialised, root=tmp_path / "alone", quiet=True)
    runs: dict[int, Run] = {}

    def work(number: int) -> None:
        runs[number] = train(initialised, root=tmp_path / str(number), quiet=True)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(runs) == [0, 1, 2]
    for run in runs.values():
        assert different(run, alone) == []


def test_two_processes_through_the_verb_equal_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """kp.train starts torchrun by itself, here from a thread, where signals cannot be passed on."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    layout = {"name": "data-parallel", "device": "cpu", "threads": 1}
    runs: list[Run | Exception] = []

    def work() -> None:
        try:
            runs.append(train(recipe(layout={**layout, "data": 2}), root=tmp_path / "two", quiet=True))
        except Exception as error:
            runs.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=120)
    assert isinstance(runs[0], Run), (runs, capfd.readouterr().err)
    one = train(recipe(layout=layout), root=tmp_path / "one", quiet=True)
    assert runs[0].status == "finished"
    assert runs[0].environment["processes"] == 2
    # Six steps in 64 bits; sums of eight samples in another order.
    assert largest_difference(model_state(runs[0]), model_state(one)) < 1e-14
    assert largest_difference(load_file(runs[0].weights("best")), load_file(one.weights("best"))) < 1e-14
    for row, other in zip(runs[0].results, one.results, strict=True):
        assert row["validation_loss_nats"] == pytest.approx(other["validation_loss_nats"], rel=1e-13)
        assert row["validation_accuracy"] == other["validation_accuracy"]


def test_two_processes_cannot_share_an_object(tmp_path: Path) -> None:
    model: Any = torch.nn.Linear(2, 2)
    with pytest.raises(RecipeError, match="model: an object cannot be sent to several processes"):
        train(recipe(model=model, layout={"name": "data-parallel", "data": 2}), root=tmp_path, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_no_run_is_ever_overwritten(tmp_path: Path) -> None:
    small = recipe(budget={"steps": 1})
    folders = [train(small, root=tmp_path, quiet=True).folder.name for _ in range(3)]
    assert folders == ["toy", "toy-2", "toy-3"]


def test_files_are_plain(whole: Run) -> None:
    """Readable without kingpost: CSV and JSON by the standard library, tensors by safetensors."""
    with (whole.folder / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert json.loads((whole.folder / "run.json").read_text())["status"] == "finished"
    assert set(load_file(newest(whole) / "state.safetensors"))
    assert not [path for path in whole.folder.rglob("*") if path.suffix in (".pt", ".pkl", ".pth")]
