"""The parent's side: hand a child process a job and read its answer."""

from pathlib import Path

from estimators.child import Child
from estimators.simulate.job import Job, Layers
from estimators.simulate.result import Simulation
from profiles.errors import AdviseError
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan


def simulate(
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    *,
    seconds: float = 60,
    layers: Layers = "extrapolate",
    batches: tuple[tuple[int, int], ...] = (),
    snapshot: str | Path | None = None,
    child: Child | None = None,
) -> Simulation:
    """Run the plan's real training code on fake tensors in a child process; no GPU and no weights are needed.

    seconds: limit of the child, from now on. layers: trace a few equal layers and repeat them, or trace all. batches:
    (rows, padded length) of each micro-batch in the order that the run sees them; without it two steps of the plan's
    own batch. snapshot: file to write the allocations to, for https://docs.pytorch.org/memory_viz. child: one that the
    caller has started already, and ends.

    Raises:
        UnsupportedError: the simulated tier does not cover this plan, or torch is not installed.
        AdviseError: the run failed ("simulation-failed", with stage, layer and operation) or exceeded a limit
            ("simulation-limit").
    """
    written = None if snapshot is None else str(Path(snapshot).absolute())
    job = Job(plan=plan, model=model, hardware=hardware, layers=layers, batches=batches, snapshot=written)
    return ask(job, seconds, child)


def ask(job: Job, seconds: float = 60, child: Child | None = None) -> Simulation:
    """Let the child, or one of its own, run the job; see `simulate`."""
    if child is None:
        with Child() as own:
            return ask(job, seconds, own)
    found = child.ask(job.model_dump_json(), seconds)
    if "error" in found:
        error = found["error"]
        raise AdviseError(error["code"], error["message"], error["hint"])
    return Simulation.model_validate(found)
