"""The page of all studies, and what is made of their results beside it: their own pages, and the cards' verdicts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kingpost.cli_study import study_files
from kingpost.prove.conclusion import Conclusion, card_verdicts, conclude, mode_of
from kingpost.prove.study import Study, studies_in
from kingpost.prove.study_run import read_results
from kingpost.report.study_page import measured, result_table

STUDIES = Path(__file__).resolve().parents[1] / "studies"
ORDER = ("borne out", "borne out in part", "contradicted", "not decided", "no claim", "not run")
JSON_NOTE = "Generated from results.json of the studies: do not edit. Write it again: python docs/generate.py --quick"

OWN = """## Write your own

A study is a folder below `studies/` with a file `study.yaml`:

```text
question: Does label smoothing help my net?
claim: Softened targets generalise better.
source: a colleague
on: digits, a CNN of two stages
cards: {technique/label-smoothing: smoothing}
base: digits                          # a bundled recipe's name, or a whole recipe
changes: {budget.epochs: 10}          # a patch of it, which all arms share
metric: accuracy
smallest_effect: 0.005
retune: [optimizer.lr]
arms: {smoothing: {techniques: [crop, ema, {name: label-smoothing, strength: 0.1}]}}
expect: {smoothing: helps}            # what is claimed: helps, neutral, harms, or several
quick: {changes: {budget.epochs: 3}, max_pairs: 8}
```

Several `trials:` below it share these keys; each may have others of its own, as may `quick:`. What is no column of a
run's results is measured by a `function: module:name` of a seed and keyword arguments, which takes the place of `base`;
`given:` holds the arguments that all arms share. `studies/sources.py` has data with wrong labels, covered or turned
images and gaps, `studies/measures.py` such functions.

A trial whose declaration was changed is another trial, and runs anew. What is done stays in `studies/NAME/trials/`,
which is not committed, as is the study's ledger; `results.json` keeps the ledger's hash of each verdict.
"""


def studies_page(folder: Path = STUDIES) -> str:
    """Every study with its outcome, whatever it is; then each with its numbers."""
    found = [(Study.open(folder / name), read_results(folder / name)) for name in studies_in(folder)]
    told = {study.name: _told(results) for study, results in found}
    outcomes = [outcome for outcome, _ in told.values()]
    counts = ", ".join(f"{outcomes.count(one)} {one}" for one in ORDER if one in outcomes)
    lines = [
        "# Studies\n",
        "What three articles claim of techniques, each claim put to [controlled trials](cli.md#study) on real data, "
        "with its true outcome. One folder a claim below `studies/`: what was declared (`study.yaml`), what came out "
        "(`results.json`), and a page made from both. `kingpost study NAME` runs one again, `--quick` in minutes. "
        "The cards of [techniques](techniques.md) take their verdicts from here.\n",
        "A claim is **borne out** if every arm that it speaks of came out as it says, **contradicted** if at least one "
        "did not and none did, **borne out in part** if some did, and **not decided** if the pairs that were declared "
        "do not tell. This rule is all that is applied; a study holds for its own data, net and budget. A quick run "
        "has little data, short training and few pairs.\n",
        f"{len(found)} studies: {counts}.\n",
        "| study | claim | outcome | run |",
        "| --- | --- | --- | --- |",
    ]
    for study, results in found:
        link = f"[{study.name}](#{study.name})"
        lines.append(f"| {link} | {study.text.claim} | **{told[study.name][0]}** | {mode_of(results) or '-'} |")
    lines += [*_scripted(folder), ""]
    for study, results in found:
        lines += _section(study, results, told[study.name][1])
    return "\n".join([*lines, OWN])


def _told(results: Mapping[str, Any]) -> tuple[str, Conclusion | None]:
    mode = mode_of(results)
    ended = conclude(results[mode]["rows"], results[mode]["to_come"]) if mode else None
    return (ended.outcome, ended) if ended else ("not run", None)


def _section(study: Study, results: Mapping[str, Any], ended: Conclusion | None) -> Iterator[str]:
    yield f"## {study.name}\n"
    yield f"{study.text.question} Claimed by {study.text.source}: {study.text.claim}\n"
    mode = mode_of(results)
    if mode is None or ended is None:
        yield f"On {study.text.on}. Not run yet.\n"
        return
    rows = results[mode]["rows"]
    yield f"**{ended.sentence}**\n"
    yield result_table(rows) + "\n"
    yield f"On {study.text.on}. {'Quick run, ' * (mode == 'quick')}{measured(rows)}\n"


def _scripted(folder: Path) -> Iterator[str]:
    """Studies that are a script of their own: their title, and what their page says in bold."""
    for path in sorted(folder.glob("*/study.py")):
        text = (path.parent / "README.md").read_text(encoding="utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        told = " ".join(re.findall(r"\*\*(.+?)\*\*", text))
        yield f"| {path.parent.name} (a script) | {title} | {told} | full |"


def study_pages(folder: Path = STUDIES) -> dict[Path, str]:
    """The pages and plots in the studies' own folders, and ``verdicts.json`` for the cards."""
    names = studies_in(folder)
    every = [results for name in names if (results := read_results(folder / name))]
    value = {"note": JSON_NOTE, "verdicts": card_verdicts(every)}
    files = {folder / "verdicts.json": json.dumps(value, indent=2, ensure_ascii=False) + "\n"}
    return files | {path: text for name in names for path, text in study_files(folder / name).items()}
