"""Reporters that interfere with a run while it is watched."""

import os
import signal
from collections.abc import Callable
from typing import Any

from advisor.launch.monitor import PlainLog


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class AtStep(PlainLog):
    """Does something once, at a step or as soon after it as it hears of one."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        super().__init__()
        self._at, self._act, self._done = step, act, False

    def event(self, event: Any) -> None:
        super().event(event)
        if event.event == "step" and event.step >= self._at and not self._done:
            self._done = True
            self._act()
