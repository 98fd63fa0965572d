"""How the commands that try plans run a folder: on a screen of its own, or in lines where the answer is JSON."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import UnknownNameError

if TYPE_CHECKING:
    from advisor.launch import RunState


def make_runner(launcher: str, *, python: str | None, as_json: bool) -> Callable[[Path], "RunState"]:
    """What runs a folder to its end and watches it. Raises UnknownNameError if there is no such launcher."""
    from advisor.detection import open_cards
    from advisor.launch import launchers, load_run_file
    from advisor.launch.monitor import choose_reporter
    from advisor.render.console import make_console

    if launcher not in launchers():
        raise UnknownNameError("launcher", launcher, (), f"Launchers: {', '.join(launchers())}.")

    def run(folder: Path) -> "RunState":
        console, forecast = None if as_json else make_console(), load_run_file(folder).forecast
        with open_cards() as cards, choose_reporter(forecast=forecast, console=console, read_cards=cards) as reporter:
            return launchers()[launcher].run(folder, reporter, python=python)

    return run
