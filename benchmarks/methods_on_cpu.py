"""Every method and task of the Hugging Face projects, emitted, launched and trained on this CPU: `make prove-methods`.

Writes docs/methods-on-cpu.md. A random Llama of 90,000 parameters learns 90 sums for ten steps; about fifteen minutes.
"""

import json
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click

from advisor.dataset import read_dataset, split, write_normalised
from advisor.emit import Source, emit, write_emission
from advisor.facts import resolve_model
from advisor.launch import launchers
from advisor.launch.metrics import Course, read_course
from advisor.launch.monitor import PlainLog
from benchmarks.tiny_model import build_model
from estimators.methods import get_method
from profiles.plan import Plan

PAGE = Path(__file__).parents[1] / "docs" / "methods-on-cpu.md"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")

# What each needs to learn in ten steps; learning rates of a random model, not of yours.
CELLS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {},
    "qlora": {"quantization": "nf4-dq"},
    "adalora": {"max_steps": 30},
    "bitfit": {},
    "prompt": {"learning_rate": 0.3},
    "prefix": {"gradient_checkpointing": "none"},
    "ptuning": {},
    "dora": {},
    "rslora": {},
    "pissa": {},
    "loraplus": {"learning_rate": 2e-3},
    "oft": {},
    "ia3": {"learning_rate": 0.1},
    "vera": {"learning_rate": 0.1},
    "loha": {},
    "lokr": {},
    "miss": {},
    "fourierft": {"learning_rate": 0.5},
    "ln_tuning": {},
    "freeze": {"method_options": {"freeze_trainable_layers": 1}},
    "galore": {"target_modules": ("q_proj", "o_proj")},
    "apollo": {},
}


class Trained(NamedTuple):
    """A finished run: its folder and what it logged."""

    folder: Path
    course: Course


def tiny_plan(model: Path, method: str = "lora", **changes: Any) -> Plan:
    values = {"model": str(model), "gpu": "cpu", "method": method, "quantization": "fp32", "seq_len": 96}
    more = {"micro_batch_size": 8, "max_steps": 10, "learning_rate": 1e-2, "eval_fraction": 0.1}
    return Plan.model_validate({**values, **more, **changes})


def write_sums(path: Path) -> Path:
    rows = [{"instruction": f"{i} plus {j}?", "output": f"The sum is {i + j}."} for i in range(10) for j in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_run(folder: Path, plan: Plan, rows: Path, **about: Any) -> Path:
    parts = split(read_dataset(rows), plan.eval_fraction, plan.seed)

    def add_data(out: Path) -> None:
        write_normalised(parts.train, out / "data" / "train.jsonl")
        write_normalised(parts.evaluation, out / "data" / "eval.jsonl")

    source = Source(model_ref=str(plan.model), form=parts.train.format.form, **about)
    return write_emission(emit(plan, resolve_model(plan.model), source), folder, add_data=add_data)


def train(method: str, folder: Path) -> Trained:
    """Emit and launch one cell inside `folder`. Raises RuntimeError with the log's end if it does not finish."""
    model = build_model(folder / "base", bias=method == "bitfit")
    run = write_run(folder / "run", tiny_plan(model, method, **CELLS[method]), write_sums(folder / "sums.jsonl"))
    if launchers()["local"].run(run, PlainLog()).status != "finished":
        raise RuntimeError((run / "runs" / "train.log").read_text()[-2000:])
    return Trained(run, read_course(run / "runs" / "metrics.jsonl"))


def row(method: str, trained: Trained) -> str:
    course, start = trained.course, trained.course.start
    losses = [loss for _, loss in course.eval_losses]
    kind = get_method(method)
    saved = "adapter" if kind.peft_type else "whole model"
    base = CELLS[method].get("quantization", "fp32")
    count = start.trainable_parameters if start else None
    return f"| {kind.title} | {base} | {count:,} | {losses[0]:.3f} | {losses[-1]:.3f} | {saved} |"


def page(rows: list[str], tasks: list[str]) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            "# Methods, as they trained on a CPU",
            "",
            "Written by `make prove-methods`: each method's project was emitted, launched and trained on a CPU, a",
            "random Llama of 90,000 parameters on 90 sums. The loss is that of ten held-out sums, before and after ten",
            "steps (AdaLoRA: 30). It shows that a method runs, trains what was predicted, learns and saves; not how",
            "good it is.",
            "",
            f"Versions: {versions}.",
            "",
            "| method | base | trained parameters | loss before | loss after | result |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "## Tasks",
            "",
            "The same model on 90 sums with right and wrong answers, a label, or a prompt alone. Loss and reward are",
            "those of ten held-out rows (GRPO: of two samples for each); what is rewarded there is a text of few",
            "different characters, which a random model can learn in thirty steps.",
            "",
            "| task | method | held-out | before | after |",
            "|---|---|---|---|---|",
            *tasks,
            "",
        ]
    )


@click.command()
def main() -> None:
    from benchmarks import tasks_on_cpu

    rows, tasks = [], []
    for method in CELLS:
        with TemporaryDirectory() as folder:
            rows.append(row(method, train(method, Path(folder))))
        click.echo(rows[-1])
    for cell in tasks_on_cpu.CELLS:
        with TemporaryDirectory() as folder:
            tasks.append(tasks_on_cpu.row(cell, tasks_on_cpu.train(cell, Path(folder))))
        click.echo(tasks[-1])
    PAGE.write_text(page(rows, tasks))


if __name__ == "__main__":
    main()
