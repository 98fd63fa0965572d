"""Run on this machine: a child process in a session of its own, watched through its metrics file."""

import os
import signal
import subprocess
from pathlib import Path

from advisor.launch.base import Launcher, Reporter
from advisor.launch.begin import begin, find_interpreter
from advisor.launch.folder import LOG, RunState, load_run_file, write_state
from advisor.launch.lock import hold_lock, name_holder
from advisor.launch.signals import noted_signals
from advisor.launch.stop import kill_group
from advisor.launch.watch import Ending, Watch
from profiles.errors import InvalidInputError


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
        if run.source is not None and run.source.nodes > 1:
            raise InvalidInputError(
                str(folder), f"is for {run.source.nodes} nodes", f"`ftadvise launch --launcher {run.source.cluster}`."
            )
        interpreter = find_interpreter(run, python, reporter)
        with noted_signals(signal.SIGINT, signal.SIGTERM) as seen:
            with hold_lock(folder) as lock:
                state, course = begin(folder, reporter, resume=resume, restart=restart)
                write_state(folder, state)  # now: whatever is killed from here on, the state tells where to look
                child = _start(self.command(run, interpreter.python, resume=resume), folder, lock)
                name_holder(lock, child.pid)
            state = Watch(_Child(child), folder, state.replace(pid=child.pid), course, reporter).to_the_end(seen)
        reporter.finish(state)
        return state


class _Child:
    """The trainer as a process of this machine."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        kill_group(self.process.pid, self.has_ended)

    def close(self) -> Ending:
        self.kill()
        return Ending(self.process.wait())


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


LAUNCHER = Local()
