"""Calibration: constants fitted to runs on one kind of hardware with one set of library versions."""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_serializer

from profiles.gpu import DType
from profiles.measurement import Environment
from profiles.plan import Plan
from profiles.record import Record

KernelKind = Literal[
    "matmul", "copy", "add", "attention", "dequantize_nf4", "dequantize_int8", "optimizer", "launch", "to_device",
    "to_host", "all_reduce", "all_gather", "reduce_scatter",
]  # fmt: skip
MISMATCH_MARGIN = 0.15  # assumed: PEFT's published table moved by up to 40 % over two years of releases, mostly less
KEPT_REPEATS = 3  # observations of one and the same thing; older ones make room

ObservedT = TypeVar("ObservedT", bound="TimedKernel | TimedStep")


class Fitted(Record):
    """One fitted constant: its value, from `n` points, with the relative residual (90th percentile) they left."""

    value: float
    n: int = Field(ge=1)
    residual: NonNegativeFloat


class TimedKernel(Record):
    """One kernel that a probe timed: seconds of one call. `shape` holds what `kind` needs (docs/concepts)."""

    kind: KernelKind
    dtype: DType
    shape: dict[str, PositiveInt]
    seconds: PositiveFloat

    @property
    def key(self) -> tuple[Any, ...]:
        """What was timed, apart from how long it took."""
        return self.kind, self.dtype, *sorted(self.shape.items())


class TimedStep(Record):
    """One optimizer step that was timed. The plan's model is its config, so that the record explains itself."""

    plan: Plan
    seconds: PositiveFloat
    origin: Literal["probe", "launch"] = "probe"

    @property
    def key(self) -> tuple[Any, ...]:
        """What was timed, apart from how long it took."""
        return self.origin, self.plan.model_dump_json()

    @field_serializer("plan")
    def _only_what_was_set(self, plan: Plan) -> dict[str, Any]:
        return plan.model_dump(mode="json", exclude_defaults=True)


class Calibration(Record):
    """Fitted constants by name (`step_time_factor`, `launch_seconds`, ...), with where, when, and from what.

    `step_time_factor.residual` is the 90 % margin of a step's time (logarithm). notes: what makes it less certain.
    """

    schema_version: int = 1
    id: str
    date: str
    environment: Environment
    constants: dict[str, Fitted]
    origin: str = "local"
    kernels: tuple[TimedKernel, ...] = ()
    steps: tuple[TimedStep, ...] = ()
    notes: tuple[str, ...] = ()


def pool(earlier: Sequence[ObservedT], later: Sequence[ObservedT]) -> tuple[ObservedT, ...]:
    """Both, oldest first; of the same thing only the last KEPT_REPEATS."""
    kept: list[ObservedT] = []
    seen: dict[tuple[Any, ...], int] = {}
    for observed in reversed((*earlier, *later)):
        seen[observed.key] = seen.get(observed.key, 0) + 1
        if seen[observed.key] <= KEPT_REPEATS:
            kept.append(observed)
    return tuple(reversed(kept))


def widened(calibration: Calibration, note: str) -> Calibration:
    """The calibration as it counts in another environment: MISMATCH_MARGIN less certain, which the note explains."""
    constants = {
        name: fitted.replace(residual=fitted.residual + MISMATCH_MARGIN)
        for name, fitted in calibration.constants.items()
    }
    return calibration.replace(constants=constants, notes=(*calibration.notes, note))
