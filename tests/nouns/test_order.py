import re

import pytest

import kingpost as kp
from kingpost.errors import RecipeError
from kingpost.option import choose
from kingpost.technique import check_order, right_order


def recipe(techniques, **changes):
    return kp.Recipe(name="a", data="digits", model="mlp", techniques=techniques, **changes)


@pytest.mark.parametrize(
    ("techniques", "text"),
    [
        (
            ["sam", "clip", "accumulate"],
            "techniques: 'sam' must come after 'accumulate'; the right order: [clip, accumulate, sam]",
        ),
        (
            ["sam", "fp16", "accumulate"],
            "techniques: 'sam' must come after 'fp16', 'accumulate'; the right order: [accumulate, fp16, sam]",
        ),
        (["fp16", "accumulate"],
         "techniques: 'fp16' must come after 'accumulate'; the right order: [accumulate, fp16]"),
        (["clip", "ema", "clip"], "techniques: 'clip' is listed twice; keep one of them"),
        (
            ["fp16", "bf16"],
            "techniques: 'bf16' and 'fp16' exclude each other: a matrix product has one precision; "
            "remove one, for example with techniques-=fp16",
        ),
        (
            ["bf16", "fp16"],
            "techniques: 'bf16' and 'fp16' exclude each other: a matrix product has one precision; "
            "remove one, for example with techniques-=fp16",
        ),
    ],
)  # fmt: skip
def test_a_wrong_order_is_refused_with_the_right_one(techniques, text):
    with pytest.raises(RecipeError, match=f"^{re.escape(text)}$"):
        recipe(techniques)


def test_the_order_that_is_named_is_accepted_and_moves_nothing_else():
    techniques = [choose("technique", name) for name in ("sam", "clip", "fp16", "ema", "accumulate")]
    order = right_order(techniques)
    assert order == ["clip", "ema", "accumulate", "fp16", "sam"]
    check_order([choose("technique", name) for name in order])
    assert [t.name for t in recipe(order).techniques] == order  # never reordered


def test_a_technique_for_another_task_is_refused():
    with pytest.raises(RecipeError) as caught:
        kp.plan(recipe(["clip", "label-smoothing"], task="regression"))
    assert str(caught.value) == (
        "techniques.label-smoothing: 'label-smoothing' is meant for 'classification', 'language-modelling', "
        "'sequence-to-sequence', but the task is 'regression'; remove it, or change the task"
    )


def test_a_model_for_another_task_is_refused():
    with pytest.raises(RecipeError) as caught:
        kp.plan(kp.Recipe(name="a", data="digits", model="gpt"))
    assert str(caught.value) == (
        "model: 'gpt' is meant for 'language-modelling', but the task is 'classification'; "
        "remove it, or change the task"
    )
