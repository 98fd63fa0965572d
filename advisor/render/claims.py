"""Claims as a page: a line each, or one in full."""

from collections.abc import Sequence
from itertools import groupby

from advisor.claims import CheckedClaim
from advisor.render.page import Page

COLOUR = {"holds": "green", "holds in part": "yellow", "does not hold": "red", "not checkable": "white"}
SECTIONS = {
    "P": "Platforms",
    "M": "Methods that the platforms support",
    "R": "Cost, in % of full fine-tuning with the same batch",
    "H": "Headline results",
}


def render_claims(checked: Sequence[CheckedClaim], width: int | None = None) -> Page:
    """By section; each claim in full where there is only one."""
    page = Page(width)
    if len(checked) == 1:
        _add_full(page, checked[0])
        return page
    for section, group in groupby(checked, key=lambda c: c.claim.id[0]):
        page.heading(SECTIONS[section])
        for one in group:
            page.hang(f"{one.claim.id.ljust(11)} {one.verdict.ljust(14)} ", one.claim.title)
            for column, words in one.claim.stated.items():
                page.hang("            ", f"{column}: {words} - {_ours(one, column)}")
    page.line()
    page.line("One in full, with its sources: `ftadvise claims --id H3`.", dim=True)
    return page


def _add_full(page: Page, one: CheckedClaim) -> None:
    claim = one.claim
    page.hang(f"{claim.id}  ", claim.title)
    page.line(one.verdict.capitalize(), fg=COLOUR[one.verdict], bold=True)
    for column, words in claim.stated.items():
        page.line()
        page.hang("  ", f"{column}: stated {words}; {one.verdicts[column]}")
        for f in one.figures:
            if f.column == column:
                page.hang("    ", f"{_number(f.value, f.unit)}  {f.case}")
    page.heading("Evidence")
    page.hang("  ", claim.finding)
    page.bullets("Sources", (f"{s.url} ({s.date})" + (f": {s.note}" if s.note else "") for s in claim.sources))


def _ours(one: CheckedClaim, column: str) -> str:
    figures = [f for f in one.figures if f.column == column]
    verdict = one.verdicts[column]
    if not figures:
        return verdict
    low, high = min(f.value for f in figures), max(f.value for f in figures)
    unit = figures[0].unit
    span = _number(low, unit) if low == high else f"{low:.3g} to {_number(high, unit)}"
    return f"ours {span}: {verdict}"


def _number(value: float, unit: str) -> str:
    return f"{value:.3g}{'' if unit == 'x' else ' '}{unit}"
