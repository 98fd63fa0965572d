"""The steps of a roadmap as a page."""

from advisor.explain import describe_run
from advisor.recommendation import Candidate
from advisor.render.page import Page
from advisor.render.plan import describe_plan
from advisor.render.recommendation import describe_device
from advisor.render.speed import describe_speed
from advisor.roadmap import Roadmap, Step
from profiles.platform import load_platforms

COLOUR = {"first": "green", "then": "green", "last resort": "yellow", "skip": "yellow"}


def render_roadmap(roadmap: Roadmap, width: int | None = None) -> Page:
    """Steps in order: place, why, plan, cost, exit test, command."""
    page = Page(width)
    page.hang("", f"{roadmap.departure[:1].upper()}{roadmap.departure[1:]}.")
    for number, step in enumerate(roadmap.steps, start=1):
        page.line()
        page.line(f"{number}. {step.title}: {step.place}", fg=COLOUR.get(step.place, "red"), bold=True)
        page.field("Why", step.why)
        if step.candidate is not None:
            _add_candidate(page, step, step.candidate)
    return page


def _add_candidate(page: Page, step: Step, candidate: Candidate) -> None:
    for name, value in describe_plan(candidate.plan):
        page.field(name, value)
    page.field("Peak memory", describe_device(candidate.memory))
    page.field("Speed", describe_speed(candidate.speed))
    page.field("Cost", describe_run(candidate))
    page.field("Exit test", step.exit_test)
    if not step.commands:
        page.field("Command", f"{load_platforms()[candidate.plan.platform].name} is run by hand")
    for command in step.commands:
        page.line(f"  {command}")
