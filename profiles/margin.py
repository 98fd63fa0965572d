"""Margin: how far a predicted quantity was off in measured runs, as quantiles."""

from pydantic import Field

from profiles.record import Record
from profiles.source import Source


class Margin(Record):
    """Quantiles (5, 50, 95 %) of what was measured against predicted, as shares; `id` is quantity/case.

    allocated/*: measured / predicted - 1. reserved/replayed: measured / what the replay reserved - 1. reserved/fused
    and reserved/eager: (max_memory_reserved - max_memory_allocated) / the part of the peak that comes and goes.
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
