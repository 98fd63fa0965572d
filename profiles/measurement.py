"""Measurement: what one real run did, with everything needed to compare it with a prediction."""

from pydantic import Field

from profiles.plan import Plan
from profiles.record import Record
from profiles.retention import Retention


class Environment(Record):
    """The software and hardware of a run. Versions by distribution name."""

    hardware: str
    driver_version: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class StepRecord(Record):
    """One logged step: loss, seconds, tokens, and memory in bytes (None where the device has no such figure)."""

    step: int
    loss: float | None = None
    seconds: float | None = None
    tokens: float | None = None
    allocated: int | None = None
    reserved: int | None = None
    process: int | None = None


class Measurement(Record):
    """A finished run. Memory in bytes, peaks over the whole run; `steps_seconds_median` leaves the first step out."""

    schema_version: int = 1
    id: str
    date: str
    plan: Plan
    environment: Environment
    model_parameters: int
    trainable_parameters: int
    steps: int
    step_seconds_median: float | None
    tokens_per_second: float | None
    first_loss: float | None
    last_loss: float | None
    eval_loss_before: float | None = None
    eval_loss_after: float | None = None
    retention: Retention | None = None
    peak_allocated: int | None = None
    peak_reserved: int | None = None
    peak_process: int | None = None
    predicted_device: float | None = None
    predicted_step_seconds: float | None = None
    finished: bool = True
    notes: str = ""
