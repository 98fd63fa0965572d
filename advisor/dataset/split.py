"""Hold some examples out, so that no example is on both sides."""

from random import Random
from typing import NamedTuple

from advisor.dataset.reader import Dataset
from profiles.errors import InvalidInputError


class Split(NamedTuple):
    """Two views of one dataset."""

    train: Dataset
    evaluation: Dataset


def split(dataset: Dataset, eval_fraction: float, seed: int) -> Split:
    """Draw about `eval_fraction` of the examples (at least one, never all) for evaluation.

    Equal examples always go to the same side: a copy in the training data would make the evaluation loss too good.
    The same data, fraction and seed give the same split.
    Raises InvalidInputError unless 0 < eval_fraction < 1 and there are two different examples.
    """
    if not 0 < eval_fraction < 1:
        raise InvalidInputError("eval_fraction", f"must lie between 0 and 1, got {eval_fraction}")
    groups: dict[int, list[int]] = {}
    for i in dataset.indices:
        groups.setdefault(dataset.first[i], []).append(i)
    if len(groups) < 2:
        raise InvalidInputError(
            str(dataset.path),
            "holds fewer than two different examples, so none can be held out",
            "Add examples, or set eval_fraction to 0.",
        )
    order = list(groups.values())
    Random(seed).shuffle(order)
    held_out = bytearray(len(dataset.first))
    wanted = min(max(round(eval_fraction * len(dataset)), 1), len(dataset) - 1)
    taken: list[int] = []
    for group in order:
        if len(taken) + len(group) <= wanted:
            taken += group
    for i in taken or min(order, key=len):
        held_out[i] = 1
    train = bytearray(len(dataset.first))
    for i in dataset.indices:
        train[i] = 1 - held_out[i]
    return Split(dataset.view(bytes(train)), dataset.view(bytes(held_out)))
