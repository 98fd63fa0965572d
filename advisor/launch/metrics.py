"""runs/metrics.jsonl: the events that an emitted script writes, read while it still writes."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pydantic import ConfigDict, Field, ValidationError

from advisor.launch.folder import size
from advisor.retention import judge_retention
from profiles.record import Record
from profiles.retention import Retention

RECENT = 20  # steps that speed and time left are taken from


class Event(Record):
    """One line. `seconds` and `tokens` are of the `steps` since the last logged one; memory in bytes, peaks so far.
    `losses`: of the passages of general text.

    A loss can be NaN here: that a run diverges has to be seen.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)

    event: str
    time: float | None = None
    step: int = 0
    max_steps: int | None = None
    steps: int = 1
    loss: float | None = None
    losses: tuple[float, ...] = ()
    learning_rate: float | None = None
    seconds: float | None = None
    tokens: float | None = None
    allocated: int | None = None
    reserved: int | None = None
    process: int | None = None
    trainable_parameters: int | None = None
    device: str | None = None
    processes: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    status: str | None = None


class MetricsReader:
    """Yields the events that came since the last call, or after byte `start`; half a line waits for its rest."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        self._position = start
        self._rest = b""

    def read(self) -> Iterator[Event]:
        """Events added since the last call. Lines that are no event (cut off by a crash) are left out."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._position:  # begun anew
                    self._position, self._rest = 0, b""
                file.seek(self._position)
                added = file.read()
        except FileNotFoundError:
            return
        self._position += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        for line in lines:
            try:
                yield Event.model_validate(json.loads(line))
            except (ValueError, ValidationError):
                continue


@dataclass
class Course:
    """How a run goes, from its events."""

    step: int = 0
    max_steps: int | None = None
    losses: list[float] = field(default_factory=list)
    eval_losses: list[tuple[int, float]] = field(default_factory=list)
    general_losses: list[tuple[float, ...]] = field(default_factory=list)
    steps: list[Event] = field(default_factory=list)
    start: Event | None = None
    end: Event | None = None
    last: Event | None = None

    def add(self, event: Event) -> None:
        """Take one event in. After a resume, steps that are done again replace those done before."""
        self.last = event
        self.max_steps = event.max_steps or self.max_steps
        if event.event == "start":
            self.start, self.end = self.start or event, None
            self.steps = [e for e in self.steps if e.step <= event.step]
            self.eval_losses = [(s, loss) for s, loss in self.eval_losses if s < event.step or event.step == 0]
        elif event.event == "step":
            self.steps.append(event)
        elif event.event == "eval" and event.loss is not None:
            self.eval_losses.append((event.step, event.loss))
        elif event.event == "general":
            self.general_losses.append(event.losses)
        elif event.event == "end":
            self.end = event
        self.step = max(event.step, self.steps[-1].step if self.steps else 0)
        self.losses = [e.loss for e in self.steps if e.loss is not None]

    @property
    def step_seconds(self) -> float | None:
        """Median of the recent steps; the very first, which warms up, is left out as soon as there are others."""
        timed = [e.seconds / e.steps for e in self.steps if e.seconds is not None]
        recent = timed[1:][-RECENT:] or timed
        return median(recent) if recent else None

    @property
    def tokens_per_second(self) -> float | None:
        """Over the recent steps."""
        timed = [e for e in self.steps if e.seconds and e.tokens]
        recent = timed[1:][-RECENT:] or timed
        seconds = sum(e.seconds or 0 for e in recent)
        return sum(e.tokens or 0 for e in recent) / seconds if seconds else None

    @property
    def seconds_left(self) -> float | None:
        """Steps to go at the recent pace; evaluations and checkpoints not counted."""
        pace = self.step_seconds
        return None if pace is None or self.max_steps is None else pace * max(self.max_steps - self.step, 0)

    @property
    def retention(self) -> Retention | None:
        """General text before the training against after it; None while it lasts, or where none was measured."""
        found = self.general_losses
        return judge_retention(found[0], found[-1]) if len(found) > 1 else None

    def peak(self, kind: str) -> int | None:
        """Largest 'allocated', 'reserved' or 'process' so far, bytes."""
        return max((value for e in self.steps if (value := getattr(e, kind)) is not None), default=None)

    @property
    def diverged_at(self) -> int | None:
        """The first step whose loss is no finite number."""
        return next((e.step for e in self.steps if e.loss is not None and not math.isfinite(e.loss)), None)


def read_course(path: Path, start: int = 0) -> Course:
    """A metrics file from byte `start` on; all of it if it is shorter, which it is after a new beginning."""
    course = Course()
    for event in MetricsReader(path, start if start <= size(path) else 0).read():
        course.add(event)
    return course
