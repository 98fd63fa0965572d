"""Real trainings that run short: of memory, under a limit on their address space; of disk, on a small tmpfs."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from advisor.launch import launchers, load_run_file, read_state
from advisor.launch.folder import METRICS, last_checkpoint
from advisor.launch.lock import holder, is_held
from advisor.launch.metrics import read_course
from advisor.launch.monitor import PlainLog
from profiles.units import KIB
from tests.advisor.reporters import AtStep, press_ctrl_c
from tests.advisor.test_launch_training import build_model, tiny_plan, write_run

pytestmark = [pytest.mark.platform, pytest.mark.slow]

LAUNCH = [sys.executable, "-m", "advisor.cli", "launch"]
LENGTH = 1024


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTADVISE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "long.jsonl"
    rows = ({"prompt": f"from {n}", "completion": " ".join(map(str, range(n, n + 400)))} for n in range(100, 140))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def new_run(folder: Path, model: Path, rows: Path, **changes: Any) -> Path:
    values = {"seq_len": LENGTH, "max_steps": 2, "eval_fraction": 0.05, "gradient_checkpointing": "none", **changes}
    return write_run(folder, tiny_plan(model, **values), rows)


def address_space(folder: Path) -> int:
    """The most that an unlimited run maps, bytes."""
    launcher = subprocess.Popen([*LAUNCH, folder, "--json"], stdout=subprocess.DEVNULL)
    peak = 0
    while launcher.poll() is None:
        try:
            status = Path(f"/proc/{holder(folder)}/status").read_text()
        except OSError:
            status = ""
        peak = max(peak, *(int(line.split()[1]) * KIB for line in status.splitlines() if line.startswith("VmPeak")), 0)
        time.sleep(0.01)
    assert launcher.returncode == 0
    return peak


def test_out_of_memory_leads_to_the_next_safer_plan(model: Path, long_rows: Path, tmp_path: Path) -> None:
    batch = {"micro_batch_size": 16, "gradient_accumulation_steps": 1}
    most = address_space(new_run(tmp_path / "large", model, long_rows, **batch))
    least = address_space(new_run(tmp_path / "small", model, long_rows, micro_batch_size=1))
    limited = tmp_path / "limited"
    limited.write_text(f'#!/bin/sh\nulimit -v {(most + least) // 2 // KIB}\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)

    folder = new_run(tmp_path / "run", model, long_rows, **batch)
    found = subprocess.run([*LAUNCH, folder, "--json", "--python", limited], capture_output=True, text=True)
    assert found.returncode == 1, found.stdout
    state = read_state(folder)
    assert state is not None
    assert state.status == "out-of-memory"
    assert "--on-oom safer" in state.hint

    command = [*LAUNCH, folder, "--json", "--python", limited, "--on-oom", "safer"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    told = [json.loads(line) for line in found.stdout.splitlines()]
    ends = [line["status"] for line in told if line["event"] == "state"]
    assert ends == ["out-of-memory"] * (len(ends) - 1) + ["finished"]
    assert len(ends) >= 2
    run = load_run_file(folder)
    assert len(run.history) == len(ends) - 1
    assert run.plan.micro_batch_size < 16
    assert run.plan.global_batch_size == 16
    assert run.history[0].changes["micro_batch_size"] == (16, 8)
    assert "out of memory" in run.history[0].reason
    assert run.forecast is not None
    assert f"per_device_train_batch_size: {run.plan.micro_batch_size}\n" in (folder / "config.yaml").read_text()


def test_a_changed_plan_goes_on_from_the_checkpoint(model: Path, long_rows: Path, tmp_path: Path) -> None:
    """The same sequences in smaller micro-batches: the loss curve is that of the unbroken run."""
    from advisor.launch.folder import RunState
    from advisor.safer import take_safer_plan

    batch = {"micro_batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 8, "seq_len": 96}
    whole = new_run(tmp_path / "whole", model, long_rows, **batch)
    local = launchers()["local"]
    assert local.run(whole, PlainLog()).status == "finished"
    folder = new_run(tmp_path / "run", model, long_rows, **batch)
    assert local.run(folder, AtStep(3, press_ctrl_c)).status == "stopped"
    change = take_safer_plan(folder, RunState(status="out-of-memory", started="x", step=3, message="out of memory"))
    assert change is not None
    assert local.run(folder, PlainLog(), resume=True).status == "finished"
    one, two = read_course(whole / METRICS), read_course(folder / METRICS)
    assert [event.step for event in two.steps] == list(range(1, 9))
    assert max(abs(a - b) for a, b in zip(one.losses, two.losses, strict=True)) < 1e-3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", where], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting needs root")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def test_a_full_disk_stops_with_its_reason_and_keeps_the_checkpoints(
    model: Path, long_rows: Path, tmp_path: Path, small_disk: Path
) -> None:
    written = new_run(tmp_path / "run", model, long_rows, max_steps=40, seq_len=96, micro_batch_size=2, method="full")
    folder = small_disk / "run"
    shutil.copytree(written, folder)
    ballast = small_disk / "ballast"
    launcher = subprocess.Popen([*LAUNCH, folder, "--json"], stdout=subprocess.PIPE, text=True)
    while launcher.poll() is None and last_checkpoint(folder) is None:
        time.sleep(0.01)
    with ballast.open("wb") as file:  # somebody else fills the disk
        while launcher.poll() is None and not file.closed:
            try:
                os.write(file.fileno(), bytes(64 * KIB))
            except OSError:
                break
    told, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 1, told
    assert not is_held(folder)
    state = read_state(folder)
    assert state is not None
    assert state.status == "failed", told
    assert "disk is full" in state.message
    assert "--resume" in state.hint
    kept = last_checkpoint(folder)
    assert kept is not None
    ballast.unlink()
    shutil.rmtree(folder / "model", ignore_errors=True)
    found = subprocess.run([*LAUNCH, folder, "--json", "--resume"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + (folder / "runs/train.log").read_text()[-2000:]
    course = read_course(folder / METRICS)
    assert [event.step for event in course.steps] == list(range(1, 41))
