"""Use a trained run: its model, and its predictions on old and new samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from kingpost.assembly import Layout
from kingpost.errors import DataError, RunError, nearest
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.source import DataFacts, Dataset, Split
from kingpost.task import Task
from kingpost.train import checkpoint
from kingpost.train.assemble import assemble
from kingpost.train.ensemble import columns as beside
from kingpost.train.ensemble.columns import Beside, Known, Method
from kingpost.train.ensemble.committee import Committee
from kingpost.train.ensemble.members import Voters, committee_of_one, committee_of_runs, opened
from kingpost.train.evaluate import evaluate, in_own_unit, outputs, wanted_texts, write
from kingpost.train.parallel import DataParallel
from kingpost.train.predictions import Predictions

CALIBRATION = "calibration.json"

Runs = Run | Path | str | Sequence[Run | Path | str]


def load_model(
    run: Run | Path | str,
    which: Literal["best", "last"] = "best",
    device: str = "auto",
    recipe: Recipe | None = None,
) -> nn.Module:
    """The trained network of a run, in eval mode: plain PyTorch from here on.

    Args:
        run: the run, its folder or its name.
        which: weights of the best or the last epoch.
        device: where the network goes.
        recipe: the one that was trained, for a run with objects that its file cannot hold; its module is filled.

    Raises:
        RunError: no weights yet, or the model was an object that no file can hold.
    """
    run = (run if isinstance(run, Run) else Run.open(run)).final
    return restored(run, recipe or run.recipe, which, device)[0]


def ensemble(
    runs: Sequence[Run | Path | str], which: Literal["best", "last"] = "best", device: str = "auto"
) -> Committee:
    """The nets of several runs as one module, in eval mode, whose output is that of their mean prediction.

    ``committee.votes(*inputs)`` gives the raw outputs of each, ``(members, B, ...)``.

    Args:
        runs: trained on the same data, with different seeds or whole recipes.
        which: weights of the best or the last epoch.
        device: where the nets go.

    Raises:
        RunError: no weights yet, or the runs differ in their data.
    """
    first = [opened(run) for run in runs]
    if len(first) < 2:
        raise RunError(f"an ensemble needs at least 2 runs, got {len(first)}")
    model = _of_runs(first, None, which, device)[0]
    assert isinstance(model, Committee)
    return model


def predict(
    run: Runs,
    part: str = "test",
    inputs: Path | str | None = None,
    which: Literal["best", "last"] = "best",
    batch_size: int | None = None,
    device: str = "auto",
    recipe: Recipe | None = None,
    *,
    voters: Voters | None = None,
    samples: int = 20,
    calibrated: bool = False,
    alpha: float | None = None,
    sets: Method | None = None,
) -> Predictions:
    """Predictions on a part of the run's data, or on new samples from a file, prepared as in training.

    Args:
        run: the run, its folder or its name; or several of them, whose predictions are averaged.
        part: ``test``, ``validation`` or ``train``; not used with ``inputs``.
        inputs: a file in the form of the run's data.
        which: weights of the best or the last epoch.
        batch_size: samples at once; null takes four times that of training.
        device: where to compute.
        recipe: the one that was trained, for a run with objects that its file cannot hold.
        voters: let the run's snapshots, draws from its SWAG distribution, or dropout masks vote; for a single run.
        samples: how many nets or masks are drawn, for swag and dropout.
        calibrated: divide the scores by the temperature that :func:`kingpost.calibrate` has found; for a single run.
        alpha: add sets or intervals that miss the truth with at most this probability, by the validation part.
        sets: how: ``aps``, ``raps`` or ``lac`` for classes, ``residual`` or ``cqr`` for values; null takes the first.

    Raises:
        RunError: no such run or weights, or the run has kept nothing of the kind.
        DataError: no such part, or the file does not fit.
    """
    runs = [opened(one).final for one in ([run] if isinstance(run, Run | Path | str) else run)]
    _check(runs, voters, samples, calibrated, alpha, sets)
    first = runs[0]
    recipe = recipe or first.recipe
    plain, dataset, task, where = _of_runs(runs, recipe, which, device)
    if task.pretext:
        raise RunError(
            f"run '{first.name}' learned '{task.name}', which predicts nothing; start another run from its weights "
            "(initialise: {name: weights-file, run: ...}), or see what its features are worth: kingpost probe"
        )
    if voters:
        plain = committee_of_one(first, plain, voters, samples, recipe, dataset, task.name).eval()
    model = Scaled(plain, _temperature(first, which)).eval() if calibrated else plain
    split: Split
    if inputs is not None:
        split = recipe.data.read(Path(inputs), dataset.fitted, dataset.facts)
    elif part in dataset.splits:
        split = dataset.splits[part]
    else:
        raise DataError(f"the data has no part '{part}'; {nearest(part, dataset.splits)}")
    size = batch_size or 4 * recipe.batch_size
    known = split.labelled
    metrics = evaluate(model, split, task, dataset.facts, dataset.fitted, size, where) if known else {}
    if task.writes:
        return _written(model, split, task, dataset, size, where, metrics)
    values, targets = _values(model, split, task, dataset, size, where)
    more = _beside(plain, split, task, dataset, size, where, alpha, sets, recipe.seed)
    if alpha is not None and which == "best":
        why = "the validation part also chose the epoch, so it is not quite new to the net; --weights last avoids that"
        more = more.with_(Beside(notes={key: f"{note}; {why}" for key, note in more.notes.items() if "stated" in note}))
    return Predictions(
        values,
        dataset.facts.classes,
        task.name,
        {**metrics, **more.metrics},
        dataset.facts.heads,
        targets=targets if known and task.one_by_one else None,
        columns=_names(dataset.facts, values),
        notes=more.notes,
        beside=more.columns,
    )


class Scaled(nn.Module):
    """A net whose outputs are divided by a temperature."""

    def __init__(self, net: nn.Module, temperature: float) -> None:
        super().__init__()
        self.net, self.temperature = net, temperature

    def forward(self, *inputs: Tensor) -> Tensor:
        """The net's output over the temperature."""
        y: Tensor = self.net(*inputs) / self.temperature
        return y


def _temperature(run: Run, which: str) -> float:
    path = run.folder / CALIBRATION
    if not path.is_file():
        raise RunError(f"run '{run.name}' has no temperature yet; find it with: kingpost calibrate {run.folder}")
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["weights"] != which:
        raise RunError(f"the temperature of '{run.name}' is that of its {found['weights']} weights, not the {which}")
    return float(found["temperature"])


def _check(
    runs: Sequence[Run],
    voters: Voters | None,
    samples: int,
    calibrated: bool,
    alpha: float | None,
    sets: Method | None,
) -> None:
    """Refuse what has no effect or no meaning together."""
    if not runs:
        raise RunError("got no run; name one or several")
    if samples < 1:
        raise RunError(f"at least 1 net or mask must be drawn, got {samples}")
    if len(runs) > 1 and voters:
        raise RunError(f"several runs vote already; '{voters}' is for a single one")
    if calibrated and (len(runs) > 1 or voters):
        raise RunError("the temperature in a run's folder is that of its one net, not of a committee; leave it out")
    if sets and alpha is None:
        raise RunError(f"'{sets}' has no effect without a stated coverage; add alpha (--conformal 0.1)")
    if alpha is not None and not 0 < alpha < 1:
        raise RunError(f"the probability of a miss must lie between 0 and 1, got {alpha}")


def _beside(
    model: nn.Module,
    split: Split,
    task: Task,
    dataset: Dataset,
    size: int,
    where: torch.device,
    alpha: float | None,
    sets: Method | None,
    seed: int,
) -> Beside:
    """Spread, entropies and sets, as far as there are such; all of them without temperature."""
    if not isinstance(model, Committee) and alpha is None:
        return Beside()

    def known(part: Split) -> Known:
        if not isinstance(model, Committee):
            return Known(*_values(model, part, task, dataset, size, where))
        votes, targets = beside.member_predictions(model, part, task, dataset, size, where)
        return Known(votes.mean(0), targets if part.labelled else None, votes)

    new = known(split)
    if not split.labelled:
        new = Known(new.values, None, new.votes)
    names = dataset.facts.classes or _names(dataset.facts, new.values)
    made = beside.spread_columns(new.votes, task.name, names) if new.votes is not None else Beside()
    if alpha is None:
        return made
    if "validation" not in dataset.splits:
        raise DataError("sets with a stated coverage need a validation part, and the data has none; hold one out")
    held_out = known(dataset.splits["validation"])
    return made.with_(beside.conformal_columns(held_out, new, task.name, names, alpha, sets, seed))


def _values(
    model: nn.Module, split: Split, task: Task, dataset: Dataset, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Predictions and targets in their own unit; of a language model, the nats per token of each sequence."""
    values, truth = [], []
    for raw, batch in outputs(model, split, size, device, Layout()):
        if task.one_by_one:
            shown, targets = in_own_unit(task.predictions(raw), batch.targets, dataset.fitted)
        else:
            targets = batch.targets
            pairs = zip(torch.split(raw, 1), torch.split(targets, 1), strict=True)
            shown = torch.stack([task.criterion(o, t) / max(1, task.items(t)) for o, t in pairs])
        values.append((shown[:, None] if shown.ndim == 1 else shown).cpu())
        truth.append(targets.cpu())
    return torch.cat(values), torch.cat(truth)


def _written(
    model: nn.Module,
    split: Split,
    task: Task,
    dataset: Dataset,
    size: int,
    device: torch.device,
    metrics: Mapping[str, float],
) -> Predictions:
    """What the model writes, beside what it should have written."""
    answers = write(model, split, task, dataset, size, device)
    sources, wanted = wanted_texts(split, dataset)
    columns = (sources, answers, wanted) if split.labelled else (sources, answers)
    scores = task.text_scores(answers, wanted) if split.labelled else {}
    return Predictions(
        torch.zeros(len(answers), 0),
        dataset.facts.classes,
        task.name,
        {**metrics, **{name: score for name, (score, _) in scores.items()}},
        texts=list(zip(*columns, strict=True)),
        notes={name: note for name, (_, note) in scores.items()},
    )


def _names(facts: DataFacts, values: Tensor) -> tuple[str, ...]:
    """Names of the columns of values: those of the target, or numbers; of a forecast, each with the step ahead."""
    width = values.shape[-1]
    if facts.task != "forecasting":
        return facts.targets if len(facts.targets) == width else tuple(map(str, range(width)))
    columns = facts.target_shape[1] if len(facts.target_shape) > 1 else 1
    targets = facts.targets if len(facts.targets) == columns else tuple(map(str, range(columns)))
    return tuple(f"{name}_{step + 1}" for step in range(facts.target_shape[0]) for name in targets)


def _of_runs(
    runs: Sequence[Run], recipe: Recipe | None, which: Literal["best", "last"], device: str
) -> tuple[nn.Module, Dataset, Task, torch.device]:
    """The net of one run, or the committee of several; the data is that of the first."""
    recipe = recipe or runs[0].recipe
    net, dataset, task, where = restored(runs[0], recipe, which, device)
    if len(runs) == 1:
        return net, dataset, task, where
    others = [(run, run.recipe) for run in runs[1:]]
    same = [dataset if own.data == recipe.data else None for _, own in others]  # opened once
    nets = [restored(run, own, which, device, open_)[0] for (run, own), open_ in zip(others, same, strict=True)]
    return committee_of_runs(runs, [net, *nets], task.name).eval(), dataset, task, where


def restored(
    run: Run, recipe: Recipe, which: Literal["best", "last"], device: str, dataset: Dataset | None = None
) -> tuple[nn.Module, Dataset, Task, torch.device]:
    """A run's net in eval mode, its data, its task, and where the net is."""
    where = DataParallel(device=device).torch_device(0)
    path = run.weights(which)
    dataset = dataset or recipe.data.open()
    if dataset.fingerprint != run.data.get("fingerprint_sha256", dataset.fingerprint):
        raise RunError(f"the data of run '{run.name}' has changed since it was trained")
    assembly = assemble(recipe, dataset, where, told=None)
    checkpoint.load_weights(path, assembly.model)
    return assembly.model.eval(), dataset, assembly.setting.task, where
