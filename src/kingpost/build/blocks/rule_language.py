"""The language of rules: from text to a formula that can be evaluated on batches.

Grammar (``[x]`` may be absent, ``x*`` any number of times; words and numbers are tokens)::

    rule        = implied ["<->" implied]
    implied     = any ["->" implied]
    any         = all ("or" all)*
    all         = single ("and" single)*
    single      = "not" single | "(" rule ")" | counted | compared
    counted     = ("exactly" | "at" "least" | "at" "most") count "of" "(" rule ("," rule)* ")"
    compared    = sum (("<" | "<=" | ">" | ">=" | "=" | "!=") sum)* | name ("=" | "!=") category
                | name "in" "(" category ("," category)* ")"
    sum         = ["-"] term (("+" | "-") term)*
    term        = number ["*" thing] | thing ["*" number]
    thing       = name | "p" "(" name ")"

A name is a class or label, ``class = NAME``, or a feature; in quotes it can hold any character, without them letters,
digits, ``_``, and dots and dashes inside (so put spaces around a minus).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kingpost.build.blocks.formulas import (
    Comparison,
    Constant,
    Counted,
    Formula,
    Indicator,
    Not,
    Output,
    Pair,
    Sum,
    Term,
    Vocabulary,
)
from kingpost.errors import RecipeError, nearest

WORDS = ("and", "or", "not", "in", "of", "exactly", "at", "least", "most", "true", "false")
NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
COMPARISONS = ("<=", ">=", "!=", "==", "<", ">", "=")
DEEPEST = 40

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w]))|(?P<quoted>'[^']*'|\"[^\"]*\"|`[^`]*`)"
    r"|(?P<name>\w+(?:[.-]\w+)*)|(?P<sign><->|->|<=|>=|!=|==|[<>=+\-*(),]))"
)


@dataclass(frozen=True)
class Token:
    """A piece of a rule's text; ``column`` counts from 1."""

    kind: str
    text: str
    column: int


def parse(text: str, vocabulary: Vocabulary) -> Formula:
    """The formula that a rule's text stands for.

    Raises:
        RecipeError: not a rule (says where and what was expected), or an unknown name (says the nearest).

    >>> import torch
    >>> from kingpost.build.blocks.formulas import Values
    >>> from kingpost.build.blocks.logic import Logic
    >>> rule = parse("bird and not penguin -> flies", Vocabulary(("bird", "penguin", "flies")))
    >>> outputs = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    >>> rule.truth(Values(torch.zeros(2, 0), outputs, Logic()))
    tensor([0., 1.])
    """
    return _Parser(text, vocabulary).whole()


def tokens(text: str) -> Iterator[Token]:
    """The tokens of a text, and one of kind ``end``."""
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            column = place + len(text[place:]) - len(text[place:].lstrip()) + 1
            raise RecipeError(
                f'"{text}", column {column}: {text[column - 1]!r} cannot stand here',
                mend="put names with signs in quotes, for example '>50K'",
            )
        kind = str(found.lastgroup)
        yield Token(kind, found[kind], found.start(kind) + 1)
        place = found.end()
    yield Token("end", "the end", len(text) + 1)


class _Parser:
    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        self.text, self.vocabulary = text, vocabulary
        self.tokens, self.place, self.depth = list(tokens(text)), 0, 0

    @property
    def next(self) -> Token:
        return self.tokens[self.place]

    def fail(self, token: Token, problem: str, mend: str = "") -> RecipeError:
        return RecipeError(f'"{self.text}", column {token.column}: {problem}', mend=mend)

    def unexpected(self, *expected: str) -> RecipeError:
        shown = self.next.text if self.next.kind == "end" else f"'{self.next.text}'"
        return self.fail(self.next, f"expected {' or '.join(expected)}, got {shown}")

    def take(self, *texts: str) -> Token | None:
        """The next token if it is one of these words or signs (a name in quotes never is), and go on."""
        if self.next.kind in ("name", "sign") and self.next.text in texts:
            self.place += 1
            return self.tokens[self.place - 1]
        return None

    def need(self, text: str) -> Token:
        found = self.take(text)
        if found is None:
            raise self.unexpected(f"'{text}'")
        return found

    def whole(self) -> Formula:
        formula = self.rule()
        if self.next.kind != "end":
            raise self.unexpected("'and'", "'or'", "'->'", "'<->'", "a comparison", "the end")
        return formula

    def rule(self) -> Formula:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.fail(self.next, f"more than {DEEPEST} parentheses inside one another", "split the rule")
        left = self.implied()
        if self.take("<->"):
            left = Pair("<->", left, self.implied())
        self.depth -= 1
        return left

    def implied(self) -> Formula:
        parts = [self.chain("or", lambda: self.chain("and", self.single))]
        while self.take("->"):
            parts.append(self.chain("or", lambda: self.chain("and", self.single)))
        formula = parts.pop()
        while parts:  # a -> b -> c is a -> (b -> c)
            formula = Pair("->", parts.pop(), formula)
        return formula

    def chain(self, sign: str, part: Callable[[], Formula]) -> Formula:
        left = part()
        while self.take(sign):
            left = Pair(sign, left, part())
        return left

    def single(self) -> Formula:
        turned = 0
        while self.take("not"):
            turned += 1
        formula = self.plain()
        return Not(formula) if turned % 2 else formula

    def plain(self) -> Formula:
        if self.take("("):
            inner = self.rule()
            self.need(")")
            return inner
        if word := self.take("true", "false"):
            return Constant(word.text == "true")
        if word := self.take("exactly", "at"):
            return self.counted(word.text)
        return self.compared()

    def counted(self, kind: str) -> Formula:
        if kind == "at":
            found = self.take("least", "most")
            if found is None:
                raise self.unexpected("'least'", "'most'")
            kind = found.text
        token = self.next
        if token.text not in NUMBERS and not (token.kind == "number" and token.text.isdecimal()):
            raise self.unexpected("a whole number", *(f"'{name}'" for name in NUMBERS))
        self.place += 1
        self.need("of")
        self.need("(")
        inner = [self.rule()]
        while self.take(","):
            inner.append(self.rule())
        self.need(")")
        count = NUMBERS.get(token.text, -1)
        count = int(token.text) if count < 0 else count
        if count > len(inner) and kind != "most":
            raise self.fail(token, f"{count} of {len(inner)} can never be")
        return Counted(kind, count, tuple(inner))

    def compared(self) -> Formula:
        start = self.next
        if start.kind in ("name", "quoted") and (formula := self.category(start)):
            return formula
        sums, signs = [self.sum()], list[str]()
        while sign := self.take(*COMPARISONS):
            signs.append("=" if sign.text == "==" else sign.text)
            sums.append(self.sum())
        if not signs:
            return self.predicate(start, sums[0])
        pairs = zip(sums, sums[1:], signs, strict=False)
        formula, *more = [Comparison(a.less(b), sign, self.vocabulary) for a, b, sign in pairs]
        whole: Formula = formula
        for other in more:
            whole = Pair("and", whole, other)
        return whole

    def predicate(self, start: Token, alone: Sum) -> Formula:
        """A single name, used as something that is true or false."""
        if len(alone.terms) != 1 or alone.constant or alone.terms[0].factor != 1 or alone.terms[0].probability:
            raise self.unexpected("a comparison such as '<='")
        term = alone.terms[0]
        if not term.of_feature:
            return Output(term.index)
        if self.vocabulary.scale(term.index) != (0.0, 1.0):
            raise self.fail(start, f"'{self.name_of(start)}' is a number", f"compare it: {self.name_of(start)} > 0")
        return Indicator(term.index)

    def category(self, start: Token) -> Formula | None:
        """``column = category``, ``column != category`` or ``column in (category, ...)``, if it is that."""
        column = self.name_of(start)
        known = [name.partition("=")[2] for name in self.vocabulary.features if name.startswith(f"{column}=")]
        of_class = column == "class" and start.kind == "name"
        after = self.tokens[self.place + 1]
        if after.text not in ("=", "==", "!=", "in") or after.kind == "quoted" or not (known or of_class):
            return None
        self.place += 2
        several = after.text == "in" and bool(self.need("("))
        found = [self.one_category(column, known, of_class)]
        while several and self.take(","):
            found.append(self.one_category(column, known, of_class))
        if several:
            self.need(")")
        formula = found[0]
        for other in found[1:]:
            formula = Pair("or", formula, other)
        return Not(formula) if after.text == "!=" else formula

    def one_category(self, column: str, known: Sequence[str], of_class: bool) -> Formula:
        token = self.next
        if token.kind not in ("name", "quoted", "number"):
            raise self.unexpected("a class" if of_class else f"a category of '{column}'")
        self.place += 1
        name = self.name_of(token)
        names = self.vocabulary.outputs if of_class else known
        if name not in names:
            what = "no class" if of_class else f"'{column}' has no category"
            raise self.fail(token, f"{what} '{name}'", nearest(name, names))
        return Output(names.index(name)) if of_class else Indicator(self.vocabulary.features.index(f"{column}={name}"))

    def sum(self) -> Sum:
        sign = -1.0 if self.take("-") else 1.0
        terms, constant = list[Term](), 0.0
        while True:
            factor, term = self.term()
            if term is None:
                constant += sign * factor
            else:
                terms.append(Term(sign * factor, term.of_feature, term.index, term.probability))
            following = self.take("+", "-")
            if following is None:
                return Sum(tuple(terms), constant)
            sign = -1.0 if following.text == "-" else 1.0

    def term(self) -> tuple[float, Term | None]:
        if (factor := self.number()) is not None:
            return factor, self.thing() if self.take("*") else None
        thing = self.thing()
        if not self.take("*"):
            return 1.0, thing
        if (factor := self.number()) is None:
            raise self.unexpected("a number")
        return factor, thing

    def number(self) -> float | None:
        if self.next.kind != "number":
            return None
        self.place += 1
        return float(self.tokens[self.place - 1].text)

    def thing(self) -> Term:
        token = self.next
        if token.kind not in ("name", "quoted") or (token.kind == "name" and token.text in WORDS):
            raise self.unexpected("a name", "a number", "'('")
        self.place += 1
        if token.text == "p" and self.take("("):
            inner = self.next
            if inner.text == "class" and self.tokens[self.place + 1].text in ("=", "=="):
                self.place += 2
                inner = self.next
            if inner.kind not in ("name", "quoted", "number"):
                raise self.unexpected("the name of a class")
            self.place += 1
            self.need(")")
            name = self.name_of(inner)
            if name not in self.vocabulary.outputs:
                raise self.fail(inner, f"no class '{name}'", nearest(name, self.vocabulary.outputs))
            return Term(1.0, False, self.vocabulary.outputs.index(name), probability=True)
        return self.named(token)

    def named(self, token: Token) -> Term:
        name, outputs, features = self.name_of(token), self.vocabulary.outputs, self.vocabulary.features
        if name in outputs and name in features:
            raise self.fail(token, f"'{name}' is a class and a feature", f"write class = {name} for the class")
        if name in outputs:
            return Term(1.0, False, outputs.index(name))
        if name in features:
            return Term(1.0, True, features.index(name))
        columns = {feature.partition("=")[0] for feature in features}
        if name in columns:
            raise self.fail(token, f"'{name}' is a category", f"write {name} = one of its categories")
        raise self.fail(token, f"unknown name '{name}'", nearest(name, {*outputs, *columns}))

    @staticmethod
    def name_of(token: Token) -> str:
        return token.text[1:-1] if token.kind == "quoted" else token.text
