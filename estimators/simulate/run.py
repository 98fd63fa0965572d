"""The parent's side: start the child process, hand it a job, wait no longer than allowed, read its answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

from estimators.simulate.job import Job, Layers
from estimators.simulate.result import Simulation
from profiles.errors import AdviseError
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.units import GIB

ROOT = Path(__file__).parents[2]
HINT = "the analytic estimate stands"


def simulate(
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    *,
    seconds: float = 60,
    rss_gib: float = 2,
    layers: Layers = "extrapolate",
    batches: tuple[tuple[int, int], ...] = (),
    snapshot: str | Path | None = None,
) -> Simulation:
    """Run the plan's real training code on fake tensors in a child process; no GPU and no weights are needed.

    seconds, rss_gib: limits of the child. layers: trace a few equal layers and repeat them, or trace all. batches:
    (rows, padded length) of each micro-batch in the order that the run sees them; without it two steps of the plan's
    own batch. snapshot: file to write the allocations to, for https://docs.pytorch.org/memory_viz.

    Raises:
        UnsupportedError: the simulated tier does not cover this plan, or torch is not installed.
        AdviseError: the run failed ("simulation-failed", with stage, layer and operation) or exceeded a limit
            ("simulation-limit").
    """
    written = None if snapshot is None else str(Path(snapshot).absolute())
    job = Job(plan=plan, model=model, hardware=hardware, layers=layers, batches=batches, snapshot=written)
    return run_child(job, seconds, rss_gib)


def run_child(job: Job, seconds: float = 60, rss_gib: float = 2) -> Simulation:
    """Run one job in a child process; see `simulate`."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "estimators.simulate", "--worker", "--rss-bytes", str(round(rss_gib * GIB))]
    try:
        done = subprocess.run(
            command, input=job.model_dump_json(), capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        raise AdviseError(
            "simulation-limit", f"the simulation took more than {seconds:g} s and was stopped", HINT
        ) from None
    return _read(done.stdout, done.stderr, done.returncode)


def _read(answer: str, complaints: str, code: int) -> Simulation:
    try:
        found = json.loads(answer)
    except ValueError:
        last = (complaints.strip().splitlines() or ["no message"])[-1]
        raise AdviseError("simulation-failed", f"the simulator ended with code {code}: {last}", HINT) from None
    if "error" in found:
        error = found["error"]
        raise AdviseError(error["code"], error["message"], error["hint"])
    return Simulation.model_validate(found)
