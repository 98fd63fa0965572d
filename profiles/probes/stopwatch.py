"""Time of a call on a device, robust against a neighbour that interrupts it."""

import time
from collections.abc import Callable
from statistics import median

from profiles.probes.job import ProbeJob

SHORT = 0.02  # seconds; shorter calls are timed several at once
REPEATS = 3


class Stopwatch:
    """Reads the job's clock after the device has done all its work; knows when the job's time is over."""

    def __init__(self, job: ProbeJob) -> None:
        self._device = job.device
        self._clock = time.process_time if job.clock == "cpu" and job.device == "cpu" else time.perf_counter
        self._end = time.monotonic() + job.seconds

    @property
    def expired(self) -> bool:
        """The job's seconds are over."""
        return time.monotonic() >= self._end

    def now(self) -> float:
        """Seconds of the clock, with nothing pending on the device."""
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
        return self._clock()

    def seconds(self, call: Callable[[], object], *, share: float = 0.1, repeats: int = REPEATS) -> float:
        """Seconds of one `call`, after a first one that does not count; about `share` seconds in all.

        The median on a card; on a CPU the lower quartile, since a neighbour only ever makes a call longer.
        """
        call()
        start = self.now()
        call()
        once = self.now() - start
        batch = max(1, round(SHORT / max(once, 1e-7))) if once < SHORT else 1
        samples = [once] if batch == 1 else []
        spent = once
        while len(samples) < repeats or spent < share:
            start = self.now()
            for _ in range(batch):
                call()
            took = self.now() - start
            spent += took
            samples.append(took / batch)
            if self.expired and len(samples) > 1:
                break
        return sorted(samples)[(len(samples) - 1) // 4] if self._device == "cpu" else median(samples)
