import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kingpost.files import remove_leftovers, write_atomically, write_json, write_text


def test_an_exception_in_the_middle_leaves_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half(temporary):
        temporary.write_text("ne")
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        write_atomically(path, half)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_not_a_number_is_refused_before_anything_is_replaced(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1} and os.listdir(tmp_path) == ["a.json"]


KILLED_IN_THE_MIDDLE = """
import sys, time
from pathlib import Path
sys.modules["torch"] = None  # files need no torch, and this test no waiting for it
import importlib.util
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
def slow(temporary):
    temporary.write_text("half of the ne")
    Path("started").touch()
    time.sleep(60)
files.write_atomically(Path("a.txt"), slow)
"""


def test_a_kill_in_the_middle_leaves_the_old_content_and_a_leftover_that_can_be_removed(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    (tmp_path / ".keep.txt").touch()
    source = sys.modules[write_text.__module__].__file__
    process = subprocess.Popen([sys.executable, "-c", KILLED_IN_THE_MIDDLE, source], cwd=tmp_path)
    until = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(os.listdir(tmp_path)) == 4
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".keep.txt", "a.txt", "started"]


def test_folders_are_made_and_others_may_read(tmp_path):
    path = tmp_path / "b" / "c" / "a.txt"
    write_text(path, "Grüße\n")
    assert path.read_bytes() == "Grüße\n".encode() and path.stat().st_mode & 0o777 == 0o644
