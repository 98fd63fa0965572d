"""Headings, labelled lines and bullets, wrapped to the console without trailing blanks."""

import textwrap
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

LABEL_WIDTH = 14


def heading(console: Console, title: str) -> None:
    """A bold line after an empty one."""
    console.print()
    console.print(Text(title, style="bold"))


def field(console: Console, name: str, value: str) -> None:
    """`name` and its text, hanging."""
    _hang(console, name.ljust(LABEL_WIDTH), value)


def bullets(console: Console, title: str, lines: Iterable[str]) -> None:
    """A heading and its points; nothing where there are none."""
    lines = list(lines)
    if lines:
        heading(console, title)
    for line in lines:
        _hang(console, "  - ", line)


def item(console: Console, name: str, value: str) -> None:
    """A short name and its text under a heading."""
    _hang(console, f"  {name}  ", value)


def _hang(console: Console, first: str, value: str) -> None:
    wrapped = textwrap.fill(
        value,
        width=console.width,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
    text = Text(wrapped)
    text.stylize("dim", 0, len(first))
    console.print(text, soft_wrap=True)
