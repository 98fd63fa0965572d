"""Begin a run, or go on with one: what may, and what is put aside; the same for all launchers."""

from pathlib import Path

from advisor.emit import RunFile
from advisor.launch.base import Reporter
from advisor.launch.folder import (
    CHECKPOINTS,
    LOG,
    METRICS,
    RESULT,
    STOP,
    RunState,
    last_checkpoint,
    now,
    set_aside,
    size,
)
from advisor.launch.interpreter import Interpreter, choose_interpreter
from advisor.launch.metrics import Course, read_course
from profiles.errors import InvalidInputError


def begin(folder: Path, reporter: Reporter, *, resume: bool, restart: bool) -> tuple[RunState, Course]:
    """The state that the run begins with, and the part of it before a resume. Its launcher holds the folder's lock.

    Raises:
        InvalidInputError: there are no data, no checkpoint to resume from, or an earlier run that nobody spoke of.
    """
    _check(folder, resume=resume, restart=restart)
    if not resume and (aside := set_aside(folder)):
        reporter.note(f"the earlier run was moved to {aside.name}/")
    (folder / STOP).unlink(missing_ok=True)
    state = RunState(
        status="running", started=now(), metrics_bytes=size(folder / METRICS), log_bytes=size(folder / LOG)
    )
    return state, read_course(folder / METRICS)


def find_interpreter(run: RunFile, python: str | None, reporter: Reporter) -> Interpreter:
    """The interpreter that has the run's packages; the reporter hears of versions that were not tested.

    Raises:
        InvalidInputError, AdviseError: as choose_interpreter.
    """
    interpreter = choose_interpreter(run.platform, run.requirements, python)
    for package in interpreter.untested:
        reporter.note(f"not the tested version: {package}")
    return interpreter


def _check(folder: Path, *, resume: bool, restart: bool) -> None:
    """Whether a run may begin here."""
    data = folder / "data" / "train.jsonl"
    if not data.is_file():
        raise InvalidInputError(str(data), "is missing", "Write the folder with `ftadvise emit --data FILE`.")
    found = last_checkpoint(folder)
    if resume and found is None:
        raise InvalidInputError(str(folder / CHECKPOINTS), "holds no checkpoint to resume from", "Leave --resume out.")
    if not resume and not restart and (found or (folder / RESULT).exists()):
        raise InvalidInputError(
            str(folder),
            "holds an earlier run",
            "--resume goes on from its last checkpoint, --restart begins again and keeps the old one aside.",
        )
