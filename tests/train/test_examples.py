"""The examples run as they stand, without a warning, in a folder of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kingpost.assembly import Batch, Step
from kingpost.run import Run
from kingpost.source import Order
from kingpost.train.gradients.backward import backward
from kingpost.train.regularise.ema import Average
from kingpost.train.regularise.sam import sharpness_aware
from kingpost.train.tasks import Classification
from kingpost.train.train import train
from train.parts import model_state, net, recipe

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, Path]]:
    """All examples at once: exit status, output, complaints, and the folder that each ran in."""
    environment = {**os.environ, "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    started = []
    for example in EXAMPLES:
        folder = tmp_path_factory.mktemp(example.stem)
        command = [sys.executable, str(example)]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append((example.stem, process, folder))
    done = {}
    for name, process, folder in started:
        out, err = process.communicate(timeout=300)
        done[name] = (process.returncode, out, err, folder)
    return done


@pytest.mark.parametrize("example", [path.stem for path in EXAMPLES])
def test_example_runs_and_learns(example: str, outcomes: dict[str, tuple[int, str, str, Path]]) -> None:
    status, out, err, _ = outcomes[example]
    assert status == 0, err
    accuracies = [float(number) for number in re.findall(r"accuracy (\d\.\d+)", out)]
    assert accuracies, out
    # Guessing gives 0.1 and a linear model about 0.95 on these digits; the runs are short.
    assert all(0.9 < accuracy <= 1 for accuracy in accuracies), out


def test_an_own_technique_is_the_same_by_reference_and_as_an_object(
    outcomes: dict[str, tuple[int, str, str, Path]],
) -> None:
    folder = outcomes["own_technique"][3] / "runs"
    by_reference, as_object = Run(folder / "noise"), Run(folder / "noise-2")
    assert by_reference.weights().read_bytes() == as_object.weights().read_bytes()
    assert "own_technique:GradientNoise" in (by_reference.folder / "recipe.yaml").read_text()


def test_the_plain_loop_is_short() -> None:
    example = next(path for path in EXAMPLES if path.stem == "plain_loop")
    assert len(example.read_text().splitlines()) <= 45


def test_the_pure_functions_in_a_plain_loop_equal_the_recipe(tmp_path: Path) -> None:
    """Sharpness-aware minimisation and the average, once through kp.train and once in a loop of one's own."""
    techniques = [{"name": "sam", "rho": 0.3}, {"name": "ema", "decay": 0.7, "warmup": False}]
    run = train(recipe(techniques=techniques, initialise="he"), root=tmp_path, quiet=True)
    from kingpost import seeds
    from kingpost.build.initialise.weights import initialise_weights

    model = net()
    initialise_weights(model, lambda w, g: nn.init.kaiming_normal_(w, generator=g), seeds.derive(0, "initialise"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, foreach=False)
    gradient, average = sharpness_aware(backward, rho=0.3), Average(decay=0.7)
    split = recipe().data.open().splits["train"]
    for epoch in range(2):
        for batch in split.batches(Order(batch_size=8, shuffle=True, epoch=epoch)):
            assert isinstance(batch, Batch)
            optimizer.zero_grad()
            gradient(model, Classification().objective, batch, Step(index=0, seed=0, items=len(batch)))
            optimizer.step()
            average.add(model)
    for name, value in model_state(run).items():
        # The fused optimizer rounds differently; six steps in 64 bits.
        torch.testing.assert_close(value, model.state_dict()[name], rtol=0, atol=1e-13)
    from safetensors.torch import load_file

    for name, value in load_file(run.weights("last")).items():
        torch.testing.assert_close(value, average.values[name], rtol=0, atol=1e-13)  # the same
