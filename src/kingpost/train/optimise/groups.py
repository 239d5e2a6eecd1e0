"""Parameter groups: what decays and what does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels, which decay, and vectors (biases, norms), which do not.

    Decay pulls weights towards zero; for a bias or the gain of a norm, zero is no simpler than another value.

    >>> [len(group["params"]) for group in decay_groups(nn.Linear(2, 2), 0.1)]
    [1, 1]
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def can_fuse(model: nn.Module) -> bool:
    """Whether torch has one fused kernel for all of the model's parameters (floating point, on a real device)."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps", "xpu") for p in model.parameters())


def base_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of each group as the optimizer was made; the schedule multiplies these."""
    return [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]
