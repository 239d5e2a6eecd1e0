"""Counting floating-point operations; also those of fused kernels that torch's counter leaves out.

These are recurrent layers everywhere, and attention on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = Sequence[int]


def flop_counter() -> FlopCounterMode:
    """A context that counts matrix products and convolutions, forward and backward.

    A product of ``(m, k)`` and ``(k, n)`` counts ``2 m k n``. Elementwise work is left out, as is usual.

    >>> with flop_counter() as counter:
    ...     out = torch.nn.LSTM(8, 16)(torch.zeros(5, 4, 8))
    >>> counter.get_total_flops() == 2 * 5 * 4 * (8 + 16) * 4 * 16
    True
    """
    aten = torch.ops.aten
    mapping: dict[Any, Any] = {
        aten.mkldnn_rnn_layer: _onednn,
        aten.mkldnn_rnn_layer_backward: lambda *shapes, **rest: 2 * _onednn(*shapes),
        aten._cudnn_rnn: _cudnn,
        aten._cudnn_rnn_backward: lambda *shapes, **rest: 2 * _cudnn(*shapes),
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **more: _attention(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *rest, **more: _attention_backward(grad, q, k, v)
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _attention(q: Shape, k: Shape, v: Shape) -> int:
    return int(sdpa_flop_count(q, k, v))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Shape, q: Shape, k: Shape, v: Shape) -> int:
    return int(sdpa_backward_flop_count(grad, q, k, v))  # type: ignore[no-untyped-call]


def _onednn(x: Shape, to_gates: Shape, state_to_gates: Shape, *rest: Any, **more: Any) -> int:
    """One layer and direction: ``x`` is ``(T, B, I)``, the weights ``(4H, I)`` and ``(4H, H)``."""
    return 2 * x[0] * x[1] * (to_gates[0] * to_gates[1] + state_to_gates[0] * state_to_gates[1])


def _cudnn(x: Shape, weights: Sequence[Shape], *rest: Any, **more: Any) -> int:
    """All layers at once: each matrix is used once a step and sample."""
    return 2 * x[0] * x[1] * sum(shape[0] * shape[1] for shape in weights if len(shape) == 2)
