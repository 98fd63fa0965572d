"""How far the build of an environment is: a bar on a terminal, else a line a stage; on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from advisor.environments.installer import Progress, Report

DETAIL_WIDTH = 60


@contextmanager
def show_progress() -> Iterator[Report]:
    """Gives the function that is told."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar

        with Bar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            transient=True,
        ) as bar:
            task = bar.add_task("", total=None, detail="")
            yield lambda p: bar.update(
                task, description=p.stage, completed=p.done, total=p.total or None, detail=p.detail[:DETAIL_WIDTH]
            )
        return
    seen = ""

    def say(progress: Progress) -> None:
        nonlocal seen
        if progress.stage != seen:
            seen = progress.stage
            print(f"{seen} ...", file=sys.stderr, flush=True)

    yield say
