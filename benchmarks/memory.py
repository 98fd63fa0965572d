"""Predicted against measured memory, both tiers and the peers: `python -m benchmarks.memory [--measured DIR]`.

The formulas answer each time; what the simulated tier said is kept in results/simulated.jsonl (`--simulate` asks it
again for the rows at hand). Errors are relative, positive where too much was predicted. "in 90 %": share of the rows
that lie in the 90 % interval; "held out": the same with the interval fitted without their source.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from statistics import median

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.rows import own_rows
from benchmarks.margins import covered_without_source, write_margins
from benchmarks.memory_scores import KINDS, Score, estimate_row, scores
from benchmarks.quantile import quantile
from benchmarks.rows import RUNS, MeasuredRow, load_rows
from benchmarks.simulated import simulate_rows
from profiles.errors import AdviseError, InvalidInputError
from profiles.units import GIB

COLUMNS = (
    "source", "method", "said by", "n", "median", "P90", "P95", "worst over", "worst under", "in 90 %", "held out"
)  # fmt: skip
LEFT = COLUMNS[:3]
TIERS = ("simulated", "analytic")


def table_of(title: str, found: Sequence[Score]) -> Table:
    """A line for each source, method and tier, then each source's total, then all; peers on the same rows."""
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in LEFT else "right", no_wrap=True)
    held = covered_without_source(found)
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for i, s in enumerate(found):
        groups["~ all", "", s.tier].append(i)
        groups["~ one card" if s.row.n_gpus == 1 else "~ several cards", "", s.tier].append(i)
        groups[s.row.source, "~ all", s.tier].append(i)
        groups[s.row.source, s.row.raw["method"], s.tier].append(i)
    for (source, method, tier), members in sorted(groups.items(), key=_order):
        group = [found[i] for i in members]
        errors = [s.error for s in group]
        sizes = [abs(e) for e in errors]
        judged = [held[i] for i in members if i in held]
        table.add_row(
            source.strip("~ "), method.strip("~ "), tier, str(len(group)), f"{median(sizes):.2%}",
            f"{quantile(sizes, 0.9):.1%}", f"{quantile(sizes, 0.95):.1%}", f"{max(errors):+.1%}", f"{min(errors):+.1%}",
            f"{sum(s.covered for s in group) / len(group):.0%}" if tier in TIERS else "",
            f"{sum(judged) / len(judged):.0%}" if judged else "",
        )  # fmt: skip
    return table


def _order(item: tuple[tuple[str, str, str], list[int]]) -> Hashable:
    (source, method, tier), _ = item
    return source, method, TIERS.index(tier) if tier in TIERS else len(TIERS), tier


def verdicts(rows: Sequence[MeasuredRow]) -> Table:
    """What the formulas said of every run that went out of memory, and of those that ran."""
    table = Table(title="Verdicts of the analytic tier", title_justify="left", box=SIMPLE)
    for column in ("source", "outcome", "n", "fits", "tight", "does not fit"):
        table.add_column(column, justify="left" if column in ("source", "outcome") else "right")
    counts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        if row.plan is None or row.quality != "A":
            continue
        try:
            verdict = estimate_row(row).verdict
        except AdviseError:
            continue
        ran = "ran, not all known" if row.memory_note else "ran"
        for source in (row.source, "~ all"):
            counts[source, "out of memory" if row.measured.get("oom") else ran].append(verdict)
    for (source, outcome), said in sorted(counts.items()):
        shares = [f"{said.count(v)} ({said.count(v) / len(said):.0%})" for v in ("fits", "tight", "does not fit")]
        table.add_row(source.strip("~ "), outcome, str(len(said)), *shares)
    return table


@click.command()
@click.option("--measured", "folder", type=click.Path(path_type=Path), help="Folder of a runs.jsonl.  [tests/measured]")
@click.option("--source", help="Only this source.")
@click.option("--match", default="", help="Only rows whose id contains this.")
@click.option("--rows", "show_rows", is_flag=True, help="Print every row.")
@click.option("--simulate", is_flag=True, help="Run the simulated tier again instead of reading what it said.")
@click.option("--jobs", "n_processes", default=1, show_default=True, help="Processes at a time for --simulate.")
@click.option("--fit", is_flag=True, help="Fit the intervals' margins and write them into profiles/data/margins.json.")
def main(
    folder: Path | None, source: str | None, match: str, show_rows: bool, simulate: bool, n_processes: int, fit: bool
) -> None:
    console = Console(width=130)
    rows = [r for r in read(folder) if source in (None, r.source) and match in r.id]
    if simulate:
        for line in simulate_rows([r for r in rows if r.quality == "A"], n_processes):
            console.print(line, soft_wrap=True, highlight=False)
    found = list(scores(rows))
    if show_rows:
        for s in sorted(found, key=lambda s: s.error):
            console.print(
                f"{s.error:+7.2%} {s.tier:12s} {s.kind:9s} {s.measured / GIB:7.2f} GiB {s.case:24s} {s.row.id}",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
    known = [s for s in found if not s.row.memory_note]
    if fit:
        for line in write_margins(known):
            console.print(line, highlight=False)
        return
    for kind in KINDS:
        console.print(table_of(f"Peak {kind} memory, configuration known", [s for s in known if s.kind == kind]))
    noted = [s for s in found if s.row.memory_note and s.tier in TIERS]
    for kind in KINDS:
        title = f"Peak {kind} memory, something that matters not published or not modelled"
        console.print(table_of(title, [s for s in noted if s.kind == kind]))
    for name, note in sorted({(s.row.source, s.row.memory_note) for s in noted}):
        console.print(f"  {name}: {note}", highlight=False, soft_wrap=True)
    console.print(verdicts(rows))


def read(folder: Path | None) -> list[MeasuredRow]:
    """The rows of a folder's runs.jsonl; those of the tests, and our own, without one.

    Raises:
        InvalidInputError: the folder has no such file.
    """
    path = RUNS if folder is None else folder / RUNS.name
    if not path.is_file():
        raise InvalidInputError("--measured", f"{path} is no file", "Name a folder that holds a runs.jsonl.")
    return [*load_rows(path), *(own_rows() if folder is None else ())]


if __name__ == "__main__":
    main()
