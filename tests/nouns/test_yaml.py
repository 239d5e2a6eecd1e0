import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kingpost import yaml_text
from nouns.draws import TEXT

# YAML 1.2.2, section 10.3.2 (core schema): regular expressions and the tags that they resolve to.
CORE_SCHEMA = [
    *[(word, None) for word in ("null", "Null", "NULL", "~", "")],
    *[(word, True) for word in ("true", "True", "TRUE")],
    *[(word, False) for word in ("false", "False", "FALSE")],
    *[("0", 0), ("-19", -19), ("+7", 7), ("010", 10), ("0o14", 12), ("0x3A", 58), ("0xff", 255)],
    *[("0.", 0.0), ("-0.0", 0.0), (".5", 0.5), ("+12e03", 12e3), ("-2E+05", -2e5), ("1e-3", 0.001), ("6.1e5", 6.1e5)],
    *[(word, math.inf) for word in (".inf", ".Inf", ".INF", "+.inf")],
    ("-.inf", -math.inf),
    *[(word, word) for word in ("no", "yes", "on", "off", "y", "N", "tRUE", "nuLL", "1_000", "12:30", "2024-01-01")],
    *[(word, word) for word in ("0b1", "1e", "e3", ".", "+", "-", "0o9", "0xg", "1.2.3", "inf", "nan")],
]


@pytest.mark.parametrize(("text", "value"), CORE_SCHEMA)
def test_scalars_are_those_of_yaml_1_2(text, value):
    if text == "-":  # an empty list item, not a scalar
        return
    got = yaml_text.load(f"key: {text}\n")["key"]
    assert (type(got), got) == (type(value), value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_not_a_number(text):
    assert math.isnan(yaml_text.load(text))


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "x: {a: 1, a: 1}\n", "- a: 1\n  'a': 2\n"])
def test_a_key_that_stands_twice_is_an_error(text):
    with pytest.raises(yaml.YAMLError, match=r"the key 'a' stands twice\n.*line \d+, column \d+"):
        yaml_text.load(text)


def test_nothing_but_plain_values_is_made():
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        yaml_text.load("!!python/object/apply:os.getcwd []")


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT


@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)))
def test_what_is_written_is_read_back(value):
    assert yaml_text.load(yaml_text.dump(value)) == value
