"""All combinations on the screen."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.recommendation import Candidate, Dropped
from advisor.render.console import make_console
from profiles.units import format_bytes, format_duration


def print_plans(
    ranked: Sequence[Candidate], dropped: Sequence[Dropped], *, show_dropped: bool, console: Console | None = None
) -> None:
    """Print what fits, best first, and the drops by rule or one by one."""
    console = console or make_console()
    if ranked:
        table = Table(box=None, padding=(0, 1), header_style="bold")
        for name, right in (("platform", 0), ("method", 0), ("base", 0), ("batch", 0), ("ckpt", 0), ("peak", 1),
                            ("high end", 1), ("tok/s", 1), ("run", 1), ("tier", 1)):  # fmt: skip
            table.add_column(name, justify="right" if right else "left", no_wrap=True)
        for c in ranked:
            plan, device = c.plan, c.memory.device
            speed = f"{c.speed.tokens_per_second.expected:,.0f}" if c.speed else "-"
            run = format_duration(c.run.seconds.expected) if c.run else "-"
            batch = f"{plan.micro_batch_size}x{plan.gradient_accumulation_steps}"
            table.add_row(
                plan.platform, plan.method, plan.quantization, batch, plan.gradient_checkpointing,
                format_bytes(device.expected), format_bytes(device.high), speed, run, str(c.quality.tier),
            )  # fmt: skip
        console.print(table)
    else:
        console.print(Text("Nothing fits.", style="bold red"))
    console.print()
    if not show_dropped:
        rules = ", ".join(f"{n} {rule}" for rule, n in Counter(d.rule for d in dropped).most_common())
        console.print(Text(f"{len(ranked)} combinations fit; {len(dropped)} dropped ({rules}): --dropped says why."))
        return
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("platform", "method", "rule"):
        table.add_column(name, no_wrap=True)
    table.add_column("base and reason", overflow="fold")
    bases: dict[tuple[str, str, str, str], list[str]] = {}
    for d in dropped:
        bases.setdefault((d.platform, d.method, d.rule, d.reason), []).append(d.quantization)
    for (platform, method, rule, reason), quantizations in bases.items():
        table.add_row(platform, method, rule, Text(f"{', '.join(quantizations)}: {reason}"))
    console.print(table)
