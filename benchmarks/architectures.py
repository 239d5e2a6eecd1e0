"""Train every recipe that comes with kingpost, and a plain scikit-learn baseline for each of its data sets.

``python benchmarks/architectures.py`` goes on where it stopped; figures land in results/architectures.json, from which
``docs/generate.py`` makes the table in docs/results.md. Needs the data sets (KINGPOST_DATA).

    python benchmarks/architectures.py --seeds 3 --at-once 2
    python benchmarks/architectures.py --only resnet-cifar adult --again
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kingpost.files import write_json
from kingpost.recipe import Recipe
from kingpost.source import Dataset, Order

HERE = Path(__file__).resolve().parent
RECIPES = HERE.parent / "recipes"
RESULTS = HERE / "results" / "architectures.json"
BASELINE_SAMPLES = 5_000  # of the training part; more than that takes scikit-learn minutes and changes little


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of recipes")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, help="recipes trained at the same time, one thread each")
    parser.add_argument("--again", action="store_true", help="forget earlier figures of the recipes named by --only")
    args = parser.parse_args()
    names = args.only or sorted(path.stem for path in RECIPES.glob("*.yaml"))
    results = load()
    if args.again:
        results["runs"] = [run for run in results["runs"] if run["recipe"] not in names]
        results["baselines"] = {k: v for k, v in results["baselines"].items() if k not in names}
    for name in names:
        if name not in results["baselines"]:
            results["baselines"][name] = baseline(name)
            save(results)
            print(f"{name}: baseline {results['baselines'][name]}", flush=True)
    done = {(run["recipe"], run["seed"]) for run in results["runs"]}
    waiting = [(name, seed) for seed in range(args.seeds) for name in names if (name, seed) not in done]
    with concurrent.futures.ThreadPoolExecutor(args.at_once) as pool:
        for run in pool.map(lambda pair: train(*pair), waiting):
            results["runs"].append(run)
            save(results)
            print(f"{run['recipe']} seed {run['seed']}: {run['test']} in {run['seconds']:.0f} s", flush=True)


def load() -> dict[str, Any]:
    """The figures so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": [], "baselines": {}}


def save(results: dict[str, Any]) -> None:
    """Write the figures, in an order that does not depend on who was first."""
    results["runs"].sort(key=lambda run: (run["recipe"], run["seed"]))
    write_json(RESULTS, results)


def train(name: str, seed: int) -> dict[str, Any]:
    """One run on one thread, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kingpost", "train", str(RECIPES / f"{name}.yaml"), f"seed={seed}"]
        command += ["layout.threads=1", "save.report=false", "--runs", folder, "--json", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            sys.exit(f"{name}: {done.stdout}{done.stderr}")
        run = json.loads(done.stdout)
        weights = run["folder"] + "/environment.json"
        environment = json.loads(Path(weights).read_text())
    return {
        "recipe": name,
        "seed": seed,
        "test": run["test"] or {},
        "best": run["best"],
        "epochs": run["epoch"],
        "steps": run["step"],
        "seconds": run["seconds"],
        "parameters": environment.get("parameters") or parameters(name),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread used, no GPU",
        "date": datetime.date.today().isoformat(),
    }


def parameters(name: str) -> int:
    """Trained numbers of the recipe's model."""
    from kingpost.train.planning import plan

    return int(plan(Recipe.load(RECIPES / f"{name}.yaml"))["parameters"])


# ---- baselines


def baseline(name: str) -> dict[str, Any]:
    """What a plain method reaches on the same split: method, metric, value, seconds; empty if there is none."""
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    dataset = recipe.data.open()
    key = recipe.task.name if recipe.task else dataset.facts.task
    method = METHODS.get((key, dataset.facts.form))
    if method is None or ("test" not in dataset.splits and "validation" not in dataset.splits):
        return {}
    started = time.monotonic()
    found = method(dataset)
    return {**found, "seconds": time.monotonic() - started} if found else {}


def arrays(dataset: Dataset, part: str, most: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """All samples of a part."""
    split = dataset.splits[part]
    batches = list(split.batches(Order(batch_size=1024, shuffle=most is not None)))
    inputs = [torch.cat([batch.inputs[i] for batch in batches]).numpy()[:most] for i in range(len(batches[0].inputs))]
    return inputs, torch.cat([batch.targets for batch in batches]).numpy()[:most]


def judged(dataset: Dataset) -> str:
    """The part that runs are judged on at the end."""
    return "test" if "test" in dataset.splits else "validation"


def logistic_regression(dataset: Dataset) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    (x, *_), y = arrays(dataset, "train", BASELINE_SAMPLES)
    (x_test, *_), y_test = arrays(dataset, judged(dataset))
    model = LogisticRegression(max_iter=300, C=0.05).fit(x.reshape(len(x), -1), y)
    score = model.score(x_test.reshape(len(x_test), -1), y_test)
    said = f"logistic regression on {len(x):,} samples"
    return {"method": said, "metric": "accuracy", "value": float(score)}


def boosted_trees(dataset: Dataset) -> dict[str, Any]:
    from sklearn.ensemble import HistGradientBoostingClassifier

    inputs, y = arrays(dataset, "train")
    tests, y_test = arrays(dataset, judged(dataset))
    model = HistGradientBoostingClassifier(random_state=0).fit(np.concatenate(inputs, 1), y)
    score = model.score(np.concatenate(tests, 1), y_test)
    return {"method": "histogram gradient boosting", "metric": "accuracy", "value": float(score)}


def boosted_regression(dataset: Dataset) -> dict[str, Any]:
    from sklearn.ensemble import HistGradientBoostingRegressor

    inputs, y = arrays(dataset, "train")
    tests, y_test = arrays(dataset, judged(dataset))
    model = HistGradientBoostingRegressor(random_state=0).fit(np.concatenate(inputs, 1), y.ravel())
    score = model.score(np.concatenate(tests, 1), y_test.ravel())
    return {"method": "histogram gradient boosting", "metric": "r2", "value": float(score)}


def bag_of_tokens(dataset: Dataset) -> dict[str, Any]:
    """TF-IDF of the same tokens and their pairs, then logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    padding = dataset.facts.padding

    def words(x: np.ndarray) -> list[str]:
        return [" ".join(str(token) for token in row if token != padding) for row in x]

    (x,), y = arrays(dataset, "train")
    (x_test,), y_test = arrays(dataset, judged(dataset))
    tfidf = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True)
    model = make_pipeline(tfidf, LogisticRegression(max_iter=1000, C=10)).fit(words(x), y)
    score = model.score(words(x_test), y_test)
    return {"method": "TF-IDF of token pairs + logistic regression", "metric": "accuracy", "value": float(score)}


def neighbour_average(dataset: Dataset) -> dict[str, Any]:
    """Two rounds of averaging over neighbours (symmetric normalisation), then logistic regression."""
    from sklearn.linear_model import LogisticRegression

    graph = dataset.facts.graph
    assert graph is not None
    x, (a, b) = graph.x.numpy().astype(np.float64), graph.edges.numpy()
    n = len(x)
    matrix = np.eye(n)
    matrix[b, a] = 1
    root = matrix.sum(1) ** -0.5
    matrix = root[:, None] * matrix * root[None, :]
    smooth = matrix @ (matrix @ x)
    (nodes, *_), y = arrays(dataset, "train")
    (test, *_), y_test = arrays(dataset, judged(dataset))
    model = LogisticRegression(max_iter=1000, C=10).fit(smooth[nodes], y)
    score = model.score(smooth[test], y_test)
    return {"method": "two rounds of neighbour averaging + logistic regression", "metric": "accuracy",
            "value": float(score)}  # fmt: skip


def markov_chain(dataset: Dataset) -> dict[str, Any]:
    """The next token from the last four, backing off to shorter contexts (Witten-Bell)."""
    (x,), y = arrays(dataset, "train")
    (x_test,), y_test = arrays(dataset, judged(dataset))
    order, vocabulary = 4, dataset.facts.vocabulary
    stream = np.concatenate([x[0][:1], *y])
    counts: list[dict[tuple[int, ...], dict[int, int]]] = [{} for _ in range(order + 1)]
    tokens = stream.tolist()
    for i in range(len(tokens)):
        for k in range(min(order, i) + 1):
            seen = counts[k].setdefault(tuple(tokens[i - k : i]), {})
            seen[tokens[i]] = seen.get(tokens[i], 0) + 1

    def probability(context: tuple[int, ...], token: int) -> float:
        p = 1 / vocabulary
        for k in range(len(context) + 1):
            seen = counts[k].get(context[len(context) - k :])
            if seen:
                total = sum(seen.values())
                p = (seen.get(token, 0) + len(seen) * p) / (total + len(seen))
        return p

    nats, items = 0.0, 0
    for row, wanted in zip(x_test[:200].tolist(), y_test[:200].tolist(), strict=True):
        for t, token in enumerate(wanted):
            nats -= np.log(probability(tuple(row[max(0, t + 1 - order) : t + 1]), token))
            items += 1
    said = f"Markov chain of order {order} with backing off"
    return {"method": said, "metric": "loss", "value": nats / items}


def naive_forecast(dataset: Dataset) -> dict[str, Any]:
    """Ridge regression from the window to the horizon, in standardised units."""
    from sklearn.linear_model import Ridge

    (x, *_), y = arrays(dataset, "train")
    (x_test, *_), y_test = arrays(dataset, judged(dataset))
    flat = y.reshape(len(y), -1)
    model = Ridge(alpha=100.0).fit(x.reshape(len(x), -1), flat)
    error = ((model.predict(x_test.reshape(len(x_test), -1)) - y_test.reshape(len(y_test), -1)) ** 2).mean()
    return {"method": "ridge regression on the window", "metric": "mse", "value": float(error)}


METHODS: dict[tuple[str, str], Callable[[Dataset], dict[str, Any]]] = {
    ("classification", "image"): logistic_regression,
    ("classification", "clip"): logistic_regression,
    ("classification", "series"): logistic_regression,
    ("classification", "features"): boosted_trees,
    ("classification", "table"): boosted_trees,
    ("regression", "features"): boosted_regression,
    ("regression", "table"): boosted_regression,
    ("classification", "tokens"): bag_of_tokens,
    ("classification", "nodes"): neighbour_average,
    ("language-modelling", "tokens"): markov_chain,
    ("forecasting", "series"): naive_forecast,
}

if __name__ == "__main__":
    main()
