"""The registry of fine-tuning methods: one file each in this folder, named by its id, found by its `METHOD`."""

from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from estimators.methods.base import FRAMEWORK, AdaptedLinear, Method, TrainedTensors
from profiles.errors import UnknownNameError

__all__ = ["AdaptedLinear", "Method", "TrainedTensors", "framework_methods", "get_method", "methods"]


def framework_methods() -> tuple[str, ...]:
    """Ids of the methods that advice weighs against each other."""
    return FRAMEWORK


@cache
def methods() -> dict[str, Method]:
    """All methods by id."""
    found = (_load(module.name) for module in iter_modules(__path__))
    return {method.id: method for method in found if method is not None}


@cache
def _load(name: str) -> Method | None:
    """What one file of this folder holds; the others are not imported."""
    method: Method | None = getattr(import_module(f"{__name__}.{name}"), "METHOD", None)
    return method


def get_method(name: str) -> Method:
    """Return the method called `name`.

    Raises:
        UnknownNameError: there is none; near names are suggested.
    """
    method = _load(name) if name in _files() else None
    if method is None:
        near = tuple(get_close_matches(name, methods(), n=3))
        raise UnknownNameError("method", name, near, f"Methods: {', '.join(sorted(methods()))}.")
    return method


@cache
def _files() -> frozenset[str]:
    return frozenset(module.name for module in iter_modules(__path__))
