"""Rules: the language, three logics against tables and expansions, gradients, penalties and enforcement."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kingpost.assembly import Batch, Loss
from kingpost.build.blocks.formulas import Values, Vocabulary
from kingpost.build.blocks.logic import Logic
from kingpost.build.blocks.rule_language import parse
from kingpost.build.blocks.rules import RuleLayer
from kingpost.build.nets.rule import Rule, RuleNet, with_rules
from kingpost.errors import RecipeError
from kingpost.source import DataFacts

LETTERS = ("a", "b", "c")
LOGICS = [
    Logic("product"),
    Logic("product", "residuum"),
    Logic("goedel"),
    Logic("goedel", "residuum"),
    Logic("lukasiewicz"),
]
each_logic = pytest.mark.parametrize("logic", LOGICS, ids=lambda logic: f"{logic.name}-{logic.implication}")


def truth(text: str, outputs: Tensor, logic: Logic | None = None, **vocabulary: Any) -> Tensor:
    features = vocabulary.pop("x", torch.zeros(len(outputs), 0))
    formula = parse(text, Vocabulary(LETTERS, **vocabulary))
    return formula.truth(Values(features, outputs, logic or Logic()))


CRISP = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
PYTHON = {  # each rule, and what Python says of it
    "a and b or c": lambda a, b, c: (a and b) or c,
    "a or b and not c": lambda a, b, c: a or (b and not c),
    "not a and b": lambda a, b, c: not a and b,
    "not (a and b)": lambda a, b, c: not (a and b),
    "not not a": lambda a, b, c: a,
    "a -> b": lambda a, b, c: not a or b,
    "a -> b -> c": lambda a, b, c: not a or (not b or c),
    "a or b -> c and a": lambda a, b, c: not (a or b) or (c and a),
    "a <-> b or c": lambda a, b, c: a == (b or c),
    "a -> b <-> c": lambda a, b, c: (not a or b) == c,
    "exactly one of (a, b, c)": lambda a, b, c: a + b + c == 1,
    "exactly 2 of (a, b, c)": lambda a, b, c: a + b + c == 2,
    "at most one of (a, b, c)": lambda a, b, c: a + b + c <= 1,
    "at least two of (a, b, not c)": lambda a, b, c: a + b + (not c) >= 2,
    "exactly zero of (a, b)": lambda a, b, c: not (a or b),
    "true -> a": lambda a, b, c: a,
    "a and false": lambda a, b, c: False,
    "a + b <= 1": lambda a, b, c: a + b <= 1,
    "a + b - c = 1": lambda a, b, c: a + b - c == 1,
    "2 * a >= b + c": lambda a, b, c: 2 * a >= b + c,
    "p(a) != 1": lambda a, b, c: not a,
    "class = a and class != b": lambda a, b, c: a and not b,
    "class in (a, 'b')": lambda a, b, c: a or b,
}


@each_logic
@pytest.mark.parametrize("text", PYTHON)
def test_on_crisp_truths_every_logic_is_the_classical_one(text: str, logic: Logic) -> None:
    expected = [float(bool(PYTHON[text](*map(bool, row)))) for row in CRISP.tolist()]
    assert truth(text, CRISP, logic).tolist() == expected


def test_connectives_by_hand() -> None:
    x = torch.tensor([[0.7, 0.6, 0.2]])
    expected = {
        ("product", "strong"): (0.42, 0.88, 1 - 0.7 + 0.42, 1 - 0.7 + 0.14),
        ("product", "residuum"): (0.42, 0.88, 0.6 / 0.7, 0.2 / 0.7),
        ("goedel", "strong"): (0.6, 0.7, 0.6, 0.3),
        ("goedel", "residuum"): (0.6, 0.7, 0.6, 0.2),
        ("lukasiewicz", "strong"): (0.3, 1.0, 0.9, 0.5),
    }
    for (name, implication), values in expected.items():
        got = [float(truth(t, x, Logic(name, implication))) for t in ("a and b", "a or b", "a -> b", "a -> c")]  # type: ignore[arg-type]
        assert got == pytest.approx(values), name


@pytest.mark.parametrize("name", ["product", "goedel", "lukasiewicz"])
@pytest.mark.parametrize("implication", ["strong", "residuum"])
def test_laws(name: Any, implication: Any) -> None:
    logic = Logic(name, implication)
    a, b, c = (x.flatten() for x in torch.meshgrid(*[torch.linspace(0, 1, 6)] * 3, indexing="ij"))
    close = {"rtol": 0, "atol": 1e-12}  # sums and products of a few numbers below 1
    torch.testing.assert_close(logic.both(a, b), logic.both(b, a), **close)
    torch.testing.assert_close(logic.both(a, logic.both(b, c)), logic.both(logic.both(a, b), c), **close)
    torch.testing.assert_close(1 - logic.both(a, b), logic.either(1 - a, 1 - b), **close)  # De Morgan
    if implication == "residuum":  # 'a and c' is at most b exactly if c is at most 'if a then b'
        left, right = logic.both(a, c) <= b + 1e-9, c <= logic.implies(a, b) + 1e-9
        assert torch.equal(left, right)


def expanded(count: int, truths: list[Tensor], logic: Logic) -> Tensor:
    """'at least so many' for product logic: the chance, over all outcomes."""
    total = torch.zeros_like(truths[0])
    for outcome in itertools.product((0, 1), repeat=len(truths)):
        if sum(outcome) >= count:
            chance = torch.ones_like(total)
            for yes, t in zip(outcome, truths, strict=True):
                chance = chance * (t if yes else 1 - t)
            total = total + chance
    return total


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_counting_is_the_expansion(count: int) -> None:
    truths = list(torch.rand(4, 7, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(Logic("product").at_least(count, truths), expanded(count, truths, Logic("product")))
    subsets = [torch.stack(s).amin(0) for s in itertools.combinations(truths, count)] if 0 < count <= 4 else []
    if subsets:  # Goedel: some subset of so many of which all are true
        torch.testing.assert_close(Logic("goedel").at_least(count, truths), torch.stack(subsets).amax(0))


def test_features_are_compared_in_their_own_units() -> None:
    ages = torch.tensor([17.0, 18.0, 19.0, 64.99, 65.0])
    mean, std = 38.7, 13.64
    x = ((ages.double() - mean) / std).float()[:, None]  # as the table source scales them
    out = torch.zeros(5, 3)
    kwargs: dict[str, Any] = {"x": x, "features": ("age",), "scales": ((mean, std),)}
    assert truth("age >= 18", out, **kwargs).tolist() == [0, 1, 1, 1, 1]
    assert truth("age > 18", out, **kwargs).tolist() == [0, 0, 1, 1, 1]
    assert truth("age < 65", out, **kwargs).tolist() == [1, 1, 1, 1, 0]
    assert truth("age <= 65 and age != 19", out, **kwargs).tolist() == [1, 1, 0, 1, 1]
    assert truth("18 <= age < 65", out, **kwargs).tolist() == [0, 1, 1, 1, 0]
    assert truth("2 * age - 30 = 6", out, **kwargs).tolist() == [0, 1, 0, 0, 0]
    soft = truth("age >= 18", out, **kwargs, softness=0.5)
    torch.testing.assert_close(soft, ((ages - 18) / (0.5 * std)).sigmoid().to(soft), rtol=1e-5, atol=0)


def test_every_whole_number_is_equal_to_itself_after_scaling() -> None:
    values = torch.arange(0, 100_000, 7, dtype=torch.float64)
    mean, std = 1077.65, 7385.18
    x = ((values - mean) / std).float()[:, None]
    layer = RuleLayer(["gain >= 7000 -> a"], LETTERS, ["gain"], [(mean, std)])
    fired = 1 - layer(x, torch.tensor([[0.0, 1.0, 0.0]]).expand(len(x), 3))[:, 0]
    assert torch.equal(fired, (values >= 7000).to(fired.dtype))


def test_categories_and_missing_numbers() -> None:
    features = ("job=cook", "job=smith-1", "job=<other>", "age", "age is missing")
    x = torch.tensor([[1.0, 0, 0, 20, 0], [0, 1, 0, 20, 0], [0, 0, 1, 20, 1]])
    out = torch.zeros(3, 3)
    for text, wanted in {
        "job = cook": [1, 0, 0],
        "job != cook": [0, 1, 1],
        "job in (cook, smith-1)": [1, 1, 0],
        "job = '<other>' or not job = cook": [0, 1, 1],
        "age > 10": [1, 1, 0],
        "age < 30": [1, 1, 0],
        "`age is missing`": [0, 0, 1],
    }.items():
        assert truth(text, out, x=x, features=features).tolist() == wanted, text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bird an b", r"column 1: unknown name 'bird'; known: a, age, b, c, job"),
        ("a an b", r"column 3: expected 'and' or 'or' or '->' or '<->' or a comparison or the end, got 'an'"),
        ("a and", r"column 6: expected a name or a number or '\(', got the end"),
        ("a -> (b or c", r"column 13: expected '\)', got the end"),
        ("a -> >50K", r"column 6: expected a name or a number or '\(', got '>'"),
        ("a -> b; c", r"column 7: ';' cannot stand here; put names with signs in quotes"),
        ("aeg > 3 -> a", r"column 1: unknown name 'aeg'; did you mean 'age'\?"),
        ("age -> a", r"column 1: 'age' is a number; compare it: age > 0"),
        ("job -> a", r"column 1: 'job' is a category; write job = one of its categories"),
        ("job = cok -> a", r"column 7: 'job' has no category 'cok'; did you mean 'cook'\?"),
        ("class = d", r"column 9: no class 'd'"),
        ("p(d) > 0.5", r"column 3: no class 'd'"),
        ("a + b -> c", r"column 7: expected a comparison such as '<='"),
        ("exactly four of (a, b)", r"column 9: 4 of 2 can never be"),
        ("at one of (a, b)", r"column 4: expected 'least' or 'most', got 'one'"),
        ("exactly few of (a, b)", r"column 9: expected a whole number or 'zero'"),
        ("", r"column 1: expected a name or a number or '\(', got the end"),
        ("a and 'and", r"column 7: \"'\" cannot stand here"),
        ("__import__('os')", r"column 1: unknown name '__import__'"),
        ("(" * 60 + "a" + ")" * 60, r"column 41: more than 40 parentheses inside one another"),
    ],
)
def test_errors_point_at_the_column(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        RuleLayer(["a", text], LETTERS, ["age", "job=cook", "job=smith"], [(30.0, 10.0), (0.0, 1.0), (0.0, 1.0)])
    assert str(caught.value).startswith("rules.1: ")


def test_a_name_that_is_both_is_refused() -> None:
    with pytest.raises(RecipeError, match="'a' is a class and a feature; write class = a for the class"):
        parse("a", Vocabulary(("a", "b"), ("a",)))
    parse("class = a", Vocabulary(("a", "b"), ("a",)))


@each_logic
def test_gradients_are_those_of_differences(logic: Logic) -> None:
    rules = ["a and not b -> c", "exactly one of (a, b, c)", "a <-> b", "p(a) + 0.5 * b <= 0.6"]
    layer = RuleLayer(rules, LETTERS, logic=logic.name, implication=logic.implication)
    x = torch.tensor([[0.31, 0.47, 0.83], [0.72, 0.11, 0.23]], requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: layer(torch.zeros(2, 0), p), x)  # not at a corner of min or max


def test_penalties_add_up_and_vanish_where_rules_hold() -> None:
    layer = RuleLayer(["a -> b", "not c"], LETTERS, weights=[2.0, 0.5])
    p = torch.tensor([[0.8, 0.1, 0.1], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(layer.penalty(p[:, :0], p), torch.tensor([2 * 0.8 * 0.9 + 0.5 * 0.1, 0.0]))
    logged = RuleLayer(["a -> b", "not c"], LETTERS, weights=[2.0, 0.5], cost="log")
    expected = -2 * torch.tensor(1 - 0.72).log() - 0.5 * torch.tensor(0.9).log()
    torch.testing.assert_close(logged.penalty(p[:, :0], p)[0], expected)


def test_enforcing_classes_forbids_those_that_violate_more_than_need_be() -> None:
    rules = ["x < 0 -> not a", "x < -1 -> not b", "x < -2 -> not c"]
    layer = RuleLayer(rules, LETTERS, ["x"], weights=[1.0, 2.0, 3.0])
    scores = torch.tensor([[3.0, 2.0, 1.0]]).expand(4, 3)
    x = torch.tensor([[1.0], [-0.5], [-1.5], [-2.5]])
    enforced = layer.enforced(x, scores)
    # In the last row no class is without fault; 'a' has the least.
    assert enforced.argmax(1).tolist() == [0, 1, 2, 0]
    assert torch.equal(enforced[0], scores[0])  # nothing is forbidden, so nothing changes
    assert enforced[1].tolist() == [1.0 - 20, 2.0, 1.0]
    assert enforced.softmax(1)[2, :2].max() < 1e-8
    after = layer.report(x, enforced.softmax(1))
    assert after.violations == (1, 0, 0) and after.samples == 4


def test_enforcing_labels_takes_the_likeliest_assignment_that_holds() -> None:
    layer = RuleLayer(["a -> b", "exactly one of (b, c)"], LETTERS, exclusive=False)
    scores = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    got = layer.enforced(torch.zeros(50, 0), scores)
    for row, out in zip(scores.tolist(), got.tolist(), strict=True):
        allowed = [s for s in itertools.product((0, 1), repeat=3) if s[0] <= s[1] and s[1] + s[2] == 1]
        best = max(allowed, key=lambda s: sum(x * y for x, y in zip(row, s, strict=True)))
        assert [int(v > 0) for v in out] == list(best)
        assert [abs(v) for v in out] == [abs(v) for v in row]


def test_what_cannot_be_enforced_is_refused() -> None:
    soft = RuleLayer(["p(a) >= 0.4"], LETTERS)
    with pytest.raises(RecipeError, match=r"rules.0: \"p\(a\) >= 0.4\" is about a probability"):
        RuleNet(nn.Identity(), soft, hard=True)
    many = RuleLayer(["l0 -> l1"], [f"l{i}" for i in range(13)], exclusive=False)
    with pytest.raises(RecipeError, match="hard: 13 labels have too many assignments to try; at most 12"):
        RuleNet(nn.Identity(), many, hard=True)


def test_printing_shows_the_rules_and_the_report_counts() -> None:
    layer = RuleLayer(["a -> b", "p(c) <= 0.3"], LETTERS, weights=[1.0, 0.25])
    assert "0.25 x  p(c) <= 0.3" in repr(RuleNet(nn.Identity(), layer))
    p = torch.tensor([[0.9, 0.05, 0.05], [0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
    report = layer.report(p[:, :0], p)
    assert report.violations == (1, 1)  # the first sample says a and not b; the second gives c more than 0.3
    # 1 - a + a b of the rows: 0.145, 0.86, 0.98; and 1, 1 - 0.2, 1.
    assert report.truths == pytest.approx(((0.145 + 0.86 + 0.98) / 3, 2.8 / 3))
    assert str(report).splitlines()[1].split() == ["0.6617", "1", "a", "->", "b"]


def test_the_objective_adds_the_mean_cost_and_adds_up_over_pieces() -> None:
    data = DataFacts(
        task="classification",
        inputs=(((2,), torch.float64),),
        classes=LETTERS,
        features=("u", "v"),
        scales=((1.0, 2.0), (0.0, 1.0)),
    )
    net = Rule(rules=("u > 1 -> a",), base={"name": "mlp", "widths": [4]}).make(data, 3)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    batch = Batch((x,), torch.zeros(6, dtype=torch.long), 0, 6)

    def plain(model: nn.Module, batch: Batch) -> Loss:
        outputs = model(*batch.inputs)
        return Loss(outputs.sum(), len(batch), outputs)

    objective = with_rules(plain, net, strength=3.0)
    p = net(x).softmax(1)
    cost = ((x[:, 0] > 0) * (1 - p[:, 0])).mean()  # u = 1 in its own unit is 0 here
    loss = objective(net, batch)
    torch.testing.assert_close(loss.mean(), net(x).sum() / 6 + 3 * cost)
    torch.testing.assert_close(sum(objective(net, piece).data for piece in batch.split(4)), loss.data)


def test_rules_need_names_of_classes() -> None:
    values = DataFacts(task="regression", inputs=(((2,), torch.float64),), target_shape=(1,))
    with pytest.raises(RecipeError, match="rules are about classes or labels, but this data has 0 names for 1 outputs"):
        Rule(rules=("a",)).make(values, 1)
    with pytest.raises(RecipeError, match="rules: needs at least one rule"):
        RuleLayer([], LETTERS)
    with pytest.raises(RecipeError, match="weights: got 1 for 2 rules"):
        RuleLayer(["a", "b"], LETTERS, weights=[1.0])
