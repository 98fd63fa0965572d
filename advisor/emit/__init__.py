"""The registry of platforms that plans are written out for: one file each in this folder, found by its `EMITTER`."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from advisor.emit.base import ClusterId, Emission, Emitter, Forecast, RunFile, Source, write_emission
from advisor.emit.clusters import add_cluster
from profiles.model import ModelSpec
from profiles.plan import Plan

__all__ = ["ClusterId", "Emission", "Emitter", "Forecast", "RunFile", "Source", "emit", "emitters", "write_emission"]


@cache
def emitters() -> dict[str, Emitter]:
    """All platforms by id."""
    found: dict[str, Emitter] = {}
    for module in iter_modules(__path__, f"{__name__}."):
        emitter = getattr(import_module(module.name), "EMITTER", None)
        if emitter is not None:
            found[emitter.id] = emitter
    return found


def emit(plan: Plan, model: ModelSpec, source: Source, forecast: Forecast | None = None) -> Emission:
    """Write `plan` out for its platform: texts by path, and the command that runs them. Pure.

    Raises:
        UnsupportedError: the platform or the cluster cannot express the plan; the message is the reason.
    """
    return add_cluster(emitters()[plan.platform].emit(plan, model, source, forecast), source, forecast)
