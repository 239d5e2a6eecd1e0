"""Muon: the momentum of each hidden matrix, with all its singular values made one."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from kingpost.errors import RecipeError, nearest
from kingpost.option import checked
from kingpost.train.optimise.groups import embedding_weights
from kingpost.train.optimise.rule import Group, OptimizerOption, Rule, adamw, decay

QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at 0: singular values end between about 0.7 and 1.2, soon
Scale = Literal["original", "match-adamw"]


def orthogonalised(matrix: Tensor, steps: int = 5, half: bool = False) -> Tensor:
    """About ``U V^T`` of a matrix ``U S V^T``, by Newton-Schulz steps ``X = a X + (b X X^T + c (X X^T)^2) X``.

    Args:
        matrix: ``(O, I)``.
        steps: of the iteration.
        half: compute in bfloat16, which suffices and is quick on accelerators.

    >>> orthogonalised(torch.diag(torch.tensor([3.0, 1.0]))).diag().gt(0.6).all()
    tensor(True)
    """
    a, b, c = QUINTIC
    x = matrix.bfloat16() if half else matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


def rate_factor(rows: int, columns: int, scale: Scale) -> float:
    """Factor on the rate of a matrix: ``sqrt(max(1, rows / columns))`` or, to step like AdamW, ``0.2 sqrt(longest)``.

    >>> rate_factor(4, 1, "original"), rate_factor(25, 100, "match-adamw")
    (2.0, 2.0)
    """
    return math.sqrt(max(1.0, rows / columns)) if scale == "original" else 0.2 * math.sqrt(max(rows, columns))


class MuonRule(Rule):
    """The optimizer alone, for any loop. Groups whose ``rule`` is "AdamW" take AdamW's step; others must be matrices.

    >>> w = nn.Parameter(torch.eye(2))
    >>> optimizer = MuonRule([w], lr=0.1)
    >>> w.square().sum().backward(); _ = optimizer.step(); bool((w.diag() < 0.95).all())
    True
    """

    def __init__(
        self,
        params: object,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        scale: Scale = "original",
        steps: int = 5,
        half: bool = False,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-10,
    ) -> None:
        of_muon = {"momentum": momentum, "nesterov": nesterov, "scale": scale, "steps": steps, "half": half}
        rest = {"lr": lr, "weight_decay": weight_decay, "rule": "Muon", "betas": betas, "eps": eps}
        super().__init__(params, {**of_muon, **rest})  # type: ignore[arg-type]
        for group in self.param_groups:
            if group["rule"] == "Muon" and (low := [tuple(p.shape) for p in group["params"] if p.ndim < 2]):
                raise ValueError(f"Muon moves matrices and kernels, got {low[0]}; put it into a group of rule 'AdamW'")

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        if group["rule"] == "AdamW":
            adamw(self, group, params, grads)
            return
        (means,) = self.kept(params, "momentum")
        torch._foreach_lerp_(means, grads, 1 - group["momentum"])
        steps = torch._foreach_lerp(grads, means, group["momentum"]) if group["nesterov"] else means
        decay(params, group)
        for p, step in zip(params, steps, strict=True):
            flat = step.flatten(1)
            way = orthogonalised(flat, group["steps"], group["half"]).view_as(p)
            p.add_(way, alpha=-group["lr"] * rate_factor(flat.shape[0], flat.shape[1], group["scale"]))


def hidden_matrices(model: nn.Module, others: tuple[str, ...] = ()) -> list[str]:
    """Names of the matrices and kernels between embeddings and head, in the order of the net.

    The head is the last matrix or kernel in the order of registration; if a linear layer shares its weight with an
    embedding, that is the head.

    Args:
        model: the net.
        others: patterns of further names that are left out.

    >>> hidden_matrices(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)))
    ['1.weight']
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for pattern in others:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = nearest(pattern, names)
            raise RecipeError(f"no parameter is called '{pattern}'", path="optimizer.adamw", mend=hint)
    tables = {id(w) for w in embedding_weights(model)}
    tied = any(isinstance(m, nn.Linear) and id(m.weight) in tables for m in model.modules())
    found = [name for name, p in model.named_parameters() if p.requires_grad and p.ndim >= 2 and id(p) not in tables]
    found = found if tied else found[:-1]
    return [name for name in found if not any(fnmatchcase(name, pattern) for pattern in others)]


@checked
class Muon(OptimizerOption):
    """Hidden matrices and kernels step by ``lr * factor * U V^T`` of their momentum ``U S V^T``; the rest by AdamW.

    The rest: embeddings, the head (the last matrix of the net), vectors, and what ``adamw`` names. Kernels count as
    matrices ``(outputs, inputs x area)``. The factor is ``sqrt(max(1, rows / columns))``, or with ``match-adamw``
    ``0.2 sqrt(max(rows, columns))``, at which AdamW's rate and decay suit. Helps to need fewer steps than AdamW in
    transformers and convolutional nets, at half its state. Fails where matrices are thin or hold several in one
    (stacked gates), and costs five products of the size of each matrix a step.
    Source: Jordan et al., "Muon", 2024 (kellerjordan.github.io/posts/muon); Liu et al., arXiv 2502.16982.
    """

    lr: Annotated[float, Gt(0)] = 0.02
    """Learning rate of hidden matrices; with ``match-adamw``, use that of AdamW."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Pull towards zero per step, times lr; on matrices and kernels only."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Memory of the momentum."""
    nesterov: bool = True
    """Take the gradient's effect as if the momentum step were already made."""
    scale: Scale = "original"
    """How the rate of a matrix hangs on its shape."""
    steps: Annotated[int, Ge(1)] = 5
    """Newton-Schulz steps."""
    half: bool = False
    """Compute these in bfloat16: quicker on an accelerator."""
    adamw_lr: Annotated[float, Gt(0)] = 1e-3
    """Learning rate of all other parameters."""
    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """AdamW's memory of the mean gradient."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    """AdamW's memory of the mean squared gradient."""
    adamw: tuple[str, ...] = ()
    """Patterns of the names of further matrices that AdamW moves: ``stem.*``."""

    example: ClassVar[dict[str, Any]] = {"adamw_lr": 0.01}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        named = dict(model.named_parameters())
        hidden = {id(named[name]) for name in hidden_matrices(model, self.adamw)}
        groups = []
        for group in self.groups(model):
            ours = [p for p in group["params"] if id(p) in hidden]
            rest = [p for p in group["params"] if id(p) not in hidden]
            groups.append({**group, "params": ours})
            groups.append({**group, "params": rest, "rule": "AdamW", "lr": self.adamw_lr})
        return MuonRule(
            [group for group in groups if group["params"]],
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            scale=self.scale,
            steps=self.steps,
            half=self.half,
            betas=(self.beta1, self.beta2),
        )
