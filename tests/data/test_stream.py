import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from kingpost.data.stream import StreamSplit
from kingpost.source import Order


class Noisy(Dataset):
    """Samples with a random draw, as an augmentation would make; counts what was loaded in this process."""

    def __init__(self, samples=53):
        self.samples, self.loaded = samples, []

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        if index >= self.samples:
            raise IndexError(index)
        self.loaded.append(index)
        return torch.tensor([float(index), torch.rand(()).item()]), index


def batches(split, **order):
    return list(split.batches(Order(**{"batch_size": 8, "shuffle": True, "seed": 3, "epoch": 1} | order)))


def same(first, second):
    return len(first) == len(second) and all(
        a.targets.equal(b.targets) and a.inputs[0].equal(b.inputs[0]) for a, b in zip(first, second, strict=True)
    )


def test_equals_torchs_own_subset_and_loader():
    samples = TensorDataset(torch.randn(20, 3), torch.arange(20))
    order = Order(batch_size=6, shuffle=True, seed=1)
    plain = DataLoader(Subset(samples, order.indices(20).tolist()), batch_size=6)
    for ours, (x, y) in zip(StreamSplit(samples).batches(order), plain, strict=True):
        assert ours.inputs[0].equal(x) and ours.targets.equal(y) and (ours.first, ours.total) == (0, len(y))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers):
    assert same(batches(StreamSplit(Noisy())), batches(StreamSplit(Noisy(), workers=workers)))


def test_seed_and_epoch_change_the_draws():
    split = StreamSplit(Noisy())
    whole = batches(split, shuffle=False)
    assert same(whole, batches(split, shuffle=False))
    for change in ({"seed": 4}, {"epoch": 2}):
        assert not whole[0].inputs[0].equal(batches(split, shuffle=False, **change)[0].inputs[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_the_tail_and_loads_nothing_else(workers):
    samples = Noisy()
    tail = batches(StreamSplit(samples, workers=workers), start=5)
    assert same(tail, batches(StreamSplit(Noisy()))[5:])
    if workers == 0:
        assert len(samples.loaded) == 53 - 5 * 8


@pytest.mark.parametrize("ranks", [2, 3, 6])
def test_ranks_divide_each_global_batch(ranks):
    whole = batches(StreamSplit(Noisy()))
    shares = [batches(StreamSplit(Noisy()), rank=rank, ranks=ranks) for rank in range(ranks)]
    for index, batch in enumerate(whole):
        parts = [share[index] for share in shares]
        assert torch.cat([part.targets for part in parts]).equal(batch.targets)
        assert torch.cat([part.inputs[0] for part in parts]).equal(batch.inputs[0])
        assert all(part.total == len(batch) for part in parts)
        assert [part.first for part in parts] == [sum(len(p) for p in parts[:rank]) for rank in range(ranks)]


def test_a_rank_without_rows_still_gets_a_batch():
    (batch,) = StreamSplit(Noisy(1)).batches(Order(batch_size=4, rank=0, ranks=2))
    assert len(batch) == 0 and batch.inputs[0].shape == (0, 2) and batch.total == 1


def test_training_and_loading_do_not_share_draws():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    next(StreamSplit(Noisy()).batches(Order(batch_size=4)))
    assert torch.rand(3).equal(expected)


def test_closing_early_ends_the_workers():
    iterator = StreamSplit(Noisy(), workers=2).batches(Order(batch_size=4))
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()
    assert multiprocessing.active_children() == []
