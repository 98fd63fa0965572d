"""Shorter ways for what libraries ask while they are imported, in the child process: the answers that they use are the
same, what they do not use is left out."""

import dataclasses
import importlib.metadata
import inspect
import re
import sys
from functools import cache, partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

NAME = re.compile(r"""["'](\w+)["']""")
VERSION = re.compile(r"^Version: *(.+?) *$", re.MULTILINE)


def answer_quickly() -> None:
    """Put the shorter ways in place. Call before `import torch`."""
    _stand_in_frames()
    _make_dataclasses()
    importlib.metadata.Distribution.version = property(_version)  # type: ignore[assignment, method-assign]
    importlib.metadata.packages_distributions = _Namesakes  # TRL's question; the answer takes reading every package
    sys.meta_path.insert(0, _NamesReader())


def _stand_in_frames() -> None:
    """Let `inspect` say from a frame alone where in the sources it is. torch asks that of 115 frames; the answers take
    a tenth of its import, with paths resolved and lines read that it does not use."""
    module_of = inspect.getmodule

    def getmodule(thing: object, _filename: str | None = None) -> ModuleType | None:
        return sys.modules.get(thing.f_globals["__name__"]) if inspect.isframe(thing) else module_of(thing, _filename)

    inspect.getmodule = getmodule  # type: ignore[assignment]  # its first parameter is named `object`
    inspect.getframeinfo = partial(inspect.getframeinfo, context=0)


def _make_dataclasses() -> None:
    """Compile equal methods of dataclasses once, and leave signatures out of their docstrings: 600 are defined, 114 of
    them by one function of torch's."""
    compiled = cache(partial(compile, filename="<string>", mode="exec"))
    shortened = vars(inspect) | {"signature": lambda *_, **__: ""}
    vars(dataclasses).update(
        inspect=SimpleNamespace(**shortened), exec=lambda text, names, out: exec(compiled(text), names, out)
    )


def _version(distribution: importlib.metadata.Distribution) -> str:
    """Its own way parses the whole file, which holds a README, as an e-mail."""
    found = VERSION.search(distribution.read_text("METADATA") or "")
    return found[1] if found else distribution.metadata["Version"]


class _Namesakes(dict[str, list[str]]):
    """The distributions that bring a package: one of its own name."""

    def __missing__(self, name: str) -> list[str]:
        return [name]


class _NamesReader(MetaPathFinder):
    """Gives transformers' import_utils another way to find the names that a file exports: transformers asks it of all
    its 1,700 files when it is imported, and its own goes through them line by line."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "transformers.utils.import_utils":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                module.fetch__all__ = _exported  # type: ignore[attr-defined]

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _exported(source: str) -> list[str]:
    """The names in the last list that is assigned to __all__ at the start of a line."""
    start = source.rfind("\n__all__")
    return NAME.findall(source, start, source.find("]", start)) if start >= 0 else []
