"""What guards and watches a run, in real runs from the command line: early stopping, general text, TensorBoard."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from advisor.cli.main import run as ftadvise
from advisor.launch.folder import load_run_file
from advisor.launch.metrics import read_course
from benchmarks.tiny_model import build_model

pytestmark = [pytest.mark.platform, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("FTADVISE_HOME", str(tmp_path / "home"))


def emit(tmp_path: Path, *options: str) -> Path:
    """Sixty rows whose answers follow from nothing: all that can be learned of them is learned by heart."""
    draw = random.Random(0)
    rows = [{"prompt": f"item {i}?", "completion": "".join(draw.choices("abcdefgh", k=12))} for i in range(60)]
    data = tmp_path / "noise.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, run = build_model(tmp_path / "tiny"), tmp_path / "run"
    fixed = ["--platform", "hf", "--method", "full", "--learning-rate", "0.01", "--batch", "8", "--seq-len", "64"]
    said = ["emit", "--model", str(model), "--gpu", "cpu", "--offline", "--data", str(data), "-o", str(run)]
    assert ftadvise([*said, *fixed, *options]) == 0
    return run


def test_a_run_that_overfits_stops_early_and_keeps_its_best(tmp_path: Path, capsys: Any) -> None:
    run = emit(tmp_path, "--epochs", "60")
    plan = load_run_file(run).plan
    assert plan.early_stopping_patience > 0  # the risk fires by itself
    assert ftadvise(["launch", str(run)]) == 0
    course = read_course(run / "runs" / "metrics.jsonl")
    assert course.max_steps is not None
    assert course.step < 0.8 * course.max_steps
    losses = [loss for _, loss in course.eval_losses]
    best = min(losses)
    later = losses[losses.index(best) + 1 :]
    assert len(later) >= plan.early_stopping_patience
    assert losses[-1] == pytest.approx(best, rel=1e-3)  # the last is that of the best checkpoint, which is saved
    assert max(later) > best
    assert course.retention is not None
    assert f"({course.retention.verdict}:" in capsys.readouterr().out


def test_tensorboard_gets_the_losses_and_nobody_else(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = emit(tmp_path, "--max-steps", "3", "--monitor", "tensorboard", "--general-text", "none")
    assert ftadvise(["launch", str(run)]) == 0
    events = EventAccumulator(str(run / "runs" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    assert events.Scalars("eval/loss")
    course = read_course(run / "runs" / "metrics.jsonl")
    assert course.losses == pytest.approx([event.value for event in events.Scalars("train/loss")], rel=1e-3)
    assert course.retention is None
