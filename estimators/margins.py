"""How far figures may be off: shares fitted to measured runs (profiles/data/margins.json), by what they rest on."""

from collections.abc import Iterable
from typing import Literal

from estimators.interval import Interval
from estimators.regime import Regime
from profiles.catalog import get_margin
from profiles.margin import Margin
from profiles.plan import Plan

Basis = Literal["analytic", "simulated"]


def is_sharded(plan: Plan) -> bool:
    """Whether a card holds only a part of the model."""
    return plan.sharding not in ("none", "ddp")


def allocated_case(plan: Plan, regime: Regime, basis: Basis) -> str:
    """Which margin of allocated memory is a plan's; sharded runs are known far less well.

    Autocast makes copies whose end no operation shows: its cache's, and those of what the model returns.
    """
    if is_sharded(plan):
        return "sharded"
    if plan.quantization == "int8" and basis == "analytic":
        return "int8"
    return f"{basis}-autocast" if regime.autocast else basis


def reserved_case(regime: Regime, basis: Basis) -> str:
    """Which margin of reserved memory, replayed through the allocator, is a plan's."""
    return f"{basis}-{_fragmentation(regime)}"


def _fragmentation(regime: Regime) -> str:
    """Attention that writes its scores out allocates the largest blocks of the step, and they come and go. Unsloth's
    evaluations, whose chunks are as large, leave others' blocks in theirs."""
    if regime.fused_kernels:
        return "unsloth"
    return "eager" if regime.kernel in ("eager", "math") else "fused"


def allocated_interval(n_bytes: float, plan: Plan, regime: Regime, basis: Basis) -> Interval:
    """Peak allocated memory with its 90 % interval."""
    return _around(n_bytes, "allocated", allocated_case(plan, regime, basis))


def replayed_interval(n_bytes: float, allocated: Interval, plan: Plan, regime: Regime, basis: Basis) -> Interval:
    """Reserved memory from a replay, never below what is allocated. Of a sharded model no published run checks it; of
    DDP, whose cards each hold all of it, two do."""
    quantity, case = ("allocated", "sharded") if is_sharded(plan) else ("reserved", reserved_case(regime, basis))
    found = _around(max(n_bytes, allocated.expected), quantity, case)
    return Interval(low=max(allocated.low, found.low), expected=found.expected, high=max(allocated.high, found.high))


def reserved_interval(
    allocated: Interval, phases: Iterable[tuple[float, float, float]], *, plan: Plan, regime: Regime
) -> Interval:
    """Reserved memory without a replay: what the caching allocator holds in segments, fragmentation included.

    `phases`: total bytes of each phase, how many of them are saved activations, and how many others come and go: slack
    grows with those, not with weights and states, which lie still; least with what is saved, one layer as the other.
    Expandable segments map pages instead of holding fixed ones: the expected slack is then the low one.
    """
    s, m = slack_margins(regime)
    at, share = (s.low, m.low) if plan.expandable_segments else (s.expected, m.expected)
    low = expected = high = 0.0
    for total, saved, other in phases:
        low = max(low, total + s.low * saved + m.low * other)
        expected = max(expected, total + at * saved + share * other)
        high = max(high, total + s.high * saved + m.high * other)
    return Interval(
        low=allocated.low / allocated.expected * low,
        expected=expected,
        high=allocated.high / allocated.expected * high,
    )


def slack_margins(regime: Regime) -> tuple[Margin, Margin]:
    """Of saved activations, and of all else that comes and goes."""
    case = _fragmentation(regime)
    return get_margin("reserved", f"{case}-saved"), get_margin("reserved", case)


def _around(n_bytes: float, quantity: str, case: str) -> Interval:
    margin = get_margin(quantity, case)
    low, expected, high = (n_bytes * (1 + share) for share in (margin.low, margin.expected, margin.high))
    return Interval(low=low, expected=expected, high=high)
