"""Numbers, names and units as a reader wants them."""

from __future__ import annotations

import math

NOTHING = "\N{EN DASH}"
FIGURES = 4  # significant digits

# Column name -> (words, unit or range) of the metrics that tasks bring along.
METRICS = {
    "accuracy": ("accuracy", "share of samples"),
    "token_accuracy": ("token accuracy", "share of tokens"),
    "f1_macro": ("macro F1", "0 to 1"),
    "average_precision": ("average precision", "0 to 1"),
    "r2": ("R²", "1 is perfect"),
    "mean_absolute_error": ("mean absolute error", "target's unit"),
    "root_mean_squared_error": ("root mean squared error", "target's unit"),
}


def number(value: object) -> str:
    """A value for a table.

    >>> [number(value) for value in (0.98324, 12345, 770.8179, 2635.4, True, "cpu")]
    ['0.9832', '12,345', '770.8', '2,635', 'yes', 'cpu']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if math.isnan(value):
            return NOTHING
        return f"{value:,.0f}" if 10 ** (FIGURES - 1) <= abs(value) < 1e15 else f"{value:.{FIGURES}g}"
    return NOTHING if value is None else str(value)


def score(value: float) -> str:
    """A figure between 0 and 1, with the same digits in every row.

    >>> score(1.0), score(0.12345), score(float("nan")) == NOTHING
    ('1.000', '0.123', True)
    """
    return NOTHING if math.isnan(value) else f"{value:.3f}"


def duration(seconds: float) -> str:
    """A time span in the units one would say it in.

    >>> duration(11.09), duration(125), duration(7500)
    ('11.1 s', '2 min 5 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def words(name: str) -> str:
    """A column's name in words.

    >>> words("f1_macro"), words("false_alarms")
    ('macro F1', 'false alarms')
    """
    return METRICS[name][0] if name in METRICS else name.replace("_", " ")


def axis(name: str) -> str:
    """A metric's name with its unit or range, for an axis.

    >>> axis("accuracy"), axis("false_alarms")
    ('accuracy (share of samples)', 'false alarms')
    """
    return f"{words(name)} ({METRICS[name][1]})" if name in METRICS else words(name)
