"""Look for learning rate, rank and alpha with Optuna: every trial is a short run of the project, launched as it is.

The study lies in a database (SQLite in the project's folder), so that it goes on after any kill and several workers
share it. A trial whose worker has died is found by its missing heartbeat, and done again.
"""

import math
import shutil
import sys
import time
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from advisor.emit.base import PlanChange
from advisor.launch import launchers
from advisor.launch.folder import CHECKPOINTS, RESULT, STOP, RunState
from advisor.launch.lock import is_held
from advisor.launch.metrics import Event
from advisor.launch.stop import stop_run
from advisor.plan_changes import change_plan
from advisor.project import read_unedited, rewrite_project
from advisor.trials.project import write_linked
from advisor.trials.space import Space, apply_settings, space_of
from profiles.errors import AdviseError, UnknownNameError
from profiles.plan import Plan
from profiles.record import Record, parse_record

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

TUNE = "tune"
MESSAGE = "message"  # of a trial that failed by itself
STEPS = 60
HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60
SQLITE_SECONDS = 60  # that a worker waits for another one's write
STARTUP_TRIALS = 4  # finished ones before the median cuts any off
STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}


class TuningOptions(Record):
    """How to look. trials: of all workers and earlier calls together. storage None: SQLite in the project's folder."""

    trials: int = 20
    steps: int = STEPS
    workers: int = 1
    storage: str | None = None
    python: str | None = None
    launcher: str = "local"
    restart: bool = False


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


class TrialError(Exception):
    """The run of a trial ended without a loss that can be compared."""


def tune(project: Path, options: TuningOptions) -> Tuning:
    """Do the trials that are still to be done, and write the project anew for the best settings.

    Raises:
        AdviseError: Optuna is missing, the project has no held-out rows, or was edited by hand; or the study is of
            another plan or other steps (code 'other-study').
    """
    project = project.absolute()
    file, source, model = read_unedited(project)
    if not source.held_out:
        raise AdviseError("no-held-out", f"{project}: no rows are held out, so trials cannot be compared", "Emit anew.")
    if options.launcher not in launchers():
        raise UnknownNameError("launcher", options.launcher, (), f"Launchers: {', '.join(launchers())}.")
    study = open_study(project, options.storage, restart=options.restart)
    _describe(study, file.plan, space_of(file.plan, source, model), options.steps)
    _work_together(project, options)
    found = read_study(study)
    file, source, model = read_unedited(project)  # again: another call may have written the same settings
    if found.best is None or found.best.settings == space_of(file.plan, source, model).start:
        return found
    best = apply_settings(_base(study), found.best.settings)
    reason = f"tuned: held-out loss {found.best.loss:.4f} after {options.steps} steps, of {len(found.trials)} trials"
    change = change_plan(file.plan, best, reason=reason, step=0)
    rewrite_project(project, best, change)
    return found.replace(kept=change)


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
    url = storage or f"sqlite:///{folder / 'study.db'}"
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
        from optuna.storages import RetryHeartbeatStaleTrialCallback

        left = trial_folder(self.folder, trial.number)
        if is_held(left):
            stop_run(left, kill=True)
        RetryHeartbeatStaleTrialCallback()(study, trial)


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial runs, in the project's folder tune/."""
    return folder / f"trial-{number}"


def _describe(study: "Study", plan: Plan, space: Space, steps: int) -> None:
    """Write down what the study is of, or see that it is of the same."""
    about = {"plan": plan.model_dump(mode="json"), "space": space.model_dump(mode="json"), "steps": steps}
    if "steps" not in study.user_attrs:
        for name, value in about.items():
            study.set_user_attr(name, value)
        study.enqueue_trial(space.start, skip_if_exists=True)
    elif study.user_attrs["steps"] != steps or _untuned(_base(study)) != _untuned(plan):
        raise AdviseError(
            "other-study",
            f"the study is of trials of {study.user_attrs['steps']} steps, of the plan as it was then",
            "Give the same --steps, or begin again with --restart.",
        )


def _base(study: "Study") -> Plan:
    return parse_record(Plan, study.user_attrs["plan"], "the study's plan")


def _untuned(plan: Plan) -> dict[str, Any]:
    return plan.model_dump(exclude={"learning_rate", "lora_rank", "lora_alpha"})


def _work_together(project: Path, options: TuningOptions) -> None:
    if options.workers == 1:
        work(project, options)
        return
    begin = get_context("spawn").Process
    processes = [begin(target=work, args=(project, options)) for _ in range(options.workers)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:  # they have it too, and stop their trials
        for process in processes:
            process.join()
        raise


def work(project: Path, options: TuningOptions) -> None:
    """Do trials until there are enough; while others do the last ones, wait: they may die.

    Raises:
        KeyboardInterrupt: a trial was stopped.
    """
    from optuna.storages import fail_stale_trials

    study = open_study(project, options.storage)
    objective = _Objective(project, options, study)
    while True:
        fail_stale_trials(study)
        states = [trial.state.name for trial in study.get_trials(deepcopy=False) if _counts(trial)]
        running = states.count("RUNNING")
        if len(states) - running >= options.trials:
            return
        if len(states) >= options.trials:
            time.sleep(1.0)
        else:
            study.optimize(objective, n_trials=1, catch=(TrialError,))


def _counts(trial: "FrozenTrial") -> bool:
    """Not those whose worker died or was stopped: they are done again."""
    return trial.state.name in ("RUNNING", "COMPLETE", "PRUNED") or MESSAGE in trial.user_attrs


class _Objective:
    """Settings -> the loss on the held-out rows after a short run of the project."""

    def __init__(self, project: Path, options: TuningOptions, study: "Study") -> None:
        self.project, self.options = project, options
        _, self.source, self.model = read_unedited(project)
        self.plan, self.space = _base(study), parse_record(Space, study.user_attrs["space"], "the study's space")

    def __call__(self, trial: "Trial") -> float:
        from optuna import TrialPruned

        plan = apply_settings(self.plan, self.choose(trial)).replace(max_steps=self.options.steps)
        out = trial_folder(self.project / TUNE, trial.number)
        write_linked(self.project, plan, self.source, self.model, out)
        reporter = TrialReporter(trial, out)
        state = launchers()[self.options.launcher].run(out, reporter, python=self.options.python)
        for large in (RESULT, CHECKPOINTS):
            shutil.rmtree(out / large, ignore_errors=True)
        if state.status == "finished" and reporter.loss is not None:
            return reporter.loss
        if reporter.pruned:
            raise TrialPruned
        if state.status == "stopped":
            raise KeyboardInterrupt
        trial.set_user_attr(MESSAGE, state.message or "no loss on held-out rows")
        raise TrialError(state.message)

    def choose(self, trial: "Trial") -> dict[str, Any]:
        """What Optuna suggests."""
        low, high = self.space.rates
        found: dict[str, Any] = {"learning_rate": trial.suggest_float("learning_rate", low, high, log=True)}
        if self.space.ranks:
            found["lora_rank"] = trial.suggest_categorical("lora_rank", self.space.ranks)
        if self.space.alphas:
            found["alpha_over_rank"] = trial.suggest_categorical("alpha_over_rank", self.space.alphas)
        return found


class TrialReporter:
    """Passes the losses on held-out rows to the study, and stops a run that falls behind or diverges."""

    def __init__(self, trial: "Trial", folder: Path) -> None:
        self.trial, self.folder = trial, folder
        self.loss: float | None = None
        self.pruned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def event(self, event: Event) -> None:
        """A loss before the first step tells nothing of the settings."""
        if event.loss is not None and not math.isfinite(event.loss):
            self.stop()
        elif event.event == "eval" and event.loss is not None and event.step > 0:
            self.loss = event.loss
            self.trial.report(event.loss, event.step)
            if self.trial.should_prune():
                self.stop()

    def stop(self) -> None:
        """Ask the trainer to end."""
        self.pruned = True
        (self.folder / STOP).touch()

    def note(self, text: str) -> None:
        """On standard error."""
        print(f"trial {self.trial.number}: {text}", file=sys.stderr, flush=True)

    def finish(self, state: RunState) -> None:
        """One line a trial."""
        told = ", ".join(f"{name} {value:.3g}" for name, value in self.trial.params.items())
        loss = "no loss" if self.loss is None else f"held-out loss {self.loss:.4f}"
        self.note(f"{told}: {loss} ({'pruned' if self.pruned else state.status})")


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
