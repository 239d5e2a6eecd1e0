"""The verb ``tune`` of the command line."""

from __future__ import annotations

import argparse
import json
import sys

from kingpost.cli_command import Command
from kingpost.cli_prove import CODES, JSON, LEDGER, seconds_of

EXIT_CODES = """exit codes:
  0      the winner is proved to be better than the start
  3      the winner is worse than the start, on fresh seeds
  4      the winner makes no difference that matters
  5      no evidence yet, nothing better was found, or --search-only
  1      the search failed
  2      the command, recipe, data or search is not usable as given
  130    stopped by Ctrl-C after saving (143: by SIGTERM); the same command goes on"""


def _tune(args: argparse.Namespace) -> int:
    from kingpost.prove.session import TrialStopped
    from kingpost.prove.tune import forecast
    from kingpost.recipe import Recipe
    from kingpost.verbs import tune

    recipe = Recipe.load(args.recipe).patched(*args.changes)
    wishes = {
        "trials": args.trials,
        "seconds": None if args.time is None else seconds_of(args.time),
        "sampler": args.sampler,
        "workers": args.workers,
        "seed": args.seed,
        "name": args.name,
        "metric": args.metric,
        "direction": args.direction,
        "smallest_effect": args.smallest,
        "alpha": args.alpha,
        "power": args.power,
        "min_pairs": args.min_pairs,
        "max_pairs": args.max_pairs,
        "at": args.at,
        "budget": args.budget,
        "threads": args.threads,
    }
    space = args.space or ["default"]
    if args.dry_run:
        made = forecast(recipe, space, **wishes)
        print(json.dumps(made.to_value(), indent=2) if args.json else made)
        return 0
    places = {"root": args.tuned, "ledger": args.ledger, "keep": args.keep, "quiet": args.quiet}
    try:
        found = tune(
            recipe, space, **wishes, **places, pruner=args.pruner, storage=args.storage, proof=not args.search_only
        )
    except TrialStopped as stopped:
        print(f"{stopped}", file=sys.stderr)
        return 128 + stopped.signal
    print(json.dumps(found.to_value(), indent=2) if args.json else found)
    return CODES[found.decision]


COMMANDS: dict[str, Command] = {
    "tune": Command(
        "search a space of patches for the best, then prove the winner against the start on fresh seeds",
        _tune,
        [
            (("recipe",), {"help": "the start: a YAML file, or a bundled recipe's name (digits)"}),
            (("changes",), {"nargs": "*", "default": [], "metavar": "key=value", "help": "overrides of the start"}),
            (("--space",), {"nargs": "+", "action": "extend", "metavar": "KEY=VALUES",
                            "help": "key=low..high, key=low..high:log or key=a,b,c; 'default' stands for what the "
                                    "recipe suggests (default: default)"}),
            (("--trials",), {"type": int, "metavar": "N",
                             "help": "over all sittings (default: 30, or as many as fit --time)"}),
            (("--time",), {"metavar": "SPAN", "help": "90s, 20m, 1h30m; two thirds to search, a third to prove"}),
            (("--sampler",), {"default": "tpe", "metavar": "NAME",
                              "help": "tpe, random, gp, qmc or grid (default: tpe)"}),
            (("--pruner",), {"default": "median", "metavar": "NAME",
                             "help": "what ends bad runs early: median, hyperband or none (default: median)"}),
            (("--storage",), {"metavar": "PLACE",
                              "help": "sqlite:///x.db or another database, or a journal file, for several machines "
                                      "(default: a journal in the search's folder)"}),
            (("--seed",), {"type": int, "default": 0, "metavar": "N", "help": "of the sampler (default: 0)"}),
            (("--metric",), {"metavar": "NAME", "help": "a column of results.csv (default: the task's own)"}),
            (("--direction",), {"choices": ["max", "min"], "help": "default: what is known of the metric"}),
            (("--budget",), {"metavar": "KIND[=N]",
                             "help": "equal for all trials: steps, samples, seconds, flops; or own (default: what "
                                     "the recipe's budget means)"}),
            (("--at",), {"choices": ["last", "best"], "default": "last", "help": "epoch whose metric counts"}),
            (("--smallest",), {"type": float, "metavar": "X", "help": "proof: smallest difference that matters"}),
            (("--alpha",), {"type": float, "default": 0.05, "metavar": "P", "help": "proof: default 0.05"}),
            (("--power",), {"type": float, "default": 0.8, "metavar": "P", "help": "proof: default 0.8"}),
            (("--min-pairs",), {"type": int, "metavar": "N", "help": "proof: default 5, or --max-pairs"}),
            (("--max-pairs",), {"type": int, "metavar": "N", "help": "proof: default 30, or what fits --time"}),
            (("--search-only",), {"action": "store_true", "help": "no proof; the same command without this adds it"}),
            (("--dry-run",), {"action": "store_true", "help": "say space, trials and time, and end"}),
            (("--name",), {"metavar": "NAME", "help": "of the search (default: the recipe's)"}),
            (("--tuned",), {"default": "tuned", "metavar": "DIR", "help": "folder of all searches (default: tuned)"}),
            LEDGER,
            (("--workers",), {"type": int, "metavar": "N", "help": "runs at a time (default: one a core)"}),
            (("--threads",), {"type": int, "default": 1, "metavar": "N", "help": "of each run (default: 1)"}),
            (("--keep",), {"action": "store_true", "help": "keep the weights of all runs"}),
            (("--quiet",), {"action": "store_true", "help": "no progress, and only errors"}),
            JSON,
        ],
        [
            "kingpost tune digits techniques=[] budget.epochs=2 model.width=8 --space model.width=8,64 --sampler grid",
            "kingpost tune digits --space optimizer.lr=1e-4..1e-1:log batch_size=32,64,128 --trials 50 --dry-run",
            "kingpost tune digits --space default model.width=16..128 --time 1h --dry-run",
        ],
        exit_codes=EXIT_CODES,
    ),
}  # fmt: skip
