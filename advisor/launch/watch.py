"""Watch a trainer to its end, whatever it is: report its events, stop it when asked to, write down how it ended."""

import time
from pathlib import Path
from typing import NamedTuple, Protocol

from advisor.launch.base import Reporter
from advisor.launch.folder import LOG, METRICS, STOP, RunState, now, size, write_state
from advisor.launch.jobs import Answer
from advisor.launch.metrics import Course, Event, MetricsReader
from advisor.launch.state import judge_end
from advisor.launch.stop import POLL_SECONDS
from profiles.errors import AdviseError


class Ending(NamedTuple):
    """How a trainer ended: its exit status, or what the queue says; None where nobody knows."""

    returncode: int | None = None
    answer: Answer | None = None


class Trainer(Protocol):
    """What is watched."""

    def has_ended(self) -> bool:
        """Whether it lives no longer."""

    def kill(self) -> None:
        """End it at once."""

    def close(self) -> Ending:
        """It has ended, or nobody watches it any longer."""


class Watch:
    """Tells the reporter what a trainer does, passes on the wish to stop, and writes how it ended."""

    def __init__(self, trainer: Trainer, folder: Path, state: RunState, course: Course, reporter: Reporter) -> None:
        self.trainer, self.folder, self.state, self.reporter = trainer, folder, state, reporter
        self.course, self.news = course, Course()  # of the whole run; of this trainer
        self.reader = MetricsReader(folder / METRICS, state.metrics_bytes)

    def to_the_end(self, interrupts: list[int]) -> RunState:
        """Until the trainer has ended, or the reporter fails (as on a closed pipe), which ends a child but no job."""
        handled = 0
        try:
            write_state(self.folder, self.state)
            while not self.trainer.has_ended():
                self.report()
                if handled < len(interrupts):
                    handled += 1
                    self.stop(kindly=handled == 1)
                time.sleep(POLL_SECONDS)
            self.report()
        finally:
            ending = self.trainer.close()
            if self.trainer.has_ended():
                self.end(ending)
        return self.state

    def end(self, ending: Ending) -> None:
        """Write down what became of it."""
        self.take_in()
        self.state = self.judge(ending)
        try:
            write_state(self.folder, self.state)
        except AdviseError as error:  # a full disk: whoever reads the folder comes to the same from the metrics
            self.reporter.note(error.message)

    def take_in(self) -> list[Event]:
        """What the trainer has told since the last call."""
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
            self.trainer.kill()

    def judge(self, ending: Ending) -> RunState:
        """The final state."""
        return judge_end(self.folder, self.state, self.news, **ending._asdict()).replace(
            ended=now(),
            step=self.course.step,
            max_steps=self.course.max_steps,
            metrics_bytes=size(self.folder / METRICS),
            log_bytes=size(self.folder / LOG),
        )
