"""The verb ``study`` of the command line: run the trials behind a claim, and write its page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kingpost.cli_command import Command
from kingpost.cli_prove import seconds_of
from kingpost.errors import KingpostError, RecipeError, nearest


def _study(args: argparse.Namespace) -> int:
    from kingpost.prove.study import studies_in

    root = Path(args.studies)
    known = studies_in(root)
    if args.list or not (args.study or args.all):
        found = [_standing(root / name) for name in known]
        print(json.dumps(found, indent=2) if args.json else "\n".join(_lines(found)) or f"no studies in '{root}'")
        return 0
    if args.study and args.all:
        raise RecipeError("--all runs every study", path="study", mend="leave the name out, or --all")
    if args.study and args.study not in known:
        raise RecipeError(f"no study '{args.study}' in '{root}'", mend=nearest(args.study, known))
    return _run(root, known if args.all else [args.study], args)


def _run(root: Path, names: list[str], args: argparse.Namespace) -> int:
    from kingpost.prove.session import TrialStopped

    failed: list[str] = []
    found = []
    for name in names:
        try:
            found.append(_one(root / name, args))
        except TrialStopped as stopped:
            go_on = f"kingpost study {'--all' if args.all else name}{' --quick' * args.quick}"
            print(f"stopped; what is done stays. Go on with: {go_on}", file=sys.stderr)
            return 128 + stopped.signal
        except KingpostError as error:
            if len(names) == 1:
                raise
            failed.append(f"{name}: {error}")
            print(f"error: {failed[-1]}; going on with the next", file=sys.stderr)
            continue
        if not args.json:
            print("\n".join(_lines(found[-1:])), flush=True)
    if args.json:
        print(json.dumps(found if args.all else found[0], indent=2))
    if failed:
        print(f"{len(failed)} of {len(names)} studies could not be run", file=sys.stderr)
    return 1 if failed else 0


def _one(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run one study, and write its page."""
    from kingpost.prove.study import Study
    from kingpost.prove.study_run import run

    seconds = None if args.time is None else seconds_of(args.time)
    run(
        Study.open(folder),
        args.quick,
        folder=folder,
        seconds=seconds,
        workers=args.workers,
        ray=args.ray,
        quiet=args.quiet,
        say=lambda text: None if args.quiet else print(text, file=sys.stderr, flush=True),
    )
    for path, text in study_files(folder).items():
        path.write_text(text, encoding="utf-8")
    return _standing(folder)


def study_files(folder: Path) -> dict[Path, str]:
    """The page of a study and its plot, as they should be; nothing if it has not been run."""
    from kingpost.prove.conclusion import conclude, mode_of
    from kingpost.prove.study_run import read_results
    from kingpost.report.study_page import PLOT, interval_plot, study_page

    results = read_results(folder)
    if (mode := mode_of(results)) is None:
        return {}
    rows = results[mode]["rows"]
    told = conclude(rows, results[mode]["to_come"]).sentence
    page = study_page(results["name"], results["study"], rows, mode, told)
    return {folder / "README.md": page, folder / PLOT: interval_plot(rows)}


def _standing(folder: Path) -> dict[str, Any]:
    """How a study stands."""
    from kingpost.prove.conclusion import conclude, mode_of
    from kingpost.prove.study import Study
    from kingpost.prove.study_run import read_results

    study, results = Study.open(folder), read_results(folder)
    mode = mode_of(results)
    rows = results[mode]["rows"] if mode else []
    ended = conclude(rows, results[mode]["to_come"] if mode else [])
    return {
        "name": study.name,
        "question": study.text.question,
        "claim": study.text.claim,
        "source": study.text.source,
        "mode": mode,
        "outcome": ended.outcome if mode else "not run",
        "conclusion": ended.sentence if mode else "",
        "rows": rows,
    }


def _lines(found: list[dict[str, Any]]) -> Iterator[str]:
    width = max((len(one["name"]) for one in found), default=0)
    for one in found:
        mode = f" ({one['mode']})" if one["mode"] else ""
        told = f"\n{'':<{width}}  {one['conclusion']}" if len(found) == 1 and one["conclusion"] else ""
        yield f"{one['name']:<{width}}  {one['outcome'] + mode:<26}  {one['question']}{told}"


COMMANDS: dict[str, Command] = {
    "study": Command(
        "run the trials behind a claim again, and write the study's page; without a name, list all studies",
        _study,
        [
            (("study",), {"nargs": "?", "help": "folder below studies/, such as he-init"}),
            (("--quick",), {"action": "store_true", "help": "minutes instead of hours: less data, fewer pairs"}),
            (("--all",), {"action": "store_true", "help": "one study after another; those that are done take no time"}),
            (("--list",), {"action": "store_true", "help": "list all studies with what came of them, and end"}),
            (("--time",), {"metavar": "SPAN", "help": "of each trial at most: 90s, 20m; the same command goes on"}),
            (("--workers",), {"type": int, "metavar": "N", "help": "runs at a time (default: one a core)"}),
            (("--ray",), {"metavar": "ADDRESS", "help": "run on this Ray cluster (extra 'ray'); 'local' starts one"}),
            (("--studies",), {"default": "studies", "metavar": "DIR", "help": "where they are (default: studies)"}),
            (("--quiet",), {"action": "store_true", "help": "no progress, and only errors"}),
            (("--json",), {"action": "store_true", "help": "machine-readable output"}),
        ],
        ["kingpost study he-init --quick", "kingpost study --list", "kingpost study --all --quick --time 10m"],
    ),
}  # fmt: skip
