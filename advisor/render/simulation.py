"""A simulated run as a page: each phase's peak, and the operation that led there."""

from collections.abc import Sequence

from advisor.render.estimate import COLOUR
from advisor.render.page import Page
from advisor.render.plan import describe_plan
from advisor.render.timeline import draw_timeline
from estimators.answer import MemoryEstimate
from estimators.simulate.result import Simulation
from profiles.plan import Plan
from profiles.units import format_bytes


def render_simulation(
    plan: Plan,
    found: Simulation,
    memory: MemoryEstimate,
    batches: Sequence[tuple[int, int]] = (),
    width: int | None = None,
) -> Page:
    """Verdict, totals, timeline, phases with operation and module. batches: those that ran, where they were given."""
    page = Page(width)
    page.line(memory.verdict.capitalize(), fg=COLOUR[memory.verdict], bold=True)
    for name, value in describe_plan(plan):
        page.field(name, value)
    if batches:
        rows, length = max(batches, key=lambda b: b[0] * b[1])
        page.field("Simulated", f"{len(batches)} micro-batches as given, the largest {rows} x {length} tokens")
    page.field("Allocated", format_bytes(found.peak_allocated))
    page.field("Reserved", format_bytes(found.peak_reserved))
    device = memory.device
    span = f"{format_bytes(device.low)} to {format_bytes(device.high)}"
    page.field("Device", f"{format_bytes(device.expected)} ({span}) of {format_bytes(memory.budget)}")
    page.field("Traced", f"{found.layers_traced} of {found.layers} layers in {found.seconds:.1f} s")
    draw_timeline(page, found.timeline)
    page.bullets("Peaks", [_peak(found, p.name) for p in found.phases])
    return page


def _peak(found: Simulation, name: str) -> str:
    phase = next(p for p in found.phases if p.name == name)
    parts = sorted(phase.components, key=lambda c: -c.n_bytes)[:3]
    largest = ", ".join(f"{c.name.replace('_', ' ')} {format_bytes(c.n_bytes)}" for c in parts)
    where = f" in {phase.module}" if phase.module else ""
    return f"{name.replace('_', ' ')}: {format_bytes(phase.allocated)} at {phase.operation}{where} ({largest})"
