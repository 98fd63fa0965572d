"""End a run that somebody else may have started: with a checkpoint, or at once."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from advisor.launch.folder import STOP, RunState
from advisor.launch.jobs import find_queue
from advisor.launch.lock import is_held
from advisor.launch.state import Follower, ask_queue, read_state
from profiles.errors import AdviseError, InvalidInputError

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0


def check_running(folder: Path) -> RunState:
    """The state of a run that goes on. Raises InvalidInputError if none does."""
    state = read_state(folder)
    if state is None or state.status != "running":
        stands = "nothing was launched yet" if state is None else f"the run has ended ({state.status})"
        raise InvalidInputError(str(folder), stands, "`ftadvise runs` lists what runs.")
    return state


def stop_run(folder: Path, *, kill: bool = False) -> RunState:
    """Ask the trainer to stop after the step at hand with a checkpoint, or kill it; wait until it has ended.

    A job that waits in a queue has nothing to keep and is cancelled.

    Raises:
        InvalidInputError: nothing runs there.
        AdviseError: it is to be killed, but its process is not known (code 'unknown-process').
    """
    state = check_running(folder)
    (folder / STOP).touch()
    if state.job is not None:
        answer = ask_queue(state)
        if kill or (answer is not None and answer.status == "waiting"):
            find_queue(state.launcher).cancel(state.job)
    elif kill:
        if state.pid is None:  # its launcher was killed in the very moment of its start
            raise AdviseError(
                "unknown-process",
                f"{folder}: the process of its trainer is not known",
                "It has been asked to stop after the step at hand.",
            )
        kill_group(state.pid, lambda: not is_held(folder))
    follower = Follower(folder, state)
    while follower.lives():
        (folder / STOP).touch()  # a trainer that is just beginning removes the one that it finds
        time.sleep(POLL_SECONDS)
    return read_state(folder) or state


def kill_group(pid: int, has_ended: Callable[[], bool]) -> None:
    """End a process and all that it started, if it leads a group: politely, and after a grace period not."""
    with suppress(ProcessLookupError):
        send = os.killpg if os.getpgid(pid) == pid else os.kill
        send(pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while not has_ended() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        send(pid, signal.SIGKILL)
