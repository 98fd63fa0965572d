"""Findings about this machine on the screen."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.doctor import Finding
from advisor.render.console import make_console

STYLE = {"ok": "green", "note": "yellow", "problem": "bold red"}


def print_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """One row a finding: level, topic, what was found, what it means."""
    console = console or make_console()
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for f in findings:
        table.add_row(Text(f.level, style=STYLE[f.level]), f.topic, Text(f.found), Text(f.meaning))
    console.print(table)
