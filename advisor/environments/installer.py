"""uv where it is on the PATH, else venv and pip: their commands, how far they are, and what their failures mean."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import which
from typing import IO, NamedTuple

from profiles.errors import AdviseError

POLL_SECONDS = 0.2

# What pip and uv say, most telling first: an unreachable registry ends in "no matching distribution" too.
_CAUSES = (
    (
        re.compile(r"No space left on device|Disk quota exceeded", re.I),
        "disk-full",
        "the disk is full",
        "Free some space (up to 10 GiB with CUDA), or set FTADVISE_HOME to a folder on a larger disk.",
    ),
    (
        re.compile(
            r"NewConnectionError|Failed to establish a new connection|name resolution|ProxyError|ConnectTimeout"
            r"|ReadTimeout|Connection refused|error sending request|Failed to fetch",
            re.I,
        ),
        "registry-unreachable",
        "the package registry cannot be reached",
        "Check the network, or point pip (PIP_INDEX_URL) or uv (UV_INDEX_URL) to a mirror, then run it again.",
    ),
    (
        re.compile(r"No matching distribution found for|no version of|not found in the (?:package registry|provided)"),
        "package-not-found",
        "the registry does not have a package of the lock",
        "A mirror may lag behind: point PIP_INDEX_URL or UV_INDEX_URL to another one.",
    ),
    (
        re.compile(r"ensurepip is not available|No module named (?:venv|ensurepip)"),
        "no-venv",
        "this Python cannot make virtual environments",
        "Install its venv package (Debian: python3-venv) or uv, or name another Python with --python.",
    ),
)


class Progress(NamedTuple):
    """How far a build is. `done` of `total`: packages fetched and packages installed; 0 of 0 where it cannot tell."""

    stage: str
    detail: str = ""
    done: int = 0
    total: int = 0


Report = Callable[[Progress], None]


def venv_command(python: str, folder: Path) -> list[str]:
    """Make an empty environment over `python`."""
    uv = which("uv")
    return [uv, "venv", "--python", python, str(folder)] if uv else [python, "-m", "venv", str(folder)]


def install_command(python: Path, arguments: Sequence[str]) -> list[str]:
    """Install into the environment of `python`."""
    uv = which("uv")
    if uv:
        return [uv, "pip", "install", "--python", str(python), *arguments]
    return [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]


class Workshop:
    """Runs the commands of one build: their output goes to `log`, and they hold the build's lock file open.

    So the lock outlives a killed ftadvise for as long as its installer still writes.
    """

    def __init__(self, folder: Path, log: Path, lock_file: IO[bytes], report: Report) -> None:
        self.folder = folder
        self.log = log
        self._lock_file = lock_file
        self._report = report
        log.write_bytes(b"")

    def run(self, stage: str, command: Sequence[str], packages: int = 0) -> None:
        """Run it to its end. Raises AdviseError with the cause, as far as the output tells."""
        start = self.log.stat().st_size
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        with self.log.open("ab") as out:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**environment, "PYTHONUNBUFFERED": "1"},
                pass_fds=[self._lock_file.fileno()],
                start_new_session=True,  # so that all that it starts can be ended with it
            )
        before = self._installed()
        try:
            while child.poll() is None:
                said = self._output(start)
                done = count_fetched(said) + self._installed() - before
                self._report(Progress(stage, last_line(said), min(done, 2 * packages), 2 * packages))
                time.sleep(POLL_SECONDS)
        except BaseException:  # Ctrl-C among them
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        if child.returncode:
            raise diagnose(stage, self._output(start), self.log)

    def _installed(self) -> int:
        return len(list(self.folder.glob("lib/python3*/site-packages/*.dist-info")))

    def _output(self, start: int) -> str:
        with self.log.open("rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", "replace")


def count_fetched(output: str) -> int:
    """Wheels and archives that pip has named so far (uv names none)."""
    return len(
        re.findall(r"^ *(?:Downloading|Using cached|Processing) .*\.(?:whl|tar\.gz)(?: |$)", output, re.MULTILINE)
    )


def last_line(output: str) -> str:
    """What a tool said last."""
    return output.strip().rpartition("\n")[2].strip()


def diagnose(stage: str, output: str, log: Path) -> AdviseError:
    """The one error that a failed command amounts to."""
    for pattern, code, message, hint in _CAUSES:
        if pattern.search(output):
            return AdviseError(code, f"{stage}: {message}", f"{hint} The whole output is in {log}.")
    return AdviseError("install-failed", f"{stage}: {_last_error(output)}", f"The whole output is in {log}.")


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if line.lower().startswith("error")]
    return (named or lines or ["it ended without a word"])[-1][:300]
