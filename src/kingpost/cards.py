"""Cards: what there is to know of a technique before it is used, from its docstring, its class and its measurements.

A docstring says what a technique does in one line, then explains; sentences that begin with "Helps", "Fails",
"Costs" and "Source:" are found by these words.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from kingpost import catalogue
from kingpost.assembly import Slot
from kingpost.errors import RecipeError, nearest
from kingpost.technique import Technique

KINDS = ("technique", "optimizer", "schedule", "initialise", "model", "layout")
LINES, WIDTH = 30, 110  # of a card in the terminal
UNPROVEN = "unproven"


@dataclass(frozen=True)
class Cost:
    """What a technique was measured to cost, against the same small recipe without it.

    Args:
        time_ratio: processor time of a step with it / without it: the quotient of the 10th percentiles over rounds.
        low, high: the quotients of single rounds, 10th and 90th percentile.
        rounds: how many were measured, each of some steps with it and some without, in turn.
        extra_parameters: numbers that are trained only because of it.
        state_per_weight: numbers that it (an optimizer: altogether) keeps across steps, for each trained parameter.
        activation_ratio: bytes kept for backward with it / without it, counted by the plan; None if not countable.
        subject: net and data that it was measured on.
        machine: processor and threads.
        date: when, in UTC.
        load: what else ran: processes that wanted the processor, for each core; above 1 the times are rough.
    """

    time_ratio: float
    low: float
    high: float
    rounds: int
    extra_parameters: int
    state_per_weight: float
    activation_ratio: float | None
    subject: str
    machine: str
    date: str
    load: float

    def __str__(self) -> str:
        rough = f"; a busy machine ({self.load:.1f} processes a core), so roughly" if self.load > 1 else ""
        return (
            f"{self.time_ratio:.2f} x the time of a step ({self.low:.2f} to {self.high:.2f}, n = {self.rounds} rounds; "
            f"{self.subject}; {self.machine}, {self.date}{rough})"
        )

    @property
    def memory(self) -> str:
        """State, parameters and activations in words."""
        kept = f"{abs(self.state_per_weight):.3g}"
        words = f"keeps {kept} number{'s' * (kept != '1')} a weight" + " less" * (self.state_per_weight < 0)
        parts = [words if self.state_per_weight else "keeps nothing"]
        if self.extra_parameters:
            parts.append(f"{self.extra_parameters:+,} parameters")
        if self.activation_ratio is not None:
            parts.append(f"{self.activation_ratio:.2f} x the activations")
        return ", ".join(parts)


@dataclass(frozen=True)
class CardField:
    """A field of a technique: its name, its default as text (empty if it must be given), and what it means."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Card:
    """All that is known of one technique.

    Args:
        name: its name in a recipe.
        kind: where a recipe has it.
        reference: its class, ``module:Class``.
        what: what it does, one line.
        equation: the formula in it, or empty.
        notes: how it works, paragraphs.
        helps, fails, costs, source: what its docstring says of these; empty if it says nothing.
        touches: the slots of the assembly that it changes.
        tasks: those that it is meant for; empty for all.
        after, before: what must be listed earlier, and later, if listed at all.
        conflicts: what it cannot be used together with, and why.
        neutral: field values at which it changes nothing.
        exceptions: contracts that do not hold for it (with its example fields), and why.
        resumes, exports: what the contract suite says of restarts and of ``torch.export``.
        fields: what can be set.
        cost: as measured; None if it was not.
        effect: what it does to the score in the project's studies: helps, neutral, harms or unproven, on which data
            and net; "unproven" as long as no study has compared it.
    """

    name: str
    kind: str
    reference: str
    what: str
    equation: str
    notes: tuple[str, ...]
    helps: str
    fails: str
    costs: str
    source: str
    touches: tuple[Slot, ...]
    tasks: tuple[str, ...]
    after: tuple[str, ...]
    before: tuple[str, ...]
    conflicts: Mapping[str, str]
    neutral: Mapping[str, Any]
    exceptions: Mapping[str, str]
    resumes: str
    exports: str
    fields: tuple[CardField, ...]
    cost: Cost | None
    effect: str = UNPROVEN

    def to_value(self) -> dict[str, Any]:
        """As plain values for ``--json``."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        long = [f"{f.name} = {f.default or '(required)'}{f.meaning and ': '}{f.meaning}" for f in self.fields]
        short = ", ".join(f"{f.name}={f.default or '(required)'}" for f in self.fields)
        lines = list(self._lines(long))
        return "\n".join(lines if len(lines) <= LINES else self._lines([short]))

    def _lines(self, fields: list[str]) -> Iterator[str]:
        yield from textwrap.wrap(f"{self.name} ({self.kind}): {plain_text(self.what)}", WIDTH, subsequent_indent="    ")
        yield from _entry("equation", [self.equation])
        yield from _entry("helps", [_begun(self.helps, "Helps ")])
        yield from _entry("fails", [_begun(self.fails, "Fails ")])
        said = [_begun(self.costs, "Costs ")] if self.costs else []
        measured = [f"measured: {self.cost}", self.cost.memory] if self.cost else ["not measured"]
        yield from _entry("costs", [*said, *measured])
        yield from _entry("effect", [self.effect])
        yield from _entry("touches", [", ".join(self.touches)])
        yield from _entry("tasks", [", ".join(self.tasks)])
        order = [
            f"{word} {', '.join(names)}" for word, names in (("after", self.after), ("before", self.before)) if names
        ]
        yield from _entry("listed", ["; ".join(order)])
        yield from _entry("excludes", ["; ".join(f"{name} ({reason})" for name, reason in self.conflicts.items())])
        yield from _entry("excepted", ["; ".join(f"{name}: {reason}" for name, reason in self.exceptions.items())])
        yield from _entry("resumes", [self.resumes])
        yield from _entry("exports", [self.exports])
        yield from _entry("fields", fields)
        yield from _entry("source", [plain_text(self.source)])


def card(name: str) -> Card:
    """The card of the technique, optimizer, schedule, initialiser, net or layout of that name.

    Raises:
        RecipeError: there is none; the nearest name is given.

    >>> print(card("clip").equation)
    g = g * min(1, norm / |g|)
    """
    known = _classes()
    if name not in known:
        raise RecipeError(f"no technique '{name}'", mend=nearest(name, known))
    kind, cls = known[name]
    said = Said.of(cls)
    exceptions = _exceptions(cls)
    others = {other: with_ for other, (_, with_) in known.items()}
    return Card(
        name=name,
        kind=kind,
        reference=f"{cls.__module__}:{cls.__qualname__}",
        what=said.what,
        equation=said.equation,
        notes=said.notes,
        helps=said.helps,
        fails=said.fails,
        costs=said.costs,
        source=said.source,
        touches=tuple(slot for slot in get_args(Slot) if slot in cls.touches),
        tasks=tuple(cls.tasks),
        after=tuple(cls.after),
        before=tuple(other for other, c in others.items() if name in c.after),
        conflicts={**{other: c.conflicts[name] for other, c in others.items() if name in c.conflicts}, **cls.conflicts},
        neutral=dict(cls.neutral or {}),
        exceptions=exceptions,
        resumes=_checked("to the same bits", "resume", cls, exceptions),
        exports=_exports(kind, cls, exceptions),
        fields=tuple(_fields(cls)),
        cost=costs().get(f"{kind}/{name}"),
        effect=effect_of(verdicts().get(f"{kind}/{name}", ())),
    )


def cards(kind: str | None = None, slot: str | None = None) -> list[Card]:
    """Every card, or those of one kind or slot, by the first slot that they touch.

    Raises:
        RecipeError: there is no such kind or slot.

    >>> [c.name for c in cards("technique", slot="stop")]
    ['early-stopping']
    """
    for word, given, known in (("kind", kind, KINDS), ("slot", slot, get_args(Slot))):
        if given is not None and given not in known:
            raise RecipeError(f"no {word} '{given}'", mend=nearest(given, known))
    slots = get_args(Slot)
    found = [card(name) for name, (k, cls) in _classes().items() if kind in (None, k) and slot in (None, *cls.touches)]
    return sorted(found, key=lambda c: slots.index(c.touches[0]))


@dataclass(frozen=True)
class Said:
    """A docstring, taken apart."""

    what: str
    notes: tuple[str, ...]
    helps: str
    fails: str
    costs: str
    source: str

    @classmethod
    def of(cls, described: type) -> Said:
        """What the docstring of a class says.

        >>> class Halve:
        ...     '''Halve the rate, ``lr / 2``. Costs nothing. Helps at the end. Fails early. Source: common practice.'''
        >>> said = Said.of(Halve)
        >>> said.what, said.costs, said.helps, said.fails, said.source
        ('Halve the rate, ``lr / 2``.', 'Costs nothing.', 'Helps at the end.', 'Fails early.', 'common practice')
        """
        text = re.split(r"\n\s*(?:>>>|Args:)", inspect.cleandoc(described.__doc__ or ""))[0]
        paragraphs = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text)]
        said: dict[str, str] = {}
        rest = [_without_marked(paragraph, said) for paragraph in paragraphs if paragraph]
        return cls(
            what=rest[0] if rest else "",
            notes=tuple(part for part in rest[1:] if part),
            helps=said.get("Helps", ""),
            fails=said.get("Fails", ""),
            costs=said.get("Costs", ""),
            source=re.sub(r"^Sources?: ", "", said.get("Source", "")).rstrip("."),
        )

    @property
    def equation(self) -> str:
        """The formulas of the first line; if it has none, the first one with an equals sign (or so) below it."""
        formulas = [span for span in _code(self.what) if _RELATION.search(span) or len(span) > FRAGMENT]
        if not formulas:
            formulas = [span for note in self.notes for span in _code(note) if _RELATION.search(span)][:1]
        return "; ".join(formulas)


_OPERATOR, _RELATION = re.compile(r" [-+*/^|=<>~]+ |\^| \w+\(|\|"), re.compile(r" (=|<-|->|\+=|<=) ")
FRAGMENT = 12  # characters: what is shorter and states no relation, such as ``1 / (1 - p)``, says nothing by itself


def _code(text: str) -> list[str]:
    """What stands between code marks and is mathematics, rather than a command, a name or a text."""
    spans = re.findall(r"``([^`]+)``", text)
    return [s for s in spans if _OPERATOR.search(s) and not s.startswith("kingpost ") and not {'"', "'"} & {s[0]}]


# The words that begin a sentence of each kind, at the start of a paragraph or after the end of a sentence.
_MARK = re.compile(r"""(?:^|(?<=[.!?)"] ))(?=(?:Helps|Fails|Costs) |Sources?: )""")


def _without_marked(paragraph: str, said: dict[str, str]) -> str:
    """The paragraph up to its first marked sentence; what is marked goes into ``said``, by its first word."""
    first, *marked = [part.strip() for part in _split_at(paragraph, _MARK)]
    for part in marked:
        word = re.match(r"Helps|Fails|Costs|Source", part)
        assert word is not None
        if word[0] == "Costs":  # one sentence only: what follows explains something else
            part, _, more = part.partition(". ")
            part, first = part.rstrip(".") + ".", f"{first} {more}".strip()
        said[word[0]] = f"{said[word[0]]} {part}" if word[0] in said else part
    return first


def _split_at(text: str, mark: re.Pattern[str]) -> list[str]:
    """The text before the first mark, and what each mark begins."""
    places = [found.start() for found in mark.finditer(text)]
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def plain_text(text: str) -> str:
    """Docstring text without its marks for code."""
    return re.sub(r"``([^`]+)``", r"\1", re.sub(r":\w+:`~?([^`]+)`", r"\1", text))


def _begun(sentence: str, word: str) -> str:
    return plain_text(sentence.removeprefix(word))


def _entry(label: str, texts: Iterable[str]) -> Iterator[str]:
    """Lines of a label with its texts, each begun on a line of its own; nothing if there are none."""
    for text in filter(None, texts):
        first, others = f"  {label:<10}", " " * 12
        yield from textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)
        label = ""


@functools.cache
def _classes() -> dict[str, tuple[str, type[Technique]]]:
    """Every technique of the catalogue by name, with its kind."""
    found = {}
    for kind in KINDS:
        for name in catalogue.CATALOGUE[kind]:
            cls = catalogue.find(kind, name)
            assert isinstance(cls, type) and issubclass(cls, Technique) and name not in found
            found[name] = (kind, cls)
    return found


def _exceptions(cls: type[Technique]) -> Mapping[str, str]:
    return dict(cls(**cls.example).exceptions) if cls.example is not None else {}


def _checked(promise: str, contract: str, cls: type[Technique], exceptions: Mapping[str, str]) -> str:
    if reason := exceptions.get(contract):
        return f"no: {reason}"
    return f"{promise}; checked by the contract suite" if cls.example is not None else "not checked by the suite"


def _exports(kind: str, cls: type[Technique], exceptions: Mapping[str, str]) -> str:
    if kind == "model":
        return _checked("yes", "export", cls, exceptions)
    return "not checked: it changes the model" if "model" in cls.touches else "yes: it leaves the model's form alone"


def _fields(cls: type[Technique]) -> Iterator[CardField]:
    described: Mapping[str, Any] = cast(Any, cls).__pydantic_fields__
    for field in dataclasses.fields(cast(Any, cls)):
        if not field.init:
            continue
        about = described[field.name]
        default = "" if about.is_required() else _default_text(about.get_default(call_default_factory=True))
        yield CardField(field.name, default, plain_text(re.sub(r"\s+", " ", about.description or "")).strip())


def _default_text(value: object) -> str:
    """A default as YAML would have it, on one line."""
    from kingpost.option import plain

    given = plain(value)
    return given if isinstance(given, str) and given else json.dumps(given, ensure_ascii=False)


@functools.cache
def costs() -> Mapping[str, Cost]:
    """Measured costs by ``kind/name``; empty where the measurements are not at hand."""
    package = Path(__file__).resolve().parent  # in a wheel beside the package's modules, else in the checkout
    places = (package / "technique_costs.json", package.parents[1] / "benchmarks" / "results" / "technique_costs.json")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return {}
    rows: Mapping[str, Mapping[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["measured"]
    known = [field.name for field in dataclasses.fields(Cost)]
    return {key: Cost(**{name: row[name] for name in known}) for key, row in rows.items()}


def effect_of(found: Sequence[Mapping[str, Any]]) -> str:
    """What studies say of a technique, one part for each arm.

    >>> effect_of([])
    'unproven'
    >>> effect_of([{"word": "helps", "metric": "accuracy", "difference": 0.021, "lower": 0.012, "upper": 0.03,
    ...     "smallest_effect": 0.01, "pairs": 5, "on": "digits, mlp", "trial": "a", "arm": "he",
    ...     "study": "he-init", "mode": "quick", "date": "2030-01-01"}])
    'helps: accuracy +0.021 [+0.012, +0.030], n = 5 pairs, digits, mlp (quick study he-init, a/he, 2030-01-01)'
    """
    return "; ".join(map(_effect, found)) or UNPROVEN


def _effect(found: Mapping[str, Any]) -> str:
    digits = max(0, 1 - math.floor(math.log10(found["smallest_effect"])))
    values = [found[key] for key in ("difference", "lower", "upper")]
    middle, low, high = (None if value is None else f"{value:+.{digits}f}" for value in values)
    seen = f"{found['metric']} {middle}" if middle else "no pair of runs finished"
    seen += f" [{low}, {high}]" if low and high else ""
    arm = found["arm"] if found["trial"] == "trial" else f"{found['trial']}/{found['arm']}"
    study = f"{'quick ' * (found['mode'] == 'quick')}study {found['study']}, {arm}"
    where = found["on"].replace(";", ",")  # which stands between effects
    return f"{found['word']}: {seen}, n = {found['pairs']} pairs, {where} ({study}, {found['date']})"


@functools.cache
def verdicts() -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """What the studies found, by ``kind/name``; empty where their results are not at hand."""
    package = Path(__file__).resolve().parent  # as for the costs
    places = (package / "study_verdicts.json", package.parents[1] / "studies" / "verdicts.json")
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return {}
    found: Mapping[str, Sequence[Mapping[str, Any]]] = json.loads(path.read_text(encoding="utf-8"))["verdicts"]
    return found
