"""Proof of concept: the plan runs for a few steps, and what is measured is held against what was predicted."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

from advisor.calibrate import describe_learning
from advisor.emit import Source
from advisor.feedback import Comparison, compare_figures, record_run
from advisor.hardware import resolve_hardware
from advisor.launch.folder import LOG, METRICS, RunState, load_run_file
from advisor.launch.metrics import read_course
from advisor.project import read_unedited
from advisor.trials.project import write_sample
from profiles.errors import AdviseError
from profiles.measurement import Measurement
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.record import Record
from profiles.store import Store

POC = "poc"
STEPS = 12  # the first one warms up; a calibration takes runs of five and more
Runner = Callable[[Path], RunState]


class Proof(Record):
    """What the short run showed. confirmed: it ran, it learned, and it did what was predicted.

    comparisons: measured beside predicted. loss: held-out (where rows are held out) before and after, else the mean of
    the first and of the last third of the steps. off: what speaks against the plan or its prediction, in sentences;
    empty where the run confirms both. learnt: what later estimates gain.
    """

    folder: str
    plan: Plan
    state: RunState
    confirmed: bool
    comparisons: tuple[Comparison, ...] = ()
    loss: tuple[float, float] | None = None
    off: tuple[str, ...] = ()
    learnt: tuple[str, ...] = ()
    measurement: Measurement | None = None


def prove(project: Path, run: Runner, *, steps: int = STEPS, store: Store | None = None) -> Proof:
    """Run the plan of `project` for `steps` steps in its folder poc/, compare, and let later estimates learn from it.

    Raises:
        AdviseError: the project was edited by hand or has no data, or the run failed for another reason than memory.
    """
    file, source, model = read_unedited(project)
    return prove_plan(project, file.plan, source, model, project / POC, run, steps=steps, store=store)


def prove_plan(
    project: Path,
    plan: Plan,
    source: Source,
    model: ModelSpec,
    out: Path,
    run: Runner,
    *,
    steps: int = STEPS,
    store: Store | None = None,
) -> Proof:
    """As `prove`, for another plan of the project in another folder."""
    short = plan.replace(max_steps=steps, early_stopping_patience=0)
    write_sample(project, short, source, model, out, rows=steps * plan.global_batch_size)
    state = run(out)
    if state.status not in ("finished", "out-of-memory", "stopped"):
        raise AdviseError("trial-failed", f"{out}: {state.message}", f"The whole output is in {out / LOG}.")
    return judge(out, state, store)


def judge(folder: Path, state: RunState, store: Store | None = None) -> Proof:
    """What the short run in `folder`, which ended in `state`, says of its plan; a finished one is stored and learnt."""
    file = load_run_file(folder)
    if state.status != "finished":
        return Proof(folder=str(folder), plan=file.plan, state=state, confirmed=False, off=(state.message,))
    measurement = record_run(folder, store)
    comparisons, loss = compare_figures(measurement, file.forecast), _loss(folder, measurement)
    off = tuple(_off(measurement, comparisons, loss))
    return Proof(
        folder=str(folder),
        plan=file.plan,
        state=state,
        confirmed=not off,
        comparisons=comparisons,
        loss=loss,
        off=off,
        learnt=describe_learning(measurement, store),
        measurement=measurement,
    )


def _off(
    measurement: Measurement, comparisons: tuple[Comparison, ...], loss: tuple[float, float] | None
) -> Iterator[str]:
    plan, ran_on = measurement.plan, measurement.environment.hardware
    planned = resolve_hardware(plan.gpu, None, plan.n_gpus).gpu
    if ran_on.startswith("cpu") != (planned.vendor == "CPU"):
        yield f"planned for {planned.name}, run on {ran_on}"
    yield from (comparison.text for comparison in comparisons if comparison.inside is False)
    if measurement.notes:
        yield measurement.notes
    if loss is None or loss[1] >= loss[0]:
        yield "the loss does not fall"


def _loss(folder: Path, measurement: Measurement) -> tuple[float, float] | None:
    """Before and after, of held-out rows; without any, of the steps' first and last third."""
    before, after = measurement.eval_loss_before, measurement.eval_loss_after
    if before is not None and after is not None:
        return before, after
    losses = [loss for loss in read_course(folder / METRICS).losses if math.isfinite(loss)]
    third = len(losses) // 3
    return (mean(losses[:third]), mean(losses[-third:])) if third else None
