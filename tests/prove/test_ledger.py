import hashlib
import json
import subprocess
import sys

import pytest

from kingpost.ledger import FIRST, Ledger, LedgerError

BODIES = [
    {"x": 1.5, "text": "ä\u2028 'quoted'"},
    {"nested": {"b": [1, None, True], "a": ""}},
    {},
    {"big": "y" * 200_000},
]


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "deep" / "ledger.jsonl")
    for index, body in enumerate(BODIES * 2):
        made.append("run", f"trial-{index % 3}", body)
    return made


def lines(ledger):
    return ledger.path.read_bytes().splitlines(keepends=True)


def problems(ledger, **settings):
    return [(fault.line, fault.problem) for fault in ledger.verify(**settings)]


def test_rows_come_back_in_order_and_by_filter(ledger):
    found = ledger.entries()
    assert [entry.n for entry in found] == list(range(1, 9))
    assert [entry.body for entry in found] == BODIES * 2
    assert [entry.n for entry in ledger.entries(trial="trial-1")] == [2, 5, 8]
    assert ledger.entries(kind="verdict") == []
    assert ledger.verify() == []


def test_a_program_that_knows_nothing_of_kingpost_can_check_the_chain(ledger):
    previous = FIRST
    for number, line in enumerate(ledger.path.read_text(encoding="ascii").splitlines(), 1):
        row = json.loads(line)
        stated = row.pop("sha256")
        assert hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest() == stated
        assert (row["n"], row["previous"]) == (number, previous)
        previous = stated


def rewritten(line, **changes):
    """The row with changes and a hash that fits them."""
    row = json.loads(line) | changes
    row.pop("sha256")
    row["sha256"] = hashlib.sha256(json.dumps(row, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps(row, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize(
    ("damage", "line", "said"),
    [
        (lambda rows: [*rows[:2], rows[2].replace(b"trial-2", b"trial-9"), *rows[3:]], 3, "row 3 was changed"),
        (lambda rows: [*rows[:3], *rows[4:]], 4, "row 5 stands where row 4 belongs"),
        (lambda rows: rows[1:], 1, "row 2 stands where row 1 belongs"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], 1, "row 2 stands where row 1 belongs"),
        (lambda rows: [*rows[:4], rows[3], *rows[4:]], 5, "row 4 stands where row 5 belongs"),
        (lambda rows: [*rows[:4], rewritten(rows[4], body={}), *rows[5:]], 6, "the row before it was changed"),
        (lambda rows: [*rows[:4], rows[4].replace(b":", b": ", 1), *rows[5:]], 5, "row 5 was written anew"),
        (lambda rows: [*rows[:5], b"garbage\n", *rows[6:]], 6, "not a row of a ledger"),
    ],
    ids=["changed", "removed", "first removed", "reordered", "doubled", "rehashed", "spaced", "garbage"],
)  # fmt: skip
def test_what_was_done_to_the_file_is_found_and_its_line_named(ledger, damage, line, said):
    ledger.path.write_bytes(b"".join(damage(lines(ledger))))
    found = problems(ledger)
    assert found[0][0] == line and said in found[0][1]


def test_every_single_byte_counts(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for value in range(3):
        ledger.append("run", "a", {"value": value})
    whole = ledger.path.read_bytes()
    for place in range(len(whole)):
        ledger.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert ledger.verify(), place


def test_rows_missing_at_the_end_are_found_by_a_hash_that_was_kept(ledger):
    head = ledger.entries()[-1].sha256
    assert problems(ledger, head=head) == problems(ledger, head=head[:12]) == []
    ledger.path.write_bytes(b"".join(lines(ledger)[:-1]))
    assert problems(ledger) == []
    ((line, said),) = problems(ledger, head=head)
    assert line == 8 and "rows at the end were removed" in said


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_half_a_last_line_is_put_aside_and_said(ledger, kept):
    rows = lines(ledger)
    torn = rows[-1][:kept]
    ledger.path.write_bytes(b"".join(rows[:-1]) + torn)
    assert problems(ledger)[0][0] == 8
    assert len(ledger.entries()) == 7
    ledger.append("run", "after", {})
    assert ledger.verify() == []
    mended, after = ledger.entries()[-2:]
    assert (mended.kind, mended.n, after.trial, after.n) == ("mended", 8, "after", 9)
    assert (ledger.path.parent / mended.body["file"]).read_bytes() == torn


def test_a_whole_row_without_its_line_feed_is_kept(ledger):
    before = ledger.path.read_bytes()
    ledger.path.write_bytes(before[:-1])
    assert "without a line feed" in problems(ledger)[0][1]
    ledger.append("run", "after", {})
    assert ledger.path.read_bytes().startswith(before) and len(ledger.entries()) == 9 and ledger.verify() == []


def test_nothing_is_added_to_a_row_that_was_changed(ledger):
    rows = lines(ledger)
    ledger.path.write_bytes(b"".join(rows[:-1]) + rows[-1].replace(b"yyy", b"zzz", 1))
    with pytest.raises(LedgerError, match="the last row was changed"):
        ledger.append("run", "a", {})


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": float("inf")}, {"x": object()}])
def test_what_is_not_json_is_refused_and_nothing_is_written(tmp_path, body):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises((ValueError, TypeError)):
        ledger.append("run", "a", body)
    assert not ledger.path.exists()


WRITER = """
import sys
from kingpost.ledger import Ledger
for index in range(40):
    Ledger(sys.argv[1]).append("run", sys.argv[2], {"index": index})
"""


def test_several_processes_write_at_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"writer-{k}"]) for k in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    ledger = Ledger(path)
    assert ledger.verify() == []
    for k in range(3):
        assert [entry.body["index"] for entry in ledger.entries(trial=f"writer-{k}")] == list(range(40))
