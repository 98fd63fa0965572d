"""How a run stands: what its launcher wrote, whether its trainer lives, and what the trainer itself has told since.

Nothing here depends on a launcher that lived to see the end: a run that outlives it, or that was started by hand with
`python train.py`, reads the same.
"""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from advisor.launch.folder import LOG, METRICS, STOP, RunState, last_checkpoint, now, saved_state
from advisor.launch.lock import holder, is_held
from advisor.launch.metrics import Course, read_course
from advisor.launch.outcome import judge


def read_state(folder: Path) -> RunState | None:
    """The run's state at this moment; None before the first run.

    Raises:
        InvalidInputError: state.json is damaged.
    """
    saved = saved_state(folder)  # before the lock: a run that ends in between has told its end in its metrics
    held = is_held(folder)
    course = read_course(folder / METRICS)
    if saved is None and course.start is None and not held:
        return None
    state = saved or RunState(status="running", started=_time(course) or now())
    news = read_course(folder / METRICS, state.metrics_bytes)
    if held:
        running = RunState(status="running", pid=holder(folder), started=state.started)
        return _with_steps(running, course)
    if state.status != "running" and news.start is None:
        return state
    found = judge_end(folder, state, news, returncode=None)
    return _with_steps(found.replace(ended=_time(news, last=True)), course)


def judge_end(folder: Path, state: RunState, news: Course, *, returncode: int | None) -> RunState:
    """The end of the run that `state` began, from `news` of its trainer and what it left in the folder."""
    found = judge(
        returncode=returncode,
        end=news.end,
        asked=(folder / STOP).exists(),
        log=_tail(folder / LOG, state.log_bytes),
        resumable=last_checkpoint(folder) is not None,
        free=shutil.disk_usage(folder).free,
    )
    return found.replace(pid=state.pid, started=state.started)


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
