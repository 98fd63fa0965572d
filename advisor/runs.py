"""The runs that were launched here: remembered by their folders, told by what stands in these."""

import math
import os
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from advisor.emit import Forecast
from advisor.emit.base import RUN_FILE
from advisor.launch.folder import LOG, METRICS, RunState, last_checkpoint, load_run_file
from advisor.launch.metrics import read_course
from advisor.launch.state import read_state
from profiles.errors import AdviseError, UnknownNameError
from profiles.known_run import KnownRun
from profiles.plan import Plan
from profiles.record import Record
from profiles.retention import Retention
from profiles.store import Store

PEAKS = ("allocated", "reserved", "process")
ID_LETTERS = 6  # of the hash: enough to tell a person's folders of one name apart


class RunSummary(Record):
    """One line of the list. state None: never launched, or (status 'gone', 'unreadable') nothing can be said."""

    id: str
    folder: str
    date: str
    status: str
    model: str | None = None
    method: str | None = None
    state: RunState | None = None


class RunView(Record):
    """All about one run. Seconds, tokens/s; `peaks` in bytes by kind (allocated, reserved, process)."""

    id: str
    folder: str
    model: str
    plan: Plan
    state: RunState | None
    forecast: Forecast | None
    losses: tuple[float, ...]
    diverged_at: int | None
    eval_losses: tuple[tuple[int, float], ...]
    retention: Retention | None
    tokens_per_second: float | None
    step_seconds: float | None
    seconds_left: float | None
    peaks: dict[str, int]
    checkpoint: str | None
    log: str | None


def run_id(folder: Path) -> str:
    """The same for the same folder: its name, and a hash of its path."""
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in folder.name).strip("-")[:40]
    return f"{name or 'run'}-{sha256(os.fsencode(folder)).hexdigest()[:ID_LETTERS]}"


def remember_run(folder: Path, store: Store | None = None) -> str:
    """Keep in mind where the run is; returns its id. Raises AdviseError if the store cannot be written."""
    folder = folder.absolute()
    known = KnownRun(id=run_id(folder), date=datetime.now(UTC).date().isoformat(), folder=str(folder))
    (store or Store()).runs.update(known.id, lambda _: known)
    return known.id


def find_run(ref: str, store: Store | None = None) -> Path:
    """The folder that `ref` means: a folder, or the beginning of one id.

    Raises:
        UnknownNameError: neither, or several ids begin so.
    """
    if (Path(ref) / RUN_FILE).is_file():
        return Path(ref).absolute()
    known = (store or Store()).runs.load()
    found = [run for run in known if run.id == ref] or [run for run in known if run.id.startswith(ref)]
    if len(found) != 1:
        raise UnknownNameError("run", ref, tuple(run.id for run in found), "`ftadvise runs` lists those launched here.")
    return Path(found[0].folder)


def list_runs(store: Store | None = None) -> tuple[RunSummary, ...]:
    """Every run that was launched here, the latest last; a folder that is no more is 'gone'."""
    return tuple(_summarise(known) for known in (store or Store()).runs.load())


def _summarise(known: KnownRun) -> RunSummary:
    folder = Path(known.folder)
    about = {"id": known.id, "folder": known.folder, "date": known.date}
    if not (folder / RUN_FILE).is_file():
        return RunSummary(status="gone", **about)
    try:
        run, state = load_run_file(folder), read_state(folder)
    except AdviseError:  # `runs show` says what is wrong with it
        return RunSummary(status="unreadable", **about)
    return RunSummary(
        status="not started" if state is None else state.status,
        model=run.model, method=run.plan.method, state=state, **about,
    )  # fmt: skip


def view_run(folder: Path) -> RunView:
    """The run in `folder`, as it stands now. Raises InvalidInputError if it is no run folder, or damaged."""
    run, state, course = load_run_file(folder), read_state(folder), read_course(folder / METRICS)
    checkpoint = last_checkpoint(folder)
    log = folder / LOG
    return RunView(
        id=run_id(folder),
        folder=str(folder),
        model=run.model,
        plan=run.plan,
        state=state,
        forecast=run.forecast,
        losses=tuple(loss for loss in course.losses if math.isfinite(loss)),
        diverged_at=course.diverged_at,
        eval_losses=tuple((step, loss) for step, loss in course.eval_losses if math.isfinite(loss)),
        retention=course.retention,
        tokens_per_second=course.tokens_per_second,
        step_seconds=course.step_seconds,
        seconds_left=course.seconds_left,
        peaks={kind: peak for kind in PEAKS if (peak := course.peak(kind)) is not None},
        checkpoint=None if checkpoint is None else str(checkpoint),
        log=str(log) if log.is_file() else None,
    )
