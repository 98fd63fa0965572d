"""The batches that a run will see, from a file: a line for each micro-batch, with the tokens of each of its rows."""

import re
from pathlib import Path

from advisor.dataset.lines import read_lines
from profiles.errors import InvalidInputError
from profiles.plan import Plan

MOST_BATCHES = 500  # each takes about a second to trace
FORMAT = "Each line is a micro-batch: the tokens of its rows, as in `812 640 511` or [812, 640, 511]."


def read_batches(path: str | Path, plan: Plan) -> tuple[tuple[int, int], ...]:
    """(rows, padded length) of each micro-batch, in the file's order; empty lines are left out.

    Raises:
        InvalidInputError: no such file, a line that is no list of lengths, or one that `plan` cannot see.
    """
    found = []
    for number, line in read_lines(Path(path)):
        text = line.strip().removeprefix("[").removesuffix("]").strip()
        if not text:
            continue
        lengths = [_length(word, f"{path}:{number}", plan) for word in re.split(r"\s*,\s*|\s+", text)]
        if len(lengths) > plan.micro_batch_size:
            raise InvalidInputError(
                f"{path}:{number}",
                f"{len(lengths)} rows, but the plan's micro_batch_size is {plan.micro_batch_size}",
                f"Give --micro-batch {len(lengths)}, or split the line.",
            )
        found.append((len(lengths), max(lengths)))
        if len(found) > MOST_BATCHES:
            raise InvalidInputError(
                str(path),
                f"more than {MOST_BATCHES} micro-batches",
                "Keep those up to the longest: what comes later meets segments that are there already.",
            )
    if not found:
        raise InvalidInputError(str(path), "no batch in it", FORMAT)
    return tuple(found)


def _length(word: str, where: str, plan: Plan) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 9 or int(word) == 0:
        raise InvalidInputError(where, f"{word[:40]!r} is no number of tokens", FORMAT)
    if int(word) > plan.seq_len:
        raise InvalidInputError(
            where,
            f"a row of {int(word):,} tokens, but the plan cuts rows at seq_len {plan.seq_len:,}",
            f"Give --seq-len {word}, or the length that the trainer cuts it to.",
        )
    return int(word)
