"""All combinations on the screen."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.front import find_front
from advisor.recommendation import Candidate, Dropped
from advisor.render.console import make_console
from profiles.units import format_duration, gib_from_bytes


def print_plans(
    ranked: Sequence[Candidate], dropped: Sequence[Dropped], *, show_dropped: bool, console: Console | None = None
) -> None:
    """Print what fits, best first, and the drops by rule or one by one."""
    console = console or make_console()
    if ranked:
        timed = any(c.run is not None for c in ranked)
        front = {(point.platform, point.method, point.quantization) for point in find_front(ranked, ranked[0])}
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
        for name in ("platform", "method", "base", "batch", "ckpt"):
            table.add_column(name, no_wrap=True)
        for name in ("GiB", "to GiB", "tok/s", *(["run"] if timed else []), "tier"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        for c in ranked:
            plan, device = c.plan, c.memory.device
            cells = [plan.platform, plan.method, plan.quantization]
            cells += [f"{plan.micro_batch_size}x{plan.gradient_accumulation_steps}", plan.gradient_checkpointing]
            cells += [f"{gib_from_bytes(device.expected):.1f}", f"{gib_from_bytes(device.high):.1f}"]
            cells.append(f"{c.speed.tokens_per_second.expected:,.0f}" if c.speed is not None else "-")
            if timed:
                cells.append(format_duration(c.run.seconds.expected) if c.run is not None else "-")
            table.add_row(*cells, str(c.quality.tier), "*" if c.key in front else "")
        console.print(table)
        console.print(Text("* Pareto front: nothing equals or beats it in tier, speed and memory at once."))
    else:
        console.print(Text("Nothing fits.", style="bold red"))
    console.print()
    if not show_dropped:
        rules = ", ".join(f"{n} {rule}" for rule, n in Counter(d.rule for d in dropped).most_common())
        console.print(Text(f"{len(ranked)} combinations fit; {len(dropped)} dropped ({rules}): --dropped says why."))
        return
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("platform", "method", "rule"):
        table.add_column(name, no_wrap=True)
    table.add_column("base and reason", overflow="fold")
    bases: dict[tuple[str, str, str, str], list[str]] = {}
    for d in dropped:
        bases.setdefault((d.platform, d.method, d.rule, d.reason), []).append(d.quantization)
    for (platform, method, rule, reason), quantizations in bases.items():
        table.add_row(platform, method, rule, Text(f"{', '.join(quantizations)}: {reason}"))
    console.print(table)
