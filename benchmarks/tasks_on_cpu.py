"""Every task of the Hugging Face projects, emitted, launched and trained on this CPU: the second table of
docs/methods-on-cpu.md (`make prove-methods`)."""

import json
from pathlib import Path
from typing import Any

from advisor.dataset import read_dataset, split, write_normalised
from advisor.emit import Source, emit, emitters, write_emission
from advisor.facts import resolve_model
from advisor.launch import launchers
from advisor.launch.metrics import read_course
from advisor.launch.monitor import PlainLog
from benchmarks.methods_on_cpu import Trained, tiny_plan
from benchmarks.tiny_model import build_model
from profiles.dataset import TASK_FORMS
from profiles.plan import Plan

# A reward that a random model can get: text of few different characters
REWARD = '''"""More for text of fewer different characters."""


def reward(completions, **columns):
    """1 for a single one."""
    return [1 / max(1, len(set(text))) for text in completions]
'''
SHORT: dict[str, Any] = {"max_steps": 30, "seq_len": 48, "learning_rate": 3e-2}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo": ("dpo", {}),
    "dpo, full": ("dpo", {"method": "full", "learning_rate": 1e-3}),
    "dpo, qlora": ("dpo", {"quantization": "nf4-dq"}),
    "dpo, adalora": ("dpo", {"method": "adalora", "max_steps": 30}),
    "dpo, bitfit": ("dpo", {"method": "bitfit"}),
    "orpo": ("orpo", {}),
    "orpo, full": ("orpo", {"method": "full", "learning_rate": 1e-3}),
    "orpo, qlora": ("orpo", {"quantization": "nf4-dq"}),
    "kto": ("kto", {}),
    "kto, full": ("kto", {"method": "full", "learning_rate": 1e-3}),
    "reward": ("reward", {}),
    "reward, full": ("reward", {"method": "full", "learning_rate": 1e-3}),
    "reward, qlora": ("reward", {"quantization": "nf4-dq"}),
    "classification": ("classification", {"learning_rate": 3e-3, "max_steps": 30}),
    "classification, full": ("classification", {"method": "full", "learning_rate": 1e-3, "max_steps": 30}),
    "classification, qlora": ("classification", {"quantization": "nf4-dq", "learning_rate": 3e-3, "max_steps": 30}),
    "grpo": ("grpo", SHORT),
    "grpo, full": ("grpo", {**SHORT, "method": "full", "learning_rate": 3e-3}),
}


def make_row(task: str, i: int, j: int) -> dict[str, Any]:
    question, right = f"{i} plus {j}? ", f"The sum is {i + j}."
    form = TASK_FORMS[task][0]  # type: ignore[index]
    if form == "preference":
        return {"prompt": question, "chosen": right, "rejected": "No idea, sorry."}
    if form == "unpaired-preference":
        good = bool((i + j) % 2)
        return {"prompt": question, "completion": right if good else "No idea.", "label": good}
    if form == "text":
        return {"text": question + right}
    if form == "classification":
        return {"text": question, "label": "large" if i > 4 else "small"}
    return {"prompt": question, "completion": right}


def train(cell: str, folder: Path) -> Trained:
    """Emit and launch one cell inside `folder`. Raises RuntimeError with the log's end if it does not finish."""
    task, changes = CELLS[cell]
    model = build_model(folder / "base", bias=changes.get("method") == "bitfit")
    plan = tiny_plan(model, task=task, **changes)
    return train_plan(plan, folder, reward=REWARD if task == "grpo" else None)


def train_plan(plan: Plan, folder: Path, *, reward: str | None = None, python: str | None = None) -> Trained:
    """Emit and launch a plan on rows of its task."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(make_row(plan.task, i, j)) + "\n" for i in range(10) for j in range(10)))
    parts = split(read_dataset(rows), plan.eval_fraction, plan.seed)
    adapt = emitters()[plan.platform].adapt_row

    def add_data(out: Path) -> None:
        write_normalised(parts.train, out / "data" / "train.jsonl", adapt=adapt)
        write_normalised(parts.evaluation, out / "data" / "eval.jsonl", adapt=adapt)

    source = Source(model_ref=str(plan.model), form=parts.train.format.form, reward=reward)
    run = write_emission(emit(plan, resolve_model(plan.model), source), folder / "run", add_data=add_data)
    if launchers()["local"].run(run, PlainLog(), python=python).status != "finished":
        raise RuntimeError((run / "runs" / "train.log").read_text()[-3000:])
    return Trained(run, read_course(run / "runs" / "metrics.jsonl"))


def gains(cell: str, trained: Trained) -> tuple[str, float, float]:
    """What has to get better, and its value before and after: of GRPO the reward, which rises, else the loss."""
    if CELLS[cell][0] != "grpo":
        losses = [loss for _, loss in trained.course.eval_losses]
        return "loss", losses[0], losses[-1]
    states = (trained.folder / "runs" / "checkpoints").glob("checkpoint-*/trainer_state.json")
    last = max(states, key=lambda path: path.stat().st_mtime)
    history = json.loads(last.read_text())["log_history"]
    rewards = [entry["eval_reward"] for entry in history if "eval_reward" in entry]
    return "reward", rewards[0], rewards[-1]


def row(cell: str, trained: Trained) -> str:
    task, changes = CELLS[cell]
    method = changes.get("method", "qlora" if "quantization" in changes else "lora")
    what, before, after = gains(cell, trained)
    return f"| {task} | {method} | {what} | {before:.3f} | {after:.3f} |"
