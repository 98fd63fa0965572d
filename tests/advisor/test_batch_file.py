"""Files of batches: what is read, and what is refused with its line."""

from pathlib import Path

import pytest

from advisor.batch_file import MOST_BATCHES, read_batches
from profiles.errors import InvalidInputError
from profiles.plan import Plan

PLAN = Plan(model="m", micro_batch_size=3, seq_len=1024)


def write(folder: Path, text: str) -> Path:
    path = folder / "lengths.txt"
    path.write_text(text)
    return path


def test_a_batch_is_as_long_as_its_longest_row(tmp_path: Path) -> None:
    path = write(tmp_path, "812 640 511\n\n[64, 1024]\n7,9\n")
    assert read_batches(path, PLAN) == ((3, 812), (2, 1024), (2, 9))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("812 x", ":1: 'x' is no number"),
        ("10 10\n0", ":2: '0' is no number"),
        ("-5", "'-5' is no number"),
        ("1e3", "'1e3' is no number"),
        ("²", "is no number"),
        ("[1, 2,]", "'' is no number"),
        ("9" * 5000, "is no number"),
        ("1 2 3 4", ":1: 4 rows, but the plan's micro_batch_size is 3"),
        ("5\n1025", ":2: a row of 1,025 tokens, but the plan cuts rows at seq_len 1,024"),
        ("\n[]\n", "no batch in it"),
        ("1\n" * (MOST_BATCHES + 1), f"more than {MOST_BATCHES} micro-batches"),
    ],
)
def test_what_cannot_be_a_batch_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidInputError) as caught:
        read_batches(path, PLAN)
    assert says in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be opened"):
        read_batches(tmp_path / "none.txt", PLAN)
