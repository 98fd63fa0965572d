"""How far figures may be off: shares fitted to measured runs (profiles/data/margins.json), by what they rest on."""

from collections.abc import Iterable
from typing import Literal

from estimators.interval import Interval
from estimators.regime import Regime
from profiles.catalog import get_margin
from profiles.plan import Plan

Basis = Literal["analytic", "simulated"]


def allocated_case(plan: Plan, regime: Regime, basis: Basis) -> str:
    """Which margin of allocated memory is a plan's; sharded runs are known far less well.

    Autocast makes copies whose end no operation shows: its cache's, and those of what the model returns.
    """
    if plan.n_gpus > 1 if basis == "simulated" else plan.sharding not in ("none", "ddp"):
        return "sharded"
    if plan.quantization == "int8" and basis == "analytic":
        return "int8"
    return f"{basis}-autocast" if regime.autocast else basis


def reserved_case(regime: Regime, basis: Basis) -> str:
    """Which margin of reserved memory, replayed through the allocator, is a plan's.

    Attention that writes its scores out allocates the largest blocks of the step, and they come and go.
    """
    kernel = "eager" if regime.kernel in ("eager", "math") else "fused"
    return f"{basis}-{kernel}"


def allocated_interval(n_bytes: float, plan: Plan, regime: Regime, basis: Basis) -> Interval:
    """Peak allocated memory with its 90 % interval."""
    return _around(n_bytes, "allocated", allocated_case(plan, regime, basis))


def replayed_interval(n_bytes: float, allocated: Interval, plan: Plan, regime: Regime, basis: Basis) -> Interval:
    """Reserved memory from a replay, never below what is allocated. Of several cards no published run checks it."""
    several = plan.n_gpus > 1
    quantity, case = ("allocated", "sharded") if several else ("reserved", reserved_case(regime, basis))
    found = _around(max(n_bytes, allocated.expected), quantity, case)
    return Interval(low=max(allocated.low, found.low), expected=found.expected, high=max(allocated.high, found.high))


def reserved_interval(
    allocated: Interval, phases: Iterable[tuple[float, float]], *, plan: Plan, regime: Regime
) -> Interval:
    """Reserved memory without a replay: what the caching allocator holds in segments, fragmentation included.

    `phases`: total bytes of each phase, and how many of them come and go: slack grows with those, not with weights and
    states, which lie still. Expandable segments map pages instead of holding fixed ones: the expected slack is then
    the low one.
    """
    m = get_margin("reserved", "eager" if regime.kernel in ("eager", "math") else "fused")
    share = m.low if plan.expandable_segments else m.expected
    low = expected = high = 0.0
    for total, dynamic in phases:
        low = max(low, total + m.low * dynamic)
        expected = max(expected, total + share * dynamic)
        high = max(high, total + m.high * dynamic)
    return Interval(
        low=allocated.low / allocated.expected * low,
        expected=expected,
        high=allocated.high / allocated.expected * high,
    )


def _around(n_bytes: float, quantity: str, case: str) -> Interval:
    margin = get_margin(quantity, case)
    return Interval(low=n_bytes * (1 + margin.low), expected=n_bytes, high=n_bytes * (1 + margin.high))
