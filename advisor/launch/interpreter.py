"""Which Python runs an emitted folder: the one that is named, this one, or the platform's own environment."""

import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import NamedTuple

from advisor.environments import find_environment
from advisor.python_child import ask_python
from profiles.errors import AdviseError

_ASK = """
import importlib.metadata as m, json, sys
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


class Interpreter(NamedTuple):
    """A Python that has all packages. `untested`: those in another version than the tested one, in words."""

    python: str
    untested: tuple[str, ...]


def choose_interpreter(platform: str, requirements: Iterable[str], python: str | None = None) -> Interpreter:
    """`python` (a path or a command), else the running one if it is as tested, else the platform's environment.

    Where that is not ready, the running one still does if it has all packages in whatever version.

    Raises:
        InvalidInputError: `python` does not run.
        AdviseError: it lacks packages (code 'missing-packages'); the hint is the command that installs them.
    """
    wanted = dict(requirement.split("==") for requirement in requirements)
    if python is not None:
        return _with_all(python, wanted, ask_python(python, _ASK, *wanted))
    own = {name: _own_version(name) for name in wanted}
    environment = None if _is_tested(wanted, own) else find_environment(platform)
    if environment is not None and environment.state == "ready":
        return _with_all(environment.python, wanted, ask_python(environment.python, _ASK, *wanted))
    return _with_all(sys.executable, wanted, own, f"`ftadvise env create {platform}` builds an environment that has")


def _with_all(
    python: str, wanted: Mapping[str, str], installed: Mapping[str, str | None], way_out: str = ""
) -> Interpreter:
    missing = [name for name in wanted if installed[name] is None]
    if missing:
        install = f"`{python} -m pip install {' '.join(f'{n}=={wanted[n]}' for n in missing)}`"
        hint = f"{way_out} them. Or {install}" if way_out else install
        raise AdviseError(
            "missing-packages",
            f"{python} has no {', '.join(missing)}",
            f"{hint}, or name another interpreter with --python.",
        )
    untested = tuple(
        f"{name} {installed[name]} (tested with {version})"
        for name, version in wanted.items()
        if not _is_tested({name: version}, installed)
    )
    return Interpreter(python, untested)


def _is_tested(wanted: Mapping[str, str], installed: Mapping[str, str | None]) -> bool:
    return all((installed[name] or "").split("+")[0] == version for name, version in wanted.items())


def _own_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
