"""The peers' environment: made once, apart from kingpost's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEFAULT_FOLDER = HERE / ".peers-venv"


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def setup(folder: Path) -> None:
    """Make the environment or complete it; torch first and alone, so that nobody brings another.

    Raises:
        subprocess.CalledProcessError: an installation failed; pip has said why.
    """
    if not python_of(folder).exists():
        _run(sys.executable, "-m", "venv", str(folder))
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    pip = (str(python_of(folder)), "-m", "pip", "install", "--quiet", "--constraint", "peers-constraints.txt")
    _run(*pip, "torch")
    _run(*pip, "--requirement", "peers-requirements.txt")
    _run(*pip, "--no-deps", "--requirement", "peers-no-deps.txt")
    _run(str(python_of(folder)), "-m", "pip", "list")


def _run(*command: str) -> None:
    print("  " + " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True, cwd=HERE)
