"""What is Optuna's in a search: the storage, the sampler, the pruner, and the importances.

Of Optuna's storages those are used that keep JSON or columns: the journal file and relational databases. Its CMA-ES
sampler is not offered: it keeps its state in the storage as a pickle, by which whoever can write there can run code.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kingpost.errors import MissingExtraError, RecipeError, RunError, nearest

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random", "gp", "qmc", "grid")
PRUNERS = ("median", "hyperband", "none")
JOURNAL = "study.journal"
STARTUP_TRIALS, WARM_PERCENT, FIRST_RUNG_PERCENT = 5, 25, 10
OPEN_TRIES, OPEN_SECONDS = 10, 5.0  # of a database that another process may be setting up
FEWEST_FOR_IMPORTANCE, FEWEST_GOOD = 10, 5  # the paper's evaluator wants five trials in its better group


def load_optuna() -> Any:
    """Optuna itself.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("optuna", extra="tune", purpose="a search") from error
    return optuna


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, Optuna says neither what it does nor which of its parts may change."""
    optuna = load_optuna()
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def open_study(name: str, place: str | None, folder: Path, higher_is_better: bool) -> optuna.Study:
    """A study, new or as it stands in its storage.

    Args:
        name: of the study.
        place: ``sqlite:///x.db`` or another database's address, or the path of a journal file; None for one in the
            folder.
        folder: of the search.
        higher_is_better: direction of the metric.

    Raises:
        RecipeError: the address cannot be used.
        RunError: the storage is damaged, or the study there goes the other way.
    """
    optuna = load_optuna()
    direction = "maximize" if higher_is_better else "minimize"
    try:
        storage = _database(place) if place and "://" in place else _journal(Path(place) if place else folder / JOURNAL)
        study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
    except (ValueError, OSError) as error:
        raise RunError(f"the storage '{place or folder / JOURNAL}' cannot be read: {error}") from error
    if study.direction.name.lower() != direction:
        raise RunError(f"study '{name}' in '{place}' is to {study.direction.name.lower()}, not to {direction}")
    return study


def sampler_of(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """A sampler by its name; its draws follow from the seed.

    Raises:
        RecipeError: the name is unknown.
        MissingExtraError: it needs a library that is not installed.
    """
    optuna = load_optuna()
    seed %= 2**32
    if name not in SAMPLERS:
        if name == "cmaes":
            raise RecipeError(
                "cmaes keeps its state in the storage as a pickle, which could run code",
                path="sampler",
                mend="take tpe or gp",
            )
        raise RecipeError(f"unknown sampler '{name}'", path="sampler", mend=nearest(name, SAMPLERS))
    if name in ("random", "grid"):  # the points of a grid wait in the study; this one only fetches them
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "tpe":  # runs under way count as bad ones, so that several at a time do not try the same
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    try:
        import scipy  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("scipy", extra="data", purpose=f"the sampler {name}") from error
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
    return optuna.samplers.QMCSampler(seed=seed, warn_independent_sampling=False, warn_asynchronous_seeding=False)


def pruner_of(name: str) -> optuna.pruners.BasePruner:
    """A pruner by its name; its steps are percents of the budget.

    The median rule leaves the first quarter of each run alone: early scores say little about another learning rate.

    Raises:
        RecipeError: the name is unknown.
    """
    optuna = load_optuna()
    if name not in PRUNERS:
        raise RecipeError(f"unknown pruner '{name}'", path="pruner", mend=nearest(name, PRUNERS))
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=WARM_PERCENT)
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=FIRST_RUNG_PERCENT, max_resource=100, reduction_factor=3)
    return optuna.pruners.NopPruner()


def importances(study: optuna.Study) -> tuple[dict[str, float], str]:
    """How much each key had to do with being among the best, as shares of 1; and how that was found, or why not.

    PED-ANOVA (Watanabe et al., IJCAI 2023): how far each key's values among the best trials differ from those among
    all. It counts keys that only some trials have.
    """
    optuna = load_optuna()
    whole = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(whole) < FEWEST_FOR_IMPORTANCE:
        return {}, f"needs {FEWEST_FOR_IMPORTANCE} whole trials, there are {len(whole)}"
    share = max(0.1, FEWEST_GOOD / len(whole))
    if len({trial.value for trial in whole}) == 1:
        return {}, "all trials scored the same"
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=share)
    with quiet():
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    shown = {str(key): float(value) for key, value in found.items()}
    if not all(math.isfinite(value) for value in shown.values()):
        return {}, "the best trials differ in nothing from the others"
    return shown, f"PED-ANOVA: the best {share:.0%} of {len(whole)} whole trials against all of them"


def _database(address: str) -> Any:
    optuna = load_optuna()
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    for left in reversed(range(OPEN_TRIES)):
        try:
            return optuna.storages.RDBStorage(address)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            mend = "for example sqlite:///search.db"
            raise RecipeError(f"got '{address}': {error}", path="storage", mend=mend) from error
        except SQLAlchemyError as error:  # perhaps another process is making the same tables
            if not left:
                raise RunError(f"the storage '{address}' cannot be opened: {error}") from error
            time.sleep(OPEN_SECONDS / OPEN_TRIES)
    raise AssertionError("unreachable")


def _journal(path: Path) -> Any:
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(path))
    if path.is_file():
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _mend(path: Path) -> None:
    """Put half a last line aside, which a power cut may leave; with it the journal could not be read again."""
    text = path.read_bytes()
    torn = text.rpartition(b"\n")[2]
    if torn:
        path.with_name(f"{path.name}.torn").write_bytes(torn)
        with path.open("rb+") as file:
            file.truncate(len(text) - len(torn))
