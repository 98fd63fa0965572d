"""Memory against the card: a bar by component and its legend, readable without colour."""

import click

from advisor.render.page import Page
from estimators.answer import MemoryEstimate
from profiles.units import format_bytes

GLYPHS = "#=+*%o@~x:"
COLOURS = ("blue", "cyan", "green", "magenta", "yellow", "red", "bright_blue", "bright_cyan", "bright_green", "white")
MARGIN, FREE = "?", "."
LARGE_SHARE = 0.01  # of the budget; smaller components are drawn together
MOST_PARTS = 7


def draw_memory(page: Page, memory: MemoryEstimate) -> None:
    """Add the bar; its width stands for the budget (or for the estimate, where that is more)."""
    parts = list(zip(_parts(memory), GLYPHS, COLOURS, strict=False))
    whole = max(memory.budget, memory.device.high)
    cells = page.width - 2
    bar, drawn, filled = "[", 0, 0.0
    for (_, n_bytes), glyph, colour in parts:
        filled += n_bytes
        n = max(0, round(filled / whole * cells) - drawn)
        bar += click.style(glyph * n, fg=colour)
        drawn += n
    high = max(drawn, round(memory.device.high / whole * cells))
    page.line(bar + MARGIN * (high - drawn) + FREE * (cells - high) + "]")
    rows = [(click.style(glyph, fg=colour), name, n_bytes) for (name, n_bytes), glyph, colour in parts]
    rows.append((MARGIN, "high end of the estimate", memory.device.high))
    longest = max(len(name) for _, name, _ in rows)
    for glyph, name, n_bytes in rows:
        page.line(f"{glyph}  {name.ljust(longest)}  {format_bytes(n_bytes):>10}")


def _parts(memory: MemoryEstimate) -> list[tuple[str, float]]:
    """Components at the peak, largest first; small ones together; then what the allocator and CUDA add."""
    components = sorted(memory.peak.components, key=lambda c: (-c.n_bytes, c.name))
    large = [c for c in components if c.n_bytes >= memory.budget * LARGE_SHARE][:MOST_PARTS]
    parts = [(c.name.replace("_", " "), c.n_bytes) for c in large]
    rest = memory.peak.n_bytes - sum(c.n_bytes for c in large)
    if rest > 0:
        parts.append(("all other tensors", rest))
    outside = memory.device.expected - memory.peak.n_bytes
    if outside > 0:
        parts.append(("allocator and context", outside))
    return parts
