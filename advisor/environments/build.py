"""Build a platform's environment from its lock, or remove it. Interrupted at any moment it is recognised as half-built.

With CUDA the pins are installed with their dependencies, for torch's wheel pins its CUDA packages itself; on a CPU
they are installed without, for the lock is complete then and what is left out must not come back as a dependency.
"""

import errno
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from advisor.environments.check import probe
from advisor.environments.environment import (
    MARKER,
    Environment,
    differences,
    environments_home,
    exclusive,
    find_environment,
    installed_packages,
    mark_ready,
    python_of,
    unwritable,
)
from advisor.environments.installer import Progress, Report, Workshop, install_command, venv_command
from advisor.environments.lock import CPU_TAG, Lock, load_lock
from advisor.python_child import ask_python
from profiles.errors import AdviseError, InvalidInputError, UnknownNameError
from profiles.platform import load_platforms

OLDEST_PYTHON = (3, 11)  # LLaMA-Factory 0.9.5, numpy 2.4
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STUBS = Path(__file__).parent / "data" / "stubs"


def create_environment(
    platform: str, *, python: str | None = None, cpu: bool = False, report: Report = lambda progress: None
) -> Environment:
    """Build the platform's environment over `python` (None: the running one); one that is ready as asked stays.

    Raises:
        UnknownNameError: no such platform.
        InvalidInputError: `python` does not run, or is too old.
        AdviseError: it is being built ('environment-busy'), or cannot be: 'disk-full', 'registry-unreachable',
            'package-not-found', 'no-venv', 'install-failed', 'environment-broken', 'environment-unwritable'.
    """
    _check_platform(platform)
    version = _python_version(python or sys.executable)
    folder = environments_home() / platform
    with exclusive(platform) as lock_file:
        found = find_environment(platform)
        same_python = python is None or (found and found.python_version == version)
        if found and found.state == "ready" and found.cpu == cpu and same_python:
            return found
        lock = load_lock(platform)
        try:
            _clear(folder)
            workshop = Workshop(folder, folder.with_suffix(".log"), lock_file, report)
            workshop.run("creating the virtual environment", venv_command(python or sys.executable, folder))
            if cpu:
                _install_for_cpu(workshop, lock)
                lock = lock.for_cpu()
            else:
                _install(workshop, lock)
            report(Progress("checking"))
            unverified = _check(platform, folder, lock, cpu=cpu)
            mark_ready(folder, lock, cpu=cpu, python_version=version, unverified=unverified)
        except OSError as error:
            raise _disk_full(folder) if error.errno == errno.ENOSPC else unwritable(error) from None
    built = find_environment(platform)
    assert built is not None
    return built


def remove_environment(platform: str) -> None:
    """Delete it. Raises AdviseError 'no-environment' where there is none, 'environment-busy' while it is built."""
    _check_platform(platform)
    folder = environments_home() / platform
    with exclusive(platform):
        if not folder.exists():
            raise AdviseError("no-environment", f"there is no environment {platform}", "`ftadvise env list` shows all.")
        try:
            _clear(folder)
            folder.with_suffix(".log").unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(error) from None


def _install(workshop: Workshop, lock: Lock) -> None:
    requirements = _write_requirements(workshop.folder, lock)
    _run_installer(workshop, "installing", "--requirement", requirements, packages=len(lock.pins))


def _install_for_cpu(workshop: Workshop, lock: Lock) -> None:
    """torch's CPU build, the rest of the lock, and our stubs of what an import cannot do without."""
    version = lock.pins["torch"] + CPU_TAG
    rest = lock.for_cpu()
    requirements = _write_requirements(workshop.folder, rest.replace(pins={**rest.pins, "torch": version}))
    torch = ("installing torch for the CPU", "--no-deps", f"torch=={version}")
    try:  # from where this machine's pip or uv looks by itself ...
        _run_installer(workshop, *torch)
    except AdviseError as error:  # ... or from the index that PyTorch's documentation names
        if error.code != "package-not-found":
            raise
        _run_installer(workshop, *torch, "--index-url", PYTORCH_CPU_INDEX)
    _run_installer(workshop, "installing", "--no-deps", "--requirement", requirements, packages=len(rest.pins) - 1)
    site = next(workshop.folder.glob("lib/python3*/site-packages"))
    for stub in STUBS.iterdir():
        if stub.name in lock.pins:
            shutil.copytree(stub, site / stub.name, ignore=shutil.ignore_patterns("__pycache__"))


def _write_requirements(folder: Path, lock: Lock) -> str:
    path = folder / "requirements.txt"
    path.write_text(lock.requirements, encoding="utf-8")
    return str(path)


def _run_installer(workshop: Workshop, stage: str, *arguments: str, packages: int = 0) -> None:
    workshop.run(stage, install_command(python_of(workshop.folder), arguments), packages)


def _check(platform: str, folder: Path, lock: Lock, *, cpu: bool) -> str:
    """What could not be verified. Raises AdviseError 'environment-broken'."""
    wrong = list(differences(lock.pins, installed_packages(folder)))
    error, unverified = "; ".join(wrong), ""
    if not error:
        error, unverified = probe(platform, str(python_of(folder)), cpu=cpu)
    if error:
        raise AdviseError("environment-broken", f"{folder}: {error}", f"Its log is {folder.with_suffix('.log')}.")
    return unverified


def _clear(folder: Path) -> None:
    """The marker goes first: what is left of a deletion that was cut off is half-built."""
    (folder / MARKER).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _python_version(python: str) -> str:
    numbers: Sequence[int] = ask_python(python, "import json, sys; print(json.dumps(sys.version_info[:3]))")
    version = ".".join(map(str, numbers))
    if tuple(numbers) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        raise InvalidInputError("python", f"{python} is Python {version}", f"Name one from {oldest} on with --python.")
    return version


def _check_platform(platform: str) -> None:
    if platform not in load_platforms():
        raise UnknownNameError("platform", platform, (), f"Platforms: {', '.join(load_platforms())}.")


def _disk_full(folder: Path) -> AdviseError:
    return AdviseError("disk-full", f"{folder}: the disk is full", "Free some space, or set FTADVISE_HOME elsewhere.")
