"""The folder of a run: what stands where, and the state that its launcher leaves there."""

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from advisor.emit import RunFile
from advisor.emit.base import RUN_FILE
from profiles.errors import AdviseError, InvalidInputError
from profiles.record import Record, parse_record

RUNS = "runs"
METRICS = f"{RUNS}/metrics.jsonl"
STATE = f"{RUNS}/state.json"
LOG = f"{RUNS}/train.log"
STOP = f"{RUNS}/stop"
CHECKPOINTS = f"{RUNS}/checkpoints"
RESULT = "model"

Status = Literal["running", "finished", "stopped", "failed", "out-of-memory", "killed", "interrupted"]


class RunState(Record):
    """How a run stands. `message` says what happened, `hint` what to do; both empty while all is well.

    `job`: its name in the queue of `launcher`, which knows whether it runs; None for a process of this machine.
    `metrics_bytes` and `log_bytes`: how much of either file is older than this state; what comes later is news.
    """

    status: Status
    launcher: str = "local"
    job: str | None = None
    pid: int | None = None
    started: str
    ended: str | None = None
    returncode: int | None = None
    step: int = 0
    max_steps: int | None = None
    metrics_bytes: int = 0
    log_bytes: int = 0
    message: str = ""
    hint: str = ""


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def load_run_file(folder: Path) -> RunFile:
    """The folder's plan.json. Raises InvalidInputError if it is missing or no run file."""
    path = folder / RUN_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInputError(
            str(folder), f"holds no {RUN_FILE}, so it is no run folder", "`ftadvise emit` writes one."
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidInputError(str(path), f"cannot be read: {error}") from None
    return parse_record(RunFile, data, str(path), "Write the folder anew with `ftadvise emit --force`.")


def write_state(folder: Path, state: RunState) -> None:
    """Replace state.json in one step, so that a reader never sees half of it.

    Raises:
        AdviseError: it cannot be written, as on a full disk (code 'state-unwritable').
    """
    path = folder / STATE
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(state.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise AdviseError(
            "state-unwritable", f"{path} cannot be written: {error.strerror}", "Free some space on that disk."
        ) from None


def saved_state(folder: Path) -> RunState | None:
    """What the last launcher wrote; it may have been killed before it could write the end. None before the first."""
    path = folder / STATE
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidInputError(str(path), f"cannot be read: {error}", "Remove it if the run has ended.") from None
    return parse_record(RunState, data, str(path), "Remove it if the run has ended.")


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: trainer_state.json is written last, and a full disk can cut it short."""
    found = sorted((folder / CHECKPOINTS).glob("checkpoint-*/trainer_state.json"), key=_step, reverse=True)
    return next((path.parent for path in found if _is_json(path)), None)


def _step(trainer_state: Path) -> int:
    return int(trainer_state.parent.name.rpartition("-")[2])


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def set_aside(folder: Path) -> Path | None:
    """Rename an earlier runs/ to runs.1, runs.2, ...; None if there is none."""
    runs = folder / RUNS
    if not runs.exists():
        return None
    number = 1
    while (aside := folder / f"{RUNS}.{number}").exists():
        number += 1
    os.replace(runs, aside)
    return aside


def size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
