"""How far the analytic figures may be off: shares fitted to measured runs (profiles/data/margins.json)."""

from collections.abc import Iterable

from estimators.interval import Interval
from estimators.regime import Regime
from profiles.catalog import get_margin
from profiles.plan import Plan


def allocated_interval(n_bytes: float, plan: Plan) -> Interval:
    """Peak allocated memory with its 90 % interval; sharded runs are known far less well."""
    case = "int8" if plan.quantization == "int8" else "single"
    m = get_margin("allocated", case if plan.sharding in ("none", "ddp") else "sharded")
    return Interval(low=n_bytes * (1 + m.low), expected=n_bytes, high=n_bytes * (1 + m.high))


def reserved_interval(
    allocated: Interval, phases: Iterable[tuple[float, float]], *, plan: Plan, regime: Regime
) -> Interval:
    """Reserved memory: what the caching allocator holds in segments, fragmentation included.

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
