"""A page of text: headings, labelled lines, bullets and bars, wrapped to a width and styled.

A plain answer is printed with this and not with rich, whose import alone takes a tenth of the answer's time.
"""

import os
import shutil
import textwrap
from collections.abc import Iterable

import click

MIN_WIDTH, MAX_WIDTH, PIPE_WIDTH = 60, 120, 100
LABEL_WIDTH = 14


def page_width() -> int:
    """The terminal's columns (COLUMNS counts), within limits that read well; 100 into a pipe."""
    return min(max(shutil.get_terminal_size((PIPE_WIDTH, 0)).columns, MIN_WIDTH), MAX_WIDTH)


class Page:
    """Collects lines; `show` prints them. Colours only repeat what the words say, and are left out of pipes."""

    def __init__(self, width: int | None = None) -> None:
        self.width = width if width is not None else page_width()
        self.lines: list[str] = []

    def line(self, text: str = "", **style: object) -> None:
        """A line as it is, however long: commands and bars."""
        self.lines.append(click.style(text, **style) if style else text)  # type: ignore[arg-type]

    def heading(self, title: str) -> None:
        """A bold line after an empty one."""
        self.line()
        self.line(title, bold=True)

    def field(self, name: str, value: str) -> None:
        """A label and its text, hanging."""
        self.hang(name.ljust(LABEL_WIDTH), value)

    def bullets(self, title: str, points: Iterable[str]) -> None:
        """A heading and its points; nothing where there are none."""
        points = list(points)
        if points:
            self.heading(title)
        for point in points:
            self.hang("  - ", point)

    def hang(self, first: str, value: str) -> None:
        """`first`, dim, and the text wrapped beside it."""
        wrapped = textwrap.wrap(value, self.width - len(first), break_on_hyphens=False) or [""]
        self.lines.append(click.style(first, dim=True) + wrapped[0])
        self.lines += [" " * len(first) + rest for rest in wrapped[1:]]

    def __str__(self) -> str:
        """The text without styles."""
        return click.unstyle("\n".join(self.lines))

    def show(self) -> None:
        """Print it."""
        click.echo("\n".join(self.lines), color=False if os.environ.get("NO_COLOR") else None)
