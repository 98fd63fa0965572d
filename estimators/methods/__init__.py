"""The registry of fine-tuning methods: one file each in this folder, found by its `METHOD`."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from estimators.methods.base import AdaptedLinear, Method, TrainedTensors
from profiles.errors import UnknownNameError

__all__ = ["AdaptedLinear", "Method", "TrainedTensors", "framework_methods", "get_method", "methods"]


@cache
def methods() -> dict[str, Method]:
    """All methods by id."""
    found: dict[str, Method] = {}
    for module in iter_modules(__path__, f"{__name__}."):
        method = getattr(import_module(module.name), "METHOD", None)
        if method is not None:
            found[method.id] = method
    return found


def framework_methods() -> tuple[str, ...]:
    """Ids of the methods that advice weighs against each other."""
    return tuple(name for name, method in methods().items() if method.framework)


def get_method(name: str) -> Method:
    """Return the method called `name`.

    Raises:
        UnknownNameError: there is none; near names are suggested.
    """
    own = _read(name) if name.isidentifier() else None
    if own is not None:
        return own
    try:
        return methods()[name]
    except KeyError:
        from difflib import get_close_matches

        near = tuple(get_close_matches(name, methods(), n=3))
        raise UnknownNameError("method", name, near, f"Methods: {', '.join(sorted(methods()))}.") from None


@cache
def _read(name: str) -> Method | None:
    """The method in the file of that name, without importing the others; None if its id is another or it is none."""
    try:
        method = getattr(import_module(f"{__name__}.{name}"), "METHOD", None)
    except ModuleNotFoundError:
        return None
    return method if method is not None and method.id == name else None
