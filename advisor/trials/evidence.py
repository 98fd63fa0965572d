"""What earlier runs of a project have shown: its own, its proof of concept, the trials of `ftadvise optimise`."""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from advisor.emit.base import RUN_FILE
from advisor.launch.folder import METRICS, load_run_file
from advisor.launch.metrics import Course, read_course
from advisor.launch.state import read_state
from advisor.trials.poc import POC
from profiles.plan import Plan
from profiles.record import Record

TRIALS = "optimise"
# What may differ between runs that tell of each other: it changes neither what is learned nor on what.
FREE = {
    "micro_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "packing", "padding_mask", "mean_len",
    "max_steps", "early_stopping_patience",
}  # fmt: skip
NOT_RUN = {"max_steps", "mean_len", "early_stopping_patience"}  # a short run's own


class Evidence(Record):
    """A run that has ended. tokens_per_second: real tokens at the median step; None unless it finished.

    memory_share: reserved memory of a card, measured over expected; None where either is not known.
    """

    folder: str
    plan: Plan
    status: str
    message: str
    tokens_per_second: float | None
    memory_share: float | None


def gather_evidence(project: Path, plan: Plan) -> list[Evidence]:
    """All runs that tell something of `plan`, the project's own first, then in the order of the trials."""
    found = (read_evidence(folder) for folder in (project, project / POC, *trial_folders(project)))
    return [e for e in found if e is not None and _but(e.plan, FREE) == _but(plan, FREE)]


def trial_folders(project: Path) -> list[Path]:
    """Those of `ftadvise optimise`, in order."""
    return sorted((p for p in (project / TRIALS).glob("*") if p.name.isdigit()), key=lambda p: int(p.name))


def next_folder(project: Path) -> Path:
    """For the next trial."""
    return project / TRIALS / str(1 + max((int(p.name) for p in trial_folders(project)), default=0))


def read_evidence(folder: Path) -> Evidence | None:
    """What the run in `folder` has shown; None where it has not ended by itself, or there is none."""
    state = read_state(folder) if (folder / RUN_FILE).is_file() else None
    if state is None or state.status in ("running", "stopped", "interrupted"):
        return None
    run, course = load_run_file(folder), read_course(folder / METRICS)
    reserved = course.peak("reserved")
    return Evidence(
        folder=str(folder),
        plan=run.plan,
        status=state.status,
        message=state.message,
        tokens_per_second=_pace(course) if state.status == "finished" else None,
        memory_share=reserved / run.forecast.reserved.expected if reserved and run.forecast else None,
    )


def is_same_plan(one: Plan, other: Plan) -> bool:
    """Whether they do the same in a step."""
    return _but(one, NOT_RUN) == _but(other, NOT_RUN)


def _but(plan: Plan, fields: set[str]) -> dict[str, Any]:
    return plan.model_dump(exclude=fields)


def _pace(course: Course) -> float | None:
    """Tokens a second of the median step; the first, which warms up, is left out."""
    paces = list(_paces(course))
    return median(paces[1:] or paces) if paces else None


def _paces(course: Course) -> Iterator[float]:
    yield from (event.tokens / event.seconds for event in course.steps if event.tokens and event.seconds)
