"""Write the pages that are made from the code: ``python docs/generate.py``; with ``--check``, only compare.

Whole pages: techniques.md, cli.md, nets.md, results.md, references.md, studies.md, parity.md, contracts.md.
Parts between markers: the tables in recipes.md and data.md, and benchmark results wherever a page has markers for them.
What studies found goes into their own folders. parity.md and contracts.md come from runs of their suites, which take
minutes; ``--check`` and ``--quick`` leave them out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from net_pages import nets_page, parity_page, results_page
from reference_page import references_page
from studies_page import STUDIES, studies_page, study_pages

import kingpost
from kingpost import cards, catalogue
from kingpost.assembly import Slot
from kingpost.cards import card
from kingpost.cli import COMMANDS, EXIT_CODES
from kingpost.schema import recipe_schema
from kingpost.technique import Technique

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Generated: do not edit. Write it again with: python docs/generate.py -->\n\n"
KINDS = ("technique", "model", "initialise", "optimizer", "schedule", "layout")
HEADINGS = {
    "technique": "Techniques",
    "model": "Models",
    "initialise": "Initialisers",
    "optimizer": "Optimizers",
    "schedule": "Schedules",
    "layout": "Layouts",
}
WHERE = {
    "technique": "Listed under `techniques`; a later one wraps an earlier one.",
    "model": "Chosen by `model`.",
    "initialise": "Chosen by `initialise`; null leaves the weights as the constructor made them.",
    "optimizer": "Chosen by `optimizer`.",
    "schedule": "Chosen by `schedule`: a factor on every learning rate.",
    "layout": "Chosen by `layout`: device and processes.",
}


# ---- words for schema values


def type_words(value: Mapping[str, Any]) -> str:
    """What a field accepts, from its JSON schema, in words."""
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(type_words(item) for item in value["anyOf"]))
    if "$ref" in value:
        kind = value["$ref"].rpartition("/")[2]
        page = {"data": "data.md", "task": "recipes.md#tasks"}.get(
            kind, f"techniques.md#{HEADINGS.get(kind, '').lower()}"
        )
        return f"[{kind}]({page})"
    if "enum" in value:
        return ", ".join(f"`{item}`" for item in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value.get("type")
    if kind == "array":
        if "prefixItems" in value:
            return f"list of {len(value['prefixItems'])}"
        return f"list of {type_words(value.get('items', {}))}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false",
             "null": "null", "object": "mapping"}  # fmt: skip
    signs = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
    bounds = [f"{sign} {value[key]}" for key, sign in signs if key in value]
    return " ".join([words.get(str(kind), "anything"), ", ".join(bounds)]).strip()


def default_words(name: str, value: Mapping[str, Any], required: list[str]) -> str:
    """The default as YAML would show it."""
    if name in required:
        return "**required**"
    if "default" not in value:
        return ""
    default = value["default"]
    if isinstance(default, str) and default:
        return f"`{default}`"
    if isinstance(default, float):
        return f"`{default:.6g}`"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def markdown(text: str) -> str:
    """Docstring text as Markdown: code in single backticks, roles by their name."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"``([^`]+)``", r"`\1`", text)


def cell(text: str) -> str:
    """Text that fits a table cell."""
    return markdown(re.sub(r"\s+", " ", text)).replace("|", "\\|")


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def field_table(schema: Mapping[str, Any]) -> str:
    """The fields of an option: name, default, what is allowed, what it means."""
    rows = [
        (
            f"`{name}`",
            default_words(name, value, schema["required"]),
            cell(type_words(value)),
            cell(value.get("description", "")),
        )
        for name, value in schema["properties"].items()
        if name != "name" or "const" not in value
    ]
    return table(("field", "default", "allowed", "meaning"), rows) if rows else "No fields.\n"


def schema_of(schema: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    """The schema of one option of the catalogue."""
    forms = schema["$defs"][kind]["anyOf"]
    return next(form for form in forms if form.get("properties", {}).get("name", {}).get("const") == name)


def paragraphs(cls: type) -> str:
    """A docstring's text as Markdown; the source, which comes last, in a line of its own."""
    text = re.split(r"\n\s*(?:>>>|Args:)", (cls.__doc__ or "").strip())[0]
    parts = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text)]
    body = "\n\n".join(markdown(part) for part in parts if part)
    body = re.sub(r"(^|(?<=\. )|(?<=\n))Fails ", "**Fails** ", body)
    return re.sub(r"\s*\bSource: ", "\n\n*Source:* ", body).strip()


# ---- techniques.md


def technique_page() -> str:
    """The catalogue of everything that fills or wraps a slot."""
    schema = recipe_schema()
    lines = [
        "# Techniques\n",
        "Everything that fills or wraps a slot of the [assembly](algebra.md): by name, with the slots it touches, its "
        "fields, when it helps and fails, what it costs, and where it comes from. What each one is tested for stands "
        "in [the table of contracts](contracts.md). How to write your own: [Extending](extending.md).\n",
        "## By slot\n",
        slot_table(),
    ]
    for kind in KINDS:
        lines += [f"## {HEADINGS[kind]}\n", WHERE[kind] + "\n"]
        for name in catalogue.CATALOGUE[kind]:
            lines += technique_entry(kind, name, schema)
    return "\n".join(lines)


def slot_table() -> str:
    """Which techniques touch which slot."""
    rows = []
    for slot in get_args(Slot):
        users = [
            (name, kind) for kind in KINDS for name in catalogue.CATALOGUE[kind] if slot in found(kind, name).touches
        ]
        rows.append((f"`{slot}`", ", ".join(f"[{name}](#{name})" for name, _ in users)))
    return table(("slot", "filled or wrapped by"), rows)


def found(kind: str, name: str) -> type[Technique]:
    """A technique's class."""
    cls = catalogue.find(kind, name)
    assert isinstance(cls, type) and issubclass(cls, Technique)
    return cls


def technique_entry(kind: str, name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """One technique."""
    cls, shown = found(kind, name), card(name)
    yield f"### {name}\n"
    yield "\n\n".join(map(markdown, (shown.what, *shown.notes))) + "\n"
    for label, text in (("Helps", shown.helps), ("Fails", shown.fails), ("Costs", shown.costs)):
        if text:
            yield f"**{label}**{markdown(text.removeprefix(label))}\n"
    if shown.source:
        yield f"*Source:* {markdown(shown.source)}.\n"
    facts = [("touches", ", ".join(f"`{slot}`" for slot in shown.touches))]
    for label, names in (("listed after", shown.after), ("listed before", shown.before)):
        if names:
            facts.append((label, ", ".join(f"`{other}`" for other in names)))
    if shown.conflicts:
        facts.append(("excludes", "; ".join(f"`{other}` ({reason})" for other, reason in shown.conflicts.items())))
    if shown.tasks:
        facts.append(("for the tasks", ", ".join(shown.tasks)))
    if shown.neutral:
        facts.append(("does nothing at", ", ".join(f"`{key}={value}`" for key, value in shown.neutral.items())))
    if shown.exceptions:
        reasons = [f"{contract}: {reason}" for contract, reason in shown.exceptions.items()]
        facts.append(("exceptions", "; ".join(reasons)))
    if shown.cost is not None:
        facts += [("measured cost", str(shown.cost)), ("memory", shown.cost.memory)]
    facts.append(("effect", shown.effect))
    facts.append(("in Python", f"`kp.{cls.__name__}`, in `{cls.__module__}`"))
    yield "\n".join(f"- {key}: {value}" for key, value in facts) + "\n"
    yield field_table(schema_of(schema, kind, name))


# ---- parts of recipes.md and data.md


def recipe_keys() -> str:
    """Every key of a recipe."""
    schema = recipe_schema()
    parts = []
    plain = kingpost.Recipe(name="x", data="digits", model="mlp").to_value()
    top, sections = {}, {}
    for name, value in schema["properties"].items():
        shown = value
        if value.get("type") == "object" and "properties" in value:
            sections[name] = value
            shown = {"type": "object", "description": value["description"]}
        default = plain[name]
        if isinstance(default, dict):
            default = default.get("name") or {key: item for key, item in default.items() if item is not None}
        top[name] = {**shown, "default": default if name != "save" else {}}
    parts.append(field_table({"properties": top, "required": schema["required"]}))
    for name, section in sections.items():
        parts += [f"### `{name}`\n", section["description"] + "\n", field_table(section)]
    tasks = [
        (
            f"`{name}`",
            cell(paragraphs(cls)),
            f"`{cls.metric}`, {'higher' if cls.higher_is_better else 'lower'} is better",
        )
        for name in catalogue.CATALOGUE["task"]
        for cls in [catalogue.find("task", name)]
    ]
    parts += ["### Tasks\n", table(("task", "what it is", "chooses the best weights"), tasks)]
    for name in catalogue.CATALOGUE["task"]:
        if len((fields := schema_of(schema, "task", name))["properties"]) > 1:
            parts += [f"Fields of `{name}`:\n", field_table(fields)]
    return "\n".join(parts)


def source_fields(name: str) -> str:
    """What a data source says of itself, and its fields."""
    cls = catalogue.find("data", name)
    assert isinstance(cls, type)
    return paragraphs(cls) + "\n\n" + field_table(schema_of(recipe_schema(), "data", name))


# ---- cli.md


def cli_page() -> str:
    """Every command."""
    lines = [
        "# Command line\n",
        "`kingpost VERB ... [key=value ...]`. Every verb takes `--help`. Results go to standard output, progress and "
        "errors to standard error. With `--json`, standard output holds one JSON value, in case of an error "
        '`{"error": ..., "kind": ...}`.\n',
        "## Exit codes\n",
        "```text\n" + re.sub(r"(?m)^  ", "", EXIT_CODES.partition("\n")[2]) + "\n```\n",
    ]
    for name, command in COMMANDS.items():
        rows = []
        for flags, settings in command.arguments:
            shown = settings.get("metavar", flags[-1]) if not flags[-1].startswith("-") else ", ".join(flags)
            if flags[-1].startswith("-") and settings.get("metavar"):
                shown += f" {settings['metavar']}"
            if settings.get("nargs") == "*":
                shown = f"[{shown} ...]"
            help_text = settings.get("help", "").replace("%%", "%")
            if choices := settings.get("choices"):
                default = f"; default: {settings['default']}" if settings.get("default") else ""
                help_text = f"{help_text}: {' or '.join(choices)}{default}"
            rows.append((f"`{shown}`", cell(help_text)))
        text = command.help[0].upper() + command.help[1:] + "."
        lines += [f"## {name}\n", text + "\n"]
        if rows:
            lines.append(table(("argument", "meaning"), rows))
        if command.exit_codes:
            lines.append("```text\n" + re.sub(r"(?m)^  ", "", command.exit_codes) + "\n```\n")
        lines.append("```console\n" + "\n".join(f"$ {example}" for example in command.examples) + "\n```\n")
    return "\n".join(lines)


# ---- contracts.md


def contracts_page() -> str:
    """Run the contract suite, and turn its outcomes into a table; ends the program if a contract is broken."""
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "junit.xml"
        words = [sys.executable, "-m", "pytest", "tests/contract", "-q", f"--junitxml={xml}", "-p", "no:cacheprovider"]
        done = subprocess.run(words, cwd=DOCS.parent, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the contract suite failed; contracts.md is left as it was\n{done.stdout[-4000:]}")
        cases = [
            (case.get("name", ""), case.find("skipped")) for case in ElementTree.parse(xml).getroot().iter("testcase")
        ]
    every = [(kind, name) for kind in KINDS for name in catalogue.CATALOGUE[kind]]
    subjects = [(kind, name) for kind, name in every if found(kind, name).example is not None]
    outcomes: dict[str, dict[tuple[str, str], list[str]]] = {}
    for title, skipped in cases:
        test, _, rest = title.removesuffix("]").partition("[")
        # The longest name that fits: `he` must not claim what is another's.
        fits = [s for s in subjects if re.search(rf"(^|-){re.escape('-'.join(s))}($|-)", rest)]
        if not fits:
            continue
        subject = max(fits, key=lambda s: len(s[1]))
        reason = (
            "" if skipped is None else re.sub(r"^[a-z ]+: ", "", skipped.get("message", "").removeprefix("Skipped: "))
        )
        outcomes.setdefault(test, {}).setdefault(subject, []).append(reason)
    notes: list[str] = []
    rows = []
    for kind, name in subjects:
        cells = [mark(outcomes[test].get((kind, name), ["not tested"]), notes) for test in outcomes]
        rows.append((f"[{name}](techniques.md#{name})", *cells))
    columns = [f"C{number}" for number in range(1, len(outcomes) + 1)]
    meaning = [f"- **C{n}** {test.removeprefix('test_').replace('_', ' ')}" for n, test in enumerate(outcomes, 1)]
    marked = sum(cell.startswith("✓") for row in rows for cell in row[1:])
    versions = f"kingpost {kingpost.__version__}, torch {torch.__version__}, Python {platform.python_version()}, CPU"
    return "\n".join(
        [
            "# Contracts\n",
            "One suite, `tests/contract/`, finds every technique of the catalogue by itself and asks the same of each. "
            "A technique may say that a contract does not hold for it, with the reason; that is an attribute of the "
            "technique ([decision 9](decisions/0009-exceptions.md)), and shows up here as a note.\n",
            f"Run on {datetime.date.today().isoformat()} with {versions}: {len(subjects)} subjects, {len(outcomes)} "
            f"contracts, {marked} kept, {len(subjects) * len(outcomes) - marked} not applicable or excepted.\n",
            *meaning,
            "",
            "Each is checked on a toy task of a few steps, in 64 bits where the technique allows it. What a contract "
            "says exactly, and with which tolerance, stands in `tests/contract/test_contracts.py`. A number instead of "
            "a tick points to the note below the table.\n",
            table(("", *columns), rows),
            *[f"{number}. {note}" for number, note in enumerate(notes, 1)],
            "",
        ]
    )


def mark(reasons: list[str], notes: list[str]) -> str:
    """A tick if the contract is kept, and the number of the note for each reason why it was not asked."""
    numbers = []
    for reason in dict.fromkeys(filter(None, reasons)):
        if reason not in notes:
            notes.append(reason)
        numbers.append(str(notes.index(reason) + 1))
    tick = "✓" if "" in reasons else ""
    return tick + (f" <sup>{', '.join(numbers)}</sup>" if numbers else "")


# ---- writing and checking


def with_parts(path: Path, parts: Mapping[str, str]) -> str:
    """A page's text with what stands between its markers replaced."""
    text = path.read_text(encoding="utf-8")
    for name, body in parts.items():
        begin, end = f"<!-- generated by docs/generate.py: {name} -->", "<!-- end of generated -->"
        pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.S)
        if len(pattern.findall(text)) != 1:
            sys.exit(f"{path}: expected the markers of '{name}' once")
        text = pattern.sub(lambda _, b=begin, m=body, e=end: f"{b}\n\n{m.strip()}\n\n{e}", text)
    return text


def measured() -> dict[Path, str]:
    """The pages that show tables of benchmarks/results, with those tables as they are now."""
    found = {}
    for path in DOCS.glob("*.md"):
        names = re.findall(r"<!-- generated by docs/generate.py: (results/\S+\.md) -->", path.read_text("utf-8"))
        texts = {name: (DOCS.parent / "benchmarks" / name).read_text("utf-8") for name in names}
        if texts:
            found[path] = with_parts(
                path, {name: re.sub(r"<!--.*?-->|^# .*", "", text) for name, text in texts.items()}
            )
    return found


def pages() -> dict[Path, str]:
    """All pages but the contracts, as they should be."""
    of_studies = study_pages()
    known = json.loads(of_studies[STUDIES / "verdicts.json"])["verdicts"]
    cards.verdicts = lambda: known  # as they will be, rather than as the file still has them
    sources = {name: source_fields(name) for name in catalogue.CATALOGUE["data"]}
    return {
        DOCS / "techniques.md": NOTE + technique_page(),
        DOCS / "cli.md": NOTE + cli_page(),
        DOCS / "nets.md": NOTE + nets_page(),
        DOCS / "results.md": NOTE + results_page(),
        DOCS / "references.md": NOTE + references_page(),
        DOCS / "studies.md": NOTE + studies_page(),
        DOCS / "recipes.md": with_parts(DOCS / "recipes.md", {"keys": recipe_keys()}),
        DOCS / "data.md": with_parts(DOCS / "data.md", sources),
        **measured(),
        **of_studies,
    }


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is stale")
    parser.add_argument("--quick", action="store_true", help="leave parity.md and contracts.md as they are")
    args = parser.parse_args()
    made = pages()
    stale = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if args.check:
        for path in stale:
            print(f"{path.relative_to(DOCS.parent)} is stale; write it again with: python docs/generate.py --quick")
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path], encoding="utf-8")
    if not args.quick:
        (DOCS / "parity.md").write_text(NOTE + parity_page(), encoding="utf-8")
        (DOCS / "contracts.md").write_text(NOTE + contracts_page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
