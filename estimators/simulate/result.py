"""Simulation: what the simulated tier answers."""

from pydantic import NonNegativeInt

from estimators.answer import Component, PhaseName
from estimators.simulate.trace import Stage
from profiles.record import Record


class PhasePeak(Record):
    """The highest moment of a phase, in bytes, and the operation that led to it."""

    name: PhaseName
    allocated: NonNegativeInt
    reserved: NonNegativeInt
    components: tuple[Component, ...]
    operation: str
    module: str
    layer: int | None


class Moment(Record):
    """A point of the timeline: bytes after some event."""

    step: int
    phase: PhaseName
    allocated: int
    reserved: int


class Simulation(Record):
    """A simulated run: `layers_traced` of `layers` were traced, the rest repeated. Bytes; seconds of wall time here.

    `after_load`: allocated when the model, its adapters and the optimizer stand ready. `end_allocated`,
    `end_reserved`: after the last step. `notes`: how sharding was
    simulated. `stages`: highest allocated bytes in each stage of the loop.
    """

    phases: tuple[PhasePeak, ...]
    stages: dict[Stage, int]
    peak_allocated: int
    peak_reserved: int
    after_load: int
    end_allocated: int
    end_reserved: int
    trainable_parameters: int
    layers: int
    layers_traced: int
    seconds: float
    rss: int
    versions: dict[str, str]
    timeline: tuple[Moment, ...]
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> PhasePeak:
        """The phase with the highest allocated bytes."""
        return max(self.phases, key=lambda p: p.allocated)
