"""Every task of the Hugging Face projects, really trained on the CPU: it gets better, and its result loads."""

import json
from pathlib import Path
from typing import get_args

import pytest

from benchmarks.tasks_on_cpu import CELLS, gains, train
from estimators.methods.scalar_head import SCALAR_TASKS
from profiles.plan import Task

pytestmark = [pytest.mark.platform, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_every_other_task_is_among_them() -> None:
    assert {task for task, _ in CELLS.values()} == set(get_args(Task)) - {"sft", "pretrain"}
    assert len(CELLS) == 18


@pytest.mark.parametrize("cell", CELLS)
def test_it_learns_and_its_result_loads(cell: str, tmp_path: Path) -> None:
    trained = train(cell, tmp_path)
    what, before, after = gains(cell, trained)
    assert after > before if what == "reward" else after < before - 0.02
    steps = trained.course.steps
    assert all(event.tokens and event.seconds for event in steps)
    assert len(steps) == CELLS[cell][1].get("max_steps", 10)

    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    result, scalar = trained.folder / "model", CELLS[cell][0] in SCALAR_TASKS
    if (result / "adapter_config.json").is_file():
        settings = json.loads((result / "adapter_config.json").read_text())
        assert settings["task_type"] == ("SEQ_CLS" if scalar else "CAUSAL_LM")
        labels = {"num_labels": 1 if CELLS[cell][0] == "reward" else 2} if scalar else {}
        kind = AutoPeftModelForSequenceClassification if scalar else AutoPeftModelForCausalLM
        model = kind.from_pretrained(result, **labels)
        assert any("lora_" in name for name in model.state_dict())
    else:
        kind = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
        assert kind.from_pretrained(result).num_parameters() > 80_000
