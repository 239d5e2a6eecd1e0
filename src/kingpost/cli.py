"""The command line: ``kingpost VERB ... [key=value ...]``.

Exit codes: 0 done; 1 the training failed; 2 the command, recipe, data or run is not usable as given;
128 + N stopped by signal N after saving (130 Ctrl-C, 143 SIGTERM).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from kingpost.cli_command import Command
from kingpost.cli_prove import COMMANDS as PROVE_COMMANDS
from kingpost.cli_study import COMMANDS as STUDY_COMMANDS
from kingpost.cli_tune import COMMANDS as TUNE_COMMANDS
from kingpost.errors import KingpostError, NonFiniteError, RecipeError, TrainingError, nearest

EXIT_CODES = """exit codes:
  0      done
  1      the training failed; its state is saved
  2      the command, recipe, data or run is not usable as given
  130    stopped by Ctrl-C after saving (143: by SIGTERM); go on with kingpost resume"""


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


def _lr(args: argparse.Namespace) -> int:
    from kingpost.errors import MissingExtraError
    from kingpost.recipe import Recipe
    from kingpost.report.range_plot import check_format, draw_range_test
    from kingpost.train.range_test import lr_range_test

    if args.output:
        check_format(args.output)
    recipe = Recipe.load(args.recipe).patched(*args.changes)
    found = lr_range_test(recipe, low=args.low, high=args.high, steps=args.steps, quiet=args.quiet)
    value, note = found.to_value(), ""
    if args.output:
        try:
            draw_range_test(args.output, found.curve(), found.marks(), f"range test of {found.name}", found.unit)
            note, value["plot"] = f"written: {args.output}", args.output
        except MissingExtraError as error:
            note, value["plot"] = f"no plot: {error}", None
            print(note, file=sys.stderr) if args.json else None
    _print(value if args.json else "\n".join(filter(None, (str(found), note))), args)
    return 0


def _size(args: argparse.Namespace) -> int:
    from kingpost.build.sizing import sized
    from kingpost.recipe import Recipe

    made = sized(Recipe.load(args.recipe), **_dial(args.dial))
    if args.output:
        made.recipe.save_to(args.output)
    _print(made.to_value() if args.json else str(made) + (f"\nwritten: {args.output}" if args.output else ""), args)
    return 0


def _dial(words: Sequence[str]) -> dict[str, Any]:
    """``depth=8`` as a mapping, with ``model.`` before the name or not."""
    from kingpost.patch import Patch

    return {key.removeprefix("model."): value for key, value in Patch.parse(*words).to_value().items()}


def _nets(args: argparse.Namespace) -> int:
    from kingpost.build.listing import nets

    found = nets(args.net)
    if args.json:
        _print([entry.to_value() for entry in found], args)
        return 0
    if args.net:
        print(found[0])
        return 0
    from rich.table import Table

    table = Table("net", "reads", "size", "parameters", "published", "counted on", box=None, pad_edge=False)
    for entry in found:
        for index, size in enumerate(entry.sizes):
            first = (entry.name, ", ".join(entry.reads)) if index == 0 else ("", "")
            published = f"{size.published:,}" if size.published is not None else ""
            table.add_row(*first, size.size, f"{size.parameters:,}", published, size.sample)
    _print_table(table)
    return 0


def _techniques(args: argparse.Namespace) -> int:
    from kingpost.cards import card, cards, plain_text

    if args.show not in (None, "show"):
        raise RecipeError(f"unknown word '{args.show}'", mend=f"write kingpost techniques show {args.show}")
    if args.show:
        if not args.technique:
            raise RecipeError("show which technique", mend="for example kingpost techniques show mixup")
        if args.kind or args.slot:
            raise RecipeError("--kind and --slot have no effect on one card", mend="leave them out")
        made = card(args.technique)
        _print(made.to_value() if args.json else str(made), args)
        return 0
    found = cards(args.kind, args.slot)
    if args.json:
        _print([one.to_value() for one in found], args)
        return 0
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "kind", "touches", "time", "activations", "state", box=None, pad_edge=False)
    table.add_column("what", overflow="ellipsis", no_wrap=True)
    for one in found:
        figures = ("", "", "")
        if (cost := one.cost) is not None:
            kept = "" if cost.activation_ratio is None else f"x {cost.activation_ratio:.2f}"
            figures = (f"x {cost.time_ratio:.2f}", kept, f"{cost.state_per_weight:.3g}")
        table.add_row(one.name, one.kind, ", ".join(one.touches), *figures, escape(plain_text(one.what)))
    _print_table(table)
    return 0


def _predict(args: argparse.Namespace) -> int:
    from kingpost.run import Run
    from kingpost.train.predict import predict

    runs = [Run.open(name) for name in args.runs_given]
    made = predict(
        runs[0] if len(runs) == 1 else runs, args.part, args.input, args.weights, voters=args.voters,
        calibrated=args.calibrated, alpha=args.conformal, sets=args.sets, samples=_samples(args),
    )  # fmt: skip
    stem = "-" + Path(args.input).name.partition(".")[0] if args.input else ""
    path = Path(args.output) if args.output else runs[0].folder / f"predictions{stem}.csv"
    made.save_to(path)
    value = {
        "predictions": str(path),
        "samples": len(made.values),
        "metrics": dict(made.metrics),
        "notes": dict(made.notes),
    }
    lines = ((key, f"{figure:.6g}", made.notes.get(key, "")) for key, figure in made.metrics.items())
    figures = "".join(f"\n{key:<12} {figure} {note}".rstrip() for key, figure, note in lines)
    _print(value if args.json else f"{len(made.values)} predictions in {path}{figures}", args)
    return 0


def _samples(args: argparse.Namespace) -> int:
    if args.samples is None:
        return 20
    if args.voters not in ("swag", "dropout"):
        raise RecipeError("--samples has no effect by itself", mend="add --swag or --dropout")
    return int(args.samples)


def _calibrate(args: argparse.Namespace) -> int:
    from kingpost.errors import MissingExtraError
    from kingpost.report.html import report
    from kingpost.run import Run
    from kingpost.train.calibrate import calibrate

    run = Run.open(args.run)
    made = calibrate(run, which=args.weights, bins=args.bins)
    try:
        where = f"reliability diagram in {report(run)}"
    except MissingExtraError as error:
        where = f"no reliability diagram: {error}"
    _print(made.to_value() if args.json else f"{made}\n{where}", args)
    return 0


def _attack(args: argparse.Namespace) -> int:
    from kingpost.patch import Patch
    from kingpost.train.adversarial.robust import robust_accuracy

    attack = {"name": args.attack, **Patch.parse(*args.fields).to_value()}
    made = robust_accuracy(args.run, attack, part=args.part, samples=args.samples, which=args.weights)
    _print(made.to_value() if args.json else str(made), args)
    return 0


def _learn_optimizer(args: argparse.Namespace) -> int:
    from kingpost.train.optimise.learned_training import learn_optimizer

    made = learn_optimizer(
        args.output, minutes=args.minutes, steps=args.steps, seed=args.seed, threads=args.threads, quiet=args.quiet
    )
    _print(made.to_value() if args.json else str(made), args)
    return 0


def _generate(args: argparse.Namespace) -> int:
    from kingpost.verbs import generate

    text = generate(
        args.run, args.prompt, args.tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p,
        beams=args.beams, seed=args.seed, which=args.weights,
    )  # fmt: skip
    _print({"text": text} if args.json else text, args)
    return 0


def _probe(args: argparse.Namespace) -> int:
    from kingpost.errors import MissingExtraError
    from kingpost.files import write_json
    from kingpost.recipe import Recipe
    from kingpost.run import Run
    from kingpost.train.probe import probe

    run = Run.open(args.run)
    made = probe(run, Recipe.load(args.data) if args.data else None, which=args.weights)
    stem = "probe" if not args.data else f"probe-{Path(args.data).stem}"
    path = Path(args.output) if args.output else run.folder / f"{stem}.json"
    write_json(path, made.to_value())
    page = ""
    try:
        from kingpost.report.probing import probe_page

        page = str(probe_page(path.with_suffix(".html"), made.to_value()))
    except (MissingExtraError, ModuleNotFoundError):
        page = "no figures: they need the extra 'report'"
    _print({**made.to_value(), "written": str(path), "page": page} if args.json else f"{made}\n\n{page}", args)
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
    from rich.table import Table

    table = Table("run", "status", "epoch", "step", "seconds", "best", "test", box=None, pad_edge=False)
    for run in runs:
        summary = run.summary
        cells = [summary.get(key) for key in ("epoch", "step")]
        seconds = f"{summary['seconds']:.1f}" if "seconds" in summary else ""
        table.add_row(run.name, run.status, *(str(c) if c is not None else "" for c in cells), seconds,
                      _brief(summary.get("best")), _brief(summary.get("test")))  # fmt: skip
    _print_table(table)
    return 0


def _print_table(table: Any) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # nothing is cut or wrapped where another program reads
        console.width = 10_000
    with console.capture() as captured:  # rich itself would answer a closed pipe with exit code 1
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


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
    "lr": Command(
        "find the learning rate: raise it step by step on weights that are thrown away, and watch the loss",
        _lr,
        [
            RECIPE,
            CHANGES,
            (("--from",), {"dest": "low", "type": float, "default": 1e-6, "metavar": "RATE", "help": "default: 1e-6"}),
            (("--to",), {"dest": "high", "type": float, "default": 1.0, "metavar": "RATE", "help": "default: 1"}),
            (("--steps",), {"type": int, "default": 100, "metavar": "N", "help": "at least 20 (default: 100)"}),
            (("--output",), {"metavar": "FILE", "help": "draw the curve: .png, .svg or .pdf (extra 'report')"}),
            QUIET,
            JSON,
        ],
        ["kingpost lr digits", "kingpost lr digits optimizer=sgd --to 10 --output lr.svg", "kingpost lr digits --json"],
    ),
    "nets": Command(
        "list the networks: what they read, their sizes and parameters",
        _nets,
        [(("net",), {"nargs": "?", "help": "only this one, with its paper and tasks"}), JSON],
        ["kingpost nets", "kingpost nets resnet", "kingpost nets --json"],
    ),
    "techniques": Command(
        "list all that can be put into a slot, or show one card: what it does, when it helps and fails, what it costs",
        _techniques,
        [
            (("show",), {"nargs": "?", "metavar": "show", "help": "show one card"}),
            (("technique",), {"nargs": "?", "metavar": "NAME", "help": "its name"}),
            (("--kind",), {"metavar": "KIND", "help": "only these: technique, optimizer, schedule, initialise, model, "
                                                     "layout"}),
            (("--slot",), {"metavar": "SLOT", "help": "only those that touch this slot, such as objective"}),
            JSON,
        ],
        [
            "kingpost techniques",
            "kingpost techniques show mixup",
            "kingpost techniques --kind technique --slot objective",
            "kingpost techniques show adamw --json",
        ],
    ),
    "size": Command(
        "turn a recipe's one dial: depth, width or size; what depends on it follows, with reasons",
        _size,
        [
            RECIPE,
            (
                ("dial",),
                {"nargs": "*", "default": [], "metavar": "dial=value", "help": "depth=8, width=256, size=... or phi=1"},
            ),
            (("--output",), {"metavar": "FILE", "help": "write the resized recipe"}),
            JSON,
        ],
        ["kingpost size digits width=96", "kingpost size digits depth=2 width=48 --output small.yaml"],
    ),
    "predict": Command(
        "write predictions as CSV: of a run, of several runs together, or of nets drawn from one",
        _predict,
        [
            (("runs_given",), {"nargs": "+", "metavar": "run", "help": "a run's folder, or its name; several vote"}),
            (("--part",), {"default": "test", "help": "test, validation or train (default: test)"}),
            (("--input",), {"metavar": "FILE", "help": "new samples, in the form of the run's data"}),
            (("--output",), {"metavar": "FILE", "help": "default: predictions[-INPUT].csv in the run's folder"}),
            (("--weights",), {"choices": ["best", "last"], "default": "best", "help": "of which epoch"}),
            (("--snapshots",), {"dest": "voters", "action": "store_const", "const": "snapshots",
                                "help": "let the snapshots vote that the run has kept"}),
            (("--swag",), {"dest": "voters", "action": "store_const", "const": "swag",
                           "help": "let nets vote that are drawn from the run's SWAG distribution"}),
            (("--dropout",), {"dest": "voters", "action": "store_const", "const": "dropout",
                              "help": "leave dropout on, and let the masks vote"}),
            (("--samples",), {"type": int, "metavar": "N", "help": "nets or masks that are drawn (default: 20)"}),
            (("--calibrated",), {"action": "store_true", "help": "use the temperature of kingpost calibrate"}),
            (("--conformal",), {"type": float, "metavar": "ALPHA",
                                "help": "add sets that miss the truth with at most this probability"}),
            (("--sets",), {"choices": ["aps", "raps", "lac", "residual", "cqr"], "help": "how the sets are made"}),
            JSON,
        ],
        [
            "kingpost predict digits",
            "kingpost predict digits --part validation --output validation.csv --json",
            "kingpost predict digits --conformal 0.1",
        ],
    ),
    "calibrate": Command(
        "fit a classifier's temperature on its validation part; show how honest its probabilities are",
        _calibrate,
        [
            RUN,
            (("--weights",), {"choices": ["best", "last"], "default": "best", "help": "of which epoch"}),
            (("--bins",), {"type": int, "default": 15, "help": "of the calibration error (default: 15)"}),
            JSON,
        ],
        ["kingpost calibrate digits"],
    ),
    "attack": Command(
        "measure a classifier's accuracy on inputs that are changed to mislead it",
        _attack,
        [
            RUN,
            (("attack",), {"help": "pgd or fgsm"}),
            (("fields",), {"nargs": "*", "default": [], "metavar": "field=value",
                           "help": "of the attack, in the input's own unit: epsilon=0.3 steps=20 norm=l2"}),
            (("--part",), {"default": "test", "help": "test, validation or train (default: test)"}),
            (("--samples",), {"type": int, "metavar": "N", "help": "the first N only (default: all)"}),
            (("--weights",), {"choices": ["best", "last"], "default": "best", "help": "of which epoch"}),
            JSON,
        ],
        ["kingpost attack digits pgd epsilon=0.3 steps=20", "kingpost attack digits fgsm --samples 100 --json"],
    ),
    "generate": Command(
        "let a trained language model write",
        _generate,
        [
            RUN,
            (("--prompt",), {"metavar": "TEXT", "default": "\n", "help": "what it goes on from; default: a line feed"}),
            (("--tokens",), {"metavar": "N", "type": int, "default": 200, "help": "how many it adds (default: 200)"}),
            (("--temperature",), {"metavar": "T", "type": float, "default": 1.0, "help": "0 takes the likeliest"}),
            (("--top-k",), {"metavar": "K", "type": int, "help": "draw from the K likeliest only"}),
            (("--top-p",), {"metavar": "P", "type": float, "help": "draw from the likeliest that have P together"}),
            (("--beams",), {"metavar": "N", "type": int, "default": 1, "help": "search with N beams, draw nothing"}),
            (("--seed",), {"metavar": "N", "type": int, "default": 0, "help": "of the draws"}),
            (("--weights",), {"choices": ["best", "last"], "default": "best", "help": "of which epoch"}),
            JSON,
        ],
        ["kingpost generate tale --prompt Once --tokens 80", "kingpost generate tale --temperature 0.7 --top-k 20"],
    ),
    "probe": Command(
        "how much the features of each layer of a run are worth, for its own task or another",
        _probe,
        [
            RUN,
            (("--data",), {"metavar": "RECIPE", "help": "a recipe whose data the features are tried on"}),
            (("--output",), {"metavar": "FILE", "help": "default: probe[-RECIPE].json in the run's folder"}),
            (("--weights",), {"choices": ["best", "last"], "default": "best", "help": "of which epoch"}),
            JSON,
        ],
        ["kingpost probe digits", "kingpost probe digits --data digits --json"],
    ),
    "learn-optimizer": Command(
        "meta-train an optimizer on small tasks; the same command goes on where it was stopped",
        _learn_optimizer,
        [
            (("--output",), {"required": True, "metavar": "FILE", "help": "weights, .safetensors"}),
            (("--minutes",), {"type": float, "help": "how long, together with what was done before"}),
            (("--steps",), {"type": int, "help": "or how many meta-steps, together with those done before"}),
            (("--seed",), {"type": int, "default": 0, "help": "of all draws (default: 0)"}),
            (("--threads",), {"type": int, "default": 1, "help": "of the processor (default: 1)"}),
            QUIET,
            JSON,
        ],
        ["kingpost learn-optimizer --output mine.safetensors --steps 2 --quiet"],
    ),
    "runs": Command(
        "list all runs", _runs, [RUNS_FOLDER, JSON], ["kingpost runs", "kingpost runs --json"]
    ),
    "report": Command(
        "write a run's report.html again", _report, [RUN, JSON], ["kingpost report digits"]
    ),
    **PROVE_COMMANDS,
    **TUNE_COMMANDS,
    **STUDY_COMMANDS,
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
    if words[0] in COMMANDS:
        words = [words[0], *COMMANDS[words[0]].words(words[1:])]
    args, unknown = parser.parse_known_args(words)
    if hasattr(args, "changes"):  # overrides may also stand after options
        args.changes = [*args.changes, *(word for word in unknown if not word.startswith("-"))]
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
            epilog=f"examples:\n{examples}\n\n{command.exit_codes or EXIT_CODES}",
            formatter_class=plain,
        )
        for flags, settings in command.arguments:
            verb.add_argument(*flags, **settings)
    return parser


def _print(value: Any, args: argparse.Namespace) -> None:
    print(json.dumps(value, indent=2, default=str) if args.json else value)
