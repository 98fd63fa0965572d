"""Signals that are noted instead of raised: what is at hand (half a line of JSON, a callback) is never torn."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def noted_signals(*numbers: int) -> Iterator[list[int]]:
    """A list that grows by one with each of these signals, which do nothing else meanwhile.

    They are heard even where the parent had them ignored, as a shell without job control has SIGINT for what it
    starts with `&`: Python raises no KeyboardInterrupt there.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
