"""Lists that may only improve: what is imported, what is public, who may know whom, what importing does."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import kingpost as kp
from kingpost import catalogue
from kingpost.option import Option

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# What `import kingpost` adds to `import torch`, and what `kingpost.Recipe` adds to that: top-level names.
ADDED_BY_PACKAGE: set[str] = {"kingpost"}
ADDED_BY_RECIPE = {"annotated_types", "kingpost", "pydantic", "pydantic_core", "typing_inspection", "yaml"}
NEVER = {
    "sklearn",
    "pandas",
    "torchmetrics",
    "matplotlib",
    "rich",
    "PIL",
    "tokenizers",
    "tensorboard",
    "jinja2",
    "scipy",
}
NOISE = ("_", "cython_runtime")  # what compiled wheels (here PyYAML's) leave in sys.modules

LOOK = """
import json, logging, os, sys, threading, warnings
{first}
import torch
state = lambda: [torch.get_num_threads(), str(torch.get_default_dtype()), torch.get_rng_state().tolist(),
                 torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, torch.is_grad_enabled(),
                 sorted(os.environ.items()), os.getcwd(), sys.path[:], threading.active_count(),
                 [str(h) for h in logging.getLogger().handlers], logging.getLogger().level, len(warnings.filters),
                 str(sys.excepthook), torch.get_float32_matmul_precision()] if {with_state} else None
before, modules = state(), set(sys.modules)
{then}
print(json.dumps([sorted({{m.partition(".")[0] for m in set(sys.modules) - modules}}), before, state()]))
"""


def look(folder, then, first="", with_state=True):
    """(top-level modules added, state before, state after) of a fresh process."""
    code = LOOK.format(first=first, then=then, with_state=with_state)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def third_party(modules):
    return {m for m in modules if m not in sys.stdlib_module_names and not m.startswith(NOISE)}


def test_importing_is_light_and_has_no_side_effects(tmp_path):
    added, before, after = look(tmp_path, "import kingpost")
    assert third_party(added) == ADDED_BY_PACKAGE
    assert before == after and list(tmp_path.iterdir()) == []


def test_a_recipe_needs_little_and_has_no_side_effects(tmp_path):
    added, before, after = look(tmp_path, "import kingpost; kingpost.Recipe; kingpost.Patch; kingpost.Finding")
    assert third_party(added) == ADDED_BY_RECIPE
    assert before == after and list(tmp_path.iterdir()) == []


def test_all_public_names_together_need_no_heavy_library(tmp_path):
    added, before, after = look(tmp_path, "import kingpost as kp; [getattr(kp, name) for name in dir(kp)]")
    assert third_party(added) & NEVER == {"rich"}  # the progress of train
    assert before == after and list(tmp_path.iterdir()) == []


def test_the_package_alone_does_not_even_import_torch(tmp_path):
    code = "import sys, kingpost; print(sorted({'torch', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


VERBS = """
import kingpost as kp
assert callable(kp.train) and callable(kp.plan) and callable(kp.report)
import kingpost.train.loop, kingpost.plan, kingpost.report.html
import inspect
assert kp.train is not None and callable(kp.train) and callable(kp.plan) and callable(kp.report)
assert [*inspect.signature(kp.train).parameters] == ["recipe", "root", "quiet"]
assert [*inspect.signature(kp.plan).parameters] == ["recipe", "measure"]
"""


@pytest.mark.parametrize("first", ["", "import kingpost.train.loop, kingpost.plan, kingpost.report.html"])
def test_verbs_are_callable_whatever_was_imported_before(tmp_path, first):
    look(tmp_path, VERBS, first, with_state=False)


def test_public_names_are_the_committed_list():
    committed = (HERE / "public_names.txt").read_text().split()
    assert dir(kp) == committed, "a public name came or went: if that is meant, change tests/ratchets/public_names.txt"


@pytest.mark.parametrize("name", sorted(dir(kp)))
def test_every_public_name_is_there_and_described(name):
    found = getattr(kp, name)
    if name != "__version__":
        assert callable(found) and (inspect.getdoc(found) or "").strip()


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'kingpost' has no attribute 'trian'$"):
        _ = kp.trian


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in catalogue.CATALOGUE.items() for name in names]
)
def test_every_entry_of_the_catalogue_is_an_exported_option(kind, name):
    cls = catalogue.find(kind, name)
    assert isinstance(cls, type) and issubclass(cls, Option)
    assert getattr(kp, cls.__name__) is cls
    assert catalogue.name_of(cls) == name


def test_class_names_are_unique():
    targets = [target for kind in catalogue.CATALOGUE.values() for target in kind.values()]
    assert len({target.split(":")[1] for target in targets}) == len(set(targets)) == len(targets)


def test_layers_are_kept():
    program = Path(sys.executable).with_name("lint-imports")
    if not program.exists():
        pytest.skip("import-linter is not installed beside this Python")
    done = subprocess.run([program, "--no-cache"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "1 kept, 0 broken" in done.stdout
