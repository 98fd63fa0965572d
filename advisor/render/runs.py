"""Runs on the screen: a table of all, a page of one."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from advisor.launch.folder import RunState
from advisor.launch.monitor import sparkline
from advisor.render.console import make_console
from advisor.render.page import Page
from advisor.render.plan import describe_plan
from advisor.retention import describe_retention
from advisor.runs import RunSummary, RunView
from estimators.interval import Interval
from profiles.units import format_bytes, format_count, format_duration

STYLE = {"running": "cyan", "finished": "green", "stopped": "yellow", "gone": "dim", "not started": "dim"}


def print_runs(runs: Sequence[RunSummary], console: Console | None = None) -> None:
    """Id, status, steps, model, method, day and folder of each."""
    console = console or make_console()
    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("run", "status"):
        table.add_column(name, no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    for name in ("model", "method", "launched", "folder"):
        table.add_column(name, overflow="fold")
    for run in runs:
        status = Text(run.status, style=STYLE.get(run.status, "red"))
        about = (run.model or "-", run.method or "-", run.date, run.folder)
        table.add_row(run.id, status, _steps(run.state) if run.state else "-", *map(Text, about))
    console.print(table if runs else "No run was launched here yet: `ftadvise launch` starts one.")


def render_run(view: RunView, width: int | None = None) -> Page:
    """What it is, how it stands, what was measured beside what was predicted."""
    page = Page(width)
    page.field("Run", f"{view.id} in {view.folder}")
    page.field("Model", view.model)
    for name, value in describe_plan(view.plan):
        page.field(name, value)
    if view.state is None:
        page.field("Status", "not started")
        return page
    _add_state(page, view.state)
    forecast = view.forecast
    if view.losses:
        page.field("Loss", f"{sparkline(list(view.losses))}  {view.losses[0]:.4f} -> {view.losses[-1]:.4f}")
    if view.diverged_at is not None:
        page.field("", f"no finite number at step {view.diverged_at}")
    if view.eval_losses:
        page.field("Held out", " -> ".join(f"{loss:.4f}" for _, loss in view.eval_losses))
    if view.retention is not None:
        page.field("General text", describe_retention(view.retention))
    if view.tokens_per_second is not None:
        beside = _predicted(getattr(forecast, "tokens_per_second", None), format_count)
        page.field("Speed", f"{format_count(view.tokens_per_second)} tokens/s{beside}")
    for kind, peak in view.peaks.items():
        page.field("Memory", f"{format_bytes(peak)} {kind}{_predicted(getattr(forecast, kind, None), format_bytes)}")
    if view.state.status == "running" and view.seconds_left:
        page.field("Left", format_duration(view.seconds_left))
    if view.checkpoint is not None:
        page.field("Checkpoint", Path(view.checkpoint).name)
    if view.log is not None:
        page.field("Log", view.log)
    return page


def render_state(state: RunState, width: int | None = None) -> Page:
    """How a run ended."""
    page = Page(width)
    _add_state(page, state)
    return page


def _add_state(page: Page, state: RunState) -> None:
    process = f", process {state.pid}" if state.status == "running" and state.pid else ""
    page.field("Status", f"{state.status}, {_steps(state)} steps{process}")
    if state.job is not None:
        page.field("Job", f"{state.job} of {state.launcher}")
    page.field("Started", state.started + (f", ended {state.ended}" if state.ended else ""))
    if state.message:
        page.field("", state.message)
    if state.hint:
        page.field("Hint", state.hint)


def _steps(state: RunState) -> str:
    return f"{state.step}/{state.max_steps or '?'}"


def _predicted(interval: Interval | None, show: Callable[[float], str]) -> str:
    return "" if interval is None else f", predicted {show(interval.expected)}"
