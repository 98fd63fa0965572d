"""Run an emitted folder and watch it: launchers, one file each, found by their `LAUNCHER`."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from advisor.launch.base import Launcher, Reporter
from advisor.launch.folder import RunState, last_checkpoint, load_run_file
from advisor.launch.state import read_state

__all__ = ["Launcher", "Reporter", "RunState", "last_checkpoint", "launchers", "load_run_file", "read_state"]


@cache
def launchers() -> dict[str, Launcher]:
    """All launchers by id."""
    found: dict[str, Launcher] = {}
    for module in iter_modules(__path__, f"{__name__}."):
        launcher = getattr(import_module(module.name), "LAUNCHER", None)
        if launcher is not None:
            found[launcher.id] = launcher
    return found
