"""The estimate of one plan as a page."""

from advisor.recommendation import EstimateAnswer
from advisor.render.memory_bar import draw_memory
from advisor.render.page import Page
from advisor.render.plan import describe_plan
from advisor.render.speed import describe_speed
from profiles.units import format_bytes, format_count

COLOUR = {"fits": "green", "tight": "yellow", "does not fit": "red"}


def render_estimate(answer: EstimateAnswer, width: int | None = None) -> Page:
    """Verdict, memory by phase and component, and speed."""
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
    page.bullets(
        "Assumptions", dict.fromkeys((*memory.assumptions, *(answer.speed.assumptions if answer.speed else ())))
    )
    return page
