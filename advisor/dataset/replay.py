"""General examples among those of the task, so that a model keeps what it could (K2)."""

from random import Random

from advisor.dataset.reader import Dataset
from profiles.errors import InvalidInputError


def draw_replay(general: Dataset, trained: int, share: float, seed: int) -> Dataset:
    """As many of the general examples as make up `share` of a mixture with `trained` others, each at most once.

    Raises:
        InvalidInputError: there are not so many.
    """
    wanted = max(1, round(trained * share / (1 - share)))
    if wanted > len(general):
        raise InvalidInputError(
            "--replay",
            f"{general.path} holds {len(general)} examples, and {share:.0%} beside {trained} of the task are {wanted}",
            "Give more of them, or a smaller --replay-share.",
        )
    kept = bytearray(len(general.first))
    for i in Random(seed).sample(list(general.indices), wanted):
        kept[i] = 1
    return general.view(bytes(kept))
