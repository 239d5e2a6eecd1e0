"""K-FAC: a natural gradient, from the curvature of each layer as the product of two small matrices.

Legend of shapes: ``R`` rows (samples, or samples x places), ``I`` inputs (bias included), ``O`` outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from kingpost.assembly import Assembly, Batch, Gradient, Loss, Objective, Slot, Step
from kingpost.option import checked
from kingpost.task import Task
from kingpost.train.optimise.curvature import (
    CONFLICTS,
    bare,
    check_drawable,
    drawn_targets,
    giving,
    starts_step,
    summed,
    twice_differentiable,
)
from kingpost.train.optimise.groups import embedding_weights
from kingpost.train.optimise.rule import Group, OptimizerOption, Rule, adamw, decay

Layers = dict[str, nn.Linear | nn.Conv2d]


def factored_layers(model: nn.Module) -> Layers:
    """Layers whose curvature is such a product: trained ``Linear`` and ungrouped ``Conv2d`` without shared weights.

    >>> list(factored_layers(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Conv2d(4, 4, 3, groups=4))))
    ['0']
    """
    tables = {id(w) for w in embedding_weights(model)}
    owners: dict[int, int] = {}
    for module in model.modules():
        for p in module._parameters.values():
            owners[id(p)] = owners.get(id(p), 0) + 1
    found: Layers = {}
    for name, module in model.named_modules():
        if type(module) is nn.Conv2d:
            fits = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        else:
            fits = type(module) is nn.Linear
        if not fits:
            continue
        assert isinstance(module, nn.Linear | nn.Conv2d)
        whole = module.weight.requires_grad and (module.bias is None or module.bias.requires_grad)
        if whole and id(module.weight) not in tables and owners[id(module.weight)] == 1:
            found[name] = module
    return found


@dataclass
class Sums:
    """Of one layer: ``sum a a^T`` ``(I, I)``, ``sum g g^T`` ``(O, O)``, over how many rows, and of how many items."""

    inputs: Tensor
    outputs: Tensor
    rows: Tensor
    items: float


def factor_sums(layers: Layers, loss: Callable[[], Tensor], items: float) -> dict[Tensor, Sums]:
    """The sums of each layer that ``loss`` calls, by the layer's weight.

    Args:
        layers: as :func:`factored_layers` finds them.
        loss: runs the model and returns its loss, summed over samples, so that each sample's slope is its own.
        items: what the mean loss divides that sum by.

    >>> layer = nn.Linear(1, 1)
    >>> sums = factor_sums({"": layer}, lambda: layer(torch.tensor([[1.0], [3.0]])).square().sum(), items=2)
    >>> sums[layer.weight].inputs  # the bias sees ones
    tensor([[10.,  4.],
            [ 4.,  2.]])
    """
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        calls.append((module, args[0].detach(), output))
        return output.clone()  # what follows may work in place

    hooks = [layer.register_forward_hook(note) for layer in layers.values()]
    try:
        total = loss()
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        return {}
    slopes = torch.autograd.grad(total, [y for _, _, y in calls], allow_unused=True, materialize_grads=True)
    found: dict[Tensor, Sums] = {}
    for (module, x, _), slope in zip(calls, slopes, strict=True):
        assert isinstance(module, nn.Linear | nn.Conv2d)
        a, g = _rows(module, x, slope)
        new = Sums(a.T @ a, g.T @ g, a.new_full((), len(a)), items)
        found[module.weight] = _plus(found[module.weight], new) if module.weight in found else new
    return found


def _plus(a: Sums, b: Sums) -> Sums:
    return Sums(a.inputs + b.inputs, a.outputs + b.outputs, a.rows + b.rows, a.items)


def _rows(module: nn.Linear | nn.Conv2d, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs ``(R, I)`` and slopes ``(R, O)``; each place of a convolution is a row."""
    dtype = module.weight.dtype
    if isinstance(module, nn.Conv2d):
        x = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride).transpose(1, 2)  # type: ignore[arg-type]
        slope = slope.flatten(2).transpose(1, 2)
    a, g = x.flatten(0, -2).to(dtype), slope.flatten(0, -2).to(dtype)
    return (a if module.bias is None else torch.cat([a, a.new_ones(len(a), 1)], 1)), g


def damped_inverses(a: Tensor, g: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """``(A + pi sqrt(d) 1)^-1`` and ``(G + sqrt(d) / pi 1)^-1``, ``pi^2`` the ratio of their mean eigenvalues."""
    tiny = torch.finfo(a.dtype).tiny
    pi = ((a.diagonal().mean() + tiny) / (g.diagonal().mean() + tiny)).sqrt()
    root = damping**0.5
    return _inverse(a, pi * root), _inverse(g, root / pi)


def _inverse(matrix: Tensor, shift: Tensor) -> Tensor:
    wide = torch.promote_types(matrix.dtype, torch.float32)
    eye = torch.eye(len(matrix), dtype=wide, device=matrix.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix.to(wide) + shift * eye)).to(matrix.dtype).contiguous()


class KFACRule(Rule):
    """The optimizer alone: before a step, set ``curvature`` to :func:`factor_sums` of the batch, now and then.

    Before the first statistics it is plain SGD. Parameters of other layers take AdamW's step.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = KFACRule(model, lr=1.0, momentum=0.0, damping=1e-6)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 9.0], [3.0, 1.0]]), torch.tensor([[1.0], [2.0], [4.0]])
    >>> noise = torch.tensor([[1.0], [-1.0], [1.0]]) / 2**0.5  # targets drawn from the model: its outputs and noise
    >>> drawn = lambda: (model(x) - (model(x).detach() + noise)).square().sum()
    >>> optimizer.curvature = factor_sums(optimizer.layers, drawn, items=3)
    >>> (model(x) - y).square().mean().backward(); _ = optimizer.step()
    >>> bool((model(x) - y).square().mean() < 1e-3)  # of a linear layer, one step is enough
    True
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        momentum: float = 0.9,
        damping: float = 1e-3,
        memory: float = 0.95,
        longest: float | None = None,
        groups: Sequence[Mapping[str, Any]] | None = None,
        other_lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.layers = factored_layers(model)
        self.curvature: Mapping[Tensor, Sums] = {}
        self.damping, self.memory, self.longest = damping, memory, longest
        ours = {id(p) for layer in self.layers.values() for p in layer.parameters(recurse=False)}
        given = groups or [{"params": [p for p in model.parameters() if p.requires_grad]}]
        parts = []
        for group in given:
            for rule, wanted in (("K-FAC", True), ("AdamW", False)):
                params = [p for p in group["params"] if (id(p) in ours) == wanted]
                rate = {} if wanted else {"lr": other_lr}
                parts.append({**group, "params": params, "rule": rule, **rate})
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([part for part in parts if part["params"]], defaults)
        for layer in self.layers.values():
            self._begin(layer)

    def _begin(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Factors and inverses of one before there are statistics; kept under the layer's weight."""
        weight: Tensor = layer.weight
        rows, columns = len(weight), weight[0].numel() + (layer.bias is not None)
        for key, n in (("inputs", columns), ("outputs", rows)):
            self.state[weight][f"{key}_factor"] = weight.new_zeros(n, n)
            self.state[weight][f"{key}_inverse"] = torch.eye(n, dtype=weight.dtype, device=weight.device)
        self.state[weight]["seen"] = 0

    def before(self) -> None:
        """Count the statistics, and make every layer's direction."""
        for weight, sums in self.curvature.items():
            state = self.state[weight]
            state["seen"] += 1
            new = 1 - min(1 - 1 / state["seen"], self.memory)
            # Together they are (rows / items) times the product of two means over rows.
            state["inputs_factor"].lerp_(sums.inputs / sums.rows, new)
            state["outputs_factor"].lerp_(sums.outputs / sums.items, new)
            state["inputs_inverse"], state["outputs_inverse"] = damped_inverses(
                state["inputs_factor"], state["outputs_factor"], self.damping
            )
        self.curvature = {}
        self._directions = self._all_directions()

    def _all_directions(self) -> dict[Tensor, Tensor]:
        """``G^-1 dW A^-1`` of each layer, bias included, all scaled down if the step would be too long."""
        found: dict[Tensor, Tensor] = {}
        lengths = []
        rates = {p: group["lr"] for group in self.param_groups for p in group["params"]}
        for layer in self.layers.values():
            weight: Tensor = layer.weight
            bias: Tensor | None = layer.bias
            if weight.grad is None:
                continue
            slope = weight.grad.flatten(1)
            if bias is not None:
                assert bias.grad is not None
                slope = torch.cat([slope, bias.grad[:, None]], 1)
            state = self.state[weight]
            way = state["outputs_inverse"] @ slope @ state["inputs_inverse"]
            lengths.append(rates[weight] ** 2 * (way * slope).sum())
            found[weight] = (way if bias is None else way[:, :-1]).reshape(weight.shape)
            if bias is not None:
                found[bias] = way[:, -1]
        if self.longest is not None and lengths:
            total = torch.stack(lengths).sum()
            factor = (self.longest / total.clamp(min=torch.finfo(total.dtype).tiny)).sqrt().clamp(max=1)
            found = {p: factor * way for p, way in found.items()}
        return found

    def move(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of these parameters."""
        if group["rule"] == "AdamW":
            adamw(self, group, params, grads)
            return
        (moments,) = self.kept(params, "momentum")
        decay(params, group)
        torch._foreach_mul_(moments, group["momentum"])
        torch._foreach_add_(moments, [self._directions[p] for p in params])
        torch._foreach_add_(params, moments, alpha=-group["lr"])


class Statistics:
    """The sums of all layers, over the pieces of a batch and all processes."""

    def __init__(self, task: Task, drawn: bool, pieces: Callable[[], int]) -> None:
        self.task, self.drawn, self.pieces = task, drawn, pieces
        self.sums: dict[Tensor, Sums] = {}

    def add(self, model: nn.Module, objective: Objective, batch: Batch, step: Step) -> None:
        """Count a piece of the batch."""
        layers = factored_layers(model)
        with twice_differentiable(model):
            for piece in batch.split(self.pieces()):
                found = factor_sums(layers, partial(self._loss, model, objective, piece, step), step.items)
                for weight, new in found.items():
                    self.sums[weight] = _plus(self.sums[weight], new) if weight in self.sums else new

    def _loss(self, model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Tensor:
        loss = objective(model, batch)
        if not self.drawn:
            return loss.data
        draw = step.generator("drawn targets", batch.targets.device)
        return self.task.criterion(loss.outputs, drawn_targets(self.task, loss.outputs, batch, draw))

    def take(self) -> dict[Tensor, Sums]:
        """The sums of the whole batch; empty if none were made in this step."""
        sums, self.sums = self.sums, {}
        summed([x for s in sums.values() for x in (s.inputs, s.outputs, s.rows)])
        return sums


@checked
class KFAC(OptimizerOption):
    """Each layer's gradient is multiplied by the inverses of two matrices: ``dW = G^-1 grad A^-1``, then momentum.

    A is the mean of ``a a^T`` over inputs, G of ``g g^T`` over slopes at the outputs, for targets drawn from the model
    (``sampled``, the Fisher matrix) or the data's own (``empirical``); both are damped. For Linear and Conv2d layers;
    the other parameters take AdamW's step at ``other_lr``. Helps to need far fewer steps on ill-conditioned problems.
    Fails when ``damping`` is too small, or the batch against the width of the layers; costs a pass each ``every`` steps
    and the cube of each layer's width. Source: Martens and Grosse, arXiv 1503.05671 and 1602.01407.
    """

    lr: Annotated[float, Gt(0)] = 0.02
    """Learning rate; 1 is a Newton step without damping."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Pull towards zero per step, times lr; on matrices and kernels only."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Part of the last step that is kept."""
    damping: Annotated[float, Gt(0)] = 0.01
    """Added to the curvature, in its units."""
    memory: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Memory of A and G, per estimate."""
    every: Annotated[int, Ge(1)] = 10
    """Steps between two estimates, and two computations of the inverses."""
    longest: Annotated[float, Gt(0)] | None = 1e-3
    """Bound on the squared length of a step in the curvature, ``lr^2 * grad . dW``; null: none."""
    fisher: Literal["sampled", "empirical"] = "sampled"
    """Which targets the statistics are taken with."""
    other_lr: Annotated[float, Gt(0)] = 1e-3
    """AdamW's learning rate for the parameters of all other layers."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"optimizer", "gradient", "update"})
    conflicts: ClassVar[dict[str, str]] = CONFLICTS
    example: ClassVar[dict[str, Any]] = {"every": 2, "damping": 0.1}

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model."""
        return KFACRule(
            model,
            lr=self.lr,
            momentum=self.momentum,
            damping=self.damping,
            memory=self.memory,
            longest=self.longest,
            groups=self.groups(model),
            other_lr=self.other_lr,
        )

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this optimizer, and with its statistics."""
        drawn, backward = self.fisher == "sampled", assembly.state["backward"]
        if drawn:
            check_drawable(assembly.setting.task, "fisher", "use fisher=empirical")
        statistics = Statistics(assembly.setting.task, drawn, lambda: int(backward.state_dict()["pieces"]))
        gradient, every = assembly.gradient, self.every

        def take(model: nn.Module, objective: Objective, batch: Batch, step: Step) -> Loss:
            if starts_step(model):
                statistics.sums = {}
            loss = gradient(model, objective, batch, step)
            if step.index % every == 0:
                statistics.add(bare(model), objective, batch, step)
            return loss

        taken: Gradient = take
        mounted = super().mount(assembly)
        return mounted.with_(gradient=taken, update=giving(mounted.update, statistics.take))
