"""Emitted projects as jobs of a real SLURM cluster of one node and of a local Ray cluster (`make prove-cluster`)."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import advisor.launch.state
from advisor.launch import last_checkpoint, launchers, read_state
from advisor.launch.attach import attach
from advisor.launch.folder import METRICS, RunState
from advisor.launch.metrics import Course, read_course
from advisor.launch.monitor import PlainLog
from advisor.launch.stop import stop_run
from benchmarks.methods_on_cpu import tiny_plan, write_run, write_sums
from benchmarks.tiny_model import build_model
from profiles.errors import InvalidInputError
from tests.advisor import ray_cluster, slurm_cluster
from tests.advisor.reporters import AtStep, press_ctrl_c

pytestmark = [pytest.mark.platform, pytest.mark.slow]
STEPS = 24
ENDLESS = 5000
WAIT_SECONDS = 400.0


@pytest.fixture(scope="module", params=["slurm", "ray"])
def queue(request: pytest.FixtureRequest) -> Iterator[str]:
    """A cluster, found by the environment of this process."""
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("FTADVISE_HOME", f"{folder}/home")
        patch.setattr(advisor.launch.state, "POLL_SECONDS", 0.5)
        if request.param == "slurm":
            if missing := slurm_cluster.missing():
                pytest.skip(f"no {', '.join(missing)} here (Debian: slurmctld, slurmd, slurm-client, munge)")
            with slurm_cluster.slurm_cluster(Path(folder)) as conf:
                patch.setenv("SLURM_CONF", str(conf))
                yield "slurm"
        else:
            if ray_cluster.find_ray() is None:
                pytest.skip('no `ray` here: `pip install "ray[default]"`, or FTADVISE_RAY_BIN')
            with ray_cluster.ray_cluster(Path(folder)) as environment:
                for name, value in environment.items():
                    patch.setenv(name, value)
                yield "ray"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


def write(tmp_path: Path, tiny: Path, queue: str, **changes: Any) -> Path:
    plan = tiny_plan(tiny, **{"max_steps": STEPS, **changes})
    return write_run(tmp_path / "run $(touch x) %j 'é'", plan, write_sums(tmp_path / "sums.jsonl"), cluster=queue)


def log(folder: Path) -> str:
    path = folder / "runs" / "train.log"
    return path.read_text()[-3000:] if path.is_file() else "no log"


def course_of(folder: Path) -> Course:
    return read_course(folder / METRICS)


def state_of(folder: Path) -> RunState:
    state = read_state(folder)
    assert state is not None
    return state


def wait(until: Callable[[], bool], folder: Path) -> None:
    deadline = time.time() + WAIT_SECONDS
    while not until():
        assert time.time() < deadline, f"it took too long: {state_of(folder)}\n{log(folder)}"
        time.sleep(0.2)


def has_steps(folder: Path, count: int) -> Callable[[], bool]:
    return lambda: course_of(folder).step >= count


def start(folder: Path, queue: str, *words: str) -> "subprocess.Popen[bytes]":
    """`ftadvise launch` as somebody types it."""
    command = [sys.executable, "-m", "advisor.cli", "launch", str(folder), "--launcher", queue, "--json", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def test_a_job_is_stopped_and_another_ends_the_run(queue: str, tiny: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, tiny, queue, n_gpus=2, sharding="ddp", micro_batch_size=4)
    launcher = launchers()[queue]
    stopped = launcher.run(folder, AtStep(2, press_ctrl_c))
    assert stopped.status == "stopped", f"{stopped}\n{log(folder)}"
    assert 2 <= stopped.step < STEPS
    assert stopped.launcher == queue
    state = launcher.run(folder, PlainLog(), resume=True)
    assert (state.status, state.step) == ("finished", STEPS), f"{state}\n{log(folder)}"
    course = course_of(folder)
    assert course.start is not None
    assert course.start.processes == 2
    assert [event.step for event in course.steps] == list(range(1, STEPS + 1))
    assert course.losses[-1] < course.losses[0] - 0.5
    assert not (folder / "x").exists()

    from peft import AutoPeftModelForCausalLM

    AutoPeftModelForCausalLM.from_pretrained(folder / "model")


def test_a_job_outlives_ftadvise_and_is_watched_again(queue: str, tiny: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, tiny, queue, max_steps=200)
    launcher = start(folder, queue)
    wait(has_steps(folder, 1), folder)
    launcher.kill()
    launcher.wait()
    state = state_of(folder)
    assert (state.status, state.launcher) == ("running", queue)
    with pytest.raises(InvalidInputError, match="is running already"):
        launchers()[queue].run(folder, PlainLog())
    shown = subprocess.run(
        [sys.executable, "-m", "advisor.cli", "runs", "show", str(folder), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(shown.stdout)["answer"]["state"]["status"] == "running"
    assert attach(folder, PlainLog()).status == "finished", log(folder)
    assert state_of(folder).status == "finished"
    assert state_of(folder).step == 200


def test_another_stops_a_job_with_a_checkpoint(queue: str, tiny: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, tiny, queue, max_steps=ENDLESS)
    launcher = start(folder, queue)
    wait(has_steps(folder, 2), folder)
    assert stop_run(folder).status == "stopped", log(folder)
    assert launcher.wait(60) == 130
    assert last_checkpoint(folder) is not None
    assert state_of(folder).status == "stopped"


def test_a_job_is_cancelled_at_once(queue: str, tiny: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, tiny, queue, max_steps=ENDLESS)
    launcher = start(folder, queue)
    wait(has_steps(folder, 2), folder)
    launcher.kill()
    launcher.wait()
    assert stop_run(folder, kill=True).status == "stopped", log(folder)
    step = course_of(folder).step
    time.sleep(5)
    assert course_of(folder).step <= step + 1  # nothing of it is left behind
    assert state_of(folder).status == "stopped"


def test_a_job_that_fails_says_why(queue: str, tiny: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, tiny, queue)
    (folder / "data" / "train.jsonl").write_text('{"prompt": "no completion"}\n')
    state = launchers()[queue].run(folder, PlainLog())
    assert state.status == "failed"
    assert "Error" in state.message


def test_a_job_that_waits_is_cancelled(queue: str, tiny: Path, tmp_path: Path) -> None:
    if queue != "slurm":
        pytest.skip("Ray starts a job's entry at once")
    folder = write(tmp_path, tiny, queue)
    blocker = subprocess.Popen(["srun", "--exclusive", "sleep", "1000"])
    try:
        wait(lambda: b"R" in subprocess.check_output(["squeue", "--noheader", "--format=%t"]), folder)
        launcher = start(folder, queue)
        wait(lambda: (read_state(folder) or RunState(status="running", started="")).message != "", folder)
        assert state_of(folder).message == "waits in the queue"
        assert stop_run(folder).status == "stopped"
        assert launcher.wait(60) == 130
    finally:
        blocker.terminate()
        blocker.wait()


def test_a_job_whose_time_is_up_goes_on_from_the_queue(queue: str, tiny: Path, tmp_path: Path) -> None:
    if queue != "slurm":
        pytest.skip("SLURM's own")
    folder = write(tmp_path, tiny, queue, max_steps=400)
    launcher = start(folder, queue)
    wait(has_steps(folder, 5), folder)
    job = state_of(folder).job
    subprocess.run(["scancel", "--batch", "--signal=USR1", f"--name={job}"], check=True)  # as SLURM does before the end
    assert launcher.wait(WAIT_SECONDS) == 0, log(folder)
    assert state_of(folder).status == "finished"
    course = course_of(folder)
    assert [event.step for event in course.steps] == list(range(1, 401))
    assert sum('"event": "start"' in line for line in (folder / METRICS).read_text().splitlines()) == 2
