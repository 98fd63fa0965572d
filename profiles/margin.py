"""Margin: how far a predicted quantity was off in measured runs, as quantiles."""

from pydantic import Field

from profiles.record import Record
from profiles.source import Source


class Margin(Record):
    """Quantiles (5, 50, 95 %) of what was measured against predicted, as shares; `id` is quantity/case.

    reserved/*: (max_memory_reserved - max_memory_allocated) / the part of the allocated peak that comes and goes.
    allocated/*: measured / predicted - 1.
    """

    id: str
    low: float
    expected: float
    high: float
    n: int = Field(ge=1)
    hardware: str
    versions: str
    date: str
    source: Source
