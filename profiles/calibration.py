"""Calibration: constants fitted to runs on one kind of hardware with one set of library versions."""

from pydantic import Field, NonNegativeFloat

from profiles.measurement import Environment
from profiles.record import Record


class Fitted(Record):
    """One fitted constant: its value, from `n` points, with the relative residual (90th percentile) they left."""

    value: float
    n: int = Field(ge=1)
    residual: NonNegativeFloat


class Calibration(Record):
    """Fitted constants by name (`step_time_factor`, `memory_overhead_bytes`, ...), with where and when."""

    schema_version: int = 1
    id: str
    date: str
    environment: Environment
    constants: dict[str, Fitted]
    origin: str = "local"
