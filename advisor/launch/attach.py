"""Watch a run that somebody else has started, or that has outlived its launcher."""

import signal
import time
from pathlib import Path

from advisor.launch.base import Reporter
from advisor.launch.folder import METRICS, RunState
from advisor.launch.metrics import MetricsReader
from advisor.launch.signals import noted_signals
from advisor.launch.state import Follower, read_state
from advisor.launch.stop import POLL_SECONDS, check_running


def attach(folder: Path, reporter: Reporter) -> RunState | None:
    """Report the run from its first event to its end; None after a SIGINT, which leaves the run as it is.

    Raises:
        InvalidInputError: nothing runs there.
    """
    state, reader = check_running(folder), MetricsReader(folder / METRICS)
    follower = Follower(folder, state)
    with noted_signals(signal.SIGINT) as interrupts:
        while follower.lives():
            for event in reader.read():
                reporter.event(event)
            if interrupts:
                return None
            time.sleep(POLL_SECONDS)
    for event in reader.read():
        reporter.event(event)
    state = read_state(folder) or state
    reporter.finish(state)
    return state
