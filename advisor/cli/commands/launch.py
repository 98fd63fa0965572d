"""`ftadvise launch`: run an emitted folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from profiles.errors import AdviseError, UnknownNameError

if TYPE_CHECKING:
    from advisor.emit import Forecast
    from advisor.launch import Reporter
    from profiles.measurement import Measurement

STOPPED = 130


@click.command(
    epilog="""\b
Examples:
  ftadvise launch run
  ftadvise launch run --resume

\b
Ctrl-C stops after the step at hand, with a checkpoint; a second one kills the run.
Exit codes: 0 finished, 1 failed, 2 could not start, 130 stopped.
"""
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--restart", is_flag=True, help="Begin again; the earlier run is kept aside.")
@click.option("--python", metavar="PATH", help="Interpreter that has the run's packages.")
@click.option("--launcher", default="local", show_default=True, help="How to run it.")
@click.option("--json", "as_json", is_flag=True, help="Progress as JSON lines.")
def command(folder: Path, resume: bool, restart: bool, python: str | None, launcher: str, as_json: bool) -> int:
    """Run an emitted folder and watch it. At its end the forecast stands beside what was measured."""
    from advisor.detection import open_cards
    from advisor.launch import launchers, load_run_file
    from advisor.launch.monitor import choose_reporter
    from advisor.render.console import make_console

    if launcher not in launchers():
        raise UnknownNameError("launcher", launcher, (), f"Launchers: {', '.join(launchers())}.")
    run = load_run_file(folder)
    with open_cards() as read_cards:
        reporter = choose_reporter(
            as_json=as_json, forecast=run.forecast, console=make_console(), read_cards=read_cards
        )
        with reporter:
            _remember(folder, reporter)
            state = launchers()[launcher].run(folder, reporter, python=python, resume=resume, restart=restart)
    if state.step > 0:
        _compare(folder, run.forecast, as_json=as_json)
    return {"finished": 0, "stopped": STOPPED}.get(state.status, 1)


def _remember(folder: Path, reporter: "Reporter") -> None:
    """Let `ftadvise runs` know of it; a store that cannot be written does not keep the run from starting."""
    from advisor.runs import remember_run

    try:
        remember_run(folder)
    except AdviseError as error:
        reporter.note(f"`ftadvise runs` will not list this run: {error.message}")


def _compare(folder: Path, forecast: "Forecast | None", *, as_json: bool) -> None:
    """Store what the run did, and set it beside what was predicted."""
    from advisor.feedback import compare, record_run

    measurement = record_run(folder)
    lines = (*compare(measurement, forecast), *_learn(measurement))
    if as_json:
        record = {"event": "measurement", "lines": lines, **measurement.model_dump(mode="json")}
        click.echo(json.dumps(record, ensure_ascii=False))
        return
    from advisor.render.page import Page

    page = Page()
    page.bullets("Predicted and measured", lines)
    page.show()


def _learn(measurement: "Measurement") -> tuple[str, ...]:
    """What later estimates gain from the run; a store that cannot be written does not make the run a failure."""
    from advisor.calibrate import learn_from_run

    try:
        found = learn_from_run(measurement)
    except AdviseError as error:
        return (f"not learnt from: {error.message}",)
    return () if found is None else (f"learnt from: {len(found.steps)} timed steps of this machine are stored now",)
