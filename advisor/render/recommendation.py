"""A recommendation as a page: what, the numbers, why, why not the others, risks, and what to type next."""

from advisor.explain import describe_run
from advisor.recommendation import Candidate, Recommendation
from advisor.render.memory_bar import draw_memory
from advisor.render.page import Page
from advisor.render.plan import describe_plan
from advisor.render.speed import describe_speed
from estimators.answer import MemoryEstimate
from estimators.methods import get_method
from profiles.platform import load_platforms
from profiles.units import format_bytes, format_count, gib_from_bytes

MOST_CHANGES = 4


def render_recommendation(recommendation: Recommendation, width: int | None = None) -> Page:
    """The whole answer."""
    page = Page(width)
    _add_facts(page, recommendation)
    if recommendation.best is None:
        _add_no_fit(page, recommendation)
    else:
        _add_best(page, recommendation, recommendation.best)
    page.bullets("Assumptions", recommendation.assumptions)
    if recommendation.next_commands:
        page.heading("Next")
    for command in recommendation.next_commands:
        page.line(f"  {command}")
    return page


def describe_device(memory: MemoryEstimate) -> str:
    """Expected peak, its interval and the budget."""
    device = memory.device
    span = f"{format_bytes(device.low)} to {format_bytes(device.high)}"
    return f"{format_bytes(device.expected)} ({span}) of {format_bytes(memory.budget)}"


def _add_facts(page: Page, recommendation: Recommendation) -> None:
    model, hardware, data = recommendation.model, recommendation.hardware, recommendation.data
    active = ""
    if model.active_parameters < model.parameters:
        active = f", {format_count(model.active_parameters)} active"
    page.field("Model", f"{model.name} ({format_count(model.parameters)} parameters{active})")
    count = f"{hardware.n_gpus} x " if hardware.n_gpus > 1 else ""
    page.field("Hardware", f"{count}{hardware.gpu.name}, {format_bytes(hardware.gpu.memory_bytes)}")
    if data.examples is not None and data.mean_len is not None:
        said = f"{format_count(data.examples)} examples, {data.mean_len:.0f} tokens on average"
        page.field("Data", f"{said} ({data.basis})")


def _add_best(page: Page, recommendation: Recommendation, best: Candidate) -> None:
    plan = best.plan
    page.line()
    page.line(f"Fits: {get_method(plan.method).title} on {load_platforms()[plan.platform].name}", fg="green", bold=True)
    for name, value in describe_plan(plan):
        page.field(name, value)
    page.field("Peak memory", describe_device(best.memory))
    page.field("Speed", describe_speed(best.speed))
    page.field("Run", describe_run(best))
    page.line()
    draw_memory(page, best.memory)
    page.bullets("Why", recommendation.reasons)
    page.bullets("Why not", _runner_ups(recommendation))
    page.line("  `ftadvise plans` with the same options shows all combinations.", dim=True)
    page.bullets("What would change it", (_sentence(change.text) for change in recommendation.changes[:MOST_CHANGES]))
    _add_front(page, recommendation)
    if recommendation.risks:
        page.heading("Risks")
    for risk in recommendation.risks:
        page.hang(f"  {risk.id}  ", f"{risk.title}: {risk.finding}. Guard: {risk.guard}.")


def _add_front(page: Page, recommendation: Recommendation) -> None:
    """One line a combination; the recommended one is marked in words."""
    if not recommendation.front:
        return
    page.heading("Pareto front: nothing is better in evidence, time and memory at once")
    page.line(f"  {'method':18s} {'base':7s} {'platform':13s} {'tier':>4s} {'tokens/s':>9s} {'to GiB':>7s}", dim=True)
    for point in recommendation.front:
        rate = "-" if not point.seconds_per_token else f"{1 / point.seconds_per_token:,.0f}"
        page.line(
            f"  {point.method:18s} {point.quantization:7s} {point.platform:13s} {point.tier:4d} {rate:>9s} "
            f"{gib_from_bytes(point.device_high):7.1f}" + ("  recommended" if point.best else "")
        )
    if not any(point.best for point in recommendation.front):
        page.hang("  ", "The recommended one is not among them: a criterion before these three decided (Why not).")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _runner_ups(recommendation: Recommendation) -> list[str]:
    lines = []
    for runner_up in recommendation.runner_ups:
        plan, speed = runner_up.candidate.plan, runner_up.candidate.speed
        rate = f", {speed.tokens_per_second.expected:,.0f} tokens/s" if speed is not None else ""
        peak = format_bytes(runner_up.candidate.memory.device.expected)
        name = f"{get_method(plan.method).title} {plan.quantization} on {load_platforms()[plan.platform].name}"
        lines.append(f"{name} ({peak}{rate}): {runner_up.why_not}")
    return lines


def _add_no_fit(page: Page, recommendation: Recommendation) -> None:
    page.line()
    page.line("Nothing surely fits." if recommendation.verdict == "tight" else "Nothing fits.", fg="red", bold=True)
    page.bullets(
        "Nearest",
        (
            f"{get_method(d.method).title} {d.quantization} on {load_platforms()[d.platform].name}: {d.reason}"
            for d in recommendation.nearest
        ),
    )
    page.bullets("What would help", recommendation.way_out)
    page.bullets("By memory", (_sentence(change.text) for change in recommendation.changes[:MOST_CHANGES]))
