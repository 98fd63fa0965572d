"""The catalogue on the screen."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.render.console import make_console
from profiles.catalog import ModelRow
from profiles.gpu import GpuSpec
from profiles.units import format_count


def print_models(rows: Sequence[ModelRow], console: Console | None = None) -> None:
    """Hub id, parameters, nicknames and licence of each model."""
    console = console or make_console()
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("nicknames", overflow="fold")
    table.add_column("licence", overflow="fold")
    for row in rows:
        table.add_row(row.id, format_count(row.parameters), Text(", ".join(row.aliases)), Text(row.license))
    console.print(table if rows else "No model of that name: `ftadvise models` without a word lists all.")


def print_gpus(rows: Sequence[GpuSpec], console: Console | None = None) -> None:
    """Id, memory, bandwidth, bf16 rate and price of each card."""
    console = console or make_console()
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("card", no_wrap=True)
    for name in ("GiB", "GB/s", "bf16 TFLOPS", "USD/h"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("also called", overflow="fold")
    for gpu in rows:
        price = gpu.price_usd_per_hour
        rate = _number(gpu.peak_dense_tflops.get("bf16"))
        cost = f"{price.low:.2f}-{price.high:.2f}" if price else "-"
        names = Text(", ".join((gpu.name, *gpu.aliases)))
        table.add_row(gpu.id, f"{gpu.memory_gib:.1f}", _number(gpu.memory_bandwidth_gbps), rate, cost, names)
    console.print(table if rows else "No card of that name: `ftadvise gpus` without a word lists all.")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
