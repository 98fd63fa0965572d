"""Queues without a cluster: their commands, what their output means, and stand-ins for their programs."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import advisor.launch.state
from advisor.emit import RunFile, Source
from advisor.launch import launchers, read_state
from advisor.launch.folder import RunState, write_state
from advisor.launch.jobs import find_queue
from advisor.launch.ray import RayQueue
from advisor.launch.ray import read_answer as read_ray
from advisor.launch.slurm import SlurmQueue
from advisor.launch.slurm import read_answer as read_slurm
from advisor.launch.stop import stop_run
from profiles.errors import AdviseError, InvalidInputError
from profiles.plan import Plan
from tests.advisor.test_launch_local import Recorder, make_run

HOSTILE = Path("/tmp/$(touch x) `id` ${HOME}; 'é' \"q\" %j, --wrap=id")


def test_slurms_commands_hold_nothing_of_the_folder() -> None:
    queue = SlurmQueue()
    command = queue.submit_command("ftadvise-12ab", HOSTILE, "/py", resume=True)
    assert command[0] == "sbatch"
    assert command[-2:] == ["job.sbatch", "--resume"]
    assert not any(str(HOSTILE) in part for part in command)
    assert queue.cancel_command("ftadvise-12ab") == ["scancel", "--name=ftadvise-12ab"]


def test_rays_entry_runs_the_folder_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.name
    folder.mkdir()
    (folder / "ray_job.py").write_text("import pathlib, sys; print(pathlib.Path(__file__).parent.name, sys.argv[1:])")
    command = RayQueue().submit_command("job", folder, "/py", resume=True)
    at = command.index("--")
    environment = json.loads(command[command.index("--runtime-env-json") + 1])["env_vars"]
    assert environment["RUN_FOLDER"] == str(folder)
    for quote in (shlex.join, subprocess.list2cmdline):  # new and old versions of Ray make the line so
        done = subprocess.run(
            quote(command[at + 1 :]),
            shell=True, cwd=tmp_path, capture_output=True, text=True, check=True,
            env={**os.environ, **environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert done.stdout.strip() == f"{HOSTILE.name} ['--resume']"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("output", "status", "cancelled"),
    [
        ("PENDING\n", "waiting", False),
        ("RUNNING\n", "running", False),
        ("COMPLETING\n", "running", False),
        ("REQUEUED\n", "waiting", False),
        ("COMPLETED\n", "ended", False),
        ("FAILED\n", "ended", False),
        ("CANCELLED by 1000\n", "ended", True),
        ("", "ended", False),
    ],
)
def test_what_slurm_says(output: str, status: str, cancelled: bool) -> None:
    answer = read_slurm(output)
    assert (answer.status, answer.cancelled) == (status, cancelled)


@pytest.mark.parametrize(
    ("line", "status", "cancelled"),
    [
        ("Status for job 'ftadvise-1': PENDING", "waiting", False),
        ("Status for job 'ftadvise-1': RUNNING", "running", False),
        ("Job 'ftadvise-1' succeeded", "ended", False),
        ("Job 'ftadvise-1' failed", "ended", False),
        ("Job 'ftadvise-1' was stopped", "ended", True),
    ],
)
def test_what_ray_says(line: str, status: str, cancelled: bool) -> None:
    answer = read_ray(f"INFO cli.py:42 -- Job submission server address: http://x:8265\nINFO cli.py:92 -- {line}\n")
    assert answer is not None
    assert (answer.status, answer.cancelled) == (status, cancelled)
    assert read_ray("a warning about something else") is None


def make_job(folder: Path, cluster: str = "slurm", *, nodes: int = 1) -> Path:
    make_run(folder)
    run = RunFile.model_validate_json((folder / "plan.json").read_text())
    source = Source.model_validate({"model_ref": "tiny", "cluster": cluster, "nodes": nodes})
    plan = Plan(model="tiny", gpu="cpu")
    (folder / "plan.json").write_text(run.replace(source=source, plan=plan).model_dump_json())
    return folder


def stand_in(folder: Path, **programs: str) -> str:
    """A PATH on which each program is a shell script."""
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisor.launch.state, "POLL_SECONDS", 0.0)


def test_a_missing_program_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_job(tmp_path / "r")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AdviseError, match="sbatch, squeue, scancel: not found on this machine"):
        launchers()["slurm"].run(folder, Recorder())
    assert read_state(folder) is None


def test_a_project_runs_only_where_it_was_written_for(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="was not written for ray"):
        launchers()["ray"].run(make_job(tmp_path / "a"), Recorder())
    with pytest.raises(InvalidInputError, match="is for 2 nodes"):
        launchers()["local"].run(make_job(tmp_path / "b", nodes=2), Recorder())


def test_what_sbatch_says_against_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_job(tmp_path / "r")
    refuses = "echo 'sbatch: error: invalid account' >&2; exit 1"
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", sbatch=refuses, squeue="", scancel=""))
    with pytest.raises(AdviseError, match="invalid account"):
        launchers()["slurm"].run(folder, Recorder())
    assert read_state(folder) is None


@pytest.mark.usefixtures("fast")
def test_a_job_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_job(tmp_path / "r")
    runs = '"$RUN_PYTHON" train.py > runs/train.log 2>&1; echo COMPLETED > runs/word'
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", sbatch=runs, squeue=f"cat {folder}/runs/word", scancel=""))
    recorder = Recorder()
    state = launchers()["slurm"].run(folder, recorder)
    assert (state.status, state.step, state.launcher) == ("finished", 4, "slurm")
    assert [event.event for event in recorder.events] == ["start", "step", "step", "step", "step", "end"]
    assert read_state(folder) == state


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("word", "status", "message"),
    [
        ("RUNNING", "running", ""),
        ("PENDING", "running", "waits in the queue"),
        ("CANCELLED", "stopped", "killed on request (the queue says CANCELLED)"),
        ("TIMEOUT", "interrupted", "the run was cut off (the queue says TIMEOUT)"),
        ("", "interrupted", "the run was cut off"),
    ],
)
def test_a_job_without_its_launcher(
    word: str, status: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_job(tmp_path / "r")
    write_state(folder, RunState(status="running", started="2026-01-01", launcher="slurm", job="ftadvise-1"))
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", squeue=f"echo {word}", sacct="exit 1"))
    state = read_state(folder)
    assert state is not None
    assert (state.status, state.message, state.job) == (status, message, "ftadvise-1")


def test_a_queue_that_does_not_answer_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_job(tmp_path / "r")
    write_state(folder, RunState(status="running", started="2026-01-01", launcher="slurm", job="ftadvise-1"))
    down = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", squeue=down))
    with pytest.raises(AdviseError, match=r"cannot tell whether the job ftadvise-1 still runs.*Unable to contact"):
        read_state(folder)


@pytest.mark.usefixtures("fast")
def test_a_job_that_waits_is_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_job(tmp_path / "r")
    write_state(folder, RunState(status="running", started="2026-01-01", launcher="slurm", job="ftadvise-1"))
    word = tmp_path / "word"
    word.write_text("PENDING")
    programs = {"squeue": f"cat {word}", "scancel": f'echo "$@" > {tmp_path}/said; echo CANCELLED > {word}'}
    monkeypatch.setenv("PATH", stand_in(tmp_path / "bin", **programs))
    assert stop_run(folder).status == "stopped"
    assert (tmp_path / "said").read_text().strip() == "--name=ftadvise-1"


def test_a_launcher_without_a_queue_has_none() -> None:
    with pytest.raises(KeyError):
        find_queue("local")
    assert {name for name, launcher in launchers().items() if launcher.queue} == {"slurm", "ray"}
