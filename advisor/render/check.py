"""The answer to `check` as a page: verdict, figures, what is risky, what to change, and what was not judged."""

from collections import Counter

from advisor.check import Change, CheckAnswer
from advisor.readers import Finding
from advisor.render.estimate import COLOUR
from advisor.render.memory_bar import draw_memory
from advisor.render.page import Page
from advisor.render.plan import describe_plan
from advisor.render.recommendation import describe_device
from advisor.render.speed import describe_speed
from profiles.units import format_bytes, format_duration

TITLES = {"fits": "Fits", "tight": "Tight: it may fit or not", "does not fit": "Does not fit"}


def render_check(answer: CheckAnswer, width: int | None = None, *, all_keys: bool = False) -> Page:
    """The whole answer; with `all_keys` also the keys that were read and those that are harmless."""
    page = Page(width)
    if answer.verdict is None:
        page.line("Not judged", fg="yellow", bold=True)
        page.field("Why", answer.unjudged)
        if answer.hint:
            page.field("Hint", answer.hint)
    else:
        page.line(TITLES[answer.verdict], fg=COLOUR[answer.verdict], bold=True)
    page.field("Read as", answer.release)
    if answer.plan is not None:
        page.field("Model", str(answer.plan.model))
        for name, value in describe_plan(answer.plan):
            page.field(name, value)
    if answer.memory is not None:
        page.field("Peak memory", describe_device(answer.memory))
        page.field("Speed", describe_speed(answer.speed))
        if answer.plan is not None and answer.plan.max_steps is not None and answer.speed is not None:
            seconds = answer.plan.max_steps * answer.speed.step_seconds.expected
            page.field("Run", f"{format_duration(seconds)} for {answer.plan.max_steps} steps")
        page.line()
        draw_memory(page, answer.memory)
    page.bullets("The platform stops at", (_finding(f) for f in answer.findings if f.level == "error"))
    risky = [_finding(f) for f in answer.findings if f.level == "warning"]
    page.bullets("Risky", (*risky, *(f"{risk.title}: {risk.finding}. Guard: {risk.guard}" for risk in answer.risks)))
    page.bullets("What would make it fit", (*map(_change, answer.changes), *answer.way_out))
    page.bullets(
        "Keys that are not judged", (f"{n.key}: {n.text}" for n in answer.keys if n.kind in ("not judged", "void"))
    )
    _keys(page, answer, all_keys)
    page.bullets("Assumptions", answer.assumptions)
    return page


def _finding(finding: Finding) -> str:
    fix = f" Instead: {finding.fix}." if finding.fix else ""
    return f"{finding.key}: {finding.text}.{fix}"


def _change(change: Change) -> str:
    keys = ", ".join(f"{key}: {value}" for key, value in change.keys.items())
    pace = f", {change.tokens_per_second.expected:,.0f} tokens/s" if change.tokens_per_second is not None else ""
    return f"{keys} ({format_bytes(change.device.expected)}{pace}; {change.cost})"


def _keys(page: Page, answer: CheckAnswer, all_keys: bool) -> None:
    """How many keys there are of each kind, or which."""
    counts = Counter(note.kind for note in answer.keys)
    if not counts:
        return
    page.heading("Keys")
    page.field("Read", str(counts["read"]))
    page.field("Harmless", f"{counts['harmless']} that change neither memory nor speed of a step")
    if all_keys:
        for kind in ("read", "harmless"):
            page.bullets(kind.capitalize(), (note.key for note in answer.keys if note.kind == kind))
