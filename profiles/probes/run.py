"""The parent's side: run a probe in a child process within time and memory, and take what it measured."""

import json
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from threading import Thread
from typing import IO

from profiles.calibration import TimedKernel, TimedStep
from profiles.probes.job import ProbeJob
from profiles.record import Record

ROOT = Path(__file__).parents[2]
STARTUP_SECONDS = 60.0  # importing torch and transformers from a cold or busy disk
OVERRUN = 2.0  # the last point of a probe may end this many times later than the job's seconds
POLL_SECONDS = 0.2


class ProbeOutcome(Record):
    """What a probe measured until it was done, or until `error`."""

    probe: str
    kernels: tuple[TimedKernel, ...] = ()
    steps: tuple[TimedStep, ...] = ()
    failed: tuple[str, ...] = ()  # plans that could not be run, and why
    seconds: float
    error: str = ""

    def describe(self) -> str:
        """'13 points in 8.9 s', and what went wrong."""
        said = f"{len(self.kernels) + len(self.steps)} points in {self.seconds:.1f} s"
        return "; ".join(filter(None, [said, *self.failed, self.error]))


def run_probe(job: ProbeJob, *, rss_bytes: float, limit: float | None = None) -> ProbeOutcome:
    """Run one probe; its crash, its excess of time or of main memory costs only what it had not measured yet.

    limit: wall seconds of the child, start included. Nothing is raised for what happens inside the child; a
    KeyboardInterrupt ends the child first.
    """
    start = time.monotonic()
    deadline = start + (limit or STARTUP_SECONDS + OVERRUN * job.seconds)
    with TemporaryFile("w+b") as complaints:
        child = _start(job, complaints)
        kernels: list[TimedKernel] = []
        steps: list[TimedStep] = []
        failed: list[str] = []
        done, error = False, ""
        try:
            lines = _lines(child)
            while True:
                try:
                    line = lines.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    error = _excess(child.pid, deadline, rss_bytes)
                    if error:
                        break
                    continue
                if line is None:
                    break
                done = _take(line, kernels, steps, failed) or done
        finally:
            child.kill()
            code = child.wait()
        if not done and not error:
            error = _reason(code, complaints)
    took = time.monotonic() - start
    return ProbeOutcome(
        probe=job.probe, kernels=tuple(kernels), steps=tuple(steps), failed=tuple(failed), seconds=took, error=error
    )


def _start(job: ProbeJob, complaints: IO[bytes]) -> "subprocess.Popen[str]":
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {
        "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    if job.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if job.threads is not None:
        environment["OMP_NUM_THREADS"] = str(job.threads)
    child = subprocess.Popen(
        [sys.executable, "-m", "profiles.probes"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment,
    )  # fmt: skip
    assert child.stdin is not None
    try:
        child.stdin.write(job.model_dump_json())
        child.stdin.close()
    except BrokenPipeError:  # it died at once: its exit code says so
        pass
    return child


def _lines(child: "subprocess.Popen[str]") -> "queue.Queue[str | None]":
    """The child's lines as they come; None at their end."""
    found: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            found.put(line)
        found.put(None)

    Thread(target=read, daemon=True).start()
    return found


def _take(line: str, kernels: list[TimedKernel], steps: list[TimedStep], failed: list[str]) -> bool:
    """Keep the line's point; True for the last line."""
    try:
        content = json.loads(line)
    except ValueError:  # half a line of a killed child
        return False
    if "kernel" in content:
        kernels.append(TimedKernel.model_validate(content["kernel"]))
    elif "step" in content:
        steps.append(TimedStep.model_validate(content["step"]))
    elif "failed" in content:
        failed.append(str(content["failed"]))
    return bool(content.get("done"))


def _excess(pid: int, deadline: float, rss_bytes: float) -> str:
    if time.monotonic() > deadline:
        return "took too long and was stopped"
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):  # no /proc here, or the child is gone
        return ""
    return "took too much memory and was stopped" if pages * os.sysconf("SC_PAGE_SIZE") > rss_bytes else ""


def _reason(code: int, complaints: IO[bytes]) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    complaints.seek(0)
    said = complaints.read().decode("utf-8", "replace").strip().splitlines()
    return f"ended with code {code}: {said[-1][:200]}" if said else f"ended with code {code}"
