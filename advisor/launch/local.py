"""Run on this machine: a child process in a session of its own, watched through its metrics file."""

import os
import signal
import subprocess
import time
from pathlib import Path

from advisor.launch.base import Launcher, Reporter
from advisor.launch.folder import (
    CHECKPOINTS,
    LOG,
    METRICS,
    RESULT,
    STOP,
    RunState,
    last_checkpoint,
    load_run_file,
    now,
    set_aside,
    size,
    write_state,
)
from advisor.launch.interpreter import choose_interpreter
from advisor.launch.lock import hold_lock, name_holder
from advisor.launch.metrics import Course, Event, MetricsReader, read_course
from advisor.launch.signals import noted_signals
from advisor.launch.state import judge_end
from advisor.launch.stop import POLL_SECONDS, kill_group
from profiles.errors import AdviseError, InvalidInputError


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
        interpreter = choose_interpreter(run.platform, run.requirements, python)
        for package in interpreter.untested:
            reporter.note(f"not the tested version: {package}")
        with noted_signals(signal.SIGINT, signal.SIGTERM) as interrupts:
            with hold_lock(folder) as lock:
                _check(folder, resume=resume, restart=restart)
                if not resume and (aside := set_aside(folder)):
                    reporter.note(f"the earlier run was moved to {aside.name}/")
                (folder / STOP).unlink(missing_ok=True)
                state = RunState(
                    status="running", started=now(), metrics_bytes=size(folder / METRICS), log_bytes=size(folder / LOG)
                )
                course = read_course(folder / METRICS)  # of the part of the run before a resume
                write_state(folder, state)  # now: whatever is killed from here on, the state tells where to look
                child = _start(self.command(run, interpreter.python, resume=resume), folder, lock)
                name_holder(lock, child.pid)
            state = _Watch(child, folder, state.replace(pid=child.pid), course, reporter).to_the_end(interrupts)
        reporter.finish(state)
        return state


class _Watch:
    """Tells the reporter what a child does, passes on the wish to stop, and writes how it ended."""

    def __init__(
        self, child: "subprocess.Popen[bytes]", folder: Path, state: RunState, course: Course, reporter: Reporter
    ) -> None:
        self.child, self.folder, self.state, self.reporter = child, folder, state, reporter
        self.course, self.news = course, Course()  # of the whole run; of this child
        self.reader = MetricsReader(folder / METRICS, state.metrics_bytes)

    def to_the_end(self, interrupts: list[int]) -> RunState:
        """Until the child has ended, or the reporter fails (as on a closed pipe), which ends the child."""
        handled = 0
        try:
            write_state(self.folder, self.state)
            while self.child.poll() is None:
                self.report()
                if handled < len(interrupts):
                    handled += 1
                    self.stop(kindly=handled == 1)
                time.sleep(POLL_SECONDS)
            self.report()
        finally:
            kill_group(self.child.pid, lambda: self.child.poll() is not None)
            returncode = self.child.wait()
            self.take_in()
            self.state = self.judge(returncode)
            try:
                write_state(self.folder, self.state)
            except AdviseError as error:  # a full disk: whoever reads the folder comes to the same from the metrics
                self.reporter.note(error.message)
        return self.state

    def take_in(self) -> list[Event]:
        """What the child has told since the last call."""
        events = list(self.reader.read())
        for event in events:
            self.course.add(event)
            self.news.add(event)
        return events

    def report(self) -> None:
        """Pass it on."""
        for event in self.take_in():
            self.reporter.event(event)

    def stop(self, *, kindly: bool) -> None:
        """With a checkpoint; at once if that is asked for, or if nothing is done yet that a checkpoint could keep."""
        (self.folder / STOP).touch()
        if kindly and self.news.steps:
            self.reporter.note("stopping after this step, with a checkpoint; Ctrl-C again kills the run")
        else:
            kill_group(self.child.pid, lambda: self.child.poll() is not None)

    def judge(self, returncode: int) -> RunState:
        """The final state."""
        return judge_end(self.folder, self.state, self.news, returncode=returncode).replace(
            ended=now(),
            step=self.course.step,
            max_steps=self.course.max_steps,
            metrics_bytes=size(self.folder / METRICS),
            log_bytes=size(self.folder / LOG),
        )


def _start(command: list[str], folder: Path, lock: int) -> "subprocess.Popen[bytes]":
    """The trainer: neither a Ctrl-C at the terminal nor the terminal's end reaches it, and the lock is its own."""
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock],
            env={**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"},
        )


def _check(folder: Path, *, resume: bool, restart: bool) -> None:
    """Whether a run may begin here."""
    data = folder / "data" / "train.jsonl"
    if not data.is_file():
        raise InvalidInputError(str(data), "is missing", "Write the folder with `ftadvise emit --data FILE`.")
    found = last_checkpoint(folder)
    if resume and found is None:
        raise InvalidInputError(str(folder / CHECKPOINTS), "holds no checkpoint to resume from", "Leave --resume out.")
    if not resume and not restart and (found or (folder / RESULT).exists()):
        raise InvalidInputError(
            str(folder),
            "holds an earlier run",
            "--resume goes on from its last checkpoint, --restart begins again and keeps the old one aside.",
        )


LAUNCHER = Local()
