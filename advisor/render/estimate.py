"""The estimate of one plan on the screen."""

from rich.console import Console
from rich.text import Text

from advisor.recommendation import EstimateAnswer
from advisor.render.console import make_console
from advisor.render.memory_bar import memory_bar
from advisor.render.plan import describe_plan
from advisor.render.prose import bullets, field
from advisor.render.speed import describe_speed
from profiles.units import format_bytes, format_count

STYLE = {"fits": "bold green", "tight": "bold yellow", "does not fit": "bold red"}


def print_estimate(answer: EstimateAnswer, console: Console | None = None) -> None:
    """Print verdict, memory by phase and component, and speed."""
    console = console or make_console()
    memory = answer.memory
    console.print(Text(answer.verdict.capitalize(), style=STYLE[answer.verdict]))
    for name, value in describe_plan(answer.plan):
        field(console, name, value)
    for name, interval in (("Allocated", memory.allocated), ("Reserved", memory.reserved), ("Device", memory.device)):
        span = f"{format_bytes(interval.low)} to {format_bytes(interval.high)}"
        field(console, name, f"{format_bytes(interval.expected)} ({span})")
    field(console, "Budget", format_bytes(memory.budget))
    field(console, "Trained", f"{format_count(memory.trainable_parameters)} parameters")
    phases = ", ".join(f"{p.name.replace('_', ' ')} {format_bytes(p.n_bytes)}" for p in memory.phases)
    field(console, "Phases", phases)
    field(console, "Speed", describe_speed(answer.speed))
    console.print()
    console.print(memory_bar(memory, console.width))
    assumptions = (*memory.assumptions, *(answer.speed.assumptions if answer.speed else ()))
    bullets(console, "Assumptions", dict.fromkeys(assumptions))
