"""Five small nets against one: accuracy, likelihood, calibration, and conformal sets. Writes results/uncertainty.*.

    python benchmarks/uncertainty.py            # trains what is missing under runs/uncertainty, then judges
    python benchmarks/uncertainty.py --smoke    # a few steps, nothing is written

All is judged on the test part; temperatures and conformal bounds are found on the validation part of the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

import kingpost
from kingpost.recipe import Recipe
from kingpost.run import Run
from kingpost.train.calibrate import fit_temperature, raw_outputs, scores_of
from kingpost.train.ensemble.committee import DropoutSamples, Nets, Weights, mean_of_classes
from kingpost.train.ensemble.members import committee_of_one
from kingpost.train.predict import predict, restored
from kingpost.verbs import resume, train

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "uncertainty.json"
SEEDS = range(5)
KEYS = ("accuracy", "nll_nats", "brier", "calibration_error", "calibration_error_equal_mass")


def data() -> dict[str, Any]:
    """Fashion-MNIST, or scikit-learn's digits where that is not at hand."""
    folder = Path(os.environ.get("KINGPOST_DATA", ".")) / "fashion_mnist"
    return {"name": "idx", "folder": "fashion_mnist"} if folder.is_dir() else {"name": "digits"}


def recipe(seed: int, epochs: int, *techniques: Any) -> Recipe:
    """One small net, trained until it is a little too sure."""
    return Recipe.from_value(
        {
            "name": f"seed-{seed}",
            "data": data(),
            "model": {"name": "mlp", "widths": [128]},
            "optimizer": {"name": "adamw", "lr": 0.002},
            "schedule": "cosine",
            "techniques": list(techniques),
            "batch_size": 128,
            "budget": {"epochs": epochs},
            "seed": seed,
            "layout": {"name": "data-parallel", "threads": 1, "device": "cpu"},
            "save": {"report": False},
        }
    )


def trained(root: Path, made: Recipe) -> Run:
    """The run, finished; one that was stopped goes on."""
    folder = root / made.name
    if not (folder / "run.json").is_file():
        return train(made, root=root, quiet=True)
    run = Run(folder)
    return run if run.status == "finished" else resume(folder, quiet=True)


def judged(net: torch.nn.Module, splits: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Scores on the test part, without and with a temperature from the validation part."""
    where = torch.device("cpu")
    raw = {part: raw_outputs(net, splits[part], 1000, where) for part in ("validation", "test")}
    temperature = fit_temperature(*raw["validation"])
    scores, targets = raw["test"]
    return {
        "plain": scores_of(scores, targets),
        "scaled": {**scores_of(scores / temperature, targets), "temperature": temperature},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) if args.smoke else Path("runs") / "uncertainty"
        measure(root, 1 if args.smoke else args.epochs, write=not args.smoke)


def measure(root: Path, epochs: int, write: bool) -> None:
    runs = [trained(root / "plain", recipe(seed, epochs)) for seed in SEEDS]
    dropout = trained(root / "dropout", recipe(0, epochs, {"name": "dropout", "p": 0.2}))
    snapshots = trained(root / "snapshots", recipe(0, epochs, {"name": "snapshots", "cycles": max(2, epochs)}))
    swag = trained(root / "swag", recipe(0, epochs, "swag"))
    batch = trained(root / "batch", recipe(0, epochs, {"name": "batch-ensemble", "members": 4}))
    opened = [restored(run, run.recipe, "best", "cpu") for run in runs]
    dataset, nets = opened[0][1], [net for net, *_ in opened]
    splits = dict(dataset.splits)
    rows: dict[str, Any] = {"one net": [judged(net, splits) for net in nets]}
    rows["five nets"] = [judged(Nets(nets, mean_of_classes).eval(), splits)]
    for name, run, voters in (("20 dropout masks", dropout, "dropout"), ("snapshots", snapshots, "snapshots"),
                              ("20 SWAG draws", swag, "swag")):  # fmt: skip
        net, _, task, _ = restored(run, run.recipe, "best", "cpu", dataset)
        committee = committee_of_one(run, net, voters, 20, run.recipe, dataset, task.name)  # type: ignore[arg-type]
        assert isinstance(committee, DropoutSamples | Weights)
        rows[name] = [judged(committee.eval(), splits)]
    rows["batch-ensemble of 4"] = [judged(restored(batch, batch.recipe, "best", "cpu", dataset)[0], splits)]
    sets = {}
    for who, given in (("one net", runs[0]), ("five nets", runs)):
        for method in ("lac", "aps", "raps"):
            made = predict(given, alpha=0.1, sets=method, which="last", device="cpu")  # type: ignore[arg-type]
            sets[f"{who}, {method}"] = {
                **{key: made.metrics[key] for key in ("coverage", "set_size")},
                "note": made.notes["coverage"],
            }
    result = {
        "data": "Fashion-MNIST" if data()["name"] == "idx" else "digits",
        "samples": {part: len(split) for part, split in dataset.splits.items()},
        "epochs": epochs,
        "rows": rows,
        "conformal": sets,
        "machine": {"processor": platform.machine(), "threads": 1, "torch": torch.__version__},
        "kingpost": kingpost.__version__,
    }
    page = written(result)
    print(page)
    if write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(page, encoding="utf-8")


def written(result: dict[str, Any]) -> str:
    """Two tables in Markdown."""
    lines = [
        "<!-- Generated by benchmarks/uncertainty.py -->\n",
        f"{result['data']}, an MLP of 128 units, {result['epochs']} epochs, {result['samples']['test']:,} test "
        "samples. One net: mean and standard deviation over 5 seeds; the others: one committee each.\n",
        "| who | scaled | accuracy | nll (nats) | Brier | ECE, 15 bins of equal width | of equal mass |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for who, found in result["rows"].items():
        for scaled in ("plain", "scaled"):
            cells = []
            for key in KEYS:
                values = [one[scaled][key] for one in found]
                spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.4f}{spread}")
            heat = statistics.mean(one["scaled"]["temperature"] for one in found)
            lines.append(f"| {who} | {'no' if scaled == 'plain' else f'T = {heat:.3f}'} | " + " | ".join(cells) + " |")
    lines += ["\nConformal sets at a stated coverage of 0.9, last weights:\n"]
    lines += ["| who, method | coverage | mean set size | how it was counted |", "| --- | --- | --- | --- |"]
    for who, one in result["conformal"].items():
        lines.append(f"| {who} | {one['coverage']:.4f} | {one['set_size']:.3f} | {one['note']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
