"""The answer to an inverse question as a page."""

from advisor.explain import describe_run
from advisor.inverse import FitAnswer, Option
from advisor.render.memory_bar import draw_memory
from advisor.render.page import Page
from advisor.render.plan import describe_plan
from advisor.render.recommendation import describe_device
from advisor.render.speed import describe_speed
from estimators.methods import get_method
from profiles.platform import load_platforms
from profiles.units import format_duration

TITLES = {
    "seq_len": ("Longest sequence", "tokens"),
    "batch": ("Largest micro-batch", "sequences"),
    "model": ("Largest model of the catalogue", ""),
    "gpu": ("Cheapest card", ""),
    "n_gpus": ("Fewest cards", ""),
}
NEXT = {"gpu": "Next smaller", "n_gpus": "One fewer"}
MOST_OPTIONS = 8


def render_fit(answer: FitAnswer, width: int | None = None) -> Page:
    """The value, the plan that it is reached with, and why the next value does not fit."""
    page = Page(width)
    title, unit = TITLES[answer.what]
    if answer.best is None:
        page.line("Nothing fits.", fg="red", bold=True)
        page.hang("  ", f"{answer.next_value}: {answer.why_not}" if answer.next_value is not None else answer.why_not)
        page.bullets("Assumptions", answer.assumptions)
        return page
    plan = answer.best.plan
    page.line(f"{title}: {answer.value} {unit}".rstrip(), fg="green", bold=True)
    if answer.smallest is not None and answer.smallest != answer.value:
        page.field("Smallest", f"{answer.smallest}, the one with the least memory that fits")
    page.field("With", f"{get_method(plan.method).title} on {load_platforms()[plan.platform].name}")
    for name, value in describe_plan(plan):
        page.field(name, value)
    page.field("Peak memory", describe_device(answer.best.memory))
    page.field("Speed", describe_speed(answer.best.speed))
    page.field("Run", describe_run(answer.best))
    page.field(NEXT.get(answer.what, "The next"), _next(answer, unit))
    page.line()
    draw_memory(page, answer.best.memory)
    page.bullets("Cards that fit, the cheapest first", map(_option, answer.options[:MOST_OPTIONS]))
    if len(answer.options) > MOST_OPTIONS:
        page.line(f"  and {len(answer.options) - MOST_OPTIONS} more (--json lists all)", dim=True)
    page.bullets("Assumptions", answer.assumptions)
    if answer.next_commands:
        page.heading("Next")
    else:
        page.line()
        page.line(
            f"  {load_platforms()[plan.platform].name} is run by hand: ftadvise writes no such project yet", dim=True
        )
    for command in answer.next_commands:
        page.line(f"  {command}")
    return page


def _next(answer: FitAnswer, unit: str) -> str:
    if answer.next_value is None:
        return f"there is none: {answer.why_not}"
    return f"{answer.next_value} {unit}".rstrip() + f" does not fit: {answer.why_not}"


def _option(option: Option) -> str:
    plan, run = option.candidate.plan, option.candidate.run
    text = f"{option.gpu} ({option.memory_gib:.1f} GiB): {get_method(plan.method).title} {plan.quantization}"
    if run is not None:
        text += f", {format_duration(run.seconds.expected)}"
    if option.usd is None:
        return f"{text}, no price"
    return f"{text}, {option.usd:.2f} USD {'for the run' if run is not None else 'an hour'}"
