"""Run on this machine: a child process in a group of its own, watched through its metrics file."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from advisor.launch.base import Launcher, Reporter
from advisor.launch.folder import (
    CHECKPOINTS,
    LOG,
    METRICS,
    RESULT,
    RUNS,
    STOP,
    RunState,
    last_checkpoint,
    load_run_file,
    now,
    read_state,
    set_aside,
    write_state,
)
from advisor.launch.interpreter import choose_interpreter
from advisor.launch.metrics import Course, Event, MetricsReader
from advisor.launch.outcome import judge
from profiles.errors import InvalidInputError

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0


class Local(Launcher):
    """A child of this process. The first Ctrl-C (or SIGTERM) asks it to stop with a checkpoint, the second kills it."""

    id = "local"

    def run(
        self,
        folder: Path,
        reporter: Reporter,
        *,
        python: str | None = None,
        resume: bool = False,
        restart: bool = False,
    ) -> RunState:
        """Start train.py, report its events, write runs/state.json. See `Launcher.run`."""
        folder = folder.absolute()
        run = load_run_file(folder)
        _check(folder, resume=resume, restart=restart)
        interpreter = choose_interpreter(run.platform, run.requirements, python)
        if not resume and (aside := set_aside(folder)):
            reporter.note(f"the earlier run was moved to {aside.name}/")
        for package in interpreter.untested:
            reporter.note(f"not the tested version: {package}")
        (folder / RUNS).mkdir(exist_ok=True)
        (folder / STOP).unlink(missing_ok=True)
        command = self.command(run, interpreter.python, resume=resume)
        reader, course = MetricsReader(folder / METRICS), Course()
        for event in reader.read():  # of the part of the run before a resume
            course.add(event)
        started = now()
        with _interrupts() as interrupts, (folder / LOG).open("ab") as log:
            offset = log.tell()
            child = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal reaches this process only
                env={**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
            write_state(folder, RunState(status="running", pid=child.pid, started=started))
            fresh = Course()  # what this child has done

            def drain() -> Iterator[Event]:
                for event in reader.read():
                    course.add(event)
                    fresh.add(event)
                    yield event

            handled = 0
            try:
                while child.poll() is None:
                    for event in drain():
                        reporter.event(event)
                    if handled < len(interrupts):
                        handled += 1
                        if handled == 1 and fresh.steps:
                            (folder / STOP).touch()
                            reporter.note("stopping after this step, with a checkpoint; Ctrl-C again kills the run")
                        else:  # asked twice, or nothing done yet that a checkpoint could keep
                            _kill(child)
                    time.sleep(POLL_SECONDS)
                for event in drain():
                    reporter.event(event)
            finally:  # also when the reporter failed, as on a closed pipe
                _kill(child)
                list(drain())
                state = judge(
                    returncode=child.wait(),
                    end=fresh.end,
                    interrupted=handled > 0,
                    log=_tail(folder / LOG, offset),
                    resumable=last_checkpoint(folder) is not None,
                ).replace(pid=child.pid, started=started, ended=now(), step=course.step, max_steps=course.max_steps)
                write_state(folder, state)
        reporter.finish(state)
        return state


def _check(folder: Path, *, resume: bool, restart: bool) -> None:
    """Whether a run may begin here."""
    data = folder / "data" / "train.jsonl"
    if not data.is_file():
        raise InvalidInputError(str(data), "is missing", "Write the folder with `ftadvise emit --data FILE`.")
    state = read_state(folder)
    if state is not None and state.status == "running":
        raise InvalidInputError(
            str(folder), f"is running already, as process {state.pid}", f"Stop it with `kill {state.pid}`, or wait."
        )
    found = last_checkpoint(folder)
    if resume and found is None:
        raise InvalidInputError(str(folder / CHECKPOINTS), "holds no checkpoint to resume from", "Leave --resume out.")
    if not resume and not restart and (found or (folder / RESULT).exists()):
        raise InvalidInputError(
            str(folder),
            "holds an earlier run",
            "--resume goes on from its last checkpoint, --restart begins again and keeps the old one aside.",
        )


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that grows by one with each SIGINT and SIGTERM, which do nothing else meanwhile."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """End the child and all that it started: politely, and after a grace period not."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_SECONDS)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(path: Path, offset: int, size: int = 20_000) -> str:
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(offset, end - size))
        return file.read().decode("utf-8", "replace")


LAUNCHER = Local()
