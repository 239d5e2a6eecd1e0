"""Mixture of experts: many feed-forward networks, of which each token uses a few.

Legend of shapes: ``N`` tokens, ``D`` width, ``E`` experts, ``K`` experts a token, ``R`` rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call

from kingpost.assembly import Batch, Loss, Objective

LARGEST_BLOCK = 128  # rows: enough for a matrix product to be worth the copy of the expert's weights
EXPORTED_ROWS = 16  # the number of tokens may be open there, so that rows cannot follow it


class Experts(nn.Module):
    """``y = sum_k g_k expert_k(x)`` over the ``top`` experts that a linear router likes best.

    Input and output ``(..., D)``. With router probabilities ``p = softmax(W x)``, the gates ``g`` are the ``top``
    largest, divided by their sum if there are several; of a single one ``p`` itself, or the router would get no
    gradient. No token is dropped, so a token's result does not depend on the others, and the cost is that of ``top``
    experts a token. Where shapes must not depend on values (compiled, exported, planned), tokens are laid into blocks
    of ``R`` rows, each of one expert, and there are as many blocks as the worst routing needs: from ``4 E`` gates on,
    at most a quarter more work, and a copy of the weights for each block.

    In training, the last forward pass leaves two numbers for the objective, which takes them away: :func:`balanced`.
    Sources: Shazeer et al., arXiv 1701.06538 (gates over the best few); Fedus et al., "Switch Transformers",
    arXiv 2101.03961 (one expert, balance); Gale et al., "MegaBlocks", arXiv 2211.15841 (blocks instead of dropping).

    Args:
        width: ``D``.
        experts: ``E``.
        top: ``K``.
        make: gives a new expert, from ``(R, D)`` to ``(R, D)``; all have the same form.

    >>> layer = Experts(8, experts=4, top=2, make=lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)))
    >>> layer(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, width: int, experts: int, top: int, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        if not 1 <= top <= experts:
            raise ValueError(f"top: got {top} of {experts} experts, expected 1 to {experts}")
        self.top = top
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(make() for _ in range(experts))
        self.balance: Tensor | None = None
        self.router_size: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., D)``."""
        x_nd = x.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):  # in 8 bits, two experts would often be equally good
            logits_ne = self.router(x_nd.to(self.router.weight.dtype))
        logits_ne = logits_ne.to(torch.promote_types(logits_ne.dtype, torch.float32))
        p_ne = logits_ne.softmax(-1)
        gates_nk, chosen_nk = p_ne.topk(self.top, -1)
        if self.training and not torch.compiler.is_exporting():
            self.balance = balance_loss(p_ne, chosen_nk)
            self.router_size = logits_ne.logsumexp(-1).square().mean()
        if self.top > 1:
            gates_nk = gates_nk / gates_nk.sum(-1, keepdim=True)
        fixed = torch.compiler.is_compiling() or x.is_meta or isinstance(x, FakeTensor)
        y_nkd = self._in_blocks(x_nd, chosen_nk) if fixed else self._in_turn(x_nd, chosen_nk)
        y_nd: Tensor = (gates_nk.to(y_nkd.dtype).unsqueeze(-1) * y_nkd).sum(1)
        return y_nd.view(x.shape)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without the numbers for the objective, whose graph cannot be copied."""
        return {**self.__dict__, "balance": None, "router_size": None}

    def _in_turn(self, x_nd: Tensor, chosen_nk: Tensor) -> Tensor:
        """Each token through each of its experts, ``(N, K, D)``; one expert after another."""
        (n, d), k = x_nd.shape, self.top
        order = chosen_nk.flatten().argsort(stable=True)
        counts = torch.bincount(chosen_nk.flatten(), minlength=len(self.experts)).tolist()
        parts = torch.split(x_nd[order // k], counts)
        y = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        return y.new_empty(y.shape).index_copy(0, order, y).view(n, k, d)

    def _in_blocks(self, x_nd: Tensor, chosen_nk: Tensor) -> Tensor:
        """The same in shapes that do not depend on values: all blocks at once, each with its expert's weights."""
        (n, d), k, e = x_nd.shape, self.top, len(self.experts)
        rows = EXPORTED_ROWS if torch.compiler.is_exporting() else max(1, min(LARGEST_BLOCK, n * k // (4 * e)))
        blocks = n * k // rows + e  # an expert leaves at most one block unfilled
        place, owner = places(chosen_nk.flatten(), e, rows, blocks)
        repeated = x_nd.unsqueeze(1).expand(n, k, d).reshape(n * k, d)
        filled = repeated.new_zeros(blocks * rows, d).index_copy(0, place, repeated).view(blocks, rows, d)
        weights = {
            name: torch.stack([expert.get_parameter(name) for expert in self.experts])[owner]
            for name, _ in self.experts[0].named_parameters()
        }
        one: Callable[..., Any] = lambda own, block: functional_call(self.experts[0], own, (block,))  # noqa: E731
        y: Tensor = torch.vmap(one, randomness="different")(weights, filled)
        return y.reshape(blocks * rows, d)[place].view(n, k, d)


def places(chosen: Tensor, experts: int, rows: int, blocks: int) -> tuple[Tensor, Tensor]:
    """Where each assignment stands if those of one expert fill consecutive blocks of ``rows``.

    Args:
        chosen: the expert of each assignment, ``(M,)``.
        experts: number of experts.
        rows: of a block.
        blocks: how many there are.

    Returns:
        The row of each assignment, ``(M,)``, and the expert of each block, ``(blocks,)``.

    >>> places(torch.tensor([1, 0, 1, 1]), experts=2, rows=2, blocks=3)
    (tensor([2, 0, 3, 4]), tensor([0, 1, 1]))
    """
    which = torch.arange(experts, device=chosen.device)
    hits_me = (chosen.unsqueeze(1) == which).long()
    ends_e = ((hits_me.sum(0) + rows - 1) // rows).cumsum(0)  # in blocks
    starts_e = ends_e - (hits_me.sum(0) + rows - 1) // rows
    before = (hits_me.cumsum(0) - 1).gather(1, chosen.unsqueeze(1)).squeeze(1)  # assignments of the same expert
    owner = torch.searchsorted(ends_e, torch.arange(blocks, device=chosen.device), right=True).clamp_max(experts - 1)
    return starts_e[chosen] * rows + before, owner


def balance_loss(p_ne: Tensor, chosen_nk: Tensor) -> Tensor:
    """``E sum_e f_e P_e``: ``f_e`` the fraction of assignments to expert e, ``P_e`` its mean probability; scalar.

    1 where the router is indifferent, up to ``E`` where it knows one expert only. The gradient flows through ``P``.
    Source: Fedus et al., arXiv 2101.03961, equations 4 to 6, there for one expert a token.

    >>> balance_loss(torch.full((8, 4), 1 / 4), torch.arange(8).view(8, 1) % 4)
    tensor(1.)
    """
    experts = p_ne.shape[1]
    hits_ne = (chosen_nk.unsqueeze(-1) == torch.arange(experts, device=p_ne.device)).to(p_ne.dtype).mean(1)
    return experts * (hits_ne.mean(0) * p_ne.mean(0)).sum()


def balanced(objective: Objective, balance: float, router_size: float = 0.0) -> Objective:
    """An objective that adds, as means over all layers of experts, ``balance`` and ``router_size`` times their losses.

    Args:
        objective: runs the model, which holds :class:`Experts` somewhere.
        balance: factor of :func:`balance_loss`; 0.01 in Switch Transformers.
        router_size: factor of the mean of ``logsumexp(logits)^2``, which keeps the router's logits small; 0.001 in
            Zoph et al., "ST-MoE", arXiv 2202.08906, equation 5.
    """

    def balance_too(model: nn.Module, batch: Batch) -> Loss:
        loss = objective(model, batch)
        layers = [module for module in model.modules() if isinstance(module, Experts)]
        kept = [(layer.balance, layer.router_size) for layer in layers]
        for layer in layers:
            layer.balance = layer.router_size = None  # a loss with its graph belongs to one batch
        for first, second in kept:
            if first is not None and second is not None:  # None in eval mode
                loss.penalty = loss.penalty + (balance * first + router_size * second) / len(layers)
        return loss

    return balance_too
