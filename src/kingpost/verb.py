"""Verbs that are a folder and a function of the same name: ``kp.train(recipe)`` beside ``kingpost.train.loop``.

Python binds a package's name in its parent as soon as anything in it is imported, so the function cannot simply
live under that name. The package itself is made callable instead, as the language provides for
(https://docs.python.org/3/reference/datamodel.html#customizing-module-attribute-access).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class Verb(ModuleType):
    """A module that can be called; the function behind it is imported at the first call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function()(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:  # what inspect.signature and help() show
        return self._function()

    def _function(self) -> Any:
        import kingpost

        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(kingpost.WHERE[name]), name)


def make_callable(module: str) -> None:
    """Let a module be called as the public function that has its name."""
    sys.modules[module].__class__ = Verb
