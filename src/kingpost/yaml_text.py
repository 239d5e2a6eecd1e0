"""YAML as people mean it: ``1e-3`` is a number, ``no`` is text, and a key that stands twice is an error.

PyYAML follows YAML 1.1, where it is the other way round; the rules here are those of the YAML 1.2 core schema.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """A safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_SCALARS = [
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("tag:yaml.org,2002:float", _FLOAT, "-+.0123456789"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
]  # fmt: skip


def _base(text: str) -> int:
    return {"0o": 8, "0x": 16}.get(text[:2], 10)


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), [c if c != "\0" else "" for c in _first])
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value, _base(node.value)))


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads back: short lists on one line, no aliases, numbers in full."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    short = all(not isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=short)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(float, _represent_float)


def load(text: str) -> Any:
    r"""The value of a YAML document.

    Raises:
        yaml.YAMLError: with line and column.

    >>> load("lr: 1e-3\nanswer: no")
    {'lr': 0.001, 'answer': 'no'}
    """
    return yaml.load(text, Loader=_Loader)


def dump(value: Any) -> str:
    """A value as YAML, keys in their order.

    >>> print(dump({"lr": 1e-05, "answer": "true", "widths": [2, 1]}), end="")
    lr: 1e-05
    answer: 'true'
    widths: [2, 1]
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def dump_line(value: Any) -> str:
    """A value as YAML in flow style: one line, unless a text within it has more.

    >>> dump_line({"lr": 0.1, "name": "1"}), dump_line("no"), dump_line([])
    ("{lr: 0.1, name: '1'}", 'no', '[]')
    """
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=True
    )
    return text.removesuffix("...\n").removesuffix("\n")
