"""Recurrent cells written out by their equations, one step at a time.

They are to be read, and to test the fast layers of :mod:`kingpost.build.blocks.recurrent`: parameters have the
names, shapes and order of ``torch.nn.RNNCell``, ``GRUCell`` and ``LSTMCell``, so that weights can be exchanged.

Legend of shapes: ``B`` sequences, ``I`` input features, ``H`` units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Cell(nn.Module):
    """What all cells have: weights for the input and for the last state, a bias with each; uniform at the start.

    Args:
        inputs: features of the input, ``I``.
        width: units, ``H``.
        gates: how many times ``H`` rows the weights have.
    """

    def __init__(self, inputs: int, width: int, gates: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(gates * width, inputs))
        self.weight_hh = nn.Parameter(torch.empty(gates * width, width))
        self.bias_ih = nn.Parameter(torch.empty(gates * width))
        self.bias_hh = nn.Parameter(torch.empty(gates * width))
        for p in self.parameters():
            nn.init.uniform_(p, -(width**-0.5), width**-0.5)

    def sums(self, x_bi: Tensor, h_bh: Tensor) -> tuple[Tensor, Tensor]:
        """``W x + b`` and ``U h + c`` of all gates, each ``(B, gates H)``."""
        return x_bi @ self.weight_ih.T + self.bias_ih, h_bh @ self.weight_hh.T + self.bias_hh


class RNNCell(Cell):
    """``h' = tanh(W x + b + U h + c)``.

    Fails on long sequences: the gradient is multiplied by ``U`` once a step, and vanishes or explodes.
    Source: Elman, "Finding structure in time", 1990.

    >>> RNNCell(3, 5)(torch.zeros(2, 3), torch.zeros(2, 5)).shape
    torch.Size([2, 5])
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, gates=1)

    def forward(self, x_bi: Tensor, h_bh: Tensor) -> Tensor:
        """The next state, ``(B, H)``."""
        from_input, from_state = self.sums(x_bi, h_bh)
        return torch.tanh(from_input + from_state)


class GRUCell(Cell):
    """``h' = (1 - z) n + z h``, with gates r (reset) and z (keep), and a candidate n.

    ``r = sigmoid(W_r x + b_r + U_r h + c_r)``, z alike, and ``n = tanh(W_n x + b_n + r (U_n h + c_n))``: the reset
    acts after the matrix, as in cuDNN, not before it as in the paper.
    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", arXiv 1406.1078.

    >>> GRUCell(3, 5)(torch.zeros(2, 3), torch.zeros(2, 5)).shape
    torch.Size([2, 5])
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, gates=3)

    def forward(self, x_bi: Tensor, h_bh: Tensor) -> Tensor:
        """The next state, ``(B, H)``."""
        from_input, from_state = self.sums(x_bi, h_bh)
        (input_r, input_z, input_n), (state_r, state_z, state_n) = from_input.chunk(3, 1), from_state.chunk(3, 1)
        r, z = torch.sigmoid(input_r + state_r), torch.sigmoid(input_z + state_z)
        n = torch.tanh(input_n + r * state_n)
        return (1 - z) * n + z * h_bh


class LSTMCell(Cell):
    """``c' = f c + i g``, ``h' = o tanh(c')``, with gates i (write), f (keep), o (show), and a candidate g.

    ``i = sigmoid(W_i x + b_i + U_i h + c_i)``, f and o alike, and ``g = tanh(W_g x + b_g + U_g h + c_g)``.
    Source: Hochreiter and Schmidhuber, "Long short-term memory", 1997; the gate f from Gers et al., 2000.

    >>> h, c = LSTMCell(3, 5)(torch.zeros(2, 3), (torch.zeros(2, 5), torch.zeros(2, 5)))
    >>> h.shape, c.shape
    (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width, gates=4)

    def forward(self, x_bi: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The next ``(h, c)``, each ``(B, H)``."""
        h_bh, c_bh = state
        from_input, from_state = self.sums(x_bi, h_bh)
        i, f, g, o = (from_input + from_state).chunk(4, 1)
        c_bh = torch.sigmoid(f) * c_bh + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c_bh), c_bh
