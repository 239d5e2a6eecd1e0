"""The exam of the gate of evidence: error, power, cost, coverage, failures, and peers on the same pools.

    python benchmarks/prove_exam.py           # all of it, some minutes on one core; writes results and plots
    python benchmarks/prove_exam.py --quick   # a tenth of the trials, nothing is written
    python benchmarks/prove_exam.py --only A/A      # this part anew, the others as they are

Effects are planted in *spreads*: standard deviations of the paired differences. Simulated runs have spread 1 each, and
differences the spread sqrt(2 (1 - correlation)).

Pools of real runs are read from benchmarks/results/prove-pools.json, where it exists:

    {pool: {metric: [[value per seed], ...]}}     null: a run that failed

Each inner list is one arm; all arms of a pool are the same recipe. With one list, two runs are drawn from it for each
pair. With several, a pair is a seed of two lists, so what pairing by seed gains is kept. Either way, which of the two
runs is called the arm is drawn for each pair, which makes "no difference" exactly true, whatever the pool. A pool of
fewer than 100 seeds is left out: a trial of 30 pairs would meet the same pair again and again, and be of coarse steps.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kingpost.prove import alternatives
from kingpost.prove.alternatives import Outcome
from kingpost.prove.failures import sign_tail
from kingpost.prove.sequential import DOUBT, FUTILE, LEAST_SPREAD, Test

Array = NDArray[Any]
HERE = Path(__file__).resolve().parent
RESULTS, POOLS = HERE / "results" / "prove-exam.json", HERE / "results" / "prove-pools.json"
STATIC = HERE.parent / "docs" / "_static"
FEWEST_SEEDS = 100
PLANTED = (0.25, 0.5, 1.0, 2.0)
HELPS, HURTS, SAME, NOTHING = 1, -1, 2, 0


# ---- the gate, on many trials at once; tests/prove/test_sequential.py holds it against Test.look


@dataclass(frozen=True)
class Verdicts:
    """For each trial: what was said, after how many pairs, and the interval at that look."""

    decision: Array
    pairs: Array
    lower: Array
    upper: Array

    def outcome(self) -> Outcome:
        """The same, with *no difference that matters* as nothing found."""
        return Outcome(np.where(self.decision == SAME, 0, self.decision), self.pairs)


def gate(test: Test, d: Array) -> Verdicts:
    """``Test.look`` after every pair until it is final: ``d`` is trials x max_pairs."""
    trials, total = d.shape
    n_all = np.arange(1, total + 1)
    fine = np.isfinite(d)
    x = np.where(fine, d, 0.0)
    k = fine.cumsum(axis=1)
    worse, better = (d == -np.inf).cumsum(axis=1), (d == np.inf).cumsum(axis=1)
    some = np.maximum(k, 1)
    mean = x.cumsum(axis=1) / some
    seen = np.sqrt(np.maximum((x * x).cumsum(axis=1) - some * mean**2, 0) / np.maximum(k - 1, 1))
    spread = np.maximum(seen, LEAST_SPREAD * test.smallest_effect)
    bounds = np.array([np.inf] * test.min_pairs + [test.boundary(n) for n in range(test.min_pairs, total + 1)])
    half = bounds[k] * spread / np.sqrt(some)
    lower, upper, small = mean - half, mean + half, test.smallest_effect
    failures = worse + better
    margins = np.array([total + 1] + [test.margin(m) for m in range(1, int(failures.max()) + 1)])
    by_failure = abs(worse - better) >= margins[failures]
    most = int(max(worse.max(), better.max())) + 1
    doubtful = np.array([[sign_tail(a, b) <= DOUBT for b in range(most)] for a in range(most)])[worse, better]
    same = (lower > -small) & (upper < small)
    effect = ((lower > 0) | (upper < 0)) & ~same
    contradicted = np.where(same, worse != better, (worse > better) == (lower > 0))
    decided = by_failure | ((same | effect) & ~(doubtful & contradicted))
    last = k + total - n_all
    enough = (k >= test.min_pairs) & (last >= test.min_pairs)
    with np.errstate(all="ignore"):
        end = bounds[last] * spread / np.sqrt(last)
        scale = spread * np.sqrt(np.maximum(1 / some - 1 / np.maximum(last, 1), 1e-300))
        inside = np.maximum(small - end, 0)
        above = [stats.t.sf((edge - mean) / scale, some - 1) for edge in (end, -end, inside, -inside)]
    chance = above[0] + 1 - above[1] + np.maximum(0, above[3] - above[2])
    chance = np.where(enough, chance, np.where(last < test.min_pairs, 0.0, 1.0))
    nothing = (k + failures == 0) & (n_all >= test.min_pairs)
    stop = decided | nothing | ((chance < FUTILE) & ~(same | effect))
    stop[:, -1] = True
    at = stop.argmax(axis=1)
    pick = (np.arange(trials), at)
    by_metric = np.where(same, SAME, np.where(lower > 0, HELPS, HURTS))
    by_count = np.where(worse > better, HURTS, HELPS)
    decision = np.where(decided, np.where(by_failure, by_count, by_metric), NOTHING)
    return Verdicts(decision[pick], at + 1, lower[pick], upper[pick])


# ---- pools


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.normal(size=shape)


def student3(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_t(3, size=shape) / math.sqrt(3)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return (np.exp(rng.normal(size=shape)) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)


def coarse(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A metric with steps as large as its spread, as accuracy on a small test set."""
    return np.round(rng.normal(size=shape))


def stuck(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Half of the runs end on a plateau, far below the others."""
    return ((rng.random(shape) < 0.5) - 0.5) * 2 + rng.normal(size=shape) * 0.05


Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]
SIMULATED: dict[str, Draw] = {
    "normal": normal,
    "student t, 3 df": student3,
    "log-normal": skewed,
    "coarse steps": coarse,
    "half stuck on a plateau": stuck,
}


def independent(draw: Draw, failing: float = 0.0) -> Draw:
    """Differences of two runs drawn alike, each of which fails with the given chance."""

    def differences(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        d = draw(rng, shape) - draw(rng, shape)
        return with_failures(rng, d, failing, failing)

    return differences


def with_failures(rng: np.random.Generator, d: Array, arm: float, baseline: float) -> Array:
    a, b = rng.random(d.shape) < arm, rng.random(d.shape) < baseline
    return np.where(a & b, np.nan, np.where(a, -np.inf, np.where(b, np.inf, d)))


def real_pools(path: Path = POOLS) -> dict[str, Draw]:
    """Draws of differences from pools of real runs; the format is described on top."""
    if not path.exists():
        return {}
    found = {}
    for pool, metrics in json.loads(path.read_text()).items():
        for metric, lists in metrics.items():
            rows = [np.array([np.nan if value is None else float(value) for value in row]) for row in lists]
            if min(len(row) for row in rows) < FEWEST_SEEDS:
                print(f"{pool}, {metric}: left out, fewer than {FEWEST_SEEDS} seeds", flush=True)
                continue
            found[f"{pool}, {metric}"] = from_rows(rows)
    return found


def from_rows(rows: list[Array]) -> Draw:
    def differences(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        if len(rows) == 1:
            a, b = (rng.choice(rows[0], size=shape) for _ in range(2))
        else:
            seeds = min(len(row) for row in rows)
            table = np.array([row[:seeds] for row in rows])
            seed = rng.integers(seeds, size=shape)
            one = rng.integers(len(rows), size=(shape[0], 1))
            two = (one + rng.integers(1, len(rows), size=(shape[0], 1))) % len(rows)
            a, b = table[one, seed], table[two, seed]
        swap = rng.random(shape) < 0.5
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        lost_a, lost_b = ~np.isfinite(a), ~np.isfinite(b)
        failed = np.where(lost_a & lost_b, np.nan, np.where(lost_a, -np.inf, np.inf))
        return np.where(lost_a | lost_b, failed, a - b)

    return differences


# ---- how sure


def share(hits: Array) -> dict[str, float]:
    """A share with its 95 % interval (Clopper and Pearson 1934)."""
    n, k = len(hits), int(np.sum(hits))
    low = float(stats.beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    high = float(stats.beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0
    return {"share": k / n, "low": low, "high": high, "n": n}


def average(values: Array) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sem": float(np.std(values) / math.sqrt(len(values))), "n": len(values)}


def spread_of(draw: Draw) -> float:
    d = draw(np.random.default_rng(99), (200_000, 1))
    return float(np.std(d[np.isfinite(d)]))


# ---- the parts of the exam


def same_arms(trials: int) -> dict[str, Any]:
    """A/A: how often *helps or hurts* is said of equal arms, by the end and by each stopping time."""
    draws = {name: independent(draw) for name, draw in SIMULATED.items()}
    draws |= {f"{name}, 5 % fail": independent(draw, 0.05) for name, draw in SIMULATED.items()}
    draws |= {f"{name}, 30 % fail": independent(draw, 0.3) for name, draw in list(SIMULATED.items())[:1]}
    draws |= {f"real: {name}": draw for name, draw in real_pools().items()}
    designs = {
        "default (5 to 30 pairs)": {},
        "from 3 pairs": {"min_pairs": 3},
        "at most 10 pairs": {"max_pairs": 10},
        "at most 10 pairs, patience 30": {"max_pairs": 10, "patience": 30.0},
    }
    found: dict[str, Any] = {}
    for name, draw in draws.items():
        spread = spread_of(draw) or 1.0
        rng = np.random.default_rng(1)
        d = draw(rng, (trials if not name.startswith("real") else min(trials, 10_000), 30))
        found[name] = {}
        for design, options in designs.items():
            test = Test(smallest_effect=0.5 * spread, **options)
            tiny = Test(smallest_effect=1e-6 * spread, **options)  # neither equivalence nor a least spread helps
            said, bare = gate(test, d[:, : test.max_pairs]), gate(tiny, d[:, : test.max_pairs])
            wrong = abs(said.outcome().sign) == 1
            found[name][design] = {
                "wrong": share(wrong),
                "wrong helps": share(said.decision == HELPS),
                "wrong with a tiny smallest effect": share(abs(bare.outcome().sign) == 1),
                "wrong by pair": {
                    n: float(np.mean(wrong & (said.pairs <= n))) for n in (3, 4, 5, 6, 8, 10, 15, 20, 30)
                },
                "no difference that matters": share(said.decision == SAME),
                "pairs": average(said.pairs),
            }
    return found


def fixed_pairs(effect: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Pairs of a two-sided paired t test of fixed size, from the non-central t."""
    n = 2
    while stats.nct.sf(stats.t.isf(alpha / 2, n - 1), n - 1, effect * math.sqrt(n)) < power:
        n += 1
    return n


def power_curves(trials: int) -> dict[str, Any]:
    """How often a planted effect is found, and how soon."""
    rng = np.random.default_rng(2)
    found: dict[str, Any] = {}
    for design, options in {
        "default (5 to 30 pairs)": {},
        "at most 13 pairs": {"max_pairs": 13},
        "at most 10 pairs": {"max_pairs": 10},
        "at most 10 pairs, patience 3": {"max_pairs": 10, "patience": 3.0},
        "at most 10 pairs, patience 30": {"max_pairs": 10, "patience": 30.0},
    }.items():
        found[design] = {}
        for effect in (0.0, *PLANTED):
            test = Test(smallest_effect=0.25, **options)
            d = rng.normal(size=(trials, test.max_pairs)) + effect
            said = gate(test, d)
            helps = said.decision == HELPS
            fixed = stats.nct.sf(
                stats.t.isf(0.025, test.max_pairs - 1), test.max_pairs - 1, effect * test.max_pairs**0.5
            )
            found[design][effect] = {
                "helps": share(helps),
                "hurts": share(said.decision == HURTS),
                "helps by 10 pairs": share(helps & (said.pairs <= 10)),
                "pairs": average(said.pairs),
                "helps by pair": [float(np.mean(helps & (said.pairs <= n))) for n in range(1, test.max_pairs + 1)],
                "fixed t test with as many pairs": float(fixed),
            }
    return found


def cost(trials: int) -> dict[str, Any]:
    """Pairs used, against a t test whose fixed size has the power at the smallest effect."""
    rng = np.random.default_rng(3)
    found: dict[str, Any] = {}
    for smallest in (0.25, 0.5, 1.0):
        fixed = fixed_pairs(smallest)
        price = Test(smallest_effect=smallest, max_pairs=fixed).price
        test = Test(smallest_effect=smallest, max_pairs=math.ceil(fixed * price * 1.06))
        rows = {}
        for effect in (0.0, *PLANTED):
            said = gate(test, rng.normal(size=(trials, test.max_pairs)) + effect)
            rows[effect] = {
                "pairs": average(said.pairs),
                "times fewer": fixed / float(said.pairs.mean()),
                "helps": share(said.decision == HELPS),
                "no difference that matters": share(said.decision == SAME),
            }
        used = [rows[effect]["pairs"]["mean"] for effect in PLANTED]
        found[str(smallest)] = {
            "fixed pairs": fixed,
            "max_pairs": test.max_pairs,
            "effects": rows,
            "times fewer, all runs": fixed * len(PLANTED) / sum(used),
            "times fewer, mean of ratios": float(np.mean([fixed / n for n in used])),
        }
    return found


def coverage(trials: int) -> dict[str, Any]:
    """How often the interval at the stop covers the truth: the mean difference where both runs finish."""
    rng = np.random.default_rng(4)
    found: dict[str, Any] = {}
    for name, draw in SIMULATED.items():
        for failing in (0.0, 0.05):
            plain = independent(draw)
            spread = spread_of(plain)
            for effect in (0.0, *PLANTED):
                d = with_failures(rng, plain(rng, (trials, 30)) + effect * spread, failing, failing)
                for smallest in (0.25, 1.0):
                    said = gate(Test(smallest_effect=smallest * spread), d)
                    inside = (said.lower <= effect * spread) & (effect * spread <= said.upper)
                    key = f"{name}, {failing:.0%} fail, effect {effect}, smallest {smallest}"
                    found[key] = share(inside) | {"pairs": float(said.pairs.mean())}
    return found


def failures(trials: int) -> dict[str, Any]:
    """Diverging runs: power where both arms fail, and what is said of arms that fail more often."""
    rng = np.random.default_rng(5)
    found: dict[str, Any] = {}
    for arm, baseline in ((0.0, 0.0), (0.05, 0.05), (0.05, 0.0), (0.2, 0.0), (0.5, 0.0), (1.0, 0.0), (0.0, 1.0)):
        for effect in (0.0, 0.5, 1.0):
            d = with_failures(rng, rng.normal(size=(trials, 30)) + effect, arm, baseline)
            said = gate(Test(smallest_effect=0.25), d)
            found[f"arm fails {arm:.0%}, baseline {baseline:.0%}, effect {effect}"] = {
                "helps": share(said.decision == HELPS),
                "hurts": share(said.decision == HURTS),
                "pairs": average(said.pairs),
            }
    return found


def searcher(searches: int, proposals: int = 200) -> dict[str, Any]:
    """A greedy searcher whose patches do nothing: what it keeps, and what it believes to have won (in spreads)."""
    rng = np.random.default_rng(6)
    curves: dict[str, Array] = {}
    runs = rng.normal(size=(searches, proposals + 1))  # one run a proposal; the incumbent's score is not run again
    best = np.maximum.accumulate(runs, axis=1)
    curves["kept: single run beats the best score"] = (np.diff(best, axis=1) > 0).cumsum(axis=1)
    curves["believed: single run beats the best score"] = best[:, 1:] - runs[:, :1]
    a, b = rng.normal(size=(2, searches, proposals, 2))
    both = (a > b).all(axis=2)
    curves["kept: both of two seeds better"] = both.cumsum(axis=1)
    curves["believed: both of two seeds better"] = np.where(both, (a - b).mean(axis=2), 0).cumsum(axis=1)
    d = (rng.normal(size=(2, searches * proposals, 30)) * [[[1]], [[-1]]]).sum(axis=0)
    for name, alpha in (("through the gate", 0.05), ("through the gate, alpha / 200", 0.05 / proposals)):
        said = gate(Test(smallest_effect=0.25, alpha=alpha), d)
        kept = (said.decision == HELPS).reshape(searches, proposals)
        won = ((said.lower + said.upper) / 2).reshape(searches, proposals)
        curves[f"kept: {name}"] = kept.cumsum(axis=1)
        curves[f"believed: {name}"] = np.where(kept, won, 0).cumsum(axis=1)
        curves[f"pairs: {name}"] = said.pairs.reshape(searches, proposals)
    return {
        name: {"at 200": average(curve[:, -1]), "mean": np.round(curve.mean(axis=0), 3).tolist()}
        for name, curve in curves.items()
        if not name.startswith("pairs")
    } | {"pairs a proposal": float(curves["pairs: through the gate"].mean()), "searches": searches}


def signed_rank_less(d: Array) -> Array:
    """One-sided p value of the signed-rank test that the arm is worse (Wilcoxon 1945), exact without ties."""
    n = d.shape[1]
    ranks = stats.rankdata(abs(d), axis=1)
    ranks = np.where(d == 0, ranks / 2, np.where(d > 0, ranks, 0)).sum(axis=1)
    counts = np.zeros(n * (n + 1) // 2 + 1)
    counts[0] = 1
    for rank in range(1, n + 1):
        counts[rank:] = counts[rank:] + counts[:-rank]
    return np.asarray((counts.cumsum() / 2**n)[np.floor(ranks).astype(int)])


def wilcoxon(d: Array, alpha: float) -> Outcome:
    low, high = signed_rank_less(d), signed_rank_less(-d)
    sign = np.where(2 * low <= alpha, -1, np.where(2 * high <= alpha, 1, 0))
    return Outcome(sign, np.full(len(d), d.shape[1]))


def wilcoxon_pruner(d: Array, start: int = 2, threshold: float = 0.1) -> Outcome:
    """Optuna's WilcoxonPruner as a gate: pruned at p < 0.1, from 2 pairs on, unless better on average; else kept."""
    trials, total = d.shape
    sign, pairs = np.where(d.mean(axis=1) > 0, 1, 0), np.full(trials, total)
    open_trials = np.ones(trials, bool)
    for n in range(start, total + 1):
        seen = d[:, :n]
        pruned = open_trials & (signed_rank_less(seen) < threshold) & (seen.mean(axis=1) < 0)
        sign[pruned], pairs[pruned] = -1, n
        open_trials &= ~pruned
    return Outcome(sign, pairs)


def welch(a: Array, b: Array, alpha: float) -> Outcome:
    test = stats.ttest_ind(a, b, axis=1, equal_var=False)
    return Outcome(np.where(test.pvalue <= alpha, np.sign(test.statistic), 0).astype(int), np.full(len(a), a.shape[1]))


def methods() -> dict[str, tuple[str, Callable[[Array, Array], Outcome]]]:
    """Name -> (kind, method on arm's and baseline's runs, trials x 30)."""
    hsd = alternatives.hwang_shih_decani
    bounds = {g: alternatives.spending_boundaries(0.05, 5, 30, hsd(g)) for g in (1.0, -4.0)}

    def on_differences(method: Callable[[Array], Outcome]) -> Callable[[Array, Array], Outcome]:
        return lambda a, b: method(a - b)

    def of(patience: float, smallest: float) -> Callable[[Array, Array], Outcome]:
        return on_differences(lambda d: gate(Test(smallest_effect=smallest, patience=patience), d).outcome())

    return {
        "kingpost (p n / N, stops for futility)": ("sequential", of(1.0, 0.25)),
        "the same, patience 3": ("sequential", of(3.0, 0.25)),
        "group-sequential t, spending like Pocock": (
            "sequential",
            on_differences(lambda d: alternatives.group_sequential_t(d, 5, bounds[1.0])),
        ),
        "group-sequential t, spending like O'Brien-Fleming": (
            "sequential",
            on_differences(lambda d: alternatives.group_sequential_t(d, 5, bounds[-4.0])),
        ),
        "sequential sign flips, spending like Pocock": (
            "slow",
            on_differences(lambda d: alternatives.sign_flip(d, 5, 0.05, hsd(1.0))),
        ),
        "confidence sequence (mixture t)": (
            "sequential",
            on_differences(lambda d: alternatives.confidence_sequence(d, 5, 0.05)),
        ),
        "t test after every pair, no correction": (
            "invalid",
            on_differences(lambda d: alternatives.peeking_t(d, 5, 0.05)),
        ),
        "paired t, 10 pairs": ("fixed", on_differences(lambda d: alternatives.fixed_t(d, 10, 0.05))),
        "paired t, 30 pairs": ("fixed", on_differences(lambda d: alternatives.fixed_t(d, 30, 0.05))),
        "Welch t, 10 pairs": ("fixed", lambda a, b: welch(a[:, :10], b[:, :10], 0.05)),
        "Wilcoxon, 10 pairs": ("fixed", on_differences(lambda d: wilcoxon(d[:, :10], 0.05))),
        "Wilcoxon, 30 pairs": ("fixed", on_differences(lambda d: wilcoxon(d, 0.05))),
        "Optuna's WilcoxonPruner as a gate": ("invalid", on_differences(wilcoxon_pruner)),
        "best single run (1 pair)": (
            "invalid",
            lambda a, b: Outcome(np.sign(a[:, 0] - b[:, 0]).astype(int), np.ones(len(a), int)),
        ),
        "both of two seeds better": (
            "invalid",
            lambda a, b: Outcome(
                np.sign(np.sign(a - b)[:, :2].sum(axis=1) / 2).astype(int)
                * (abs(np.sign(a - b)[:, :2].sum(axis=1)) == 2),
                np.full(len(a), 2),
            ),
        ),
    }


def peers(trials: int, slow: int) -> dict[str, Any]:
    """All methods on the same pools: wrong verdicts, power, pairs. Runs of one pair share half of their variance."""
    found: dict[str, Any] = {}
    pools = {name: SIMULATED[name] for name in SIMULATED}
    for name, (kind, method) in methods().items():
        row: dict[str, Any] = {"kind": kind}
        count = slow if kind == "slow" else trials
        for pool, draw in pools.items():
            rng = np.random.default_rng(7)
            common, a, b = (draw(rng, (count, 30)) for _ in range(3))
            spread = float(np.std(a - b))
            a, b = (a + common) / spread, (b + common) / spread
            effects = (0.0, *PLANTED) if pool == "normal" else (0.0, 1.0)
            row[pool] = {}
            for effect in effects:
                said = method(a + effect, b)
                row[pool][effect] = {
                    "helps": share(said.sign == 1),
                    "hurts": share(said.sign == -1),
                    "pairs": average(said.pairs),
                }
        found[name] = row
        print(name, {e: round(v["helps"]["share"], 3) for e, v in row["normal"].items()}, flush=True)
    return found


def families_exam(trials: int) -> dict[str, Any]:
    """Several arms against one baseline, and a factorial design, all without any effect: is any arm judged?"""
    rng = np.random.default_rng(8)
    found = {}
    for arms in (2, 4, 8):
        baseline = rng.normal(size=(1, trials, 30))
        d = rng.normal(size=(arms, trials, 30)) - baseline
        # Under no effect anywhere, Holm decides something exactly when Bonferroni does.
        said = np.array([gate(Test(smallest_effect=0.35, alpha=0.05 / arms), one).outcome().sign for one in d])
        found[f"{arms} arms, one baseline"] = share((said != 0).any(axis=0))
    cells = rng.normal(size=(2, 2, 2, trials, 30))
    flip = np.array([-1.0, 1.0])
    effects = []
    for use in range(1, 8):
        signs = [flip if use >> axis & 1 else np.ones(2) for axis in range(3)]
        effects.append(np.einsum("abctn,a,b,c->tn", cells, *signs) / 4)
    said = np.array([gate(Test(smallest_effect=0.35, alpha=0.05 / 7), one).outcome().sign for one in effects])
    found["2 x 2 x 2 factorial, 7 effects"] = share((said != 0).any(axis=0))
    return found


# ---- what is shown


def percent(value: dict[str, float], digits: int = 1) -> str:
    return f"{100 * value['share']:.{digits}f} % ({100 * value['low']:.{digits}f} to {100 * value['high']:.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def page(r: dict[str, Any]) -> str:
    """All tables, from the results."""
    part = r["A/A"]
    designs = list(next(iter(part.values())))
    text = [
        "# The exam of the gate of evidence\n",
        f"Made by `python benchmarks/prove_exam.py` on {r['machine']}, Python {r['python']}, numpy {r['numpy']}, one "
        f"thread, {r['date']}. Shares stand with their 95 % interval. Effects are in spreads "
        "(standard deviations of the paired differences); alpha is 0.05, two-sided.\n",
        "## Equal arms: *helps* or *hurts*\n",
        f"{next(iter(part.values()))[designs[0]]['wrong']['n']} trials a cell (real pools: 10000 at most); at any "
        "stopping time. The last column has a smallest effect so tiny that neither equivalence nor "
        "the least spread takes part.\n",
        table(
            ["pool", *designs, designs[0] + ", tiny smallest effect"],
            [
                [
                    pool,
                    *(percent(row[d]["wrong"]) for d in designs),
                    percent(row[designs[0]]["wrong with a tiny smallest effect"]),
                ]
                for pool, row in part.items()
            ],
        ),
        "Wrong verdicts by the pair at which a trial stops (" + designs[0] + "):\n",
        table(
            ["pool", *(f"by {n}" for n in next(iter(part.values()))[designs[0]]["wrong by pair"])],
            [[p, *(f"{100 * v:.2f} %" for v in row[designs[0]]["wrong by pair"].values())] for p, row in part.items()],
        ),
        "## Planted effects\n",
    ]
    for design, row in r["power"].items():
        text += [
            f"**{design}**; smallest effect 0.25 spreads.\n",
            table(
                [
                    "effect",
                    "run-to-run, corr. 0",
                    "corr. 0.5",
                    "helps",
                    "helps by 10 pairs",
                    "hurts",
                    "pairs",
                    "fixed t",
                ],
                [
                    [
                        f"{float(e):g}",
                        f"{float(e) * math.sqrt(2):.2f}",
                        f"{float(e):.2f}",
                        percent(v["helps"]),
                        percent(v["helps by 10 pairs"]),
                        percent(v["hurts"], 2),
                        f"{v['pairs']['mean']:.1f}",
                        f"{100 * v['fixed t test with as many pairs']:.1f} %",
                    ]
                    for e, v in row.items()
                ],
            ),
        ]
    text.append("## Cost\n\nPairs used on average, against a t test whose size is fixed for the smallest effect.\n")
    text.append(
        table(
            [
                "smallest effect",
                "fixed",
                "at most",
                *(f"effect {e:g}" for e in (0.0, *PLANTED)),
                "power at smallest",
                "times fewer, all runs",
                "mean of ratios",
            ],
            [
                [
                    smallest,
                    str(v["fixed pairs"]),
                    str(v["max_pairs"]),
                    *(f"{row['pairs']['mean']:.1f}" for row in v["effects"].values()),
                    percent({str(k): row for k, row in v["effects"].items()}[str(float(smallest))]["helps"]),
                    f"{v['times fewer, all runs']:.2f}",
                    f"{v['times fewer, mean of ratios']:.2f}",
                ]
                for smallest, v in r["cost"].items()
            ],
        )
    )
    worst = sorted(r["coverage"].items(), key=lambda item: item[1]["share"])
    text += [
        "## Coverage after stopping\n",
        f"{len(worst)} settings of {worst[0][1]['n']} trials; the lowest eight:\n",
        table(["setting", "covers", "pairs"], [[k, percent(v), f"{v['pairs']:.1f}"] for k, v in worst[:8]]),
        "## Runs that fail\n",
        table(
            ["setting", "helps", "hurts", "pairs"],
            [
                [k, percent(v["helps"]), percent(v["hurts"]), f"{v['pairs']['mean']:.1f}"]
                for k, v in r["failures"].items()
            ],
        ),
        "## A greedy searcher on noise\n",
        f"200 proposals that do nothing; mean of {r['searcher']['searches']} searches. Gains in run-to-run spreads. "
        f"The gate used {r['searcher']['pairs a proposal']:.1f} pairs a proposal.\n",
        table(
            ["rule", "kept of 200", "gain believed (true: 0)"],
            [
                [
                    k.removeprefix("kept: "),
                    f"{v['at 200']['mean']:.2f}",
                    f"{r['searcher'][k.replace('kept', 'believed')]['at 200']['mean']:.2f}",
                ]
                for k, v in r["searcher"].items()
                if k.startswith("kept")
            ],
        ),
        "## Several arms, no effect\n",
        table(["family", "any arm judged"], [[k, percent(v)] for k, v in r["families"].items()]),
        "## Peers on the same pools\n",
        "Runs of a pair share half of their variance. *Wrong* is helps or hurts without a difference; the right "
        "columns are found effects (and mean pairs) in the normal pool.\n",
        table(
            ["method", *(f"wrong: {pool}" for pool in SIMULATED), *(f"effect {e:g}" for e in PLANTED)],
            [
                [
                    name,
                    *(
                        f"{100 * (none['helps']['share'] + none['hurts']['share']):.1f} %"
                        for none in (row[pool][next(iter(row[pool]))] for pool in SIMULATED)
                    ),
                    *(
                        f"{100 * v['helps']['share']:.1f} % ({v['pairs']['mean']:.1f})"
                        for v in list(row["normal"].values())[1:]
                    ),
                ]
                for name, row in r["peers"].items()
            ],
        ),
    ]
    return "\n".join(text)


def plots(r: dict[str, Any], folder: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "kingpost"
    from matplotlib import pyplot as plt

    def save(figure: Any, name: str) -> None:
        figure.tight_layout()
        figure.savefig(folder / name, metadata={"Date": None})
        plt.close(figure)

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    for effect, row in r["power"]["default (5 to 30 pairs)"].items():
        curve = row["helps by pair"]
        axes.plot(range(1, len(curve) + 1), curve, label=f"{float(effect):g} spreads")
    axes.axhline(0.8, color="grey", linewidth=0.6, linestyle=":")
    axes.set(xlabel="pairs", ylabel="share of trials that said 'helps'", ylim=(0, 1.02))
    axes.legend(frameon=False, title="planted effect")
    save(figure, "prove-power.svg")

    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6))
    for name, row in r["searcher"].items():
        if isinstance(row, dict):
            kind, rule = name.split(": ")
            axes[0 if kind == "kept" else 1].plot(range(1, 201), row["mean"], label=rule)
    axes[0].axhline(10, color="grey", linewidth=0.6, linestyle=":")  # alpha times 200
    axes[0].set(xlabel="proposals, none of which does anything", ylabel="kept", yscale="symlog")
    axes[1].set(xlabel="proposals", ylabel="gain believed, in run-to-run spreads", yscale="symlog")
    axes[0].legend(frameon=False, fontsize=7)
    save(figure, "prove-searcher.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the trials; nothing is written")
    parser.add_argument("--page", action="store_true", help="tables and plots from the results that are there")
    parser.add_argument("--only", metavar="PART", action="append", help="run this part anew; may be repeated")
    args = parser.parse_args()
    trials = 1000 if args.quick else 10_000
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "A/A": lambda: same_arms(4 * trials),
        "power": lambda: power_curves(10 * trials),
        "cost": lambda: cost(trials),
        "coverage": lambda: coverage(trials),
        "failures": lambda: failures(trials),
        "searcher": lambda: searcher(trials // 50),
        "families": lambda: families_exam(trials),
        "peers": lambda: peers(trials, trials // 5),
    }
    if unknown := set(args.only or ()) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    results = json.loads(RESULTS.read_text()) if args.page or args.only else {}
    if not args.page:
        start = time.time()
        for name in args.only or parts:
            results[name] = parts[name]()
            print(f"{name}: done after {time.time() - start:.0f} s", flush=True)
        results |= {
            "seconds": time.time() - start,
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        results = json.loads(json.dumps(results))  # keys as they will be read again
    if args.quick:
        print(page(results))
        return
    if not args.page:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(results))
    plots(results, STATIC)


if __name__ == "__main__":
    main()
