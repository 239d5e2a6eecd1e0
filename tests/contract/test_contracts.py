"""The contracts that every technique keeps. Subjects are discovered; an exception is an attribute of its subject.

``python docs/generate.py`` turns their outcome into the table in docs/contracts.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from contract.subjects import (
    STEPS,
    differences,
    dtype_of,
    largest_difference,
    make,
    plus,
    recipe_with,
    state_of,
    subjects,
    without_times,
)
from kingpost.assembly import Assembly, Slot
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.technique import Technique
from kingpost.train.assemble import assemble
from kingpost.train.train import resume, train

# In 64 bits the order of a sum of eight samples changes the last two or three digits, and six steps of an optimizer
# that divides by a root enlarge that (the fourth roots of Shampoo's nearly singular matrices most, to 3e-9); in half
# precision a product has 8 (bfloat16) or 11 bits.
TOLERANCE = {"float64": 1e-8, "float32": 2e-2}

all_subjects = pytest.mark.parametrize(("kind", "name"), subjects(), ids=lambda value: value)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Run]:
    """Trains a recipe once a session, however often it is asked for."""
    runs: dict[str, Run] = {}

    def get(recipe: Recipe) -> Run:
        key = recipe.to_yaml()
        if key not in runs:
            default = torch.get_default_dtype()
            torch.set_default_dtype(getattr(torch, recipe.data.dtype))  # type: ignore[attr-defined]
            try:
                runs[key] = train(recipe, root=tmp_path_factory.mktemp("runs"), quiet=True)
            finally:
                torch.set_default_dtype(default)
        return runs[key]

    return get


@pytest.fixture(scope="session")
def on_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One torchrun session that trains all subjects; returns the folder of their runs."""
    folder = tmp_path_factory.mktemp("pair")
    script = Path(__file__).with_name("two_processes.py")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def excused(subject: Technique, contract: str) -> None:
    """Skip a contract that the subject itself says does not hold, with its reason."""
    if reason := subject.exceptions.get(contract):
        pytest.skip(f"{contract}: {reason}")


@all_subjects
def test_touches_exactly_what_it_declares(kind: str, name: str) -> None:
    subject = make(kind, name)
    assert subject.touches <= set(get_args(Slot))
    recipe = recipe_with(kind, None if kind != "model" else subject, dtype_of(subject))
    if subject.tasks or subject.example_model or getattr(subject, "reads", ()):
        recipe = recipe.with_(data=recipe_with(kind, subject, dtype_of(subject)).data)
        recipe = recipe.with_(model=recipe_with(kind, subject).model) if kind != "model" else recipe
    before = assemble(recipe, recipe.data.open(), torch.device("cpu"))
    shape_before = model_form(before)
    after = subject.mount(before)
    changed = {slot for slot in get_args(Slot) if slot != "model" and getattr(before, slot) is not getattr(after, slot)}
    if after.model is not before.model or model_form(after) != shape_before:
        changed.add("model")
    assert changed == subject.touches


def model_form(assembly: Assembly) -> tuple[str, list[tuple[str, bool]], bool]:
    """What can be seen of a model without running it."""
    model = assembly.model
    parameters = [(name, p.requires_grad) for name, p in model.named_parameters()]
    return repr(model), parameters, model._compiled_call_impl is not None


@all_subjects
def test_survives_a_round_trip_through_yaml(kind: str, name: str) -> None:
    recipe = recipe_with(kind, make(kind, name))
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()


@all_subjects
@pytest.mark.parametrize("at_step", [3, 4], ids=["end of epoch", "mid-epoch"])
def test_resumes_bit_for_bit(
    kind: str, name: str, at_step: int, trained: Callable[[Recipe], Run], tmp_path: Path
) -> None:
    subject = make(kind, name)
    excused(subject, "resume")
    recipe = recipe_with(kind, subject, dtype_of(subject))
    whole = trained(recipe)
    if len(whole.steps) <= at_step:
        pytest.skip(f"the run ended by itself after {len(whole.steps)} steps")
    copy = tmp_path / "toy"
    shutil.copytree(whole.folder, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if int(checkpoint.name.split("-")[1]) > at_step:
            shutil.rmtree(checkpoint)
    torch.manual_seed(99)  # a new process would not have our generator's state either
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype_of(subject)))
    try:
        again = resume(copy, quiet=True)
    finally:
        torch.set_default_dtype(default)
    assert differences(without_times(state_of(whole)), without_times(state_of(again))) == []
    assert (copy / "steps.csv").read_bytes() == (whole.folder / "steps.csv").read_bytes()
    for which in ("best", "last"):
        assert (copy / f"weights/{which}.safetensors").read_bytes() == whole.weights(which).read_bytes()  # type: ignore[arg-type]


@all_subjects
def test_strength_zero_is_the_identity(kind: str, name: str, trained: Callable[[Recipe], Run]) -> None:
    subject = make(kind, name)
    if subject.neutral is None:
        pytest.skip("identity: it has no strength that could be zero")
    neutral = make(kind, name, **subject.neutral)
    plain = recipe_with(kind, None, dtype_of(subject)).with_(
        data=recipe_with(kind, subject, dtype_of(subject)).data, model=recipe_with(kind, subject).model
    )
    a, b = trained(recipe_with(kind, neutral, dtype_of(subject))), trained(plain)
    assert differences(state_of(a)["model"], state_of(b)["model"]) == []
    assert a.weights("best").read_bytes() == b.weights("best").read_bytes()


@all_subjects
def test_micro_batches_add_up_to_the_batch(kind: str, name: str, trained: Callable[[Recipe], Run]) -> None:
    subject = make(kind, name)
    excused(subject, "accumulation")
    recipe = recipe_with(kind, subject, dtype_of(subject))
    split = plus(recipe, {"name": "accumulate", "micro_batches": 4}) if name != "accumulate" else recipe
    whole = recipe if name != "accumulate" else recipe.with_(techniques=())
    compare(trained(whole), trained(split), TOLERANCE[dtype_of(subject)])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's recurrent layers
@all_subjects
def test_compiled_equals_eager(kind: str, name: str, trained: Callable[[Recipe], Run]) -> None:
    subject = make(kind, name)
    excused(subject, "compile")
    recipe = recipe_with(kind, subject, dtype_of(subject))
    compiled = plus(recipe, {"name": "compile", "backend": "aot_eager"})
    eager = recipe if name != "compile" else recipe.with_(techniques=())
    torch.compiler.reset()
    compare(trained(eager), trained(compiled), TOLERANCE[dtype_of(subject)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, about itself
def test_inductor_equals_eager_on_a_sample(trained: Callable[[Recipe], Run]) -> None:
    """One compilation by inductor takes tens of seconds, so the other techniques are compiled by aot_eager only."""
    if not shutil.which("c++") and not shutil.which("g++"):
        pytest.skip("inductor needs a C++ compiler")
    torch.compiler.reset()
    eager = plus(recipe_with("technique", make("technique", "mixup")), "label-smoothing", "sam", "ema")
    compare(trained(eager), trained(plus(eager, {"name": "compile", "backend": "inductor"})), TOLERANCE["float64"])


@all_subjects
def test_trains_in_half_precision(kind: str, name: str, trained: Callable[[Recipe], Run]) -> None:
    subject = make(kind, name)
    if name == "bf16" or name in make("technique", "bf16").conflicts:
        pytest.skip("autocast: it sets the precision itself")
    excused(subject, "autocast")
    recipe = recipe_with(kind, subject, "float32")
    full, half = trained(recipe), trained(plus(recipe, "bf16"))
    losses = torch.tensor([[row["loss"] for row in run.steps[:STEPS]] for run in (full, half)])
    assert losses.isfinite().all()
    # 8 bits of precision are 0.4 % a product, some of which add up. Before the first update and after it: later,
    # methods that divide by a curvature or a spread let the two runs part, as other starting weights would.
    assert (losses[0] - losses[1])[:2].abs().max() < 0.05 * losses[0].abs().max()


@all_subjects
def test_two_processes_equal_one(
    kind: str, name: str, trained: Callable[[Recipe], Run], on_two_processes: Path
) -> None:
    subject = make(kind, name)
    excused(subject, "two processes")
    recipe = recipe_with(kind, subject, dtype_of(subject))
    compare(trained(recipe), Run.open(on_two_processes / f"{kind}-{name}" / "toy"), TOLERANCE[dtype_of(subject)])


def compare(a: Run, b: Run, tolerance: float) -> None:
    """Two runs that should be the same up to rounding: weights, kept weights, and the history."""
    assert len(a.steps) == len(b.steps) >= STEPS // 2
    assert largest_difference(state_of(a)["model"], state_of(b)["model"]) < tolerance
    for row, other in zip(a.steps, b.steps, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=10 * tolerance)
        assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=10 * tolerance)
    for row, other in zip(a.results, b.results, strict=True):
        for key in row.keys() - {"seconds", "samples_per_second", "peak_memory_mebibytes"}:
            assert row[key] == pytest.approx(other[key], rel=10 * tolerance), key


def test_a_technique_changes_something(trained: Callable[[Recipe], Run]) -> None:
    """The contracts above would also hold for techniques that do nothing: these examples must have an effect."""
    idle = {}
    for kind, name in subjects():
        if kind != "technique":
            continue
        subject = make(kind, name)
        recipe = recipe_with(kind, subject, dtype_of(subject))
        a, b = trained(recipe), trained(recipe.with_(techniques=()))
        if not differences(state_of(a)["model"], state_of(b)["model"]):
            idle[name] = subject.touches
    # What leaves the weights of each step alone by design: an average beside them, a stop, another way to compute.
    # Snapshots run through the schedule several times, and the plain recipe's is constant.
    beside: set[Any] = {"update", "state"}
    quiet: tuple[set[Any], ...] = (beside | {"evaluate"}, beside, {"stop"}, {"model"}, beside | {"schedule"})
    assert all(set(touches) in quiet for touches in idle.values()), idle
