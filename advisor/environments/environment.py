"""Environment: one platform's virtual environment on disk, and how it stands. Reading it starts no process."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Literal

from advisor.environments.lock import Lock, load_lock, normalize
from profiles.errors import AdviseError, InvalidInputError
from profiles.home import data_home
from profiles.plan import Platform
from profiles.platform import load_platforms
from profiles.record import Record, parse_record

MARKER = "ftadvise.json"
State = Literal["ready", "building", "half-built", "outdated", "broken"]


class Marker(Record):
    """Written into an environment when it is whole. `lock`: the fingerprint of what was installed."""

    lock: str
    cpu: bool
    python_version: str
    built: str
    unverified: str = ""


class Environment(Record):
    """A platform's environment. `reason` says what is wrong with it, or what its check could not see."""

    platform: Platform
    path: str
    python: str
    state: State
    reason: str = ""
    cpu: bool = False
    python_version: str | None = None
    built: str | None = None


def environments_home() -> Path:
    """The folder that holds one folder a platform, each with its log and lock file beside it."""
    return data_home() / "environments"


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / "bin" / "python"


def find_environment(platform: str) -> Environment | None:
    """The platform's environment as it stands on the disk, or None."""
    folder = environments_home() / platform
    if not folder.is_dir():
        return None
    marker = _read_marker(folder)
    state, reason = _judge(folder, platform, marker)
    fields = marker.model_dump(include={"cpu", "python_version", "built"}) if marker else {}
    return Environment(
        platform=platform, path=str(folder), python=str(python_of(folder)), state=state, reason=reason, **fields
    )


def find_environments() -> tuple[Environment, ...]:
    """All that are there, in the order of the platforms."""
    return tuple(found for platform in load_platforms() if (found := find_environment(platform)))


def mark_ready(folder: Path, lock: Lock, *, cpu: bool, python_version: str, unverified: str) -> None:
    """The last act of a build."""
    built = datetime.now(UTC).isoformat(timespec="seconds")
    marker = Marker(lock=lock.fingerprint, cpu=cpu, python_version=python_version, built=built, unverified=unverified)
    temporary = folder / f".{MARKER}"
    temporary.write_text(marker.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / MARKER)


@contextmanager
def exclusive(platform: str) -> Iterator[IO[bytes]]:
    """Keep other builds of the platform out; yields the open lock file, which a child that inherits it also holds.

    Raises AdviseError 'environment-busy' while another process builds, 'environment-unwritable' where nothing can be.
    """
    try:
        file = _open_lock_file(platform)
    except OSError as error:
        raise unwritable(error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AdviseError(
                "environment-busy", f"the environment {platform} is being built by another process", "Wait for it."
            ) from None
        yield file


def unwritable(error: OSError) -> AdviseError:
    """An environment's folder could not be written: 'environment-unwritable'."""
    return AdviseError(
        "environment-unwritable",
        f"{error.filename or environments_home()} cannot be written: {error.strerror or error}",
        "Free some space, or set FTADVISE_HOME to a folder that can be written.",
    )


def installed_packages(folder: Path) -> dict[str, str]:
    """Versions by normalised name, from the metadata on disk."""
    sites = [str(site) for site in folder.glob("lib/python3*/site-packages")]
    return {normalize(d.name): d.version for d in metadata.distributions(path=sites) if d.name}


def differences(pins: dict[str, str], installed: dict[str, str]) -> Iterator[str]:
    """What is not as pinned, in words; a local version (2.13.0+cpu) counts as its public one."""
    for name, version in pins.items():
        found = installed.get(name)
        if found is None:
            yield f"{name} is missing"
        elif found.split("+")[0] != version:
            yield f"{name} is {found}, not {version}"


def _judge(folder: Path, platform: str, marker: Marker | None) -> tuple[State, str]:
    if marker is None:
        if is_building(platform):
            return "building", "another process is at it"
        return "half-built", "its build did not come to its end"
    lock = load_lock(platform)
    lock = lock.for_cpu() if marker.cpu else lock
    if marker.lock != lock.fingerprint:
        return "outdated", "this ftadvise has other tested versions"
    python = python_of(folder)
    if not os.access(python, os.X_OK):  # a link to a Python that was removed or moved
        return "broken", f"its interpreter {os.path.realpath(python)} is gone"
    wrong = list(differences(lock.pins, installed_packages(folder)))
    if wrong:
        return "broken", _first(wrong)
    return "ready", marker.unverified


def _first(words: Iterable[str], most: int = 3) -> str:
    listed = list(words)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return "; ".join(listed[:most]) + rest


def _read_marker(folder: Path) -> Marker | None:
    """None where there is none, or none that can be read: such an environment is not whole either."""
    try:
        return parse_record(Marker, json.loads((folder / MARKER).read_bytes()), MARKER)
    except (OSError, ValueError, InvalidInputError):
        return None


def is_building(platform: str) -> bool:
    """Whether a process, or its installer, holds the platform's lock file."""
    try:
        with _open_lock_file(platform) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _open_lock_file(platform: str) -> IO[bytes]:
    home = environments_home()
    home.mkdir(parents=True, exist_ok=True)
    return (home / f".{platform}.lock").open("ab")
