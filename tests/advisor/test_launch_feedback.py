import json
from pathlib import Path
from typing import Any

import pytest

from advisor.emit import Forecast, RunFile
from advisor.feedback import compare, measure_run
from advisor.launch.lock import hold_lock
from estimators.interval import Interval
from profiles.errors import InvalidInputError
from profiles.plan import Plan
from profiles.units import GIB

FORECAST = Forecast(
    allocated=Interval.around(2.0 * GIB, 0.1, 0.1),
    reserved=Interval.around(2.2 * GIB, 0.1, 0.1),
    device=Interval.around(3.0 * GIB, 0.1, 0.1),
    step_seconds=Interval.around(1.0, 0.1, 0.1),
)


def make_run(folder: Path, events: list[dict[str, Any]]) -> Path:
    run = RunFile(
        platform="hf", plan=Plan(model="org/Tiny-1B"), model="org/Tiny-1B", model_parameters=1000,
        trainable_parameters=9, requirements=(), forecast=FORECAST,
    )  # fmt: skip
    (folder / "runs").mkdir(parents=True)
    (folder / "plan.json").write_text(run.model_dump_json())
    (folder / "runs" / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return folder


def gpu_events(end: str | None = "finished") -> list[dict[str, Any]]:
    start = {"event": "start", "step": 0, "max_steps": 4, "device": "NVIDIA L4", "processes": 2,
             "trainable_parameters": 9, "versions": {"torch": "2.13.0"}}  # fmt: skip
    steps = [
        {"event": "step", "step": n, "max_steps": 4, "loss": loss, "seconds": 9.0 if n == 1 else 1.25, "tokens": 500,
         "time": 1_790_000_000 + n, "allocated": int((1 + n / 4) * GIB), "reserved": 3 * GIB, "process": GIB}
        for n, loss in enumerate((3.0, 2.0, float("nan"), 1.0), 1)
    ]  # fmt: skip
    evals = [{"event": "eval", "step": n, "loss": loss} for n, loss in ((0, 3.5), (4, 2.5))]
    ends = [{"event": "end", "step": 4, "status": end}] if end else []
    return [start, evals[0], *steps, evals[1], *ends]


def test_a_run_becomes_a_measurement(tmp_path: Path) -> None:
    found = measure_run(make_run(tmp_path / "r", gpu_events()))
    assert found.environment.hardware == "2x NVIDIA L4"
    assert (found.steps, found.step_seconds_median, found.tokens_per_second) == (4, 1.25, 400)
    assert (found.first_loss, found.last_loss) == (3.0, 1.0)
    assert (found.eval_loss_before, found.eval_loss_after) == (3.5, 2.5)
    assert (found.peak_allocated, found.peak_reserved, found.peak_process) == (2 * GIB, 3 * GIB, GIB)
    assert found.predicted_device == 3.0 * GIB
    assert found.finished
    assert found.notes == "the loss was no finite number at step 3"
    assert found.id.startswith("Tiny-1B-lora-2026-09-2")


def test_predicted_stands_against_measured(tmp_path: Path) -> None:
    found = measure_run(make_run(tmp_path / "r", gpu_events()))
    lines = compare(found, FORECAST)
    assert lines == (
        "allocated memory: measured 2.00 GiB, predicted 2.00 GiB (+0.0%), inside the predicted 1.80 GiB to 2.20 GiB",
        "reserved memory: measured 3.00 GiB, predicted 2.20 GiB (-26.7%), outside the predicted 1.98 GiB to 2.42 GiB",
        "a step: measured 1.25 s, predicted 1 s (-20.0%), outside the predicted 0.9 s to 1.1 s",
        "tokens/s: measured 400",
        "held-out loss: 3.5000 before, 2.5000 after (better)",
    )


def test_a_run_that_was_cut_off_is_one_that_has_not_finished(tmp_path: Path) -> None:
    assert not measure_run(make_run(tmp_path / "a", gpu_events(end=None))).finished
    assert not measure_run(make_run(tmp_path / "b", gpu_events(end="stopped"))).finished


def test_a_running_or_empty_run_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", [])
    with pytest.raises(InvalidInputError, match="not logged"):
        measure_run(folder)
    with hold_lock(folder), pytest.raises(InvalidInputError, match="still running"):
        measure_run(folder)
