"""Do declared rules halve the labels that a real table needs? Adult census income, few labels, with and without rules.

Run ``python studies/rules-halve-labels/study.py`` from the repository's root, with KINGPOST_DATA set; some minutes on
one core. It writes ``results.json`` and ``README.md`` beside itself.

Every arm sees the same labels; all nets start from the same weights and take as many steps with the same optimizer.
Nothing was tuned: rules, strength, net and steps were fixed before the first run, and the test part is looked at once,
at the end of each run. Cells of the table that ``results.json`` has already are not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kingpost.build.nets.rule import Rule, RuleNet
from kingpost.data.tables import Table
from kingpost.data.tensors import TensorSplit
from kingpost.source import Dataset

HERE = Path(__file__).parent
RULES = (
    "age < 22 -> '<=50K'",
    "education_num < 9 -> '<=50K'",
    "hours_per_week < 20 -> '<=50K'",
    "occupation in (Handlers-cleaners, Other-service, Priv-house-serv, Farming-fishing) -> '<=50K'",
    "marital_status in (Never-married, Divorced, Separated, Widowed) -> p('>50K') <= 0.25",
    "capital_gain > 10000 -> '>50K'",
    "education in (Doctorate, Prof-school) and age >= 30 and hours_per_week >= 40 -> '>50K'",
    "occupation in (Exec-managerial, Prof-specialty) and education_num >= 13 "
    "and marital_status = Married-civ-spouse and hours_per_week >= 40 -> '>50K'",
)
ARMS = {
    "logistic regression": "scikit-learn's, with its defaults, on the labelled rows",
    "no rules": "cross-entropy on the labelled rows",
    "pseudo-labels": "the same, and from half of the steps on, on unlabelled rows that the net is 95 % sure of",
    "rules, labelled rows": "the penalty of the rules on the labelled rows only",
    "rules, all rows": "the penalty of the rules on unlabelled rows, too: rules need no labels",
}
WITHOUT_RULES = ("logistic regression", "no rules", "pseudo-labels")
WITH_RULES = "rules, all rows"
LABELS = (10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120)
STEPS, BATCH, UNLABELLED_BATCH, STRENGTH, SURE = 400, 64, 256, 1.0, 0.95


def adult() -> Dataset:
    """The official parts; scales and categories come from the training rows' features, which all arms may see."""
    return Table(
        train="adult/train.csv.gz",
        test="adult/test.csv.gz",
        target="income",
        validation=0.0,
        drop=("fnlwgt",),
        na_values=("?",),
        skipinitialspace=True,
        strip_target=".",
    ).open()


def rows(dataset: Dataset, part: str) -> tuple[Tensor, Tensor]:
    """Features and classes of a part."""
    split = dataset.splits[part]
    assert isinstance(split, TensorSplit)
    return split.inputs[0], split.targets


def trained(dataset: Dataset, arm: str, labels: int, seed: int) -> RuleNet:
    """The net after all steps; ``labels`` of the training rows count as labelled, none if it is 0."""
    x, y = rows(dataset, "train")
    draw = torch.Generator().manual_seed(seed)
    labelled = torch.randperm(len(x), generator=draw)[:labels]
    torch.manual_seed(seed)
    net = Rule(rules=RULES, base={"name": "mlp", "widths": [64, 32]}).make(dataset.facts, len(dataset.facts.classes))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        losses = []
        if labels:
            own = labelled[torch.randint(labels, (min(labels, BATCH),), generator=draw)]
            scores = net(x[own])
            losses.append(F.cross_entropy(scores, y[own]))
            if arm == "rules, labelled rows":
                losses.append(STRENGTH * net.rules.penalty(x[own], net.probabilities(scores)).mean())
        others = x[torch.randint(len(x), (UNLABELLED_BATCH,), generator=draw)]
        if arm == "rules, all rows":
            losses.append(STRENGTH * net.rules.penalty(others, net.probabilities(net(others))).mean())
        if arm == "pseudo-labels" and step >= STEPS // 2:
            scores = net(others)
            sure, said = scores.softmax(1).detach().max(1)
            losses.append((F.cross_entropy(scores, said, reduction="none") * (sure > SURE)).mean())
        torch.stack(losses).sum().backward()
        optimizer.step()
    return net.eval()


def regression(dataset: Dataset, labels: int, seed: int) -> float:
    """Accuracy on the test part of logistic regression on the same labelled rows."""
    from sklearn.linear_model import LogisticRegression

    x, y = rows(dataset, "train")
    labelled = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:labels]
    x_test, y_test = rows(dataset, "test")
    if len(y[labelled].unique()) == 1:
        return float((y_test == y[labelled[0]]).double().mean())
    model = LogisticRegression(max_iter=1000).fit(x[labelled].numpy(), y[labelled].numpy())
    return float(model.score(x_test.numpy(), y_test.numpy()))


@torch.no_grad()
def accuracy(net: RuleNet, dataset: Dataset) -> float:
    """On the official test part."""
    x, y = rows(dataset, "test")
    return float((net(x).argmax(1) == y).double().mean())


def labels_needed(curve: Mapping[int, float], wanted: float) -> float:
    """Labels at which a curve of means first reaches an accuracy, by interpolation in the logarithm of labels."""
    points = sorted(curve.items())
    if wanted <= points[0][1]:
        return float(points[0][0])
    for (n, low), (m, high) in itertools.pairwise(points):
        if high >= wanted > low:
            return math.exp(math.log(n) + (wanted - low) / (high - low) * (math.log(m) - math.log(n)))
    return math.inf


def one(dataset: Dataset, arm: str, labels: int, seed: int) -> float:
    """Accuracy of one run."""
    if arm == "logistic regression":
        return regression(dataset, labels, seed)
    return accuracy(trained(dataset, arm, labels, seed), dataset)


def measure(seeds: int, before: Mapping[str, Any]) -> dict[str, Any]:
    """All runs that are not in ``before``, and those."""
    torch.set_num_threads(1)
    dataset, started = adult(), time.time()
    x, y = rows(dataset, "train")
    known = before.get("accuracy", {}) if before.get("seeds") == seeds else {}
    found: dict[str, dict[str, list[float]]] = {arm: dict(known.get(arm, {})) for arm in ARMS}
    for labels in LABELS:
        for arm in ARMS:
            if str(labels) in found[arm]:
                continue
            runs = [one(dataset, arm, labels, seed) for seed in range(seeds)]
            found[arm][str(labels)] = runs
            print(f"{labels:>5} labels  {arm:<22} {statistics.mean(runs):.4f}", flush=True)  # noqa: T201
    rules_alone = [accuracy(trained(dataset, WITH_RULES, 0, seed), dataset) for seed in range(seeds)]
    layer = Rule(rules=RULES).make(dataset.facts, 2).rules
    truth = layer.report(x, F.one_hot(y, 2).float())
    fired = [1 - layer(x, F.one_hot(torch.full_like(y, c), 2).float()).double() for c in (0, 1)]
    return {
        "accuracy": found,
        "rules_alone": rules_alone,
        "always_the_commonest_class": float((rows(dataset, "test")[1] == 0).double().mean()),
        "rules": [
            {"rule": rule, "rows": int((a[:, i] + b[:, i] > 0).sum()), "violated_by_true_labels": count}
            for i, (rule, count) in enumerate(zip(truth.rules, truth.violations, strict=True))
            for a, b in [fired]
        ],
        "seeds": seeds,
        "steps": STEPS,
        "minutes": before.get("minutes", 0.0) + (time.time() - started) / 60,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, 1 thread",
        "date": time.strftime("%Y-%m-%d"),
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The page: what was asked, how, what came out, what it does not show."""
    found, seeds = results["accuracy"], results["seeds"]
    mean = {arm: {int(n): statistics.mean(runs) for n, runs in by.items()} for arm, by in found.items()}
    spread = {arm: {int(n): statistics.stdev(runs) for n, runs in by.items()} for arm, by in found.items()}
    ruled = mean[WITH_RULES]
    labels = sorted(ruled)
    best = {n: max(mean[arm][n] for arm in WITHOUT_RULES) for n in labels}
    halved: dict[int, bool | None] = {}
    table = []
    for n in labels:
        cells = " | ".join(f"{mean[arm][n]:.3f} ± {spread[arm][n]:.3f}" for arm in ARMS)
        needed = labels_needed(best, ruled[n])
        at_most = ruled[n] <= best[labels[0]]
        beyond = math.isinf(needed) and 2 * n > labels[-1]  # twice as many labels were not tried
        halved[n] = None if beyond else needed >= 2 * n and not at_most
        shown = f"{'<= ' * at_most}{needed:.0f}" if math.isfinite(needed) else f"> {labels[-1]}"
        table.append(f"| {n} | {cells} | {shown} |")
    held, not_held, open_ = ([n for n in labels if halved[n] is wanted] for wanted in (True, False, None))
    words = []
    if held:
        words.append(f"**With {_listed(held)} labels, rules at least halve the labels needed.**")
    if not_held:
        words.append(f"**With {_listed(not_held)} labels they do not.**")
    if open_:
        words.append(f"With {_listed(open_)} it cannot be said, since no more than {labels[-1]} labels were tried.")
    words.append("'Needed' is by the best of the arms without rules, on the curve of means.")
    alone_mean = statistics.mean(results["rules_alone"])
    words.append(f"Rules without any label are worth {labels_needed(best, alone_mean):.0f} labels.")
    if worse := [n for n in labels if ruled[n] < alone_mean]:
        words.append(
            f"With no label at all the rules reach {alone_mean:.3f}, more than with {_listed(worse)} labels "
            "besides: there the rules do all the work, and the labels harm (the net may learn them by heart)."
        )
    rules = [f"| `{r['rule']}` | {r['rows']:,} | {r['violated_by_true_labels']:,} |" for r in results["rules"]]
    alone = results["rules_alone"]
    return "\n".join(
        [
            "# Do declared rules halve the labels that a table needs?",
            "",
            "Generated by `study.py`; the figures of single runs are in `results.json`.",
            "",
            "Adult census income (is it above 50,000 dollars?), official test part of 16,281 rows. Labels are drawn at "
            "random from the 32,561 training rows; the net is a perceptron of 64 and 32 units.",
            "",
            " ".join(words),
            "",
            f"Accuracy, mean ± standard deviation of {seeds} seeds (labels drawn, starting weights and batches):",
            "",
            f"| labels | {' | '.join(ARMS)} | labels needed without rules for what 'rules, all rows' reaches |",
            f"|{'---:|' * (len(ARMS) + 2)}",
            *table,
            "",
            f"Rules and no label at all: {statistics.mean(alone):.3f} ± {statistics.stdev(alone):.3f}. Always the "
            f"commonest class: {results['always_the_commonest_class']:.3f}.",
            "",
            *(f"- *{arm}*: {what}." for arm, what in ARMS.items()),
            "",
            "## The rules",
            "",
            "Written down before the first run, from general knowledge of who earned much in the United States of "
            "1994, by somebody who knew descriptions of this data set. None was changed afterwards. Counted on the "
            "training rows after the study: rows that a rule speaks of, and how many of their labels violate it.",
            "",
            "| rule | rows | violated |",
            "|---|---:|---:|",
            *rules,
            "",
            "(A rule about a probability is violated by single labels by nature.)",
            "",
            "## What this does not show",
            "",
            "- One table, one net, one author's rules. Other rules on another table may help less, or do harm.",
            "- The penalty's strength is the same for all numbers of labels. Where labels are many, rules that are not "
            "quite true hold the net back; a smaller strength would hold it back less.",
            "- Accuracy flatters: most of it is the commonest class.",
            "- The nets take all their steps, however few the labels, and nothing stops them early. Logistic "
            "regression and the numbers of labels from 1,280 on were added after the first results, which had shown "
            "that the nets are a weak baseline and that the curves ended too soon; nothing else was changed.",
            "",
            f"{results['steps']} steps each, {results['minutes']:.0f} minutes in all; torch {results['torch']}, "
            f"{results['machine']}; {results['date']}.",
            "",
        ]
    )


def _listed(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def main() -> None:
    """Measure, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--page-only", action="store_true", help="write the page again from results.json")
    given = parser.parse_args()
    path = HERE / "results.json"
    if not given.page_only:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps(measure(given.seeds, before), indent=1) + "\n", encoding="utf-8")
    (HERE / "README.md").write_text(markdown(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
