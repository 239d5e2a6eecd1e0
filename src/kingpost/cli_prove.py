"""The verbs ``prove`` and ``ledger`` of the command line."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from kingpost.cli_command import Command
from kingpost.errors import RecipeError, nearest

CODES = {"helps": 0, "hurts": 3, "no difference that matters": 4, "no evidence yet": 5}
EXIT_CODES = """exit codes:
  0      helps (of several arms: at least one)
  3      hurts (of several arms: all that were answered)
  4      no difference that matters
  5      no evidence yet; more pairs would be needed
  1      the trial failed
  2      the command, recipe, data or trial is not usable as given
  130    stopped by Ctrl-C after saving (143: by SIGTERM); go on with kingpost prove --resume"""
DECISIONS = list(CODES)
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
CLOSE = 0.8  # likeness at which a word of a foreign command is taken for a mistyped option of ours


def _prove(args: argparse.Namespace) -> int:
    from kingpost.prove.session import TrialStopped
    from kingpost.verbs import prove, resume_trial

    seconds = None if args.time is None else seconds_of(args.time)
    sitting = {"workers": args.workers, "ray": args.ray, "seconds": seconds, "ledger": args.ledger, "keep": args.keep}
    try:
        if args.resume:
            _check_resume(args)
            verdicts = resume_trial(args.resume, **sitting, quiet=args.quiet)
        else:
            subject, arms, asked = _asked(args)
            if args.dry_run:
                return _dry_run(subject, arms, asked, args, seconds)
            verdicts = prove(subject, arms, **asked, **sitting, name=args.name, root=args.trials, quiet=args.quiet)
    except TrialStopped as stopped:
        print(f"{stopped}", file=sys.stderr)
        return 128 + stopped.signal
    print(json.dumps(verdicts.to_value(), indent=2) if args.json else verdicts)
    return CODES[verdicts.decision]


def _dry_run(subject: Any, arms: Any, asked: dict[str, Any], args: argparse.Namespace, seconds: float | None) -> int:
    from kingpost.prove.forecast import forecast

    made = forecast(subject, arms, seconds=seconds, workers=args.workers, name=args.name, **asked)
    print(json.dumps(made.to_value(), indent=2) if args.json else made)
    return 0


def _asked(args: argparse.Namespace) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """What is tried on what, and how."""
    arms = _arms(args)
    asked = {
        "metric": args.metric,
        "direction": args.direction,
        "smallest_effect": args.smallest,
        "alpha": args.alpha,
        "power": args.power,
        "min_pairs": args.min_pairs,
        "max_pairs": args.max_pairs,
        "at": args.at,
        "budget": args.budget,
        "retune": tuple(args.retune or ()),
        "factorial": tuple(args.factorial or ()),
        "first_seed": args.first_seed,
        "threads": args.threads,
    }
    if args.command_line is not None:
        if args.recipe or args.without:
            raise RecipeError("--command takes the place of a recipe", mend="leave the recipe and --without out")
        return args.command_line, {name: " ".join(words) for name, words in arms.items()}, asked
    if not args.recipe:
        raise RecipeError(
            "no recipe, --command or --resume", mend="for example kingpost prove digits --arm NAME key=value"
        )
    from kingpost.prove.arms import ablation
    from kingpost.recipe import Recipe

    recipe = Recipe.load(args.recipe).patched(*args.changes)
    without = ablation(recipe, args.without) if args.without else {}
    return recipe, {**arms, **without}, asked


def _arms(args: argparse.Namespace) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text in args.arm or []:
        name, *words = json.loads(text)
        if not words:
            raise RecipeError(
                f"arm '{name}' has no patch", path="--arm", mend=f"for example --arm {name} techniques+=label-smoothing"
            )
        if "=" in name:
            raise RecipeError(f"'{name}' is a patch, not a name", path="--arm", mend=f"write --arm NAME {name}")
        if name in found:
            raise RecipeError(f"two arms are called '{name}'", path="--arm", mend="give each a name of its own")
        found[name] = words
    return found


def _check_resume(args: argparse.Namespace) -> None:
    if args.recipe or args.arm or args.command_line or args.dry_run:
        raise RecipeError("--resume goes on with what is declared", mend="leave the recipe, the arms and --dry-run out")


def seconds_of(text: str) -> float:
    """A time span in seconds.

    >>> seconds_of("20m"), seconds_of("1h30m"), seconds_of("90")
    (1200.0, 5400.0, 90.0)
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise RecipeError(f"got '{text}'", path="--time", mend="for example 90s, 20m or 1h30m")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def gathered(words: Sequence[str]) -> list[str]:
    """``--arm NAME word ...`` as one word each: those of a foreign command may look like options of ours."""
    own = {flag for flags, _ in COMMANDS["prove"].arguments for flag in flags if flag.startswith("--")} | {
        "--help",
        "-h",
    }
    foreign = any(word.partition("=")[0] == "--command" for word in words)
    made: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word != "--arm":
            made.append(word)
            continue
        arm: list[str] = []
        while rest and rest[0].partition("=")[0] not in own and (foreign or not rest[0].startswith("--")):
            arm.append(rest.pop(0))
            _check_foreign_word(arm[-1], own)
        if not arm:
            raise RecipeError("no name and no patch", path="--arm", mend="write --arm NAME key=value")
        made.append(f"--arm={json.dumps(arm)}")
    return made


def _check_foreign_word(word: str, own: set[str]) -> None:
    if word.startswith("--") and " " not in word:
        for near in difflib.get_close_matches(word.partition("=")[0], own, n=1, cutoff=CLOSE):
            raise RecipeError(
                f"unknown option '{word}'",
                mend=f"did you mean '{near}'? If it is the command's own, quote it with a blank: ' {word}'",
            )


def _ledger(args: argparse.Namespace) -> int:
    from kingpost.errors import RunError
    from kingpost.ledger import Ledger

    ledger = Ledger(args.ledger)
    if not ledger.path.is_file():
        raise RunError(f"no ledger '{ledger.path}' here; kingpost prove writes one, or name it with --ledger FILE")
    return _verify(ledger, args) if args.what == "verify" else _list(ledger, args)


def _verify(ledger: Any, args: argparse.Namespace) -> int:
    faults = ledger.verify(head=args.head)
    if args.json:
        print(json.dumps({"ledger": str(ledger.path), "faults": [vars(fault) for fault in faults]}, indent=2))
    elif faults:
        print("\n".join(f"{ledger.path}, {fault}" for fault in faults))
    else:
        rows = ledger.entries()
        last = f"; the last one is {rows[-1].sha256}" if rows else ""
        print(f"{ledger.path}: all {len(rows)} rows are whole and in order{last}")
    return 1 if faults else 0


def _list(ledger: Any, args: argparse.Namespace) -> int:
    if args.head:
        raise RecipeError("--head is for kingpost ledger verify", mend="leave it out")
    found = ledger.entries(trial=args.trial, kind=args.kind)
    if args.decision:
        found = [entry for entry in found if entry.body.get("decision") == args.decision]
    if args.since:
        found = [entry for entry in found if entry.time >= args.since]
    if args.json:
        print(json.dumps([entry.to_value() for entry in found], indent=2))
    elif found:
        print("\n".join(_rows(found)))
    else:
        trials = sorted({entry.trial for entry in ledger.entries() if entry.trial})
        hint = f"; {nearest(args.trial, trials)}" if args.trial and args.trial not in trials else ""
        print(f"no such rows{hint}")
    return 0


def _rows(found: Sequence[Any]) -> Iterator[str]:
    width = 160
    for entry in found:
        text = str(entry)
        yield text if len(text) <= width else text[: width - 3] + "..."


LEDGER = (("--ledger",), {"default": "ledger.jsonl", "metavar": "FILE", "help": "default: ledger.jsonl, here"})
JSON = (("--json",), {"action": "store_true", "help": "machine-readable output"})

COMMANDS: dict[str, Command] = {
    "prove": Command(
        "try changes against a baseline, pair after pair of runs with the same seed, until the evidence says enough",
        _prove,
        [
            (("recipe",), {"nargs": "?", "help": "the baseline: a YAML file, or a bundled recipe's name (digits)"}),
            (("changes",), {"nargs": "*", "default": [], "metavar": "key=value", "help": "overrides of the baseline"}),
            (("--arm",), {"action": "append", "metavar": "NAME key=value ...",
                          "help": "a change to try; may be given several times"}),
            (("--without",), {"nargs": "+", "metavar": "TECHNIQUE",
                              "help": "ablation: an arm without this technique; 'each' for one after another"}),
            (("--factorial",), {"nargs": "+", "metavar": "NAME",
                                "help": "try these arms in every combination: main effects and interactions"}),
            (("--command",), {"dest": "command_line", "metavar": "TEXT",
                              "help": "any program instead of a recipe, with {seed} and {patch} in it"}),
            (("--metric",), {"metavar": "NAME", "help": "a column of results.csv (default: the task's own)"}),
            (("--direction",), {"choices": ["max", "min"], "help": "default: what is known of the metric"}),
            (("--smallest",), {"type": float, "metavar": "X",
                               "help": "smallest difference that matters (default: 0.005 of a share such as accuracy, "
                                       "1 %% of the loss at chance)"}),
            (("--alpha",), {"type": float, "default": 0.05, "metavar": "P",
                            "help": "error rate of helps or hurts where nothing is, over all arms (default: 0.05)"}),
            (("--power",), {"type": float, "default": 0.8, "metavar": "P", "help": "default: 0.8"}),
            (("--min-pairs",), {"type": int, "metavar": "N", "help": "default: 5, or --max-pairs where that is less"}),
            (("--max-pairs",), {"type": int, "metavar": "N", "help": "default: 30, or what fits --time"}),
            (("--budget",), {"metavar": "KIND[=N]",
                             "help": "equal for all arms: steps, samples, seconds, flops; or own (default: what the "
                                     "recipe's budget means)"}),
            (("--at",), {"choices": ["last", "best"], "default": "last", "help": "epoch whose metric counts"}),
            (("--retune",), {"action": "append", "metavar": "KEY[=a,b]",
                             "help": "let every arm search this key first (default: x 1/3, 1, 3)"}),
            (("--time",), {"metavar": "SPAN", "help": "90s, 20m, 1h30m; no pair is begun that would not fit"}),
            (("--dry-run",), {"action": "store_true", "help": "say runs, time and memory, and end"}),
            (("--resume",), {"metavar": "TRIAL", "help": "go on with a trial: its folder, or its name"}),
            (("--name",), {"metavar": "NAME", "help": "of the trial (default: from the recipe and the arms)"}),
            (("--trials",), {"default": "trials", "metavar": "DIR", "help": "folder of all trials (default: trials)"}),
            LEDGER,
            (("--workers",), {"type": int, "metavar": "N", "help": "runs at a time (default: one a core)"}),
            (("--threads",), {"type": int, "default": 1, "metavar": "N", "help": "of each run (default: 1)"}),
            (("--ray",), {"metavar": "ADDRESS", "help": "run on this Ray cluster (extra 'ray'); 'local' starts one"}),
            (("--first-seed",), {"type": int, "default": 0, "metavar": "N", "help": "default: 0"}),
            (("--keep",), {"action": "store_true", "help": "keep the weights of all runs"}),
            (("--quiet",), {"action": "store_true", "help": "no progress, and only errors"}),
            JSON,
        ],
        [
            "kingpost prove digits techniques=[] budget.epochs=2 model.width=8 --arm wider model.width=64 --time 3m",
            "kingpost prove --resume digits-wider",
            "kingpost prove digits --without each --retune optimizer.lr --time 1h --dry-run",
            "kingpost prove digits --arm w model.width=96 --arm clip techniques+=clip --factorial w clip --dry-run",
        ],
        words=gathered,
        exit_codes=EXIT_CODES,
    ),
    "ledger": Command(
        "list what was tried, kept or not; or verify that no row was changed, removed or moved",
        _ledger,
        [
            (("what",), {"nargs": "?", "choices": ["list", "verify"], "default": "list", "help": "default: list"}),
            (("--trial",), {"metavar": "NAME", "help": "only the rows of this trial"}),
            (("--kind",), {"choices": ["declared", "retuned", "run", "look", "verdict", "tuning", "mended"],
                           "help": "only rows of this kind"}),
            (("--decision",), {"choices": DECISIONS, "help": "only those that say so"}),
            (("--since",), {"metavar": "DATE", "help": "only rows from this day on (UTC), such as 2030-12-31"}),
            (("--head",), {"metavar": "SHA256", "help": "verify: this row must be there, as a verdict states it"}),
            LEDGER,
            JSON,
        ],
        ["kingpost ledger --kind verdict", "kingpost ledger verify", "kingpost ledger --decision helps --json"],
    ),
}  # fmt: skip
