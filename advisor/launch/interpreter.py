"""Which Python runs an emitted folder: this one if it has the packages, or the one that is named."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from shutil import which
from typing import NamedTuple

from profiles.errors import AdviseError, InvalidInputError

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


def choose_interpreter(requirements: Iterable[str], python: str | None = None) -> Interpreter:
    """`python` (a path or a command), else the running one.

    Raises:
        InvalidInputError: it does not run.
        AdviseError: it lacks packages (code 'missing-packages'); the hint is the command that installs them.
    """
    wanted = dict(requirement.split("==") for requirement in requirements)
    installed = _own_versions(wanted) if python is None else _ask(python, wanted)
    python = python or sys.executable
    missing = [name for name in wanted if installed[name] is None]
    if missing:
        raise AdviseError(
            "missing-packages",
            f"{python} has no {', '.join(missing)}",
            f"`{python} -m pip install {' '.join(f'{n}=={wanted[n]}' for n in missing)}`, "
            "or name another interpreter with --python.",
        )
    untested = tuple(
        f"{name} {installed[name]} (tested with {version})"
        for name, version in wanted.items()
        if (installed[name] or "").split("+")[0] != version
    )
    return Interpreter(python, untested)


def _own_versions(names: Iterable[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _ask(python: str, names: Iterable[str]) -> Mapping[str, str | None]:
    if which(python) is None:
        raise InvalidInputError(
            "python", f"there is no interpreter {python!r}", "Give the path of a python executable."
        )
    try:
        answer = subprocess.run([python, "-c", _ASK, *names], capture_output=True, text=True, timeout=60, check=True)
        found: dict[str, str | None] = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise InvalidInputError("python", f"{python!r} is no working Python: {error}") from None
    return found
