"""The timeline of a simulated run as SVG: allocated (area) and reserved (line) over the events, phases as bands."""

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from estimators.answer import PhaseName
from estimators.simulate.result import Moment, Simulation
from profiles.units import format_bytes

WIDTH, HEIGHT = 960, 360
LEFT, RIGHT, TOP, BOTTOM = 80, 16, 28, 44
COLORS: dict[PhaseName, str] = {
    "load": "#d9d9d9",
    "forward_end": "#cfe3f7",
    "loss": "#fde3c0",
    "layer_backward": "#d8efd3",
    "optimizer_step": "#ead6ee",
    "evaluation": "#f6d5dc",
}


def plot_timeline(simulation: Simulation, title: str = "") -> str:
    """Return an SVG document."""
    points = simulation.timeline
    top = max(m.reserved for m in points) * 1.05
    step = (WIDTH - LEFT - RIGHT) / max(1, len(points) - 1)

    def at(index: float, n_bytes: float) -> str:
        return f"{LEFT + index * step:.1f},{HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * n_bytes / top:.1f}"

    allocated = " ".join(at(i, m.allocated) for i, m in enumerate(points))
    reserved = " ".join(at(i, m.reserved) for i, m in enumerate(points))
    last = len(points) - 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
        *(_band(first, end, step, name) for first, end, name in _bands(points)),
        f'<polygon points="{at(0, 0)} {allocated} {at(last, 0)}" fill="#3572b0" fill-opacity="0.55"/>',
        f'<polyline points="{reserved}" fill="none" stroke="#b03535" stroke-width="1.5"/>',
        *(_tick(top * share / 4, top) for share in range(5)),
        *_legend(),
        "</svg>",
    ]
    return "\n".join(parts)


def _bands(points: Sequence[Moment]) -> Iterator[tuple[int, int, PhaseName]]:
    """Runs of equal phase: first index, last index, phase."""
    first = 0
    for i in range(1, len(points) + 1):
        if i == len(points) or points[i].phase != points[first].phase:
            yield first, min(i, len(points) - 1), points[first].phase
            first = i


def _band(first: int, end: int, step: float, name: PhaseName) -> str:
    x, width = LEFT + first * step, (end - first) * step
    return (
        f'<rect x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{HEIGHT - TOP - BOTTOM}" fill="{COLORS[name]}">'
        f"<title>{name}</title></rect>"
    )


def _tick(n_bytes: float, top: float) -> str:
    y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * n_bytes / top
    return (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#888" stroke-width="0.4"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{format_bytes(n_bytes)}</text>'
    )


def _legend() -> Iterator[str]:
    entries = [("allocated", "#3572b0"), ("reserved", "#b03535"), *COLORS.items()]
    for i, (name, color) in enumerate(entries):
        x = LEFT + i * 122
        yield f'<rect x="{x}" y="{HEIGHT - 22}" width="12" height="12" fill="{color}"/>'
        yield f'<text x="{x + 16}" y="{HEIGHT - 12}">{name}</text>'
