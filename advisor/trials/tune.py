"""Look for learning rate, rank and alpha with Optuna: every trial is a short run of the project, launched as it is."""

import math
import shutil
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from advisor.launch import launchers
from advisor.launch.folder import CHECKPOINTS, RESULT, STOP, RunState
from advisor.launch.metrics import Event
from advisor.plan_changes import change_plan
from advisor.project import read_unedited, rewrite_project
from advisor.trials.project import write_linked
from advisor.trials.space import Space, apply_settings, space_of
from advisor.trials.study import (
    MESSAGE,
    TUNE,
    WORKER,
    Tuning,
    base_plan,
    describe_study,
    join_workers,
    open_study,
    read_study,
    redo_abandoned,
    trial_folder,
)
from profiles.errors import AdviseError, UnknownNameError
from profiles.record import Record, parse_record

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

STEPS = 60
STOPPED = 130


class TuningOptions(Record):
    """How to look. trials: of all workers and earlier calls together. storage None: SQLite in the project's folder."""

    trials: int = 20
    steps: int = STEPS
    workers: int = 1
    storage: str | None = None
    python: str | None = None
    launcher: str = "local"
    restart: bool = False


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
    describe_study(study, file.plan, space_of(file.plan, source, model), options.steps)
    _work_together(project, options)
    found = read_study(study)
    file, source, model = read_unedited(project)  # again: another call may have written the same settings
    if found.best is None or found.best.settings == space_of(file.plan, source, model).start:
        return found
    best = apply_settings(base_plan(study), found.best.settings)
    reason = f"tuned: held-out loss {found.best.loss:.4f} after {options.steps} steps, of {len(found.trials)} trials"
    change = change_plan(file.plan, best, reason=reason, step=0)
    rewrite_project(project, best, change)
    return found.replace(kept=change)


def _work_together(project: Path, options: TuningOptions) -> None:
    if options.workers == 1:
        work(project, options)
        return
    processes = [
        get_context("spawn").Process(target=_take_part, args=(project, options)) for _ in range(options.workers)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:  # they have it too, and stop their trials
        for process in processes:
            process.join()
        raise
    if all(process.exitcode for process in processes):
        raise AdviseError("workers-failed", "no worker came to the end of its trials", "Their messages stand above.")


def _take_part(project: Path, options: TuningOptions) -> None:
    """In a process of its own, which has to say itself what is wrong."""
    try:
        work(project, options)
    except AdviseError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def work(project: Path, options: TuningOptions) -> None:
    """Do trials until there are enough; while others do the last ones, wait: they may die.

    Raises:
        KeyboardInterrupt: a trial was stopped.
    """
    study = open_study(project, options.storage)
    with join_workers(project / TUNE) as name:
        objective = _Objective(project, options, study, name)
        while True:
            redo_abandoned(study, project / TUNE)
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

    def __init__(self, project: Path, options: TuningOptions, study: "Study", worker: str) -> None:
        self.project, self.options, self.worker = project, options, worker
        _, self.source, self.model = read_unedited(project)
        self.plan, self.space = base_plan(study), parse_record(Space, study.user_attrs["space"], "the study's space")

    def __call__(self, trial: "Trial") -> float:
        from optuna import TrialPruned

        trial.set_user_attr(WORKER, self.worker)
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
