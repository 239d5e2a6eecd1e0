"""Every figure of a plan against a closed form, or against the real thing."""

import itertools

import pytest
import torch
from torch import nn

import kingpost as kp
from kingpost.errors import RecipeError
from kingpost.plan import readable
from kingpost.source import Order
from kingpost.train.assemble import assemble

CPU = torch.device("cpu")
BATCH, INPUTS, CLASSES = 48, 64, 10
LAYOUT = {"name": "data-parallel", "device": "cpu"}


def recipe(widths=(32, 16), **changes):
    fields = {"name": "a", "data": "digits", "model": kp.MLP(widths=widths), "batch_size": BATCH, "layout": LAYOUT}
    return kp.Recipe(**fields | changes)


def weights_of(widths):
    return [a * b for a, b in itertools.pairwise([INPUTS, *widths, CLASSES])]


WIDTHS = [(), (32,), (32, 16), (128, 8, 40)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_parameters_are_weights_and_biases(widths):
    assert kp.plan(recipe(widths))["parameters"] == sum(weights_of(widths)) + sum(widths) + CLASSES


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("technique", [None, "sam", {"name": "accumulate", "micro_batches": 4}, "ema", "clip"])
def test_compute_is_the_closed_form(widths, technique):
    """A product of (B, m) and (m, n) is 2 B m n operations; backward has two a layer, but the input needs none."""
    products = weights_of(widths)
    expected = 2 * BATCH * (3 * sum(products) - products[0]) * (2 if technique == "sam" else 1)
    techniques = [technique] if technique else []
    assert kp.plan(recipe(widths, techniques=techniques))["compute per step"] == expected


def one_real_step(made):
    """Bytes of weights, gradients and optimizer state of a real step, and of what autograd kept, by storage."""
    dataset = made.data.open()
    assembly = assemble(made, dataset, CPU)
    model, optimizer = assembly.model, assembly.optimizer(assembly.model)
    batch = next(dataset.splits["train"].batches(Order(batch_size=made.batch_size)))
    batch = batch.with_(inputs=tuple(x.clone() for x in batch.inputs), targets=batch.targets.clone())
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = assembly.objective(model, batch)
    (loss.data / loss.items).backward()
    grads = sum(p.grad.nbytes for p in model.parameters())
    optimizer.step()
    state = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    return {"weights": weights, "gradients": grads, "optimizer state": state, "activations": sum(kept.values())}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"widths": (128, 8, 40)},
        {"optimizer": {"name": "sgd", "momentum": 0.9}},
        {"optimizer": {"name": "sgd", "momentum": 0.0}},
        {"optimizer": {"name": "torch.optim:NAdam"}},
        {"model": kp.MLP(widths=(32,), activation="gelu")},
        {"model": kp.CNN(widths=(8, 16))},
        {"model": kp.CNN(widths=(8,), norm="group")},
    ],
    ids=str,
)
def test_memory_is_that_of_a_real_step(changes):
    made = recipe(**changes)
    plan, real = kp.plan(made), one_real_step(made)
    assert {name: plan[name] for name in real} == real
    assert plan["memory"] == sum(real.values())


def test_accumulation_keeps_the_activations_of_one_piece():
    whole = kp.plan(recipe(batch_size=BATCH // 4))["activations"]
    pieces = kp.plan(recipe(techniques=[{"name": "accumulate", "micro_batches": 4}]))
    assert pieces["samples at once"] == BATCH // 4
    # The pieces are views of one batch, so autograd keeps the whole input alive for the first layer; the rest is less.
    inputs = BATCH * INPUTS * 4
    targets = BATCH * 8
    extra = (inputs + targets) * 3 // 4
    assert pieces["activations"] == whole + extra < kp.plan(recipe())["activations"]


@pytest.mark.parametrize("batch_size", [1, 48, 1259, 5000])
@pytest.mark.parametrize("budget", [{"epochs": 3}, {"steps": 7}])
def test_steps_are_counted(batch_size, budget):
    plan = kp.plan(recipe(batch_size=batch_size, budget=budget))
    per_epoch = (1259 + batch_size - 1) // batch_size  # 1,797 digits less 20 % test and 10 % validation of each class
    assert plan["training samples"] == 1259 and plan["steps per epoch"] == per_epoch
    assert plan["steps"] == budget.get("steps", 3 * per_epoch)


def test_a_huge_model_takes_no_memory():
    wide = 50_000
    before = _resident_bytes()
    plan = kp.plan(recipe((wide, wide)))
    grown = _resident_bytes() - before
    parameters = INPUTS * wide + wide * wide + wide * CLASSES + 2 * wide + CLASSES
    assert plan["parameters"] == parameters and plan["weights"] == plan["gradients"] == 4 * parameters  # 10 GB each
    assert plan["optimizer state"] == 8 * parameters + 4 * 6  # two moments, and a step count for each of six tensors
    assert grown < 2**28, f"grew by {grown / 2**20:.0f} MiB"


def _resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_an_optimizer_that_is_passed_in_is_left_as_it_is(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plan = kp.plan(recipe(model=module, optimizer=optimizer), measure=True)
    assert plan["optimizer state"] == plan["gradients"] > 0
    assert not optimizer.state and optimizer.param_groups[0]["params"][0] is next(module.parameters())
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())


@pytest.fixture
def module():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def test_a_module_that_is_passed_in_is_left_as_it_is(module):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    ids = [id(p) for p in module.parameters()]
    plan = kp.plan(recipe(model=module))
    assert plan["parameters"] == INPUTS * 8 + 8 + 16 + 8 * CLASSES + CLASSES
    assert [id(p) for p in module.parameters()] == ids and all(p.grad is None for p in module.parameters())
    assert all(type(p) is nn.Parameter and p.device == CPU for p in module.parameters())
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    assert module.training


def test_frozen_parameters_are_counted_apart(module):
    module[1].weight.requires_grad_(False)
    plan = kp.plan(recipe(model=module))
    assert plan["parameters"] == 8 + 16 + 8 * CLASSES + CLASSES
    assert "512 frozen" in next(f.reason for f in plan.figures if f.name == "parameters")
    assert plan["gradients"] == 4 * plan["parameters"] < plan["weights"]


def test_measuring_times_real_steps(module):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    plan = kp.plan(recipe(budget={"steps": 100}), measure=True)
    assert 0 < plan["time per step"] < 10
    assert plan["training time"] == pytest.approx(100 * plan["time per step"])
    kp.plan(recipe(model=module, batch_size=256), measure=True)
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())


def test_learning_rates_are_those_of_the_schedule():
    plan = kp.plan(recipe(optimizer=kp.SGD(lr=0.5), schedule=kp.Cosine(end=0.1), budget={"steps": 10}))
    assert plan["peak learning rate"] == 0.5
    assert "starts at 0.5, ends at 0.061" in str(plan)  # end + (1 - end) (1 + cos(0.9 pi)) / 2, times 0.5


def test_a_contradiction_is_refused():
    with pytest.raises(RecipeError, match=r"^model.widths: 5 stages halve 8 x 8 pixels to nothing; use at most 3 st"):
        kp.plan(recipe(model=kp.CNN(widths=(8,) * 5)))


def test_a_wrong_argument_of_a_reference_is_named():
    with pytest.raises(RecipeError, match=r"^optimizer.lrr: got an unexpected keyword .*did you mean 'lr'\?"):
        kp.plan(recipe(optimizer={"name": "torch.optim:NAdam", "lrr": 1.0}))


def test_as_values_and_as_text():
    plan = kp.plan(recipe())
    value = plan.to_value()
    assert kp.Recipe.from_value(value["recipe"]) == recipe()
    assert {f["name"]: f["value"] for f in value["figures"]}["parameters"] == plan["parameters"]
    assert len(plan.figures) + 1 < len(str(plan).splitlines()) <= 30
    assert value["summary"]["parameters"] == plan["parameters"]
    assert max(map(len, str(plan).splitlines())) <= 120


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0, "bytes", "0 bytes"), (1024, "bytes", "1 KiB"), (1536 * 2**20, "bytes", "1.5 GiB"), (999, "FLOPs", "999 FLOPs"),
     (7200, "seconds", "2 hours"), (0.25, "seconds", "0.25 seconds"), (12345, "", "12,345"), (-2048, "bytes", "-2 KiB"),
     (2**60, "bytes", "1.05e+06 TiB")],
)  # fmt: skip
def test_numbers_are_readable(value, unit, text):
    assert readable(value, unit) == text
