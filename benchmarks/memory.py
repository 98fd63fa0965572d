"""Predicted against measured memory, per source: `python -m benchmarks.memory [--rows] [--source NAME]`.

Rows come from tests/measured/runs.jsonl through benchmarks/rows.py. Only rows whose batches and configuration are
fully known are in the first table; the second has rows of which something that matters is not published.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.model_configs import model_spec
from benchmarks.quantile import quantile
from benchmarks.rows import MeasuredRow, load_rows
from estimators.answer import MemoryEstimate
from estimators.replay import estimate_memory_replayed
from profiles.catalog import find_gpu
from profiles.errors import AdviseError
from profiles.gpu import Hardware
from profiles.units import GIB

KINDS = ("allocated", "reserved", "device")


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one row."""

    row: MeasuredRow
    kind: str
    measured: float
    estimate: MemoryEstimate

    @property
    def predicted(self) -> float:
        return float(getattr(self.estimate, self.kind).expected)

    @property
    def error(self) -> float:
        """Relative, positive where we predict too much."""
        return self.predicted / self.measured - 1

    @property
    def covered(self) -> bool:
        interval = getattr(self.estimate, self.kind)
        return bool(interval.low <= self.measured <= interval.high)


def estimate_row(row: MeasuredRow) -> MemoryEstimate:
    assert row.plan is not None
    assert row.gpu_id is not None
    hardware = Hardware(gpu=find_gpu(row.gpu_id), n_gpus=row.n_gpus)
    assert row.model_ref is not None
    own_function = row.source == "fitcheck"  # its step is one: what it returns goes with it
    return estimate_memory_replayed(row.plan, model_spec(row.model_ref), hardware, release_outputs=own_function)


def scores(rows: list[MeasuredRow]) -> Iterator[Score]:
    for row in rows:
        if row.plan is None or row.quality != "A" or row.measured.get("oom"):
            continue
        try:
            estimate = estimate_row(row)
        except AdviseError:
            continue
        for kind in KINDS:
            measured = row.measured.get(f"{kind}_bytes")
            if measured:
                yield Score(row, kind, measured, estimate)


def summary(title: str, found: list[Score]) -> Table:
    table = Table(title=title, box=SIMPLE)
    for column in (
        "source",
        "kind",
        "n",
        "median |e|",
        "P90 |e|",
        "P95 |e|",
        "worst over",
        "worst under",
        "bias",
        "covered",
    ):
        table.add_column(column, justify="left" if column in ("source", "kind") else "right")
    groups: dict[tuple[str, str], list[Score]] = {}
    for s in found:
        groups.setdefault((s.row.source, s.kind), []).append(s)
    for (source, kind), group in sorted(groups.items()):
        errors = [s.error for s in group]
        sizes = [abs(e) for e in errors]
        table.add_row(
            source, kind, str(len(group)), f"{median(sizes):.1%}", f"{quantile(sizes, 0.9):.1%}",
            f"{quantile(sizes, 0.95):.1%}",
            f"{max(errors):+.1%}", f"{min(errors):+.1%}", f"{median(errors):+.1%}",
            f"{sum(s.covered for s in group) / len(group):.0%}",
        )  # fmt: skip
    return table


@click.command()
@click.option("--rows", "show_rows", is_flag=True, help="Print every row.")
@click.option("--source", help="Only this source.")
def main(show_rows: bool, source: str | None) -> None:
    console = Console(width=100)
    rows = [r for r in load_rows() if source in (None, r.source)]
    found = list(scores(rows))
    if show_rows:
        for s in sorted(found, key=lambda s: s.error):
            plan: Any = s.row.plan
            console.print(
                f"{s.error:+7.1%} {s.kind:9s} {s.measured / GIB:7.2f} GiB {s.estimate.peak_phase:15s} "
                f"{plan.method:8s} {plan.quantization:6s} {s.row.id}",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
    known = [s for s in found if not s.row.memory_note]
    console.print(summary("Analytic tier: predicted against measured, configuration known", known))
    console.print(summary("The same, something that matters not published", [s for s in found if s.row.memory_note]))
    notes = {(s.row.source, s.row.memory_note) for s in found if s.row.memory_note}
    for name, note in sorted(notes):
        console.print(f"  {name}: {note}", highlight=False)


if __name__ == "__main__":
    main()
