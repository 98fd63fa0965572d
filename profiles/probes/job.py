"""What a probe is asked, and the names of all probes. No torch here: the parent reads this too."""

from typing import Literal, get_args

from pydantic import PositiveFloat, PositiveInt

from profiles.plan import Plan
from profiles.record import Record

ProbeName = Literal[
    "matmul", "copy", "attention", "dequantize", "optimizer", "launch", "transfer", "collective", "steps"
]
PROBES: tuple[ProbeName, ...] = get_args(ProbeName)


class ProbeJob(Record):
    """One probe on one device. `seconds` bounds its measuring; `plans` are what the steps probe trains.

    clock: "cpu" counts the process's CPU seconds instead of the wall's; with one thread on a busy machine they are what
    an idle machine's wall would show.
    """

    probe: ProbeName
    device: Literal["cpu", "cuda"]
    seconds: PositiveFloat
    full: bool = False
    threads: PositiveInt | None = None
    clock: Literal["wall", "cpu"] = "wall"
    plans: tuple[Plan, ...] = ()
