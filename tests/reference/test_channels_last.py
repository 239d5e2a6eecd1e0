"""Channels last: what the model is handed, and that nothing but the order in memory is another."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kingpost.assembly import Batch, Loss
from kingpost.train.channels_last import channels_last, reordered


def test_the_model_sees_the_same_numbers_in_another_order() -> None:
    """A pixel's channels are neighbours in memory; the values at each index are the same."""
    seen: list[Tensor] = []

    def objective(model: nn.Module, batch: Batch) -> Loss:
        seen.extend(batch.inputs)
        return Loss(data=batch.inputs[0].sum(), items=len(batch), outputs=batch.inputs[0])

    x, codes = torch.randn(2, 3, 4, 5), torch.arange(2)
    reordered(objective)(nn.Identity(), Batch((x, codes), codes, 0, 2))
    assert torch.equal(seen[0], x)
    in_memory = seen[0].as_strided((x.numel(),), (1,)).view(2, 4, 5, 3)
    assert torch.equal(in_memory, x.permute(0, 2, 3, 1))
    assert seen[1] is codes


def test_one_channel_counts_too() -> None:
    """With one channel both orders are the same numbers; the strides must still tell torch which one is meant."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    x = torch.randn(2, 1, 8, 8)
    assert net(channels_last(x)).is_contiguous(memory_format=torch.channels_last)
    assert not net(x).is_contiguous(memory_format=torch.channels_last)


def test_gradients_are_the_same() -> None:
    """Of a small convolutional net, in float64."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3)).double()
    x = torch.randn(3, 1, 10, 10, dtype=torch.float64)
    plain, other = (torch.autograd.grad(net(z).square().sum(), list(net.parameters())) for z in (x, channels_last(x)))
    for a, b in zip(plain, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # sums in another order: a few units in the last place
