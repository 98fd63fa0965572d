"""Real short runs of a tiny Llama on this CPU: proofs of concept, better plans, settings looked for with Optuna."""

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from advisor.launch import load_run_file
from advisor.launch.folder import METRICS
from advisor.launch.lock import is_held
from advisor.launch.metrics import read_course
from advisor.trials.evidence import is_same_plan
from profiles.store import Store
from profiles.units import KIB
from tests.advisor.test_launch_shortage import address_space, new_run
from tests.advisor.test_launch_training import build_model, tiny_plan, write_run, write_sums

pytestmark = [pytest.mark.platform, pytest.mark.slow]

FTADVISE = [sys.executable, "-m", "advisor.cli"]


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTADVISE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    return write_sums(tmp_path / "sums.jsonl")


def ask(*words: str | Path, code: int = 0) -> Any:
    """The answer in --json."""
    found = subprocess.run([*FTADVISE, *words, "--json"], capture_output=True, text=True)
    assert found.returncode == code, found.stdout + found.stderr
    content = json.loads(found.stdout)
    return content.get("answer", content.get("error"))


def test_a_proof_of_concept_measures_judges_and_is_learnt_from(
    model: Path, sums: Path, tmp_path: Path, capsys: Any
) -> None:
    project = write_run(tmp_path / "run", tiny_plan(model, max_steps=400), sums)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    found = subprocess.run([*FTADVISE, "poc", project, "--steps", "8", "--json"], capture_output=True, text=True)
    proof = json.loads(found.stdout)["answer"]
    assert proof["state"]["status"] == "finished", found.stderr
    assert found.returncode == (1 if proof["off"] else 0)
    assert proof["confirmed"] == (not proof["off"])
    assert [c["figure"] for c in proof["comparisons"]] == ["a step", "tokens/s"]
    assert all(c["inside"] == (c["predicted"]["low"] <= c["measured"] <= c["predicted"]["high"])
               for c in proof["comparisons"])  # fmt: skip
    assert len([c for c in proof["comparisons"] if not c["inside"]]) == len(proof["off"])
    assert proof["loss"][1] < proof["loss"][0] - 0.1
    course = read_course(project / "poc" / METRICS)
    assert [event.step for event in course.steps] == list(range(1, 9))
    assert all(path.read_bytes() == text for path, text in before.items())
    store = Store()
    assert [m.id for m in store.measurements.load()] == [proof["measurement"]["id"]]
    assert [len(c.steps) for c in store.calibrations.load()] == [1]
    assert "1 timed steps" in proof["learnt"][0]


def test_a_loss_that_does_not_fall_does_not_confirm(model: Path, sums: Path, tmp_path: Path) -> None:
    project = write_run(tmp_path / "run", tiny_plan(model, learning_rate=1e-12), sums)
    proof = ask("poc", project, "--steps", "8", code=1)
    assert "the loss does not fall" in proof["off"]


def test_what_cannot_run_is_no_verdict(model: Path, sums: Path, tmp_path: Path) -> None:
    project = write_run(tmp_path / "run", tiny_plan(model), sums)
    broken = tmp_path / "broken"
    broken.write_text(f'#!/bin/sh\ncase "$1" in train.py) echo "ImportError: no" >&2; exit 3;; esac\n'
                      f'exec {sys.executable} "$@"\n')  # fmt: skip
    broken.chmod(0o755)
    error = ask("poc", project, "--python", broken, code=2)
    assert error["code"] == "trial-failed"
    assert "ImportError: no" in error["message"]
    (project / "config.yaml").write_text((project / "config.yaml").read_text() + "\n# mine\n")
    assert ask("poc", project, code=2)["code"] == "edited-project"


def test_a_better_plan_is_measured_and_kept(model: Path, sums: Path, tmp_path: Path) -> None:
    slow = {"micro_batch_size": 1, "gradient_accumulation_steps": 8, "gradient_checkpointing": "full"}
    project = write_run(tmp_path / "run", tiny_plan(model, **slow), sums)
    assert ask("optimise", project, code=2)["code"] == "unmeasured"
    subprocess.run([*FTADVISE, "poc", project], capture_output=True)
    found = ask("optimise", project, "--run")
    assert found["kept"]["changes"]["micro_batch_size"] == [1, 8]
    assert found["tried"][0]["tokens_per_second"] > found["proposal"]["measured"] * 1.02
    run = load_run_file(project)
    assert (run.plan.micro_batch_size, run.plan.gradient_accumulation_steps) == (8, 1)
    assert "faster in optimise/1" in run.history[0].reason
    assert "per_device_train_batch_size: 8\n" in (project / "config.yaml").read_text()
    assert is_same_plan(load_run_file(project / "optimise" / "1").plan, run.plan)


def test_a_trial_out_of_memory_leads_to_the_next_one_that_should_fit(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "long.jsonl"
    texts = ({"prompt": f"from {n}", "completion": " ".join(map(str, range(n, n + 400)))} for n in range(100, 340))
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
    most = address_space(new_run(tmp_path / "large", model, rows, micro_batch_size=16))
    small = {"micro_batch_size": 1, "gradient_accumulation_steps": 16, "gradient_checkpointing": "full"}
    least = address_space(new_run(tmp_path / "small", model, rows, **small))
    limited = tmp_path / "limited"
    limited.write_text(f'#!/bin/sh\nulimit -v {(most + 3 * least) // 4 // KIB}\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    project = new_run(tmp_path / "run", model, rows, micro_batch_size=16, gradient_accumulation_steps=1)
    proof = ask("poc", project, "--steps", "5", "--python", limited, code=1)
    assert proof["state"]["status"] == "out-of-memory"
    found = ask("optimise", project, "--run", "--steps", "5", "--python", limited)
    assert found["proposal"]["measured"] is None
    assert [t["status"] for t in found["tried"]] == ["out-of-memory"] * (len(found["tried"]) - 1) + ["finished"]
    sizes = [16, *(t["plan"]["micro_batch_size"] for t in found["tried"])]
    assert sizes == sorted(set(sizes), reverse=True)
    assert load_run_file(project).plan.micro_batch_size == sizes[-1]


def trials_of(project: Path, *words: str, code: int = 0) -> Any:
    return ask("tune", project, "--steps", "8", *words, code=code)


def test_settings_are_looked_for_and_the_best_are_written_into_the_project(
    model: Path, sums: Path, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    project = write_run(
        tmp_path / "run? {1} 50%20 #", tiny_plan(model, learning_rate=1e-5, lora_rank=4, max_steps=20), sums
    )
    first = trials_of(project, "--trials", "1")
    assert (project / "tune" / "study.db").is_file()
    assert first["trials"][0]["settings"] == {"learning_rate": 1e-5, "lora_rank": 4, "alpha_over_rank": 2.0}
    assert first["kept"] is None  # the plan's own settings
    found = trials_of(project, "--trials", "3")
    assert [t["number"] for t in found["trials"]] == [0, 1, 2]
    assert found["trials"][0] == first["trials"][0]
    losses = {t["number"]: t["loss"] for t in found["trials"] if t["state"] == "finished"}
    assert found["best"]["loss"] == min(losses.values())
    best, run = found["best"]["settings"], load_run_file(project)
    assert run.plan.learning_rate == best["learning_rate"]
    assert run.plan.lora_rank == best["lora_rank"]
    assert run.plan.lora_alpha == (None if found["kept"] is None else best["alpha_over_rank"] * best["lora_rank"])
    assert run.plan.max_steps == 20
    assert len(run.history) == (found["kept"] is not None)
    for number in losses:
        course = read_course(project / "tune" / f"trial-{number}" / METRICS)
        assert course.eval_losses[-1] == (8, pytest.approx(losses[number]))
        assert not (project / "tune" / f"trial-{number}" / "model").exists()
    assert ask("tune", project, "--steps", "9", code=2)["code"] == "other-study"
    error = ask("tune", project, "--storage", "nosql://me:secret@host/db", code=2)
    assert error["code"] == "storage"
    assert "secret" not in json.dumps(error)
    assert len(trials_of(project, "--trials", "1", "--restart")["trials"]) == 1


def test_a_killed_search_goes_on_and_does_its_trial_again(model: Path, sums: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    project = write_run(tmp_path / "run", tiny_plan(model), sums)
    words = [*FTADVISE, "tune", str(project), "--steps", "2000", "--trials", "2"]
    killed = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    trial = project / "tune" / "trial-0"
    while killed.poll() is None and not read_course(trial / METRICS).steps:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert is_held(trial)  # the trainer outlives it
    again = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE)
    deadline = time.time() + 300
    while is_held(trial) or not read_course(project / "tune" / "trial-1" / METRICS).steps:
        assert time.time() < deadline, "nobody ended the trainer that was left, and did its trial again"
        time.sleep(0.1)
    study = subprocess.run([sys.executable, "-c", READ, project / "tune" / "study.db"], capture_output=True, text=True)
    killed_trial, next_trial = json.loads(study.stdout)[:2]
    assert (killed_trial["state"], next_trial["state"]) == ("FAIL", "RUNNING")
    assert killed_trial["settings"] == next_trial["settings"]
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=120)
    assert again.returncode == 130


READ = """
import json, sys, optuna
trials = optuna.load_study(study_name=None, storage="sqlite:///" + sys.argv[1]).trials
print(json.dumps([{"state": t.state.name, "settings": t.params} for t in trials]))
"""


def test_two_workers_share_the_trials(model: Path, sums: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    project = write_run(tmp_path / "run", tiny_plan(model), sums)
    found = trials_of(project, "--trials", "4", "--workers", "2")
    done = [t for t in found["trials"] if t["state"] in ("finished", "pruned")]
    assert len(done) >= 4
    spans = [read_course(project / "tune" / f"trial-{t['number']}" / METRICS) for t in done]
    times = sorted((span.start.time, span.last.time) for span in spans if span.start and span.last)
    assert len(times) == len(done)
    assert any(later < end for (_, end), (later, _) in pairwise(times)), "one after the other"
