"""From the looks of a trial to its verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kingpost.prove.costs import cost, target_of
from kingpost.prove.questions import Question, State
from kingpost.prove.record import Outcome, Record
from kingpost.prove.sequential import Look
from kingpost.verdict import Pair, Verdict, Verdicts

NOTHING = Look(0, "no evidence yet", False, "no pair is complete", 0.0, float("-inf"), float("inf"), 1.0, None)
Outcomes = Mapping[tuple[str, int], Outcome]
Tuned = Mapping[str, Mapping[str, Any]]


def verdicts(record: Record, state: State, outcomes: Outcomes, tuned: Tuned) -> Verdicts:
    """One verdict a question, each with its row in the ledger."""
    rows = []
    for question in record.declaration.questions:
        verdict = _verdict(question, record, state, outcomes, tuned)
        body = {k: v for k, v in verdict.to_value().items() if k not in ("looks", "pairs", "arm", "trial")}
        key = f"{verdict.arm} {len(verdict.pairs)} {verdict.decision}"
        entry = record.write(
            "verdict", key, verdict.headline(), {"arm": verdict.arm, "pairs": len(verdict.pairs), **body}
        )
        rows.append(verdict.with_row(str(record.ledger.path), entry.n, entry.sha256))
    return Verdicts(record.declaration.name, str(record.folder), tuple(rows))


def plain_look(look: Look) -> dict[str, Any]:
    """A look as JSON can hold it: what is not finite becomes null."""
    odd = [key for key, value in vars(look).items() if isinstance(value, float) and not math.isfinite(value)]
    return vars(look) | dict.fromkeys(odd)


def _verdict(question: Question, record: Record, state: State, outcomes: Outcomes, tuned: Tuned) -> Verdict:
    d = record.declaration
    looks = state.looks[question.name]
    look = looks[-1] if looks else NOTHING
    seeds = [d.seed(index) for index in range(look.pairs)]
    values = {key: outcome["value"] for key, outcome in outcomes.items()}
    base, arm = ([name for name, weight in question.weights.items() if weight * sign > 0] for sign in (-1, +1))
    runs = {
        side: [outcomes[name, seed] for name in names for seed in seeds] for side, names in (("b", base), ("a", arm))
    }
    target = target_of(runs["b"])
    late = f"the time was up after {look.pairs} of at most {d.max_pairs} pairs; --resume goes on"
    contrast = "the contrast " + " ".join(f"{weight:+g} {name}" for name, weight in question.weights.items())
    return Verdict(
        trial=d.name,
        arm=question.name,
        patch=d.patches[question.name] if len(question.weights) == 2 else contrast,
        decision=look.decision,
        final=look.final,
        reason=look.reason if look.final else late,
        difference=look.difference,
        lower=look.lower,
        upper=look.upper,
        p=look.p,
        more_pairs=look.more_pairs,
        pairs=tuple(Pair(seed, question.side(-1, seed, values), question.side(+1, seed, values)) for seed in seeds),
        looks=tuple(plain_look(one) for one in looks),
        metric=d.metric,
        higher_is_better=d.higher_is_better,
        smallest_effect=d.smallest_effect,
        alpha=d.alpha,
        power=d.power,
        budget=d.budget,
        costs={
            "baseline": cost(runs["b"], _known(d.known, base), target, d.higher_is_better),
            "arm": cost(runs["a"], _known(d.known, arm), target, d.higher_is_better),
        },
        target=target,
        same_weights=d.known.get(arm[0], {}).get("same_weights") if len(arm) == 1 else None,
        retuned={key: {name: tuned[name][key] for name in tuned} for key in d.retune if tuned},
        notes=tuple(_notes(record, outcomes, tuned, [*base, *arm])),
    )


def _notes(record: Record, outcomes: Outcomes, tuned: Tuned, arms: Sequence[str]) -> Iterator[str]:
    if earlier := record.earlier():
        yield f"again      the same was asked {earlier} times before; do not trust the best of them (see the ledger)"
    for key, of_arm in record.declaration.retune.items():
        for arm in arms:
            tried = sorted(value for value in of_arm[arm] if isinstance(value, int | float))
            if tried and arm in tuned and tuned[arm][key] in (tried[0], tried[-1]):
                yield f"edge       {arm} was best at the edge of its search, {key}={tuned[arm][key]:g}; widen it"
    failed = {arm: one["message"] for (arm, _), one in outcomes.items() if one["status"] == "failed" and arm in arms}
    for arm, message in failed.items():
        yield f"failed     {arm}: {message}"[:160]


def _known(known: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> dict[str, Any]:
    """What is known of an arm, or of several together on average."""
    found = [known[arm] for arm in arms if arm in known]
    keys = ("parameters", "flops_per_step", "samples_per_step")
    return {key: sum(one[key] for one in found) / len(found) for key in keys} if found else {}
