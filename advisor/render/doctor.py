"""Findings about this machine on the screen."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.doctor import Finding
from advisor.render.console import make_console

STYLE = {"ok": "green", "note": "yellow", "problem": "bold red"}


def print_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """One row a finding: level, topic, what was found, what it means and how to mend it."""
    console = console or make_console()
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for f in findings:
        meaning = Text(f"{f.meaning}\nto mend: {f.mend}" if f.mend else f.meaning)
        table.add_row(Text(f.level, style=STYLE[f.level]), f.topic, Text(f.found), meaning)
    console.print(table)
