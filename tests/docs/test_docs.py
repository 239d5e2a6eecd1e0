"""The documentation is current, builds without a warning, and its links and YAML examples hold."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kingpost import catalogue, yaml_text
from kingpost.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(page for page in DOCS.rglob("*.md") if not {"_build", "api"} & set(page.relative_to(DOCS).parts)),
    ]
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def test_generated_pages_are_current() -> None:
    done = subprocess.run([sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_sphinx_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*words, "-d", str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "html" / "techniques.html").is_file()
    assert "kingpost.train.loop.fit" in (tmp_path / "html" / "api" / "train.html").read_text(encoding="utf-8")


def test_every_technique_is_compared_with_something() -> None:
    assert "**none**" not in (DOCS / "references.md").read_text(encoding="utf-8")


@every_page
def test_relative_links_resolve(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown page's headings have, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def yaml_examples() -> Iterator[object]:
    for page in PAGES:
        for number, text in enumerate(
            re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
        ):
            yield pytest.param(text, id=f"{page.name}-{number}")


@pytest.mark.parametrize("text", list(yaml_examples()))
def test_yaml_examples_are_recipes(text: str) -> None:
    """A block may leave out the keys that a recipe requires; what it says must be valid."""
    shown = yaml_text.load(text)
    if isinstance(shown.get("data"), dict) and "reference" in shown["data"]:
        shown["data"]["reference"] = "torch.utils.data:DataLoader"  # stands for a function of the reader's
    Recipe.from_value({"name": "x", "data": "digits", "model": "mlp", **shown})


def test_every_source_has_an_example() -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    for name in catalogue.CATALOGUE["data"]:
        assert re.search(r"```(yaml|python)", sections[name]), name
