"""Committees from runs: from several of them, or from what one run has kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kingpost.errors import RunError
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.source import Dataset, Order, Split
from kingpost.train import checkpoint
from kingpost.train.ensemble.committee import Committee, DropoutSamples, Nets, Weights, combine_for
from kingpost.train.ensemble.swag import Moments

Voters = Literal["snapshots", "swag", "dropout"]

NORM_BATCHES = 100  # training batches that set the running statistics of a drawn net


def committee_of_runs(runs: Sequence[Run], nets: Sequence[nn.Module], task: str) -> Committee:
    """The nets of several runs as one.

    Raises:
        RunError: they were not trained on the same data.
    """
    first = runs[0]
    for run in runs[1:]:
        for key in ("fingerprint_sha256", "classes", "targets", "fitted", "target_shape"):
            if run.data.get(key) != first.data.get(key):
                raise RunError(
                    f"runs '{first.name}' and '{run.name}' differ in their data ({key.replace('_', ' ')}), so their "
                    "predictions cannot be averaged; train them on the same data, split and scaled alike"
                )
    return Nets(nets, combine_for(task))


def committee_of_one(
    run: Run, net: nn.Module, voters: Voters, samples: int, recipe: Recipe, dataset: Dataset, task: str
) -> Committee:
    """The committee that one run has kept or can draw.

    Args:
        run: the run.
        net: its net, with the weights that are to be used where none are drawn.
        voters: where the members come from.
        samples: how many are drawn; not used with snapshots.
        recipe: of the run.
        dataset: of the run.
        task: its name.

    Raises:
        RunError: the run has kept nothing of the kind.
    """
    combine = combine_for(task)
    device = next(net.parameters()).device
    if voters == "dropout":
        return DropoutSamples(net, samples, combine, recipe.seed)
    state = kept_by(run, voters)
    if voters == "snapshots":
        if not state["weights"]:
            raise RunError(f"run '{run.name}' has kept no snapshot yet; let it run to the end of a cycle")
        return Weights(net, [_on(device, weights) for weights in state["weights"]], combine)
    moments = Moments(rank=1)
    moments.load_state_dict(state)
    try:
        drawn = moments.samples(samples, recipe.seed)
    except ValueError as error:
        raise RunError(f"run '{run.name}': {error}; train it longer") from error
    weights = [_on(device, one) for one in drawn]
    if any(isinstance(module, _BatchNorm) and module.track_running_stats for module in net.modules()):
        weights = [with_own_statistics(net, one, dataset.splits["train"], recipe.batch_size) for one in weights]
    return Weights(net, weights, combine)


def kept_by(run: Run, technique: str) -> dict[str, Any]:
    """What a technique has kept in the newest checkpoint of a run.

    Raises:
        RunError: there is none.
    """
    state = checkpoint.load_newest(run.folder / "checkpoints", torch.device("cpu"), lambda path, why: None) or {}
    found: dict[str, Any] | None = state.get("techniques", {}).get(technique)
    if found is None:
        raise RunError(f"run '{run.name}' has kept nothing for '{technique}'; train a run with techniques+={technique}")
    return found


@torch.no_grad()
def with_own_statistics(net: nn.Module, weights: dict[str, Tensor], split: Split, batch_size: int) -> dict[str, Tensor]:
    """The weights together with the batch norms' statistics under them, averaged over training batches.

    Averaged weights never saw the activations that they make, so the old statistics do not fit them.
    """
    device = next(net.parameters()).device
    norms = {n: m for n, m in net.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    net.load_state_dict({**before, **weights})
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    try:
        for index, batch in enumerate(split.batches(Order(batch_size=batch_size, shuffle=True))):
            if index == NORM_BATCHES:
                break
            net(*batch.to(device).inputs)
        buffers = {
            f"{name}.{key}": value.clone() for name, norm in norms.items() for key, value in norm.named_buffers()
        }
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            norm.eval()
        net.load_state_dict(before)
    return {**weights, **buffers}


def _on(device: torch.device, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in weights.items()}


def opened(run: Run | Path | str) -> Run:
    """A run, however it was named."""
    return run if isinstance(run, Run) else Run.open(run)
