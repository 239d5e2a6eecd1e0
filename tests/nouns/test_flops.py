"""FLOPs of fused recurrent kernels against the count of the same recurrence written out in plain products."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kingpost.flops import flop_counter


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_layers(kind: type[nn.Module], gates: int, layers: int) -> None:
    t, b, i, h = 5, 4, 8, 16
    model = kind(i, h, num_layers=layers)  # type: ignore[call-arg]
    with flop_counter() as forward:
        out, _ = model(torch.zeros(t, b, i))
    widths = [i, *[h] * (layers - 1)]
    expected = sum(2 * t * b * gates * h * (width + h) for width in widths)
    assert forward.get_total_flops() == expected
    with flop_counter() as backward:
        out.sum().backward()
    # Twice the forward; the input of the first layer asks for no gradient, but the fused kernel computes it anyway,
    # and a first state of zeros saves the unfused kernels one product.
    assert 1.5 * expected < backward.get_total_flops() <= 2 * expected


def test_on_tensors_without_memory() -> None:
    with FakeTensorMode(), flop_counter() as counter:
        nn.LSTM(8, 16)(torch.zeros(5, 4, 8))
    assert counter.get_total_flops() == 2 * 5 * 4 * 64 * 24


def test_attention_on_the_cpu() -> None:
    """Scores and their use are two products of B x H x S x S x D each; a causal mask is not subtracted."""
    b, h, s, d = 2, 3, 10, 8
    q = torch.randn(b, h, s, d, requires_grad=True)
    with flop_counter() as forward:
        out = nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert forward.get_total_flops() == 2 * (2 * b * h * s * s * d)
    with flop_counter() as backward:
        out.sum().backward()
    # Five products: the scores once more, and two gradients for each of the two products.
    assert backward.get_total_flops() == 5 * (2 * b * h * s * s * d)
