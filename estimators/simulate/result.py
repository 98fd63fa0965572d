"""Simulation: what the simulated tier answers."""

from typing import Literal

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


OperationKind = Literal["matmul", "int8_matmul", "flash", "efficient", "dequantize", "elementwise"]
OperationStage = Literal["forward", "backward", "clip", "optimizer"]


class Operation(Record):
    """`n` equal calls in a step (passes: in a micro-batch). FLOPs and bytes of one; `tensor_bytes`: its largest tensor.

    A product of (tokens, n_in) by (n_in, n_out), in `copies` parts; tokens of an attention: a sequence. tensors: how
    many an operation over a list of them walks through. A pass that is repeated for checkpoints counts as forward.
    """

    stage: OperationStage
    kind: OperationKind
    n: int
    n_bytes: int
    tensor_bytes: int
    itemsize: int
    flops: float = 0.0
    tokens: int = 0
    n_in: int = 0
    n_out: int = 0
    copies: int = 1
    tensors: int = 0


class Simulation(Record):
    """A simulated run: `layers_traced` of `layers` were traced, the rest repeated. Bytes; seconds of wall time here.

    `after_load`: allocated when the model, its adapters and the optimizer stand ready. `end_allocated`,
    `end_reserved`: after the last step. `stages`: highest allocated bytes in each stage of the loop. `operations`:
    those of the last step. `assumptions`: what was not traced but modelled.
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
    operations: tuple[Operation, ...] = ()
    assumptions: tuple[str, ...] = ()

    @property
    def peak(self) -> PhasePeak:
        """The phase with the highest allocated bytes."""
        return max(self.phases, key=lambda p: p.allocated)
