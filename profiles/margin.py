"""Margin: how far a predicted quantity was off in measured runs, as quantiles."""

from pydantic import Field

from profiles.record import Record
from profiles.source import Source


class Margin(Record):
    """Quantiles (5, 50, 95 %) of what was measured against predicted, as shares; `id` is quantity/case.

    allocated/*: measured / predicted - 1, by tier, and by whether autocast runs. reserved/analytic-* and
    reserved/simulated-*: measured / what the replay reserved - 1, by whether attention writes its scores out (eager)
    or not (fused), or Unsloth runs. reserved/fused, /eager and /unsloth, without a replay: max_memory_reserved less
    max_memory_allocated as a share of what comes and goes at the peak; -saved: of the saved activations among it.
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
