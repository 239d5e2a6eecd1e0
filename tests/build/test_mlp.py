"""The perceptron for tables: embeddings, residual layers, and the dial."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kingpost.build.nets.mlp import MLP, MLPNet, ResidualLayer
from kingpost.errors import RecipeError
from kingpost.source import DataFacts


def test_categories_enter_by_their_vectors() -> None:
    """The slow twin: look up each code, put the vectors beside the numbers, and run the plain perceptron."""
    torch.manual_seed(0)
    net = MLPNet(3, [5], 2, cardinalities=[4, 7]).double()
    x, codes = torch.randn(6, 3, dtype=torch.float64), torch.stack([torch.arange(6) % 4, torch.arange(6)], 1)
    assert net.embeddings is not None
    rows = [torch.cat([x[i], *(t.weight[codes[i, k]] for k, t in enumerate(net.embeddings.columns))]) for i in range(6)]
    torch.testing.assert_close(net(x, codes), net.layers(torch.stack(rows)))


def test_residual_layers_start_near_the_identity_path() -> None:
    torch.manual_seed(0)
    layer = ResidualLayer(8, "relu")
    nn.init.zeros_(layer.linear.weight), nn.init.zeros_(layer.linear.bias)
    x = torch.randn(4, 8)
    assert torch.equal(layer(x), x)


def test_residual_net_counts() -> None:
    """First layer, then two of (layer norm, square matrix), then the output."""
    net = MLPNet(10, [6, 6, 6], 3, residual=True)
    assert sum(p.numel() for p in net.parameters()) == (10 * 6 + 6) + 2 * (2 * 6 + 6 * 6 + 6) + (6 * 3 + 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (3,), "depth": 2}, "widths: given together with depth"),
        ({"widths": (3, 4), "residual": True}, "residual layers keep their width, got [3, 4]; depth=2 width=3"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        MLP(**fields)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_the_net_that_cannot_read_says_which_can() -> None:
    tokens = DataFacts(task="classification", inputs=(((7,), torch.int64),), vocabulary=5, classes=("a", "b"))
    with pytest.raises(RecipeError, match=r"'mlp' reads numbers .* but this data gives sequences of tokens"):
        MLP().check_form(tokens)
