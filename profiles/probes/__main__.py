"""The child: `python -m profiles.probes < job.json` prints a JSON line a point, then {"done": true}.

Each line is flushed, so that what was measured before a crash or a stop is not lost. Ends with its parent.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from profiles.calibration import TimedKernel, TimedStep
from profiles.probes.job import ProbeJob
from profiles.probes.stopwatch import Stopwatch

PR_SET_PDEATHSIG = 1  # linux/prctl.h

Probe = Callable[[ProbeJob, Stopwatch], Iterator[TimedKernel | TimedStep | str]]


def end_with_parent() -> None:
    """Linux kills this process when the one that started it dies, by whatever signal."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def find_probe(name: str) -> Probe:
    """The probe's function; torch (and for steps transformers and PEFT) is imported only here."""
    if name == "steps":
        from profiles.probes.training import probe_steps

        return probe_steps
    if name == "collective":
        from profiles.probes.collective import probe_collective

        return probe_collective
    from profiles.probes import kernels

    found: Probe = getattr(kernels, f"probe_{name}")
    return found


def main() -> int:
    """Run the job on standard input."""
    end_with_parent()
    job = ProbeJob.model_validate_json(sys.stdin.read())
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # libraries print too
    import torch

    if job.threads is not None:
        torch.set_num_threads(job.threads)
    probe = find_probe(job.probe)
    for point in probe(job, Stopwatch(job)):
        if isinstance(point, str):
            line: dict[str, Any] = {"failed": point}
        else:
            line = {"step" if isinstance(point, TimedStep) else "kernel": point.model_dump(mode="json")}
        print(json.dumps(line), file=answers, flush=True)
    print('{"done": true}', file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
