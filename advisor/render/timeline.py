"""The timeline of a simulated run as text: allocated below, reserved above it, the phases as letters."""

from collections.abc import Sequence
from itertools import pairwise

from advisor.render.page import Page
from estimators.answer import PhaseName
from estimators.simulate.result import Moment
from profiles.units import format_bytes

WIDTH, ROWS, LABEL = 80, 10, 11
ALLOCATED, RESERVED = "#", "."
LETTERS: dict[PhaseName, str] = {
    "load": "L",
    "forward_end": "F",
    "loss": "l",
    "layer_backward": "B",
    "optimizer_step": "O",
    "evaluation": "E",
}
LEGEND = (
    f"{ALLOCATED} allocated   {RESERVED} reserved, with nothing in it   | a new step",
    "L load   F forward   l loss   B layers' backward   O optimizer   E evaluation",
)


def draw_timeline(page: Page, moments: Sequence[Moment]) -> None:
    """Add the picture, at most 80 columns wide. Each column shows the highest of its moments."""
    columns = _columns(moments, min(page.width, WIDTH) - LABEL)
    top = max(m.reserved for m in moments) or 1
    page.heading("Timeline")
    for row in reversed(range(ROWS)):
        label = format_bytes(top * (row + 1) / ROWS) if row % 3 == 0 else ""
        page.line(f"{label:>{LABEL - 2}} |" + "".join(_cell(c, row, top) for c in columns).rstrip())
    page.line(f"{'0':>{LABEL - 2}} +" + "-" * len(columns))
    page.line(" " * LABEL + "".join(LETTERS[c[0].phase] for c in columns))
    steps = "".join(_step(before, c) for before, c in zip([columns[0], *columns], columns, strict=False))
    page.line((" " * LABEL + steps).rstrip())
    for line in LEGEND:
        page.line(line)


def _columns(moments: Sequence[Moment], most: int) -> list[Sequence[Moment]]:
    count = min(most, len(moments))
    edges = [len(moments) * i // count for i in range(count + 1)]
    return [moments[a:b] for a, b in pairwise(edges)]


def _cell(column: Sequence[Moment], row: int, top: int) -> str:
    """A row is filled from half of it on."""
    level = top * (row + 0.5) / ROWS
    if max(m.allocated for m in column) >= level:
        return ALLOCATED
    return RESERVED if max(m.reserved for m in column) >= level else " "


def _step(before: Sequence[Moment], column: Sequence[Moment]) -> str:
    return "|" if column[0].step != before[0].step else " "
