"""The summary against numbers counted by hand."""

from __future__ import annotations

import torch
from torch import nn

from kingpost.summary import summary


class Tied(nn.Module):
    """An embedding that is also the last layer, and a dropout that would draw at random."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.drop(self.tokens(x)))
        return y


def test_shared_parameters_count_once() -> None:
    said = summary(Tied(), torch.zeros(2, 3, dtype=torch.int64))
    assert said.parameters == 28
    assert [(layer.path, layer.parameters) for layer in said.layers] == [("tokens", 28), ("drop", 0), ("head", 0)]
    assert said.flops == 2 * 2 * 3 * 4 * 7  # a multiplication and an addition for each of B x T x D x V


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    summary(model, torch.randn(5, 3))
    assert model.training and model[0].training and not model[1].training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert not model[1]._forward_hooks


def test_convolution_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
        said = summary(model, torch.zeros(2, 3, 10, 12))
    assert said.layers[0].output == (2, 8, 10, 12)
    assert said.flops == 2 * (2 * 10 * 12 * 8) * (3 * 3 * 3)


def test_many_layers_are_shown_by_their_parents() -> None:
    deep = nn.Sequential(*[nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)]) for _ in range(4)])
    lines = summary(deep, torch.zeros(1, 2)).text(most=10).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "0", "1", "2", "3", "all"]


class Listed(nn.Module):
    """Blocks in a list, which is not called itself."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_a_list_of_modules_has_what_is_in_it() -> None:
    said = summary(Listed(), torch.zeros(2, 4)).text(most=1).splitlines()
    assert said[1].split() == ["blocks", "ModuleList", "48", "192", "FLOPs"]
    assert 3 * (2 * 2 * 4 * 4) == 192
