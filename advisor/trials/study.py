"""The study of `ftadvise tune`: its database, what it is of, and what stands in it.

It goes on after any kill, and several workers share it. A trial whose worker has died is done again.
"""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

from advisor.emit.base import PlanChange
from advisor.launch.lock import hold_lock, is_held
from advisor.launch.stop import stop_run
from advisor.trials.space import Space
from profiles.errors import AdviseError
from profiles.plan import Plan
from profiles.record import Record, parse_record

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

TUNE = "tune"
MESSAGE, WORKER = "message", "worker"  # of a trial that failed by itself; who does it
WORKERS = "workers"
HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60
SQLITE_SECONDS = 60  # that a worker waits for another one's write
STARTUP_TRIALS = 4  # finished ones before the median cuts any off
STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}


class TunedTrial(Record):
    """One trial. loss: on the held-out rows, the last one that is known."""

    number: int
    state: str
    settings: dict[str, float]
    loss: float | None
    message: str = ""


class Tuning(Record):
    """All trials of the study. best None: none has finished. kept: how the project's plan was changed, if it was."""

    trials: tuple[TunedTrial, ...]
    best: TunedTrial | None
    kept: PlanChange | None = None


def open_study(project: Path, storage: str | None, *, restart: bool = False) -> "Study":
    """The project's study, made where there is none yet.

    Raises:
        AdviseError: Optuna is missing, or the storage cannot be used.
    """
    try:
        import optuna
    except ImportError:
        hint = "pip install 'ftadvise[tune]'"
        raise AdviseError("missing-package", "looking for settings needs optuna", hint) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeats, constant_liar
    folder = project / TUNE
    folder.mkdir(exist_ok=True)
    url = storage or f"sqlite:///{quote(str(folder / 'study.db'))}"
    try:
        shelf = optuna.storages.RDBStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": SQLITE_SECONDS}} if url.startswith("sqlite") else None,
            heartbeat_interval=HEARTBEAT_SECONDS,
            grace_period=GRACE_SECONDS,
            heartbeat_stale_trial_callback=_Redo(folder),
        )
        if restart and project.name in optuna.get_all_study_names(shelf):
            optuna.delete_study(study_name=project.name, storage=shelf)
        return optuna.create_study(
            storage=shelf,
            study_name=project.name,
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(constant_liar=True),  # several workers: not twice the same
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
        )
    except Exception as error:  # the database's own; its text may hold the password of the URL
        said = f"the storage of the study cannot be used ({type(error).__name__})"
        raise AdviseError("storage", said, "--storage takes a URL of SQLAlchemy, as sqlite:///study.db.") from error


class _Redo:
    """Does a trial again whose worker has died; its trainer may have outlived it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, study: "Study", trial: "FrozenTrial") -> None:
        left = trial_folder(self.folder, trial.number)
        if is_held(left):
            stop_run(left, kill=True)
        study.enqueue_trial(trial.params)


@contextmanager
def join_workers(folder: Path) -> Iterator[str]:
    """A name for this process, under which it takes trials; others see by a lock when it is no more."""
    name = uuid4().hex
    own = folder / WORKERS / name
    own.mkdir(parents=True)
    try:
        with hold_lock(own):
            yield name
    finally:
        shutil.rmtree(own, ignore_errors=True)


def redo_abandoned(study: "Study", folder: Path) -> None:
    """Do trials again whose workers have died: those of this machine at once, others when their heartbeat is missed."""
    from optuna.storages import fail_stale_trials
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = folder / WORKERS / trial.user_attrs.get(WORKER, "none")
        if worker.is_dir() and not is_held(worker):
            study.tell(trial.number, state=TrialState.FAIL)
            _Redo(folder)(study, trial)
    fail_stale_trials(study)


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial runs, in the project's folder tune/."""
    return folder / f"trial-{number}"


def describe_study(study: "Study", plan: Plan, space: Space, steps: int) -> None:
    """Write down what the study is of, or see that it is of the same."""
    about = {"plan": plan.model_dump(mode="json"), "space": space.model_dump(mode="json"), "steps": steps}
    if "steps" not in study.user_attrs:
        for name, value in about.items():
            study.set_user_attr(name, value)
        study.enqueue_trial(space.start, skip_if_exists=True)
    elif study.user_attrs["steps"] != steps or _untuned(base_plan(study)) != _untuned(plan):
        raise AdviseError(
            "other-study",
            f"the study is of trials of {study.user_attrs['steps']} steps, of the plan as it was then",
            "Give the same --steps, or begin again with --restart.",
        )


def base_plan(study: "Study") -> Plan:
    """The plan that its trials vary."""
    return parse_record(Plan, study.user_attrs["plan"], "the study's plan")


def _untuned(plan: Plan) -> dict[str, Any]:
    return plan.model_dump(exclude={"learning_rate", "lora_rank", "lora_alpha"})


def read_study(study: "Study") -> Tuning:
    """All trials, and the best of those that finished."""
    trials = tuple(_read(trial) for trial in study.get_trials(deepcopy=False))
    finished = [t for t in trials if t.state == "finished" and t.loss is not None]
    return Tuning(trials=trials, best=min(finished, key=lambda t: t.loss or 0.0, default=None))


def _read(trial: "FrozenTrial") -> TunedTrial:
    losses = trial.intermediate_values
    return TunedTrial(
        number=trial.number,
        state=STATES[trial.state.name],
        settings=trial.params,
        loss=trial.value if trial.state.name == "COMPLETE" else losses[max(losses)] if losses else None,
        message=trial.user_attrs.get(MESSAGE, ""),
    )
