"""The unit of extension: a technique is a frozen dataclass that changes some slots of the assembly."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from kingpost.assembly import Assembly, Slot
from kingpost.errors import RecipeError
from kingpost.option import Option


class Technique(Option):
    """Base of all techniques; see ``docs/extending.md`` for how to write one.

    Class attributes:
        touches: the slots that :meth:`mount` changes, exactly these.
        after: names of techniques that must be listed earlier, if they are listed at all.
        conflicts: names of techniques that cannot be used together with this one, each with the reason.
        neutral: field values at which the technique changes nothing ("strength zero").
        space: field -> values that a search tries by default, as ``0.01..0.3:log`` or ``1,2,4``; empty for a range
            around the present values of the fields of ``neutral``.
        example: field values for the contract suite, where the defaults would not show an effect; None for what needs
            the user's own files, and is tested by itself.
        example_model: name of the net that the contract suite puts under it, where a plain one would not do.
        tasks: names of the tasks it is meant for; empty for all of them.
    """

    touches: ClassVar[frozenset[Slot]]
    after: ClassVar[tuple[str, ...]] = ()
    conflicts: ClassVar[Mapping[str, str]] = {}
    neutral: ClassVar[Mapping[str, Any] | None] = None
    space: ClassVar[Mapping[str, str]] = {}
    example: ClassVar[Mapping[str, Any] | None] = {}
    example_model: ClassVar[str] = ""
    tasks: ClassVar[tuple[str, ...]] = ()

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Contracts that do not hold for this technique, each with the reason (shown in the contract table)."""
        return {}

    @property
    def lineage(self) -> Mapping[str, Any]:
        """The run or file that the weights come from, for ``run.json``; empty if from none."""
        return {}

    @abstractmethod
    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this technique in it.

        Raises:
            RecipeError: the technique cannot work with this model, task or data.
        """
        raise AssertionError(f"{type(self).__name__} does not say how to mount it")


def check_order(techniques: Sequence[Technique]) -> None:
    """Refuse a wrong order and techniques that exclude each other; never reorder silently.

    Raises:
        RecipeError: names the two techniques, the reason, and the right order.
    """
    check_conflicts(techniques)
    names = [technique.name for technique in techniques]
    for index, technique in enumerate(techniques):
        if technique.name in names[:index]:
            raise RecipeError(f"'{technique.name}' is listed twice", path="techniques", mend="keep one of them")
        if late := [name for name in names[index + 1 :] if name in technique.after]:
            raise RecipeError(
                f"'{technique.name}' must come after {_quoted(late)}",
                path="techniques",
                mend=f"the right order: [{', '.join(right_order(techniques))}]",
            )


def check_conflicts(techniques: Iterable[Technique]) -> None:
    """Refuse techniques that exclude each other, wherever they stand in the recipe.

    Raises:
        RecipeError: names the two, and the reason.
    """
    techniques = list(techniques)
    names = [technique.name for technique in techniques]
    for technique in techniques:
        for other, reason in technique.conflicts.items():
            if other in names:
                raise RecipeError(
                    f"'{technique.name}' and '{other}' exclude each other: {reason}",
                    path="techniques",
                    mend=f"remove one, for example with techniques-={other}",
                )


def right_order(techniques: Sequence[Technique]) -> list[str]:
    """The names in an order that satisfies every ``after``, as close to the given one as can be."""
    waiting, placed = list(techniques), list[str]()
    while waiting:
        names = {technique.name for technique in waiting}
        ready = next((t for t in waiting if not names.intersection(t.after) - {t.name}), None)
        assert ready is not None, f"the `after` of {sorted(names)} form a circle"
        waiting.remove(ready)
        placed.append(ready.name)
    return placed


def mount_all(assembly: Assembly, techniques: Iterable[tuple[str, Technique]]) -> Assembly:
    """Mount techniques in order; an error names the place in the recipe (the first of each pair)."""
    for path, technique in techniques:
        task = assembly.setting.task.name
        trunk = assembly.setting.task.pretext and "model" in technique.touches and path == "model"  # any net will do
        if technique.tasks and task not in technique.tasks and not trunk:
            raise RecipeError(
                f"'{technique.name}' is meant for {_quoted(technique.tasks)}, but the task is '{task}'",
                path=path,
                mend="remove it, or change the task",
            )
        try:
            mounted: object = technique.mount(assembly)
        except RecipeError as error:
            raise error.under(path) from error.__cause__
        if not isinstance(mounted, Assembly):
            raise RecipeError(
                f"mount returned {type(mounted).__name__}, expected the assembly",
                path=path,
                mend="return assembly.with_(...)",
            )
        assembly = mounted
    return assembly


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
