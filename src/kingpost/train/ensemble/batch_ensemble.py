"""BatchEnsemble: members that share their weights but for two vectors a layer.

Legend of shapes: ``M`` members, ``B`` samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn

from kingpost import seeds
from kingpost.assembly import Assembly, Batch, Loss, Objective, Slot
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique
from kingpost.train.ensemble.committee import Combine, Committee, combine_for


class Fast(nn.Module):
    """The vectors ``r`` (M x inputs), ``s`` (M x outputs) and a bias (M x outputs) of one layer, held flat.

    They are flat so that weight decay, which is for matrices, leaves them alone.
    """

    def __init__(self, members: int, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.members = members
        self.r, self.s = (
            nn.Parameter(2.0 * torch.randint(2, (members * width,), generator=generator) - 1)
            for width in (inputs, outputs)
        )
        self.bias = nn.Parameter(torch.zeros(members * outputs))

    def rows(self, vector: Tensor, x: Tensor, channel_axis: int) -> Tensor:
        """The vector of each row's member, in a shape that multiplies ``x`` on its channels.

        Rows belong to the members in equal shares, one member after another.
        """
        rows = x.shape[0]
        member = torch.arange(rows, device=x.device) * self.members // rows
        chosen = vector.view(self.members, -1)[member]
        shape = [rows] + [1] * (x.ndim - 1)
        shape[channel_axis] = chosen.shape[1]
        return chosen.view(shape)


class EnsembleLinear(nn.Linear):
    """``((x * r) W^T) * s + b``, with the vectors of each row's member; ``(rows, ..., inputs)``."""

    fast: Fast

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = nn.functional.linear(x * self.fast.rows(self.fast.r, x, -1), self.weight)
        y = y * self.fast.rows(self.fast.s, y, -1) + self.fast.rows(self.fast.bias, y, -1)
        return y + self.bias if self._parameters["bias"] is not None else y


class EnsembleConv2d(nn.Conv2d):
    """The same for a convolution: ``r`` is on its input channels, ``s`` on its output channels."""

    fast: Fast

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self._conv_forward(x * self.fast.rows(self.fast.r, x, 1), self.weight, None)
        y = y * self.fast.rows(self.fast.s, y, 1) + self.fast.rows(self.fast.bias, y, 1)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


def replace_layers(net: nn.Module, members: int, seed: int) -> nn.Module:
    """The net with each linear and 2-d convolution layer made an ensemble; names and weights stay."""
    for name, layer in list(net.named_modules()):
        if type(layer) not in (nn.Linear, nn.Conv2d):
            continue
        layer = cast("nn.Linear | nn.Conv2d", layer)
        new: EnsembleLinear | EnsembleConv2d
        if isinstance(layer, nn.Linear):
            inputs, outputs, new = layer.in_features, layer.out_features, EnsembleLinear.__new__(EnsembleLinear)
        else:
            inputs, outputs, new = layer.in_channels, layer.out_channels, EnsembleConv2d.__new__(EnsembleConv2d)
        new.__dict__ = layer.__dict__.copy()  # the same parameters, so that ties hold, but a list of parts of its own
        new._modules = {}
        new.fast = Fast(members, inputs, outputs, seeds.generator(seed, "batch-ensemble", name)).to(layer.weight)
        if not name:
            return new
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, new)
    return net


class BatchEnsembleNet(Committee):
    """Runs all members at once on copies of the batch; in training, on rows that are copies already."""

    def __init__(self, net: nn.Module, members: int, combine: Combine) -> None:
        super().__init__(combine)
        self.net, self.members = net, members

    def votes(self, *inputs: Tensor) -> Tensor:
        """One vote a member."""
        raw: Tensor = self.net(*tiled(inputs, self.members))
        return raw.view(self.members, -1, *raw.shape[1:])

    def forward(self, *inputs: Tensor) -> Tensor:
        """In training the rows' own outputs, of the members that :class:`Fast` says; else the combined output."""
        if self.training:
            raw: Tensor = self.net(*inputs)
            return raw
        return super().forward(*inputs)


def tiled(inputs: tuple[Tensor, ...], members: int) -> Iterator[Tensor]:
    """Each input repeated along its first axis, one whole copy after another."""
    return (x.repeat(members, *[1] * (x.ndim - 1)) for x in inputs)


def over_members(objective: Objective, members: int) -> Objective:
    """An objective that shows each sample to each member, and takes the mean of their losses."""

    def all_members(model: nn.Module, batch: Batch) -> Loss:
        if not model.training:
            return objective(model, batch)
        targets = next(tiled((batch.targets,), members))
        loss = objective(model, batch.with_(inputs=tuple(tiled(batch.inputs, members)), targets=targets))
        loss.data, loss.items = loss.data / members, loss.items // members
        loss.outputs = loss.outputs.view(members, -1, *loss.outputs.shape[1:]).mean(0)
        return loss

    return all_members


@checked
class BatchEnsemble(Technique):
    """Make ``members`` nets of one: member m has the weights ``W * (s_m r_m^T)``, with a bias and vectors of its own.

    The vectors start as random signs. Each sample is shown to every member, and the loss is the mean of theirs; a
    judged or used net gives the mean of the members' predictions.
    Helps to get the accuracy and the calibration of a small ensemble for hardly more memory than one net.
    Fails to cost less time: each step works through ``members`` copies of the batch. Members are more alike than
    nets trained apart; small nets gain least, since all members share their capacity.
    Source: Wen, Tran and Ba, "BatchEnsemble", arXiv 2002.06715.
    """

    members: Annotated[int, Ge(2)] = 4
    """How many."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model", "objective"})
    after: ClassVar[tuple[str, ...]] = (
        "label-smoothing", "l2", "l1", "elastic-net", "group-lasso", "orthogonal-penalty", "margin-loss", "dropout",
        "mixup",
    )  # fmt: skip
    conflicts: ClassVar[dict[str, str]] = {
        "mu-parametrisation": "it changes the layers of which this one makes others",
        "drop-connect": "both replace the layers' weights",
    }
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label", "forecasting")
    example: ClassVar[dict[str, Any]] = {"members": 2}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model is an ensemble."""
        net = replace_layers(assembly.model, self.members, assembly.setting.seed)
        if not any(isinstance(module, Fast) for module in net.modules()):
            raise RecipeError("the model has no linear or 2-d convolution layer", path="name", mend="use another net")
        combine = combine_for(assembly.setting.task.name)
        model = BatchEnsembleNet(net, self.members, combine)
        return assembly.with_(model=model, objective=over_members(assembly.objective, self.members))
