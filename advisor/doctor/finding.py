"""Finding: one thing that was looked at."""

from typing import Literal

from profiles.record import Record


class Finding(Record):
    """What was found, what it means for a run, and how to mend it (empty: nothing to mend)."""

    topic: str
    level: Literal["ok", "note", "problem"]
    found: str
    meaning: str
    mend: str = ""
