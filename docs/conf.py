"""How Sphinx builds these pages. Nothing here needs a network."""

from __future__ import annotations

from pathlib import Path

import kingpost

project = "kingpost"
author = "the kingpost authors"
copyright = "the kingpost authors, Apache-2.0"
release = version = kingpost.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "results-notes.md"]
suppress_warnings = ["ref.python"]  # names in annotations, such as `tokens`, that two modules have
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = f"kingpost {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
toc_object_entries = False  # thousands of names in every page's sidebar make the build ten times as long
maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Class attributes", "params_style")]

PARTS = {
    "nouns": "The nouns",
    "build": "build",
    "data": "data",
    "train": "train",
    "report": "report",
}
HIDDEN = {"__main__"}


def write_api_pages() -> None:
    """One page for each part of the source, with every module in it; made anew at each build."""
    package = Path(kingpost.__file__).parent
    folder = Path(__file__).parent / "api"
    folder.mkdir(exist_ok=True)
    for part, title in PARTS.items():
        root = package if part == "nouns" else package / part
        found = sorted(root.glob("*.py") if part == "nouns" else root.rglob("*.py"))
        names = [".".join(("kingpost", *path.relative_to(package).with_suffix("").parts)) for path in found]
        modules = [name for name in names if not name.endswith("__init__") and name.split(".")[-1] not in HIDDEN]
        lines = [title, "=" * len(title), ""]
        for module in modules:
            lines += [module, "-" * len(module), "", f".. automodule:: {module}", ""]
        write(folder / f"{part}.rst", "\n".join(lines))
    links = "\n".join(f"   {part}" for part in PARTS)
    text = (
        f"Python interface\n================\n\nMade from the docstrings.\n\n.. toctree::\n   :maxdepth: 2\n\n{links}\n"
    )
    write(folder / "index.rst", text)


def write(path: Path, text: str) -> None:
    """Leave a file that is right alone, so that Sphinx need not read it again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def setup(app: object) -> None:
    """Called by Sphinx."""
    write_api_pages()
