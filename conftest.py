"""The examples in README.md and docs/ are executed: Python blocks as they stand, `kingpost ...` lines by a shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

EXPECTED_CODE = re.compile(r"#\s*exit code (\d+)\s*$")


def run_shell_lines(example: Example) -> None:
    """Run the lines that call kingpost; a line ending in `# exit code N` must end so."""
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in example.parsed.splitlines():
        if not line.startswith("kingpost "):
            continue
        wanted = int(match[1]) if (match := EXPECTED_CODE.search(line)) else 0
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, timeout=300, env={**os.environ, "PATH": binaries}
        )
        assert done.returncode == wanted, f"$ {line}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"


def enter_folder(namespace: dict[str, Any]) -> None:
    """Each document has a temporary folder, so that its runs land there."""
    namespace["_back"], namespace["_folder"] = Path.cwd(), tempfile.mkdtemp()
    os.chdir(namespace["_folder"])
    sys.path.insert(0, namespace["_folder"])


def leave_folder(namespace: dict[str, Any]) -> None:
    """Back to where the tests were started."""
    os.chdir(namespace["_back"])
    sys.path.remove(namespace["_folder"])
    shutil.rmtree(namespace["_folder"])


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser("bash", run_shell_lines), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/decisions/*.md", "CONTRIBUTING.md"],
    setup=enter_folder,
    teardown=leave_folder,
).pytest()
