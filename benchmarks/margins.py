"""Margins of the intervals: quantiles of what was measured over what was predicted, by what the answer rests on."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks.memory_scores import Score

MARGINS = Path(__file__).parent.parent / "profiles" / "data" / "margins.json"
LEVEL = 0.9
FEW = 10  # a case with fewer rows gets no margin of its own
RESOLUTION = 0.001  # no margin is narrower: published figures have three digits, an allocator blocks


class Fit(NamedTuple):
    """Margins of a case, and what they were fitted to."""

    low: float
    high: float
    n: int
    sources: int


def fit_margins(scores: Iterable[Score]) -> dict[str, Fit]:
    """Case -> its margins, which hold LEVEL of its rows: as many stay out above as below."""
    by_case: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for s in scores:
        if s.case and not s.row.memory_note:
            by_case[s.case][s.row.source].append(s.share)
    found = {}
    for case, sources in by_case.items():
        n = sum(len(group) for group in sources.values())
        if n >= FEW:
            shares = sorted(share for group in sources.values() for share in group)
            left_out = int(n * (1 - LEVEL) / 2 + 1e-9)
            low, high = shares[left_out], shares[-1 - left_out]
            found[case] = Fit(min(low, -RESOLUTION), max(high, RESOLUTION), n, len(sources))
    return found


def covered_without_source(scores: Sequence[Score]) -> dict[int, bool]:
    """By position: does the interval hold the row where the margins are fitted to the other sources alone?"""
    held = {}
    for source in {s.row.source for s in scores}:
        margins = fit_margins(s for s in scores if s.row.source != source)
        for i, s in enumerate(scores):
            if s.row.source == source and s.case in margins:
                held[i] = margins[s.case].low <= s.share <= margins[s.case].high
    return held


def write_margins(scores: Iterable[Score]) -> list[str]:
    """Put the fitted margins into margins.json, where their cases stand; returns a line for each.

    One source cannot say how far another may be off: it only widens what stands there.
    """
    content = json.loads(MARGINS.read_text(encoding="utf-8"))
    rows = {row["id"]: row for row in content["rows"]}
    said = []
    for case, fit in sorted(fit_margins(scores).items()):
        row = rows.get(case)
        if row is None:
            continue
        low, high = round(fit.low, 4), round(fit.high, 4)
        if fit.sources == 1:
            low, high = min(low, row["low"]), max(high, row["high"])
        row |= {"low": low, "high": high, "n": fit.n, "date": datetime.now(UTC).date().isoformat()}
        said.append(f"{case}: {low:+.2%} to {high:+.2%}, {fit.n} rows of {fit.sources} sources")
    MARGINS.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return said
