"""What a reader makes of a run's folder when nobody was there to write down its end."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from advisor.launch.folder import LOG, METRICS, STOP, RunState, last_checkpoint, write_state
from advisor.launch.lock import hold_lock, holder, is_held, name_holder
from advisor.launch.outcome import judge
from advisor.launch.state import read_state
from advisor.launch.stop import stop_run
from profiles.errors import AdviseError, InvalidInputError

RUNNING = RunState(status="running", pid=1, started="2026-11-24T10:00:00+00:00")
BEFORE = {"event": "start", "step": 0, "max_steps": 9, "time": 1_790_000_000}
START = {"event": "start", "step": 4, "max_steps": 9, "time": 1_790_000_100}


def step(n: int) -> dict[str, Any]:
    return {"event": "step", "step": n, "max_steps": 9, "loss": 2.0, "seconds": 1.0, "time": 1_790_000_000 + n}


def end(status: str, n: int = 9) -> dict[str, Any]:
    return {"event": "end", "status": status, "step": n, "time": 1_790_000_200}


def tell(folder: Path, *events: dict[str, Any], half: str = "") -> None:
    path = folder / METRICS
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write("".join(json.dumps(event) + "\n" for event in events) + half)


CASES: dict[str, tuple[tuple[dict[str, Any], ...], str, str]] = {
    "finished": ((BEFORE, step(9), end("finished")), "", "finished"),
    "stopped": ((BEFORE, step(3), end("stopped", 3)), "", "stopped"),
    "said that memory was short": ((BEFORE, step(3), end("out-of-memory", 3)), "", "out-of-memory"),
    "memory was short": ((BEFORE, step(3)), "torch.OutOfMemoryError: CUDA out of memory.\n", "out-of-memory"),
    "an exception": ((BEFORE, step(3)), "Traceback\nValueError: no such column\n", "failed"),
    "disk full": ((BEFORE, step(3)), "OSError: [Errno 28] No space left on device\n", "failed"),
    "killed": ((BEFORE, step(3)), "Loading weights: 100%\n", "interrupted"),
    "killed before it began": ((), "", "interrupted"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_end_is_read_from_what_the_trainer_left(tmp_path: Path, case: str) -> None:
    events, log, status = CASES[case]
    write_state(tmp_path, RUNNING)
    tell(tmp_path, *events, half='{"event": "st')
    (tmp_path / LOG).write_text(log)
    found = read_state(tmp_path)
    assert found is not None
    assert (found.status, found.returncode, found.started) == (status, None, RUNNING.started)
    assert found.step == (events[-1]["step"] if events else 0)
    assert bool(found.message) == (status != "finished")
    assert (found.ended is None) == (not events)


def test_an_earlier_end_and_an_earlier_log_are_not_taken_for_this_one(tmp_path: Path) -> None:
    tell(tmp_path, BEFORE, step(4), end("stopped", 4))
    (tmp_path / LOG).write_text("torch.OutOfMemoryError: of the run before\n")
    sizes = {"metrics_bytes": (tmp_path / METRICS).stat().st_size, "log_bytes": (tmp_path / LOG).stat().st_size}
    write_state(tmp_path, RUNNING.replace(**sizes))
    found = read_state(tmp_path)
    assert found is not None
    assert (found.status, found.step) == ("interrupted", 4)
    tell(tmp_path, START, step(9), end("finished"))
    assert (found := read_state(tmp_path)) is not None
    assert (found.status, found.step, found.ended) == ("finished", 9, "2026-09-21T14:16:40+00:00")


def test_a_run_that_was_started_by_hand_is_seen(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    tell(tmp_path, BEFORE, step(3), end("stopped", 3))
    write_state(tmp_path, RunState(status="stopped", started="x", metrics_bytes=(tmp_path / METRICS).stat().st_size))
    assert (found := read_state(tmp_path)) is not None
    assert found.status == "stopped"
    with hold_lock(tmp_path) as lock:
        assert (found := read_state(tmp_path)) is not None
        assert (found.status, found.pid) == ("running", None)
        name_holder(lock, 77)
        assert holder(tmp_path) == 77
        tell(tmp_path, START, step(5))
        assert (found := read_state(tmp_path)) is not None
        assert (found.status, found.pid, found.step) == ("running", 77, 5)
    assert (found := read_state(tmp_path)) is not None
    assert (found.status, found.step) == ("interrupted", 5)


def test_asked_to_end_and_dead_is_stopped(tmp_path: Path) -> None:
    write_state(tmp_path, RUNNING)
    (tmp_path / STOP).touch()
    assert (found := read_state(tmp_path)) is not None
    assert (found.status, found.message) == ("stopped", "killed on request")


def test_the_lock_lives_as_long_as_the_child(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with hold_lock(tmp_path) as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
        assert is_held(tmp_path)
    assert is_held(tmp_path)
    with pytest.raises(InvalidInputError, match="running already"), hold_lock(tmp_path):
        pass
    child.kill()
    child.wait()
    assert not is_held(tmp_path)
    with hold_lock(tmp_path):
        assert is_held(tmp_path)


def test_a_checkpoint_that_a_full_disk_cut_short_is_none(tmp_path: Path) -> None:
    for n, text in ((5, "{}"), (10, '{"global_step": 1'), (9, "")):
        (tmp_path / f"runs/checkpoints/checkpoint-{n}").mkdir(parents=True)
        (tmp_path / f"runs/checkpoints/checkpoint-{n}/trainer_state.json").write_text(text)
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-5"


def test_a_full_disk_is_named_also_where_the_log_had_no_room_for_it() -> None:
    state = judge(returncode=1, end=None, asked=False, log="RuntimeError: file write failed\n", resumable=True, free=0)
    assert "disk is full" in state.message
    assert "--resume" in state.hint


def test_stopping_what_does_not_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="nothing was launched"):
        stop_run(tmp_path)
    write_state(tmp_path, RUNNING)
    with pytest.raises(InvalidInputError, match="has ended"):
        stop_run(tmp_path)
    with hold_lock(tmp_path), pytest.raises(AdviseError, match="not known"):
        stop_run(tmp_path, kill=True)


@pytest.mark.parametrize("kill", [True, False])
def test_a_run_is_stopped_whoever_started_it(tmp_path: Path, kill: bool) -> None:
    script = (
        "import json, pathlib, time\n"
        "tell = lambda e: open('runs/metrics.jsonl', 'a').write(json.dumps(e) + '\\n')\n"
        "tell({'event': 'start', 'step': 0, 'max_steps': 9})\n"
        "while not pathlib.Path('runs/stop').exists() or KILL: time.sleep(0.02)\n"
        "tell({'event': 'end', 'status': 'stopped', 'step': 1})\n"
    ).replace("KILL", str(kill))
    (tmp_path / "runs").mkdir()
    with hold_lock(tmp_path) as lock:
        child = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, pass_fds=[lock])
        name_holder(lock, child.pid)
    try:
        while not (tmp_path / METRICS).exists():
            time.sleep(0.02)
        state = stop_run(tmp_path, kill=kill)
        assert (state.status, state.message) == ("stopped", "killed on request" if kill else "stopped on request")
    finally:
        child.kill()
        child.wait()


def test_a_state_that_cannot_be_written_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder has to be")
    with pytest.raises(AdviseError, match="cannot be written"):
        write_state(tmp_path, RUNNING)
