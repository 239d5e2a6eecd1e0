"""Parameter groups: what decays and what does not, at which rate, and which kernels do the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kingpost.figure import Figure


def decay_groups(model: nn.Module, weight_decay: float, embeddings: bool = True) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels, which decay, and vectors (biases, norms), which do not.

    Decay pulls weights towards zero; for a bias or the gain of a norm, zero is no simpler than another value.

    Args:
        model: whose parameters; frozen ones are left out.
        weight_decay: of the first group.
        embeddings: whether embeddings (and heads that are tied to them) are in the first group.

    >>> [len(group["params"]) for group in decay_groups(nn.Linear(2, 2), 0.1)]
    [1, 1]
    """
    held = set() if embeddings else {id(p) for p in embedding_weights(model)}
    trained = [p for p in model.parameters() if p.requires_grad]
    decays = [p.ndim >= 2 and id(p) not in held for p in trained]
    groups = [
        {"params": [p for p, d in zip(trained, decays, strict=True) if d], "weight_decay": weight_decay},
        {"params": [p for p, d in zip(trained, decays, strict=True) if not d], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def embedding_weights(model: nn.Module) -> list[Tensor]:
    """The tables of all embeddings.

    >>> [tuple(w.shape) for w in embedding_weights(nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 3)))]
    [(5, 2)]
    """
    return [m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]


def can_fuse(model: nn.Module) -> bool:
    """Whether torch has one fused kernel for all of the model's parameters (floating point, on a real device)."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps", "xpu") for p in model.parameters())


def kernels(model: nn.Module, fused: bool = True) -> dict[str, bool]:
    """The fastest kernels that torch has for an optimizer on the model's device, as arguments of the optimizer.

    Args:
        model: whose parameters are moved.
        fused: whether torch has this optimizer as one fused kernel; if not, each operation is done for all tensors
            at once (foreach).

    >>> kernels(nn.Linear(2, 2)), kernels(nn.Linear(2, 2), fused=False)
    ({'fused': True}, {'foreach': True})
    """
    return {"fused": True} if fused and can_fuse(model) else {"foreach": True}


def base_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of each group as the optimizer was made; the schedule multiplies these."""
    return [float(group.setdefault("initial_lr", group["lr"])) for group in optimizer.param_groups]


def split_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, factors: Callable[[str], tuple[float, float]]
) -> torch.optim.Optimizer:
    """The optimizer with its groups split, in place, by factors on the learning rate and the weight decay.

    Args:
        optimizer: made, but without a step so far.
        model: whose parameters it moves; others in it keep their numbers.
        factors: from a parameter's name, the factor on its learning rate and that on its weight decay.

    >>> model = nn.Linear(2, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> split = split_groups(optimizer, model, lambda name: (0.5 if name == "bias" else 1.0, 1.0))
    >>> [group["lr"] for group in split.param_groups]
    [0.1, 0.05]
    """
    names = {id(p): name for name, p in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        parts: dict[tuple[float, float], list[Tensor]] = {}
        for p in group["params"]:
            parts.setdefault(factors(names[id(p)]) if id(p) in names else (1.0, 1.0), []).append(p)
        for (rate, decay), params in parts.items():
            changed = {"lr": group["lr"] * rate, "params": params}
            if "weight_decay" in group:
                changed["weight_decay"] = group["weight_decay"] * decay
            groups.append({**group, **changed})
    optimizer.param_groups = groups
    return optimizer


def optimizer_figures(optimizer: torch.optim.Optimizer) -> Iterator[Figure]:
    """What an optimizer does with which tensors: update rules, weight decay, rates and kernels."""
    groups = optimizer.param_groups
    rules: dict[str, int] = {}
    rates: dict[float, int] = {}
    for group in groups:
        rule = group.get("rule", type(optimizer).__name__.removesuffix("Rule"))
        rules[rule] = rules.get(rule, 0) + len(group["params"])
        rates[group["lr"]] = rates.get(group["lr"], 0) + len(group["params"])
    yield Figure("update rule", _listed(rules), "", " · ".join(f"{rule}: {n} tensors" for rule, n in rules.items()))
    kernel = next((key for key in ("fused", "foreach") if groups[0].get(key)), "")
    if kernel:
        where = str(groups[0]["params"][0].device.type)
        yield Figure("optimizer kernels", kernel, "", f"the fastest that torch has for it on {where}")
    decays = {float(group.get("weight_decay", 0.0)) for group in groups} - {0.0}
    count = sum(len(g["params"]) for g in groups if g.get("weight_decay", 0.0))
    left = sum(len(g["params"]) for g in groups) - count
    value = _listed(dict.fromkeys(f"{decay:.3g}" for decay in sorted(decays)))
    yield Figure("weight decay", value if decays else "none", "", f"{count} tensors decay, {left} do not")
    if len(rates) > 1:
        lowest, highest = min(rates), max(rates)
        reason = " · ".join(f"{rate:.3g}: {n} tensors" for rate, n in sorted(rates.items())[:8])
        yield Figure("learning rates", f"{lowest:.3g} to {highest:.3g}", "", reason)


def _listed(words: dict[str, Any]) -> str:
    return ", ".join(words)
