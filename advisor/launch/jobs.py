"""Jobs: runs that a queue starts elsewhere. A queue is its programs: pure commands, and what their output means."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from profiles.errors import AdviseError

POLL_SECONDS = 5.0  # between two questions: a queue serves many people
PATIENCE_SECONDS = 60.0


class Answer(NamedTuple):
    """How a job stands. `word`: the queue's own word for it. `cancelled`: somebody ended it through the queue."""

    status: Literal["waiting", "running", "ended"]
    word: str = ""
    cancelled: bool = False


class Queue:
    """One system. A job is known by a name that is chosen before it is submitted, so none is ever lost."""

    id: str
    programs: tuple[str, ...]

    def submit_command(self, job: str, folder: Path, python: str, *, resume: bool) -> list[str]:
        """Submit the project in `folder` as `job`, to be run there by `python`. Pure."""
        raise NotImplementedError

    def cancel_command(self, job: str) -> list[str]:
        """End it at once. Pure."""
        raise NotImplementedError

    def ask(self, job: str) -> Answer:
        """How it stands. Raises AdviseError if that cannot be found out (code 'queue-unreachable')."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises AdviseError if its programs are not here (code 'no-queue')."""
        missing = [name for name in self.programs if shutil.which(name) is None]
        if missing:
            raise AdviseError(
                "no-queue",
                f"{', '.join(missing)}: not found on this machine",
                f"Launch where {self.id} jobs are submitted from, or with --launcher local.",
            )

    def submit(self, job: str, folder: Path, python: str, *, resume: bool) -> None:
        """Raises AdviseError with what the queue says against it (code 'not-submitted')."""
        command = self.submit_command(job, folder, python, resume=resume)
        done = execute(command, folder, {"RUN_PYTHON": python})
        if done.returncode:
            raise AdviseError("not-submitted", f"{' '.join(command[:2])}: {said(done)}", "Nothing was submitted.")

    def cancel(self, job: str) -> None:
        """Raises AdviseError if the queue refuses (code 'not-cancelled')."""
        done = execute(self.cancel_command(job))
        if done.returncode:
            raise AdviseError("not-cancelled", f"{' '.join(done.args[:2])}: {said(done)}")

    def unreachable(self, job: str, done: "subprocess.CompletedProcess[str]") -> AdviseError:
        """That nobody knows how the job stands."""
        return AdviseError(
            "queue-unreachable",
            f"{done.args[0]} cannot tell whether the job {job} still runs: {said(done)}",
            "Ask again where its queue can be reached; the folder has its progress.",
        )


def find_queue(launcher: str) -> Queue:
    """The queue of a launcher's id. Raises KeyError if it has none."""
    from advisor.launch import launchers  # here: the launchers import this module

    queue = launchers()[launcher].queue
    if queue is None:
        raise KeyError(launcher)
    return queue


def execute(
    command: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run one of the queue's programs; one that is missing or hangs ends with a status and a message too."""
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,  # a Ctrl-C at the terminal is for whoever watches
            errors="replace",
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {PATIENCE_SECONDS:g} s")
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")


def said(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line of what a program complained of."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1][:300] if lines else f"status {done.returncode}"
