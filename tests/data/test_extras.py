import sys

import pytest

from kingpost.data.bundled import Bundled
from kingpost.data.images import ImageFolder
from kingpost.data.tables import Table
from kingpost.data.text import Text
from kingpost.errors import MissingExtraError


@pytest.mark.parametrize(
    ("library", "source"),
    [
        ("pandas", lambda folder: Table(train=folder / "a" / "a.png", target="y")),
        ("sklearn", lambda folder: Bundled(which="iris")),
        ("PIL", lambda folder: ImageFolder(folder=folder)),
        ("tokenizers", lambda folder: Text(path=folder / "a" / "a.png", vocabulary=300)),
    ],
)
def test_a_missing_library_is_one_clear_line(tmp_path, monkeypatch, library, source):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in range(10):
            (tmp_path / name / f"{'a' * (file + 1)}.png").write_text("some text\n" * 30)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"which is not installed: pip install 'kingpost\[data\]'"):
        source(tmp_path).open()
