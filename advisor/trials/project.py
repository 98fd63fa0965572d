"""A trial's project: the model and the data of the project that it is for, under a plan of its own."""

import shutil
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from advisor.emit import Forecast, Source, emit, write_emission
from advisor.facts import find_tokenizer
from advisor.hardware import resolve_hardware
from advisor.recommendation import DataFacts, Facts
from advisor.stored import stored_calibration
from estimators.answer import Estimate
from estimators.memory import estimate_memory
from estimators.throughput import estimate_speed
from profiles.errors import InvalidInputError
from profiles.model import ModelSpec
from profiles.plan import Plan

if TYPE_CHECKING:
    from profiles.calibration import Calibration

DATA = ("data/train.jsonl", "data/eval.jsonl")
HELD_OUT = 32  # rows that a sample keeps of those held out: enough to see the loss fall


def write_sample(project: Path, plan: Plan, source: Source, model: ModelSpec, out: Path, *, rows: int) -> None:
    """Write `plan` as a project into `out` (anew) with about `rows` rows of `project`'s data, and a forecast for these.

    Raises as `write_linked` does.
    """
    _make_room(project, out)
    for name, count in zip(DATA, (rows, HELD_OUT), strict=True):
        if (project / name).is_file():
            sample_rows(project / name, out / name, count)
    facts = assess_trial(plan, model, out)
    plan = plan.replace(mean_len=facts.data.mean_len)
    write_emission(emit(plan, model, source, Forecast.of(estimate_trial(plan, facts))), out, force=True)


def write_linked(project: Path, plan: Plan, source: Source, model: ModelSpec, out: Path) -> None:
    """Write `plan` as a project into `out` (anew) with links to all data of `project`.

    Raises:
        InvalidInputError: `project` has no data, or `out` cannot be written.
        UnsupportedError: the platform cannot express the plan.
    """
    _make_room(project, out)
    for name in DATA:
        if (project / name).is_file():
            (out / name).symlink_to((project / name).absolute())
    write_emission(emit(plan, model, source), out, force=True)


def _make_room(project: Path, out: Path) -> None:
    train = project / DATA[0]
    if not train.is_file():
        raise InvalidInputError(str(train), "is missing", "Write the project with `ftadvise emit --data FILE`.")
    shutil.rmtree(out, ignore_errors=True)
    try:
        (out / "data").mkdir(parents=True)
    except OSError as error:
        raise InvalidInputError(str(out), f"cannot be written: {error.strerror}") from None


def sample_rows(whole: Path, sample: Path, count: int) -> None:
    """About `count` rows at equal distances, and the longest one, whose padding makes the peak of memory."""
    with whole.open("rb") as file:
        sizes = [len(line) for line in file]
    longest = max(range(len(sizes)), key=sizes.__getitem__)
    kept = {longest, *range(0, len(sizes), max(1, ceil(len(sizes) / count)))}
    with whole.open("rb") as file, sample.open("wb") as out:
        out.writelines(line for i, line in enumerate(file) if i in kept)


def assess_trial(plan: Plan, model: ModelSpec, folder: Path) -> Facts:
    """What can be known of the trial in `folder` beforehand: from its own rows and this machine's calibration."""
    from advisor.dataset import measure_lengths, read_dataset

    dataset = read_dataset(folder / DATA[0])
    lengths = measure_lengths(dataset, find_tokenizer(plan.model))
    hardware = resolve_hardware(plan.gpu, None, plan.n_gpus)
    calibration, said = stored_calibration(hardware)
    data = DataFacts.model_construct(
        examples=len(dataset),
        mean_len=lengths.mean_len(plan.seq_len),
        max_len=round(lengths.max),
        basis=f"lengths: {lengths.counted_by}",
    )
    return Facts.model_construct(
        model=model,
        hardware=hardware,
        data=data,
        lengths=lengths,
        task=plan.task,
        seq_len=plan.seq_len,
        calibration=calibration,
        assumptions=said,
    )


def estimate_trial(plan: Plan, facts: Facts) -> Estimate:
    """Memory and speed of a plan on the trial's rows."""
    calibration = cast("Calibration | None", facts.calibration)
    return Estimate(
        memory=estimate_memory(plan, facts.model, facts.hardware),
        speed=estimate_speed(plan, facts.model, facts.hardware, calibration=calibration, lengths=facts.lengths),
    )
