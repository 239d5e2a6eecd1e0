import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from kingpost.data.loaders import Loaders
from kingpost.errors import DataError, RecipeError
from kingpost.option import choose
from kingpost.recipe import Recipe
from kingpost.source import Order


class Noisy(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.rand(3), index % 4


class Endless(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(2), 0)])


def samples(count=20):
    return TensorDataset(torch.arange(count * 2.0).view(count, 2), torch.arange(count) % 4)


def make_loaders(count=20, form="tuple"):
    train, validation = (
        DataLoader(samples(count), batch_size=8, shuffle=True),
        DataLoader(samples(8), batch_size=8),
    )
    return {"tuple": (train, validation), "mapping": {"train": train, "test": validation}, "one": train}[form]


REFERENCE = "torch.utils.data:DataLoader"  # importable, and returns a loader


def batches(loader, **order):
    split = Loaders(train=loader).open().splits["train"]
    return list(
        split.batches(Order(**{"batch_size": loader.batch_size, "shuffle": True, "seed": 5, "epoch": 2} | order))
    )


def same(first, second):
    return len(first) == len(second) and all(
        a.inputs[0].equal(b.inputs[0]) and a.targets.equal(b.targets) for a, b in zip(first, second, strict=True)
    )


LOADERS = {
    "shuffled": lambda: DataLoader(Noisy(), batch_size=6, shuffle=True),
    "own generator": lambda: DataLoader(Noisy(), batch_size=6, shuffle=True, generator=torch.Generator()),
    "own sampler": lambda: DataLoader(
        Noisy(), batch_size=6, sampler=RandomSampler(Noisy(), generator=torch.Generator().manual_seed(3))
    ),
    "workers": lambda: DataLoader(Noisy(), batch_size=6, shuffle=True, num_workers=2),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_pass_follows_from_seed_and_epoch_alone(kind):
    whole = batches(LOADERS[kind]())
    torch.rand(7)  # whatever was drawn before does not matter
    assert same(whole, batches(LOADERS[kind]()))
    assert same(whole[2:], batches(LOADERS[kind](), start=2))
    assert same(whole, batches(LOADERS[kind](), rank=1, ranks=2))  # global batches: every rank sees the same
    assert not same(whole, batches(LOADERS[kind](), epoch=3))
    assert not same(whole, batches(LOADERS[kind](), seed=6))


def test_training_draws_do_not_change_what_is_loaded():
    loader = DataLoader(Noisy(), batch_size=6, shuffle=True)
    split = Loaders(train=loader).open().splits["train"]
    order = Order(batch_size=6, shuffle=True)
    quiet = list(split.batches(order))
    busy = []
    for batch in split.batches(order):
        torch.manual_seed(len(busy))  # as dropout would
        torch.rand(100)
        busy.append(batch)
    assert same(quiet, busy)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    list(split.batches(order))
    assert torch.rand(2).equal(expected)


def test_facts_from_loaders():
    opened = Loaders(train=DataLoader(samples(), batch_size=8, drop_last=True), validation=make_loaders()[1]).open()
    assert opened.facts.classes == ("0", "1", "2", "3") and opened.facts.inputs == (((2,), torch.float32),)
    assert len(opened.splits["train"]) == 16 and opened.splits["train"].steps(99) == 2
    assert len(Loaders(train=DataLoader(samples(), batch_size=8), classes=9).open().facts.classes) == 9
    labelled = samples()
    labelled.targets = [0, 1, 6]
    assert len(Loaders(train=DataLoader(labelled)).open().facts.classes) == 7


def test_tokens_and_values():
    tokens = TensorDataset(torch.arange(20).view(4, 5), torch.arange(1, 21).view(4, 5))
    facts = Loaders(train=DataLoader(tokens), task="language-modelling").open().facts
    assert facts.vocabulary == 21 and facts.target_shape == (5,)
    several = DataLoader([((torch.zeros(2).double(), torch.ones(3)), 0.5)] * 4, batch_size=2)
    opened = Loaders(train=several).open()
    assert opened.facts.task == "regression" and [s for s, _ in opened.facts.inputs] == [(2,), (3,)]
    assert next(opened.splits["train"].batches(Order(batch_size=2))).inputs[0].dtype == torch.float32


@pytest.mark.parametrize(("form", "parts"), [("tuple", "validation"), ("mapping", "test"), ("one", "")])
def test_what_a_function_may_return(form, parts):
    opened = Loaders(make=make_loaders, arguments={"form": form}).open()
    assert set(opened.splits) == {"train", *parts.split()}


def test_a_reference_makes_the_recipe_reproducible():
    arguments = {"dataset": [[[0.0, 1.0], 0], [[1.0, 0.0], 1]]}
    recipe = Recipe(name="a", data={"name": REFERENCE, **arguments}, model="mlp")
    assert recipe.not_reproducible == [] and "reference: torch.utils.data:DataLoader" in recipe.to_yaml()
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_objects_are_not_reproducible():
    recipe = Recipe(name="a", data=make_loaders()[0], model="mlp")
    assert recipe.not_reproducible == ["data"]
    with pytest.raises(RecipeError, match=r"object \(data from an object of type DataLoader\) that no file can hold"):
        Recipe.from_yaml(recipe.to_yaml())
    assert isinstance(choose("data", lambda: make_loaders()), Loaders)
    with pytest.raises(RecipeError, match="either a loader or a function that makes it"):
        Loaders(validation=make_loaders()[1])


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        (
            DataLoader([{"x": torch.zeros(2), "y": 0}]),
            r"the loader gave a dict with keys \['x', 'y'\], expected \(x, y\)",
        ),
        (
            DataLoader([(torch.zeros(2), "cat")]),
            r"targets of data.train: expected|the loader gave a tuple in a batch",
        ),
        (DataLoader(Endless()), r"data.train: the loader has no length"),
        (
            DataLoader(samples(), sampler=DistributedSampler(samples(), 2, 0)),
            "DistributedSampler; leave it out",
        ),
        ([1, 2], "data.train: expected a torch DataLoader, got tuple"),
    ],
)
def test_loaders_that_do_not_fit_are_refused(loader, text):
    with pytest.raises(DataError, match=text):
        Loaders(train=loader).open()


def test_another_batch_size_than_the_recipes_is_refused():
    split = Loaders(train=make_loaders()[0]).open().splits["train"]
    with pytest.raises(DataError, match=r"makes batches of 8, the recipe says 64; set batch_size=8"):
        next(split.batches(Order(batch_size=64, shuffle=True)))
