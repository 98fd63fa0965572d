"""Run through a queue: submit a job, and watch it through the progress file in the folder, which its nodes share."""

import signal
from pathlib import Path
from secrets import token_hex

from advisor.launch.base import Launcher, Reporter
from advisor.launch.begin import begin, find_interpreter
from advisor.launch.folder import STATE, RunState, load_run_file, saved_state, write_state
from advisor.launch.jobs import Queue
from advisor.launch.lock import hold_lock
from advisor.launch.signals import noted_signals
from advisor.launch.state import Follower, ask_queue
from advisor.launch.watch import Ending, Watch
from profiles.errors import InvalidInputError


class Queued(Launcher):
    """A job of `queue`. The first Ctrl-C asks it to stop with a checkpoint, the second cancels it."""

    def __init__(self, queue: Queue) -> None:
        self.id, self.queue, self.jobs = queue.id, queue, queue

    def run(
        self,
        folder: Path,
        reporter: Reporter,
        *,
        python: str | None = None,
        resume: bool = False,
        restart: bool = False,
    ) -> RunState:
        """Submit it, report its events, write runs/state.json. See `Launcher.run`."""
        folder = folder.absolute()
        run = load_run_file(folder)
        if run.source is None or run.source.cluster != self.id:
            raise InvalidInputError(
                str(folder),
                f"was not written for {self.id}",
                f"`ftadvise emit --cluster {self.id}` writes one that is.",
            )
        self.jobs.check()
        interpreter = find_interpreter(run, python, reporter)
        with noted_signals(signal.SIGINT, signal.SIGTERM) as seen:
            with hold_lock(folder):
                _check_idle(folder)
                state, course = begin(folder, reporter, resume=resume, restart=restart)
                state = state.replace(launcher=self.id, job=f"ftadvise-{token_hex(4)}")
                write_state(folder, state)  # before there is a job: none that nobody knows of can be left behind
                try:
                    self.jobs.submit(state.job or "", folder, interpreter.python, resume=resume)
                except BaseException:
                    (folder / STATE).unlink()
                    raise
            reporter.note(f"submitted to {self.id} as {state.job}")
            state = Watch(_Job(self.jobs, folder, state), folder, state, course, reporter).to_the_end(seen)
        reporter.finish(state)
        return state


class _Job:
    """The trainer as a job of a queue, which outlives whoever watches it."""

    def __init__(self, queue: Queue, folder: Path, state: RunState) -> None:
        self.queue, self.job = queue, state.job or ""
        self.follower = Follower(folder, state)

    def has_ended(self) -> bool:
        return not self.follower.lives()

    def kill(self) -> None:
        self.queue.cancel(self.job)

    def close(self) -> Ending:
        return Ending(answer=self.follower.answer)


def _check_idle(folder: Path) -> None:
    """Raises InvalidInputError if a job of the folder waits or runs."""
    state = saved_state(folder)
    answer = ask_queue(state)
    if state is not None and answer is not None and answer.status != "ended":
        raise InvalidInputError(
            str(folder),
            f"is running already, as {state.job} of {state.launcher}",
            "`ftadvise runs attach` watches it, `ftadvise runs stop` stops it.",
        )
