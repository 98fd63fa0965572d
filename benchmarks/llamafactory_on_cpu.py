"""Methods and tasks of the LLaMA-Factory projects, emitted, launched and trained on this CPU by its own interpreter.

Writes docs/llamafactory-on-cpu.md (part of `make prove-llamafactory`): the model and the sums of methods_on_cpu.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from advisor.launch import load_run_file
from benchmarks.methods_on_cpu import Trained, tiny_plan
from benchmarks.tasks_on_cpu import train_plan
from benchmarks.tiny_model import build_model

PAGE = Path(__file__).parents[1] / "docs" / "llamafactory-on-cpu.md"
FULL: dict[str, Any] = {"method": "full", "learning_rate": 1e-3}
CELLS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "QLoRA": {"quantization": "nf4-dq"},
    "full": {"method": "full"},
    "freeze": {"method": "freeze", "method_options": {"freeze_trainable_layers": 1}},
    "OFT": {"method": "oft"},
    "DoRA": {"method": "dora"},
    "rsLoRA": {"method": "rslora"},
    "LoRA+": {"method": "loraplus"},
    "PiSSA": {"method": "pissa"},
    "GaLore": {"method": "galore"},
    "APOLLO": {"method": "apollo"},
    "BAdam": {"method": "badam"},
    "pre-training, LoRA": {"task": "pretrain"},
    "DPO, LoRA": {"task": "dpo"},
    "DPO, QLoRA": {"task": "dpo", "quantization": "nf4-dq"},
    "DPO, full": {"task": "dpo", **FULL},
    "DPO, freeze": {"task": "dpo", "method": "freeze", "method_options": {"freeze_trainable_layers": 1}},
    "DPO, OFT": {"task": "dpo", "method": "oft"},
    "ORPO, LoRA": {"task": "orpo"},
    "KTO, LoRA": {"task": "kto"},
    "KTO, full": {"task": "kto", **FULL},
    "reward model, LoRA": {"task": "reward"},
}


def train(cell: str, folder: Path, python: str | None) -> Trained:
    """Raises RuntimeError with the log's end if it does not finish."""
    plan = tiny_plan(build_model(folder / "base"), **{"platform": "llamafactory", **CELLS[cell]})
    return train_plan(plan, folder, python=python)


def row(cell: str, trained: Trained) -> str:
    plan, start = load_run_file(trained.folder).plan, trained.course.start
    losses = [loss for _, loss in trained.course.eval_losses]
    count = start.trainable_parameters if start else None
    return f"| {cell} | {plan.quantization} | {count:,} | {losses[0]:.3f} | {losses[-1]:.3f} |"


def page(rows: list[str], versions: dict[str, str]) -> str:
    return "\n".join(
        [
            "# LLaMA-Factory projects, as they trained on a CPU",
            "",
            "Written by `make prove-llamafactory`: each project was emitted, launched in LLaMA-Factory's own",
            "environment and trained on a CPU, a random Llama of 90,000 parameters on 90 sums (or right and wrong",
            "answers to them), for ten steps. The loss is that of ten held-out rows. It shows that a method or task",
            "runs, learns and saves; not how good it is.",
            "",
            f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
            "",
            "| project | base | trained parameters | loss before | loss after |",
            "|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


@click.command()
def main() -> None:
    python = os.environ.get("FTADVISE_LLAMAFACTORY_PYTHON")  # None: its own environment
    rows: list[str] = []
    versions: dict[str, str] = {}
    for cell in CELLS:
        with TemporaryDirectory() as folder:
            trained = train(cell, Path(folder), python)
            rows.append(row(cell, trained))
            versions = trained.course.start.versions if trained.course.start else {}
        click.echo(rows[-1])
    PAGE.write_text(page(rows, versions))


if __name__ == "__main__":
    main()
