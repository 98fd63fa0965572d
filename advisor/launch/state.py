"""How a run stands: what its launcher wrote, whether its trainer lives, and what the trainer itself has told since.

A trainer of this machine lives while it holds the folder's lock; of one elsewhere the queue says whether it does.

Nothing here depends on a launcher that lived to see the end: a run that outlives it, or that was started by hand with
`python train.py`, reads the same.
"""

import os
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from advisor.launch.folder import LOG, METRICS, STOP, RunState, last_checkpoint, now, saved_state
from advisor.launch.jobs import POLL_SECONDS, Answer, find_queue
from advisor.launch.lock import holder, is_held
from advisor.launch.metrics import Course, read_course
from advisor.launch.outcome import judge
from profiles.errors import AdviseError


def read_state(folder: Path) -> RunState | None:
    """The run's state at this moment; None before the first run.

    Raises:
        InvalidInputError: state.json is damaged.
        AdviseError: the queue that it was given to cannot be asked (code 'queue-unreachable').
    """
    saved = saved_state(folder)  # before the lock: a run that ends in between has told its end in its metrics
    held = is_held(folder)
    answer = None if held else ask_queue(saved)
    course = read_course(folder / METRICS)
    if saved is None and course.start is None and not held:
        return None
    state = saved or RunState(status="running", started=_time(course) or now())
    news = read_course(folder / METRICS, state.metrics_bytes)
    if held or (answer is not None and answer.status != "ended"):
        pid = holder(folder) if held and state.job is None else None
        waits = "waits in the queue" if answer is not None and answer.status == "waiting" else ""
        running = RunState(
            status="running", pid=pid, started=state.started, launcher=state.launcher, job=state.job, message=waits
        )
        return _with_steps(running, course)
    if state.status != "running" and news.start is None:
        return state
    found = judge_end(folder, state, news, returncode=None, answer=answer)
    return _with_steps(found.replace(ended=_time(news, last=True)), course)


def ask_queue(state: RunState | None) -> Answer | None:
    """What the queue says of a run that was given to one and has not ended yet, as far as `state` knows."""
    if state is None or state.job is None or state.status != "running":
        return None
    return find_queue(state.launcher).ask(state.job)


class Follower:
    """Says whether a run still lives. A queue is asked every few seconds only, and again if it gave no answer."""

    def __init__(self, folder: Path, state: RunState) -> None:
        self.folder, self.state = folder, state
        self.answer: Answer | None = None
        self._next = 0.0

    def lives(self) -> bool:
        """It waits or runs, as far as is known."""
        if self.state.job is None:
            return is_held(self.folder)
        ended = self.answer is not None and self.answer.status == "ended"
        if not ended and time.monotonic() >= self._next:
            with suppress(AdviseError):
                self.answer = ask_queue(self.state)
            self._next = time.monotonic() + POLL_SECONDS
        return self.answer is None or self.answer.status != "ended"


def judge_end(
    folder: Path, state: RunState, news: Course, *, returncode: int | None, answer: Answer | None = None
) -> RunState:
    """The end of the run that `state` began, from `news` of its trainer and what it left in the folder.

    answer: the queue's last word of it.
    """
    found = judge(
        returncode=returncode,
        end=news.end,
        asked=(folder / STOP).exists() or (answer is not None and answer.cancelled),
        log=_tail(folder / LOG, state.log_bytes),
        resumable=last_checkpoint(folder) is not None,
        free=shutil.disk_usage(folder).free,
    )
    if answer is not None and answer.word and news.end is None:
        found = found.replace(message=f"{found.message} (the queue says {answer.word})")
    return found.replace(pid=state.pid, started=state.started, launcher=state.launcher, job=state.job)


def _with_steps(state: RunState, course: Course) -> RunState:
    return state.replace(step=course.step, max_steps=course.max_steps)


def _time(course: Course, *, last: bool = False) -> str | None:
    """When the first or the last event of `course` was written: UTC, ISO 8601."""
    event = course.last if last else course.start
    if event is None or event.time is None:
        return None
    return datetime.fromtimestamp(event.time, UTC).isoformat(timespec="seconds")


def _tail(path: Path, offset: int, size: int = 20_000) -> str:
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(offset, end - size))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:  # started by hand: its output went to a terminal
        return ""
