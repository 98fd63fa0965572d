"""The estimate of one plan as a page."""

from advisor.recommendation import EstimateAnswer
from advisor.render.memory_bar import draw_memory
from advisor.render.page import Page
from advisor.render.plan import describe_plan
from advisor.render.speed import describe_speed
from estimators.answer import SpeedEstimate
from profiles.units import format_bytes, format_count

COLOUR = {"fits": "green", "tight": "yellow", "does not fit": "red"}


def render_estimate(answer: EstimateAnswer, width: int | None = None, *, explain: bool = False) -> Page:
    """Verdict, memory by phase and component, and speed; with `explain` every work item of a step."""
    page = Page(width)
    memory = answer.memory
    page.line(answer.verdict.capitalize(), fg=COLOUR[answer.verdict], bold=True)
    for name, value in describe_plan(answer.plan):
        page.field(name, value)
    for name, interval in (("Allocated", memory.allocated), ("Reserved", memory.reserved), ("Device", memory.device)):
        span = f"{format_bytes(interval.low)} to {format_bytes(interval.high)}"
        page.field(name, f"{format_bytes(interval.expected)} ({span})")
    page.field("Budget", format_bytes(memory.budget))
    page.field("Trained", f"{format_count(memory.trainable_parameters)} parameters")
    page.field("Phases", ", ".join(f"{p.name.replace('_', ' ')} {format_bytes(p.n_bytes)}" for p in memory.phases))
    page.field("Speed", describe_speed(answer.speed))
    page.line()
    draw_memory(page, memory)
    if explain and answer.speed is not None:
        _work_items(page, answer.speed)
    page.bullets(
        "Assumptions", dict.fromkeys((*memory.assumptions, *(answer.speed.assumptions if answer.speed else ())))
    )
    return page


def _work_items(page: Page, speed: SpeedEstimate) -> None:
    """A line an item, the longest first: seconds, what bounds it, FLOPs, bytes and launches of an optimizer step."""
    page.line()
    page.line("Work of a step", bold=True)
    for item in sorted(speed.items, key=lambda i: -i.seconds):
        work = f"{format_count(item.flops)} FLOP, {format_bytes(item.n_bytes)}, {item.launches:,.0f} launches"
        page.line(f"  {item.name:24.24s} {item.seconds:9.4f} s  {item.bound:8s} {work}")
