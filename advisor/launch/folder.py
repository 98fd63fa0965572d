"""The folder of a run: what stands where, and its state, readable at any moment."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from advisor.emit import RunFile
from advisor.emit.base import RUN_FILE
from profiles.errors import InvalidInputError
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
    """How a run stands. `message` says what happened, `hint` what to do; both empty while all is well."""

    status: Status
    pid: int | None = None
    started: str
    ended: str | None = None
    returncode: int | None = None
    step: int = 0
    max_steps: int | None = None
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
    """Replace state.json in one step, so that a reader never sees half of it."""
    path = folder / STATE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(state.model_dump_json(indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_state(folder: Path) -> RunState | None:
    """The run's state, None before the first one. 'interrupted': it says running, but its process is gone."""
    path = folder / STATE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidInputError(str(path), f"cannot be read: {error}", "Remove it if the run has ended.") from None
    state = parse_record(RunState, data, str(path), "Remove it if the run has ended.")
    if state.status == "running" and not is_alive(state.pid):
        return state.replace(
            status="interrupted",
            message="the run was cut off",
            hint="`ftadvise launch --resume` goes on from the last checkpoint."
            if last_checkpoint(folder)
            else "There is no checkpoint yet: `ftadvise launch --restart` begins again.",
        )
    return state


def is_alive(pid: int | None) -> bool:
    """Whether a process of that number runs."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint: trainer_state.json is written last."""
    complete = [path.parent for path in (folder / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


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
