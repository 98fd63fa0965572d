"""Launcher: a pure command, and a run that executes it. Reporter: who is told what happens."""

from pathlib import Path
from typing import Protocol, Self

from advisor.emit import RunFile, emitters
from advisor.launch.folder import RunState
from advisor.launch.jobs import Queue
from advisor.launch.metrics import Event


class Reporter(Protocol):
    """Shows a run to a person or a program."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def event(self, event: Event) -> None:
        """The script wrote an event."""

    def note(self, text: str) -> None:
        """The launcher has something to say."""

    def finish(self, state: RunState) -> None:
        """The run has ended."""


class Launcher:
    """One way to run an emitted folder."""

    id: str
    queue: Queue | None = None

    def command(self, run: RunFile, python: str, *, resume: bool = False) -> list[str]:
        """The platform's command with `python` as its interpreter. Pure."""
        command = emitters()[run.platform].command(run.plan)
        return [python if part == "python" else part for part in command] + (["--resume"] if resume else [])

    def run(
        self,
        folder: Path,
        reporter: Reporter,
        *,
        python: str | None = None,
        resume: bool = False,
        restart: bool = False,
    ) -> RunState:
        """Run it to its end. Raises AdviseError if it cannot be started."""
        raise NotImplementedError
