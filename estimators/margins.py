"""How far the analytic figures may be off: intervals fitted to measured runs (see benchmarks/memory.py)."""

from estimators.interval import Interval
from estimators.regime import Regime
from profiles.calibration import Calibration
from profiles.plan import Plan

ALLOCATED_BELOW, ALLOCATED_ABOVE = 0.02, 0.02
RESERVED_LOW, RESERVED_EXPECTED, RESERVED_HIGH = 0.0, 0.03, 0.09


def allocated_interval(n_bytes: float, plan: Plan, calibration: Calibration | None) -> Interval:
    """Peak allocated memory with its 90 % interval."""
    return Interval.around(n_bytes, ALLOCATED_BELOW, ALLOCATED_ABOVE)


def reserved_interval(allocated: Interval, plan: Plan, regime: Regime) -> Interval:
    """Reserved memory: the allocator's segments and what fragmentation leaves unused in them."""
    return Interval(
        low=allocated.low * (1 + RESERVED_LOW),
        expected=allocated.expected * (1 + RESERVED_EXPECTED),
        high=allocated.high * (1 + RESERVED_HIGH),
    )
