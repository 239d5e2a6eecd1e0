"""What every net of the catalogue must do, on every form of sample that it reads. Nets are discovered."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contract.subjects import TOYS, make
from contract.toys import Toy
from kingpost.assembly import Batch
from kingpost.build.listing import count
from kingpost.net import Net, all_nets
from kingpost.option import choose
from kingpost.source import Dataset, Order
from kingpost.summary import summary
from kingpost.task import Task
from kingpost.train import checkpoint

# Images stand for plain numbers too: both are one floating point input that is flattened or not.
CASES = [
    (name, form)
    for name, cls in all_nets().items()
    for form in cls.reads
    if form != "features" and cls.example != None  # noqa: E711
]
every_net = pytest.mark.parametrize(("name", "form"), CASES, ids=[f"{name}-{form}" for name, form in CASES])


def toy(name: str, form: str, dtype: str = "float32") -> Dataset:
    tasks = all_nets()[name].tasks
    if "classification" not in tasks and tasks and tasks[0] == "multi-task":
        return Toy(task="multi-task", form="heads", dtype=dtype).open()
    if form == "image" or (form == "tokens" and "classification" not in tasks):
        return Toy(task="classification" if form == "image" else "language-modelling", dtype=dtype).open()
    return Toy(form=TOYS[form], dtype=dtype).open()


def made(name: str, form: str, dtype: str = "float32") -> tuple[nn.Module, Batch, Task]:
    """The net of its example, one batch of the toy, and the task."""
    data = toy(name, form, dtype)
    torch.manual_seed(3)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        option = make("model", name)
        assert isinstance(option, Net)
        task = choose("task", data.facts.task)
        assert isinstance(task, Task)
        task = task.for_data(data.facts)
        model = option.make(data.facts, task.outputs_per_sample(data.facts))
    finally:
        torch.set_default_dtype(torch.float32)
    batch = next(iter(data.splits["train"].batches(Order(batch_size=8))))
    return model, batch, task


def inner(output: Any) -> Tensor:
    assert isinstance(output, Tensor), "a net returns its scores, nothing else"
    return output


@every_net
def test_every_parameter_gets_a_gradient(name: str, form: str) -> None:
    model, batch, task = made(name, form)
    task.objective(model, batch).data.backward()  # type: ignore[no-untyped-call]
    idle = [path for path, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@every_net
def test_a_batch_of_one_is_a_row_of_the_batch(name: str, form: str) -> None:
    model, batch, _ = made(name, form, "float64")
    model.eval()
    with torch.no_grad():
        whole = inner(model(*batch.inputs))
        for row in range(2):
            alone = inner(model(*(x[row : row + 1] for x in batch.inputs)))
            # Sums are taken in another order for another batch size: a few ulps of 2e-16, through some layers.
            torch.testing.assert_close(alone[0], whole[row], rtol=1e-9, atol=1e-11)


# torch warns of its own recurrent layers, which keep their weights a second time in a list.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@every_net
def test_compiled_equals_eager(name: str, form: str) -> None:
    model, batch, task = made(name, form, "float64")
    torch.compiler.reset()
    model.eval()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager")
    a, b = task.objective(model, batch), task.objective(compiled, batch)
    torch.testing.assert_close(a.outputs, b.outputs, rtol=1e-9, atol=1e-11)
    a.data.backward(), b.data.backward()  # type: ignore[no-untyped-call]
    for p, q in zip(model.parameters(), compiled.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@every_net
def test_exported_equals_eager(name: str, form: str) -> None:
    model, batch, _ = made(name, form)
    model.eval()
    program = torch.export.export(model, batch.inputs, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*batch.inputs), model(*batch.inputs))


@every_net
def test_runs_in_bfloat16(name: str, form: str) -> None:
    model, batch, task = made(name, form)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.objective(model, batch)
    assert loss.data.isfinite()
    loss.data.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_net
def test_saved_and_loaded_is_the_same(name: str, form: str, tmp_path: Path) -> None:
    model, batch, _ = made(name, form)
    other = copy.deepcopy(model)
    for p in other.parameters():
        p.data.normal_()
    checkpoint.save_weights(tmp_path / "weights.safetensors", model)
    checkpoint.load_weights(tmp_path / "weights.safetensors", other)
    model.eval(), other.eval()
    with torch.no_grad():
        assert torch.equal(model(*batch.inputs), other(*batch.inputs))


@every_net
def test_one_step_lowers_the_loss(name: str, form: str) -> None:
    model, batch, task = made(name, form, "float64")
    model.eval()  # the same function before and after
    before = task.objective(model, batch)
    before.data.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():  # along the gradient any net must improve, if the step is short enough
        norm = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None) ** 0.5
        for p in model.parameters():
            if p.grad is not None:
                p -= 1e-3 / norm * p.grad
    assert task.objective(model, batch).data < before.data


@every_net
def test_summary_counts_all_parameters(name: str, form: str) -> None:
    model, batch, _ = made(name, form)
    said = summary(model, *batch.inputs)
    assert said.parameters == sum(p.numel() for p in model.parameters())
    assert said.flops > 0
    assert len(str(said).splitlines()) <= 30


SIZES = [(name, size) for name, cls in all_nets().items() for size in cls.sizes]


@pytest.mark.parametrize(("name", "size"), SIZES, ids=[f"{name}-{size}" for name, size in SIZES])
def test_sizes_have_the_published_parameters(name: str, size: str) -> None:
    cls = all_nets()[name]
    counted = count(cls, size)
    assert counted > 0
    if (published := cls.sizes[size].parameters) is not None:
        assert counted == published, cls.sizes[size].source
