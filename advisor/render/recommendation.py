"""A recommendation on the screen."""

from rich.console import Console
from rich.text import Text

from advisor.explain import describe_run
from advisor.recommendation import Candidate, Recommendation
from advisor.render.console import make_console
from advisor.render.memory_bar import memory_bar
from advisor.render.plan import describe_plan
from advisor.render.prose import bullets, field, heading, item
from advisor.render.speed import describe_speed
from estimators.methods import get_method
from profiles.platform import load_platforms
from profiles.units import format_bytes, format_count


def print_recommendation(recommendation: Recommendation, console: Console | None = None) -> None:
    """Print the answer: what, the numbers, why, why not the others, risks, and what to type next."""
    console = console or make_console()
    _print_facts(recommendation, console)
    if recommendation.best is None:
        _print_no_fit(recommendation, console)
    else:
        _print_best(recommendation, recommendation.best, console)
    bullets(console, "Assumptions", recommendation.assumptions)
    if recommendation.next_commands:
        heading(console, "Next")
        for line in recommendation.next_commands:
            console.print(Text(f"  {line}"), soft_wrap=True)


def _print_facts(recommendation: Recommendation, console: Console) -> None:
    model, hardware = recommendation.model, recommendation.hardware
    count = f"{hardware.n_gpus} x " if hardware.n_gpus > 1 else ""
    active = ""
    if model.active_parameters < model.parameters:
        active = f", {format_count(model.active_parameters)} active"
    field(console, "Model", f"{model.name} ({format_count(model.parameters)} parameters{active})")
    field(console, "Hardware", f"{count}{hardware.gpu.name}, {format_bytes(hardware.gpu.memory_bytes)}")
    data = recommendation.data
    if data.examples is not None and data.mean_len is not None:
        said = f"{format_count(data.examples)} examples, {data.mean_len:.0f} tokens on average"
        field(console, "Data", f"{said} ({data.basis})")


def _print_best(recommendation: Recommendation, best: Candidate, console: Console) -> None:
    plan, memory = best.plan, best.memory
    title = f"{get_method(plan.method).title} on {load_platforms()[plan.platform].name}"
    console.print()
    console.print(Text("Fits: ", style="bold green") + Text(title, style="bold"))
    for name, value in describe_plan(plan):
        field(console, name, value)
    device = f"{format_bytes(memory.device.expected)} ({format_bytes(memory.device.low)} to "
    device += f"{format_bytes(memory.device.high)}) of {format_bytes(memory.budget)}"
    field(console, "Peak memory", device)
    field(console, "Speed", describe_speed(best.speed))
    field(console, "Run", describe_run(best))
    console.print()
    console.print(memory_bar(memory, console.width))
    bullets(console, "Why", recommendation.reasons)
    _print_runner_ups(recommendation, console)
    _print_risks(recommendation, console)


def _print_runner_ups(recommendation: Recommendation, console: Console) -> None:
    lines = []
    for runner_up in recommendation.runner_ups:
        plan, speed = runner_up.candidate.plan, runner_up.candidate.speed
        rate = f", {speed.tokens_per_second.expected:,.0f} tokens/s" if speed is not None else ""
        peak = format_bytes(runner_up.candidate.memory.device.expected)
        name = f"{get_method(plan.method).title} {plan.quantization} on {load_platforms()[plan.platform].name}"
        lines.append(f"{name} ({peak}{rate}): {runner_up.why_not}")
    bullets(console, "Why not", lines)
    console.print(Text("  `ftadvise plans` with the same options shows all combinations.", style="dim"))


def _print_risks(recommendation: Recommendation, console: Console) -> None:
    if recommendation.risks:
        heading(console, "Risks")
    for risk in recommendation.risks:
        item(console, risk.id, f"{risk.title}: {risk.finding}. Guard: {risk.guard}.")


def _print_no_fit(recommendation: Recommendation, console: Console) -> None:
    console.print()
    said = "Nothing surely fits." if recommendation.verdict == "tight" else "Nothing fits."
    console.print(Text(said, style="bold red"))
    nearest = sorted((d for d in recommendation.dropped if d.needs_gib is not None), key=lambda d: d.needs_gib or 0)
    nearest += [d for d in recommendation.dropped if d.rule in ("max-hours", "max-usd")]
    bullets(
        console,
        "Nearest",
        (f"{get_method(d.method).title} {d.quantization}, {d.platform}: {d.reason}" for d in nearest[:5]),
    )
    bullets(console, "What would help", recommendation.way_out)
