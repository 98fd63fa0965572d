"""What the estimators answer: memory by phase and component, and time by work item."""

from functools import cached_property
from typing import Literal

from estimators.interval import Interval
from profiles.record import Record

Basis = Literal["analytic", "simulated", "measured"]
PhaseName = Literal[
    "load", "sampling", "forward_end", "loss", "layer_backward", "embedding_backward", "optimizer_step", "evaluation",
]  # fmt: skip
ComponentName = Literal[
    "base_weights", "adapter_weights", "gradients", "optimizer_states", "optimizer_temporary", "saved_activations",
    "layer_working_set", "logits", "dequantized_weights", "kv_cache", "gathered", "workspace", "inputs", "rounding",
    "other",
]  # fmt: skip


class Component(Record):
    """`n_bytes` of one kind that are alive at the peak of a phase."""

    name: ComponentName
    n_bytes: float


class Phase(Record):
    """A moment of the step at which memory is highest, and what it consists of."""

    name: PhaseName
    components: tuple[Component, ...]

    @cached_property
    def n_bytes(self) -> float:
        """All components together."""
        return sum(c.n_bytes for c in self.components)


class MemoryEstimate(Record):
    """Device memory of one card, in bytes.

    allocated: what torch's max_memory_allocated would say; reserved: max_memory_reserved (allocated plus the caching
    allocator's rounding and fragmentation); device: reserved plus the CUDA context, what nvidia-smi shows and what has
    to fit. Each is an interval; the verdict compares the high end of `device` with `budget`.
    """

    basis: Basis
    phases: tuple[Phase, ...]
    peak_phase: PhaseName
    allocated: Interval
    reserved: Interval
    device: Interval
    budget: float
    trainable_parameters: int
    assumptions: tuple[str, ...] = ()

    @cached_property
    def peak(self) -> Phase:
        """The worst phase."""
        return next(p for p in self.phases if p.name == self.peak_phase)

    @property
    def verdict(self) -> Literal["fits", "tight", "does not fit"]:
        """'fits' only if the whole interval does, 'does not fit' only if no part of it does, 'tight' in between.

        Between the two the caching allocator decides: short of memory it gives cached segments back and tries again.
        """
        if self.device.high <= self.budget:
            return "fits"
        return "tight" if self.device.low <= self.budget else "does not fit"


class WorkItem(Record):
    """One kind of work in an optimizer step: FLOPs executed, bytes moved, kernels launched, seconds that it takes."""

    name: str
    flops: float = 0.0
    n_bytes: float = 0.0
    launches: float = 0.0
    seconds: float
    bound: Literal["compute", "memory", "host", "link"]


class SpeedEstimate(Record):
    """Time of one optimizer step and what follows. tokens_per_second counts real (unpadded) tokens, all cards."""

    basis: Basis
    items: tuple[WorkItem, ...]
    step_seconds: Interval
    tokens_per_second: Interval
    tokens_per_step: float
    model_flops_utilization: float | None
    calibration: str = "uncalibrated"
    assumptions: tuple[str, ...] = ()


class Estimate(Record):
    """The answer to one plan. `speed` is None where the card's facts do not allow a figure (see assumptions)."""

    memory: MemoryEstimate
    speed: SpeedEstimate | None
