"""Memory against the card: a bar by component and its legend, readable without colour."""

from rich.text import Text

from estimators.answer import MemoryEstimate
from profiles.units import format_bytes

GLYPHS = "#=+*%o@~x:"
COLOURS = ("blue", "cyan", "green", "magenta", "yellow", "red", "bright_blue", "bright_cyan", "bright_green", "white")
MARGIN, FREE = "?", "."


def memory_bar(memory: MemoryEstimate, width: int) -> Text:
    """`width` columns stand for the budget (or for the estimate, where that is more)."""
    parts = _parts(memory)
    whole = max(memory.budget, memory.device.high)
    cells = max(20, width - 2)
    bar, drawn, filled = Text("["), 0, 0.0
    for (_, n_bytes), glyph, colour in zip(parts, GLYPHS, COLOURS, strict=False):
        filled += n_bytes
        n = round(filled / whole * cells) - drawn
        bar.append(glyph * n, style=colour)
        drawn += n
    high = round(memory.device.high / whole * cells)
    bar.append(MARGIN * max(0, high - drawn), style="dim")
    drawn = max(drawn, high)
    bar.append(FREE * (cells - drawn), style="dim")
    bar.append("]")
    rows = [(glyph, colour, name, n) for (name, n), glyph, colour in zip(parts, GLYPHS, COLOURS, strict=False)]
    rows.append((MARGIN, "dim", "high end of the estimate", memory.device.high))
    names = max(len(name) for _, _, name, _ in rows)
    for glyph, colour, name, n_bytes in rows:
        bar.append("\n").append(glyph, style=colour).append(f"  {name.ljust(names)}  {format_bytes(n_bytes):>10}")
    return bar


def _parts(memory: MemoryEstimate) -> list[tuple[str, float]]:
    """Components at the peak, largest first; small ones together; then what the allocator and CUDA add."""
    components = sorted(memory.peak.components, key=lambda c: (-c.n_bytes, c.name))
    large = [(c.name.replace("_", " "), c.n_bytes) for c in components if c.n_bytes >= memory.budget / 100][:7]
    rest = memory.peak.n_bytes - sum(n for _, n in large)
    if rest > 0:
        large.append(("all other tensors", rest))
    outside = memory.device.expected - memory.peak.n_bytes
    if outside > 0:
        large.append(("allocator and CUDA context", outside))
    return large
