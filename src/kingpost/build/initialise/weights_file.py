"""Starting weights from a local file."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from kingpost.assembly import Assembly, Slot, Started
from kingpost.errors import RecipeError
from kingpost.net import head_of
from kingpost.option import Kind, checked
from kingpost.run import Run
from kingpost.technique import Technique

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
MOST_LINES = 30


@dataclass(frozen=True)
class WeightsReport:
    """What became of a file of weights.

    Args:
        path: of the file.
        matched: tensors of the model that were set, each with a note where the type was changed.
        missing: tensors of the model that the file does not have.
        unexpected: tensors of the file that the model does not have.
        mismatched: tensors of another shape, with both shapes; they were not set.
        skipped: tensors of the model that ``only`` and ``skip`` leave out.
    """

    path: Path
    matched: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, str]
    skipped: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Every tensor that was asked for was set, and none of the file was left over."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{self.path.name}: {len(self.matched)} tensors set"]
        cast = [f"{name}: {note}" for name, note in self.matched.items() if note]
        lists = {
            "of another type": cast,
            "missing in the file": self.missing,
            "not in the model": self.unexpected,
            "of another shape": [f"{name}: {why}" for name, why in self.mismatched.items()],
            "left out as asked": self.skipped,
        }
        shown = {what: list(names) for what, names in lists.items() if names}
        each = (MOST_LINES - 1) // max(1, len(shown)) - 2
        for what, names in shown.items():
            lines.append(f"  {len(names)} {what}")
            lines += [f"    {name}" for name in names[:each]]
            lines += [f"    and {len(names) - each} more"] if len(names) > each else []
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    rename: Mapping[str, str] | None = None,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
) -> WeightsReport:
    """Set a model's parameters and buffers from a safetensors file, where names and shapes agree.

    Args:
        model: to be changed in place.
        path: of the file.
        rename: beginnings of names in the file, and what stands for them in the model; the longest that fits counts.
        only: patterns (``layers.*``) of names in the model; by default all.
        skip: patterns of names in the model that stay as they are.

    Raises:
        RecipeError: there is no such file, or it is of another kind.

    >>> import tempfile, pathlib, safetensors.torch
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "w.safetensors"
    >>> safetensors.torch.save_file({"old.weight": torch.ones(1, 2), "old.scale": torch.ones(1)}, file)
    >>> print(load_weights(nn.Linear(2, 1), file, rename={"old.": ""}))
    w.safetensors: 1 tensors set
      1 missing in the file
        bias
      1 not in the model
        old.scale
    """
    file = _checked_file(Path(path))
    own = _own_tensors(model)
    wanted = [name for name in own if _wanted(name, tuple(only), tuple(skip))]
    matched, mismatched, unexpected, covered = dict[str, str](), dict[str, str](), list[str](), set[int]()
    with _opened(file) as opened, torch.no_grad():
        names = {_renamed(name, rename or {}): name for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        for name, inside in names.items():
            if name not in own:
                unexpected.append(inside)
                continue
            if name not in wanted:
                continue
            covered.add(id(own[name]))
            shape = tuple(opened.get_slice(inside).get_shape())
            if shape != tuple(own[name].shape):
                mismatched[name] = f"{shape} in the file, {tuple(own[name].shape)} in the model"
            else:
                matched[name] = _copy(opened, inside, own[name])
    missing = [name for name in wanted if id(own[name]) not in covered]
    skipped = [name for name in own if name not in wanted]
    return WeightsReport(file, matched, tuple(missing), tuple(unexpected), mismatched, tuple(skipped))


def _copy(opened: Any, name: str, target: Tensor) -> str:
    """Set one tensor; returns a note if its type was changed. In a plan, which has no memory, nothing is read."""
    types = (_TYPES.get(kind := opened.get_slice(name).get_dtype(), kind), str(target.dtype).removeprefix("torch."))
    if not isinstance(target, FakeTensor):
        target.copy_(opened.get_tensor(name))
    return "" if types[0] == types[1] else f"{types[0]} in the file, {types[1]} in the model: converted"


_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a file of weights holds, by name; a tensor with two names stands under both."""
    held = model.state_dict().keys()
    everything = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor for name, tensor in everything if name in held}


def _wanted(name: str, only: tuple[str, ...], skip: tuple[str, ...]) -> bool:
    asked = not only or any(fnmatch.fnmatchcase(name, pattern) for pattern in only)
    return asked and not any(fnmatch.fnmatchcase(name, pattern) for pattern in skip)


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    fits = [old for old in rename if name.startswith(old)]
    return rename[old] + name.removeprefix(old) if fits and (old := max(fits, key=len)) is not None else name


def _checked_file(path: Path) -> Path:
    if path.suffix in PICKLED:
        raise RecipeError(
            f"'{path.name}' is a pickle, and reading one can run any code that somebody put into it",
            path="path",
            mend="convert it once: torch.load(file, weights_only=True), then safetensors.torch.save_file(weights, "
            "'weights.safetensors')",
        )
    file = path.expanduser()
    if not file.is_file():
        raise RecipeError(f"there is no file '{path}'", path="path", mend="it is sought from the current folder")
    return file


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise RecipeError(f"'{file.name}' is no safetensors file: {error}", path="path") from error


@checked
class WeightsFile(Technique):
    """Weights from another run, or from a local safetensors file, by name; nothing is fetched or unpickled.

    What techniques add to the model afterwards (adapters) is asked of nobody. What does not fit and need not stays
    as ``base`` or the constructor made it; the plan lists it, and the run notes it as a finding.
    """

    path: Annotated[str | None, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)] = None
    """The file, relative to the current folder; either this or ``run``."""
    run: Annotated[str | None, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)] = None
    """The run, by its folder or by its name under runs/; its head need not fit, since a new task has another."""
    which: Literal["best", "last"] = "best"
    """Weights of the run's best or last epoch."""
    rename: dict[str, str] = field(default_factory=dict)
    """Beginnings of names in the file, and what stands for them in the model; the longest that fits counts."""
    only: tuple[str, ...] = ()
    """Patterns of names in the model that are set, such as ``layers.*``; by default all."""
    skip: tuple[str, ...] = ()
    """Patterns of names in the model that are not set, such as ``head.*``."""
    strict: bool | None = None
    """Every tensor must find its place. Null: in a file all of them, of a run all of the model's but the head's."""
    sha256: str | None = None
    """What the file's SHA-256 must be."""
    base: Annotated[Technique | None, Kind("initialise")] = None
    """Sets all weights first; null leaves them as the model's constructor made them."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"initialise"})
    example: ClassVar[Mapping[str, Any] | None] = None  # it needs a file of the user's

    def __post_init__(self) -> None:
        if (self.path is None) == (self.run is None):
            given = "none" if self.path is None else "both"
            raise RecipeError(f"exactly one of path and run must be given, got {given}", path="path")

    @property
    def file(self) -> Path:
        """Where the weights are.

        Raises:
            RunError: there is no such run, or it has no weights yet.
        """
        return Path(self.path) if self.path is not None else Run.open(str(self.run)).weights(self.which)

    @property
    def lineage(self) -> Mapping[str, Any]:
        """The file with its hash, and the run it belongs to."""
        file = _checked_file(self.file)
        of_run = {"run": self.run, "weights": self.which} if self.run is not None else {"weights": str(file)}
        return {**of_run, "sha256": _sum(file)}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with this initialiser."""
        base = (self.base.mount(assembly) if self.base else assembly).initialise
        asked = set(_own_tensors(assembly.model))

        def initialise(model: nn.Module, seed: int) -> Started:
            first = base(model, seed)
            try:
                self._check_sum()
                report = load_weights(model, self.file, rename=self.rename, only=self.only, skip=self.skip)
                report = dataclasses.replace(report, missing=tuple(name for name in report.missing if name in asked))
                self._check(report, model)
            except RecipeError as error:
                raise error.under("initialise") from error.__cause__
            return _started(first, report, {name for name, _ in model.named_parameters()})

        return assembly.with_(initialise=initialise)

    def _check(self, report: WeightsReport, model: nn.Module) -> None:
        """Refuse weights that do not fit as they must."""
        if self.strict is False or report.complete:
            return
        gaps = [*report.missing, *report.mismatched]
        if self.strict is None and self.run is not None:
            head = head_of(model) + "."
            if all(name.startswith(head) for name in gaps):
                return
        raise RecipeError(f"the weights do not fit the model\n{report}", mend=_MEND)

    def _check_sum(self) -> None:
        if self.sha256 is None:
            return
        if (found := _sum(_checked_file(self.file))) != self.sha256.lower():
            raise RecipeError(
                f"expected {self.sha256}, but '{self.file}' has {found}",
                path="sha256",
                mend="the file is damaged or another one",
            )


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_MEND = "\nrename beginnings of names with `rename`, leave tensors out with `skip`, or allow the rest with strict=false"


def _started(first: Started, report: WeightsReport, parameters: set[str]) -> Started:
    here = {name: f"from {report.path.name}" + (f" ({note})" if note else "") for name, note in report.matched.items()}
    gaps = dict.fromkeys(report.missing, "not in the file") | dict(report.mismatched)
    done = {**first.done, **{name: how for name, how in here.items() if name in parameters}}
    left = {**first.left, **{name: why for name, why in gaps.items() if name in parameters and name not in first.done}}
    return Started(done, {name: why for name, why in left.items() if name not in here})
