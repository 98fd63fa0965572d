"""The published comparison beside our own numbers: every row P, M, R and H with figures, evidence and verdict.

A verdict on a column with a stated range follows from our figures: all inside, some, or none. The others were read.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache

from advisor.claim_figures import measure_claim
from advisor.recommendation import Answer
from estimators.methods import get_method
from profiles.claim import Claim, Verdict, load_claims
from profiles.errors import UnknownNameError
from profiles.platform import Support, load_platforms

SECTIONS = "PMRH"
METHOD_ORDER = ("full", "lora", "qlora", "adalora", "bitfit", "prompt", "prefix", "ptuning")


class Figure(Answer):
    """One number of ours. `agrees`: whether it lies in the range that the comparison states for the column."""

    column: str
    case: str
    value: float
    unit: str
    agrees: bool


class CheckedClaim(Answer):
    """A claim with what became of it."""

    claim: Claim
    figures: tuple[Figure, ...]
    verdicts: dict[str, Verdict]
    verdict: Verdict


@cache
def all_claims() -> dict[str, Claim]:
    """Every row by id, in the comparison's order; those on method support are made of the platform table."""
    rows = [*load_claims().values(), *(_support(method) for method in METHOD_ORDER)]
    return {row.id: row for row in sorted(rows, key=lambda row: SECTIONS.index(row.id[0]))}


def select_claims(name: str | None) -> list[Claim]:
    """All claims, those of a section ('R'), or one ('H3').

    Raises:
        UnknownNameError: there is none of that id.
    """
    claims = all_claims()
    if name is None:
        return list(claims.values())
    wanted = name.casefold()
    found = [c for c in claims.values() if wanted in (c.id.casefold(), c.id[0].casefold())]
    if not found:
        near = tuple(get_close_matches(name.upper(), claims, n=2))
        raise UnknownNameError("claim", name, near, f"Sections P, M, R, H; claims {', '.join(claims)}.")
    return found


def check_claim(claim: Claim) -> CheckedClaim:
    """Set our figures beside what is stated, and judge."""
    figures = []
    for column, case, value, unit in measure_claim(claim.id):
        low, high = claim.ranges[column]
        figures.append(Figure(column=column, case=case, value=value, unit=unit, agrees=low <= value <= high))
    verdicts = {
        column: claim.judged.get(column) or judge([f.agrees for f in figures if f.column == column])
        for column in claim.stated
    }
    return CheckedClaim(claim=claim, figures=tuple(figures), verdicts=verdicts, verdict=combine(verdicts.values()))


def judge(agrees: list[bool]) -> Verdict:
    """The verdict on a column with a range."""
    if all(agrees):
        return "holds"
    return "holds in part" if any(agrees) else "does not hold"


def combine(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict on a row: what all columns agree on; where they differ it holds in part, if any of it does."""
    known = {v for v in verdicts if v != "not checkable"}
    if not known:
        return "not checkable"
    return known.pop() if len(known) == 1 else "holds in part"


def _support(method: str) -> Claim:
    platforms = load_platforms().values()
    cells = {p.id: p.methods[method] for p in platforms}
    return Claim(
        id=f"M-{method}",
        title=f"{get_method(method).title} is supported",
        stated={name: cell.claim or "nothing" for name, cell in cells.items()},
        judged={name: _judge_support(cell) for name, cell in cells.items()},
        finding="; ".join(f"{p.name}: {cells[p.id].evidence}" for p in platforms),
        sources=tuple(p.source for p in platforms),
    )


def _judge_support(cell: Support) -> Verdict:
    """'yes' holds where the sources have it; a weaker word says too little where they do, too much where not."""
    if cell.verified == "no":
        return "does not hold"
    return "holds" if cell.claim == "yes" else "holds in part"
