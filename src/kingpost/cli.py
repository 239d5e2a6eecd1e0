"""The command line: ``kingpost VERB ... [key=value ...]``.

Exit codes: 0 done; 1 the training failed; 2 the command, recipe, data or run is not usable as given;
128 + N stopped by signal N after saving (130 Ctrl-C, 143 SIGTERM).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from kingpost.errors import KingpostError, NonFiniteError, RecipeError, TrainingError, nearest

EXIT_CODES = """exit codes:
  0      done
  1      the training failed; its state is saved
  2      the command, recipe, data or run is not usable as given
  130    stopped by Ctrl-C after saving (143: by SIGTERM); go on with kingpost resume"""


@dataclass(frozen=True)
class Command:
    """One verb: what it does, which arguments it takes, and commands that run as they stand."""

    help: str
    run: Callable[[argparse.Namespace], int]
    arguments: Sequence[tuple[tuple[str, ...], dict[str, Any]]]
    examples: Sequence[str]


def _train(args: argparse.Namespace) -> int:
    from kingpost.recipe import Recipe
    from kingpost.verbs import train

    recipe = Recipe.load(args.recipe).patched(*args.changes)
    return _ended(train(recipe, root=args.runs, quiet=args.quiet), args)


def _resume(args: argparse.Namespace) -> int:
    from kingpost.verbs import resume

    return _ended(resume(args.run, *args.changes, quiet=args.quiet), args)


def _ended(run: Any, args: argparse.Namespace) -> int:
    from kingpost.train.parallel import is_rank_zero, was_launched

    if is_rank_zero() and not was_launched() and not (args.quiet and not args.json):
        after = "" if run.status != "finished" else _what_next(run)
        _print(run.to_value() if args.json else f"{run}{after}", args)
    return 128 + int(run.summary.get("signal", 0)) if run.status == "stopped" else 0


def _what_next(run: Any) -> str:
    return f"\n\nnext:\n  kingpost predict {run.folder}\n  kingpost report {run.folder}\n  kingpost runs"


def _plan(args: argparse.Namespace) -> int:
    from kingpost.recipe import Recipe
    from kingpost.train.planning import plan

    made = plan(Recipe.load(args.recipe).patched(*args.changes), measure=args.measure)
    _print(made.to_value() if args.json else str(made), args)
    return 0


def _predict(args: argparse.Namespace) -> int:
    from kingpost.run import Run
    from kingpost.train.predict import predict

    run = Run.open(args.run)
    made = predict(run, part=args.part, inputs=args.input, which=args.weights)
    path = Path(args.output) if args.output else run.folder / "predictions.csv"
    made.save_to(path)
    value = {"predictions": str(path), "samples": len(made.values), "metrics": dict(made.metrics)}
    figures = "".join(f"\n{key:<12} {figure:.6g}" for key, figure in made.metrics.items())
    _print(value if args.json else f"{len(made.values)} predictions in {path}{figures}", args)
    return 0


def _runs(args: argparse.Namespace) -> int:
    from kingpost.run import Run

    runs = Run.all_in(args.runs)
    if args.json:
        _print([run.to_value() for run in runs], args)
        return 0
    if not runs:
        _print(f"no runs in '{args.runs}/' yet; start one with: kingpost train digits", args)
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "status", "epoch", "step", "seconds", "best", "test", box=None, pad_edge=False)
    for run in runs:
        summary = run.summary
        cells = [summary.get(key) for key in ("epoch", "step")]
        seconds = f"{summary['seconds']:.1f}" if "seconds" in summary else ""
        table.add_row(run.name, run.status, *(str(c) if c is not None else "" for c in cells), seconds,
                      _brief(summary.get("best")), _brief(summary.get("test")))  # fmt: skip
    console = Console()
    with console.capture() as captured:  # rich itself would answer a closed pipe with exit code 1
        console.print(table)
    print(captured.get(), end="")
    return 0


def _brief(figures: dict[str, float | None] | None) -> str:
    """The first metric, or the loss where there is none."""
    shown = {key.removeprefix("validation_"): value for key, value in (figures or {}).items() if key != "epoch"}
    metric = next((key for key in shown if key != "loss"), "loss")
    return f"{metric} {value:.4g}" if (value := shown.get(metric)) is not None else ""


def _report(args: argparse.Namespace) -> int:
    from kingpost.report.html import report
    from kingpost.run import Run

    path = report(Run.open(args.run))
    _print({"report": str(path)} if args.json else str(path), args)
    return 0


def _schema(args: argparse.Namespace) -> int:
    from kingpost.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))
    return 0


RECIPE = (("recipe",), {"help": "a YAML file, or the name of a recipe that comes with kingpost (digits)"})
CHANGES = (
    ("changes",),
    {"nargs": "*", "default": [], "metavar": "key=value", "help": "overrides, such as optimizer.lr=0.01"},
)
RUN = (("run",), {"help": "a run's folder, or its name under runs/"})
RUNS_FOLDER = (
    ("--runs",),
    {"default": "runs", "metavar": "DIR", "help": "folder of all runs (default: runs)"},
)
QUIET = (("--quiet",), {"action": "store_true", "help": "no progress, and only errors"})
JSON = (("--json",), {"action": "store_true", "help": "machine-readable output"})

COMMANDS: dict[str, Command] = {
    "train": Command(
        "train a recipe in a new folder under runs/",
        _train,
        [RECIPE, CHANGES, RUNS_FOLDER, QUIET, JSON],
        [
            "kingpost train digits",
            "kingpost train digits budget.epochs=2 optimizer.lr=0.002",
            "kingpost train digits techniques+=mixup name=mixed",
            "kingpost train digits layout.data=2 budget.epochs=2 name=pair",
            "kingpost train digits budget.steps=50 --json --quiet",
        ],
    ),
    "resume": Command(
        "go on with a run that was stopped or killed, to the same bits",
        _resume,
        [RUN, CHANGES, QUIET, JSON],
        ["kingpost resume digits", "kingpost resume digits budget.epochs=42"],
    ),
    "plan": Command(
        "show every number that follows from a recipe, before anything is spent",
        _plan,
        [RECIPE, CHANGES, (("--measure",), {"action": "store_true", "help": "also time a few steps"}), JSON],
        ["kingpost plan digits", "kingpost plan digits batch_size=256 --measure", "kingpost plan digits --json"],
    ),
    "predict": Command(
        "write a run's predictions as CSV",
        _predict,
        [
            RUN,
            (("--part",), {"default": "test", "help": "test, validation or train (default: test)"}),
            (("--input",), {"metavar": "FILE", "help": "new samples, in the form of the run's data"}),
            (("--output",), {"metavar": "FILE", "help": "default: predictions.csv in the run's folder"}),
            (("--weights",), {"choices": ["best", "last"], "default": "best", "help": "of which epoch"}),
            JSON,
        ],
        ["kingpost predict digits", "kingpost predict digits --part validation --output validation.csv --json"],
    ),
    "runs": Command(
        "list all runs", _runs, [RUNS_FOLDER, JSON], ["kingpost runs", "kingpost runs --json"]
    ),
    "report": Command(
        "write a run's report.html again", _report, [RUN, JSON], ["kingpost report digits"]
    ),
    "schema": Command(
        "print the JSON schema of recipes, by which editors complete and check them",
        _schema,
        [],
        ["kingpost schema"],
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:  # so that `model: my_module:Net` is found, as with `python -m`
        sys.path.insert(0, os.getcwd())
    wants_json = "--json" in words
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise RecipeError(f"unknown command '{words[0]}'", mend=nearest(words[0], COMMANDS))
        args = _parse(words)
        code = COMMANDS[args.command].run(args)
        sys.stdout.flush()  # here a closed pipe can still be told from a fault
        return code
    except KingpostError as error:
        if wants_json:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, NonFiniteError | TrainingError) else 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone, as in `kingpost runs | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter closes it
        return 141


class _Parser(argparse.ArgumentParser):
    """Raises what :func:`main` turns into one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message, mend=f"see {self.prog} --help")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    if not words:
        parser.print_help()
        raise SystemExit(2)
    args, unknown = parser.parse_known_args(words)
    if hasattr(args, "changes"):  # overrides may also stand after options
        args.changes += [word for word in unknown if not word.startswith("-")]
        unknown = [word for word in unknown if word.startswith("-")]
    if unknown:
        options = [flag for flags, _ in COMMANDS[args.command].arguments for flag in flags if flag.startswith("--")]
        raise RecipeError(
            f"unknown option '{unknown[0]}'",
            mend=f"{nearest(unknown[0], options)}; see kingpost {args.command} --help",
        )
    return args


def _parser() -> argparse.ArgumentParser:
    import kingpost

    plain = argparse.RawDescriptionHelpFormatter
    firsts = "\n".join(f"  {command.examples[0]}" for command in COMMANDS.values())
    parser = _Parser(
        prog="kingpost",
        description="Train a network from a recipe; stop, resume, explain and use it.",
        epilog=f"examples:\n{firsts}\n\n{EXIT_CODES}",
        formatter_class=plain,
    )
    parser.add_argument("--version", action="version", version=f"kingpost {kingpost.__version__}")
    verbs = parser.add_subparsers(dest="command", required=True, metavar="VERB", parser_class=_Parser)
    for name, command in COMMANDS.items():
        examples = "\n".join(f"  {example}" for example in command.examples)
        verb = verbs.add_parser(
            name,
            help=command.help,
            description=command.help,
            epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
            formatter_class=plain,
        )
        for flags, settings in command.arguments:
            verb.add_argument(*flags, **settings)
    return parser


def _print(value: Any, args: argparse.Namespace) -> None:
    print(json.dumps(value, indent=2, default=str) if args.json else value)
