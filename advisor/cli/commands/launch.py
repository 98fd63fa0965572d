"""`ftadvise launch`: run an emitted folder."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from profiles.errors import AdviseError, UnknownNameError

if TYPE_CHECKING:
    from advisor.launch import Launcher, Reporter, RunState

STOPPED = 130


@click.command(
    epilog="""\b
Examples:
  ftadvise launch run
  ftadvise launch run --resume
  ftadvise launch run --on-oom safer
  ftadvise launch run --launcher slurm

\b
A job of slurm or ray outlives this command: `ftadvise runs attach` watches it again.
Ctrl-C stops after the step at hand, with a checkpoint; a second one kills the run.
Exit codes: 0 finished, 1 failed, 2 could not start, 130 stopped.
"""
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--restart", is_flag=True, help="Begin again; the earlier run is kept aside.")
@click.option(
    "--on-oom",
    type=click.Choice(["stop", "safer"]),
    default="stop",
    show_default=True,
    help="Out of memory: stop, or rewrite the project for the next safer plan and go on.",
)
@click.option("--python", metavar="PATH", help="Interpreter that has the run's packages.")
@click.option("--launcher", default="local", show_default=True, help="local, or submit it: slurm, ray.")
@click.option("--json", "as_json", is_flag=True, help="Progress as JSON lines.")
def command(
    folder: Path, resume: bool, restart: bool, on_oom: str, python: str | None, launcher: str, as_json: bool
) -> int:
    """Run an emitted folder and watch it. At its end the forecast stands beside what was measured."""
    from advisor.launch import last_checkpoint, launchers

    if launcher not in launchers():
        raise UnknownNameError("launcher", launcher, (), f"Launchers: {', '.join(launchers())}.")
    run = partial(_run, folder, launchers()[launcher], python=python, as_json=as_json)
    state = run(resume=resume, restart=restart)
    while on_oom == "safer" and state.status == "out-of-memory" and _take_safer_plan(folder, state, as_json=as_json):
        go_on = last_checkpoint(folder) is not None
        state = run(resume=go_on, restart=not go_on)
    if state.step > 0:
        _compare(folder, as_json=as_json)
    return {"finished": 0, "stopped": STOPPED}.get(state.status, 1)


def _run(
    folder: Path, launcher: "Launcher", *, python: str | None, as_json: bool, resume: bool, restart: bool
) -> "RunState":
    """Launch the folder as it stands, on a screen of its own."""
    from advisor.detection import open_cards
    from advisor.launch import load_run_file
    from advisor.launch.monitor import choose_reporter
    from advisor.render.console import make_console

    forecast = load_run_file(folder).forecast
    with open_cards() as read_cards:
        cards = read_cards if launcher.queue is None else tuple  # a job's cards are elsewhere
        reporter = choose_reporter(as_json=as_json, forecast=forecast, console=make_console(), read_cards=cards)
        with reporter:
            _remember(folder, reporter)
            return launcher.run(folder, reporter, python=python, resume=resume, restart=restart)


def _take_safer_plan(folder: Path, state: "RunState", *, as_json: bool) -> bool:
    """Rewrite the project, and say so; False where it has to stay as it is."""
    from advisor.launch.monitor import choose_reporter
    from advisor.safer import describe_change, take_safer_plan

    say = choose_reporter(as_json=as_json).note
    try:
        change = take_safer_plan(folder, state)
    except AdviseError as error:
        say(error.message)
        return False
    say("there is no safer plan of the same method and lengths" if change is None else describe_change(change))
    return change is not None


def _remember(folder: Path, reporter: "Reporter") -> None:
    """Let `ftadvise runs` know of it; a store that cannot be written does not keep the run from starting."""
    from advisor.runs import remember_run

    try:
        remember_run(folder)
    except AdviseError as error:
        reporter.note(f"`ftadvise runs` will not list this run: {error.message}")


def _compare(folder: Path, *, as_json: bool) -> None:
    """Store what the run did, and set it beside what was predicted."""
    from advisor.calibrate import describe_learning
    from advisor.feedback import compare, record_run
    from advisor.launch import load_run_file

    measurement = record_run(folder)
    lines = (*compare(measurement, load_run_file(folder).forecast), *describe_learning(measurement))
    if as_json:
        record = {"event": "measurement", "lines": lines, **measurement.model_dump(mode="json")}
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    from advisor.render.page import Page

    page = Page()
    page.bullets("Predicted and measured", lines)
    page.show()
