"""Does the recommended plan run fast? Real training steps of many feasible plans on this CPU, and the best of them.

`python -m benchmarks.regret`: for three small models (SmolLM2-135M from demo/prepare.py and two of other shapes) the
planner's space of one cell (LoRA or full fine-tuning, fp32) is written out; the recommended plan and at least 20 others
run a few optimizer steps each, one thread, best of the steps. Regret is what the recommended plan takes longer than the
best plan that was run. Every result is one JSON line, so that a run goes on where it was stopped.
"""

import json
import random
from pathlib import Path
from typing import Any

import click

from advisor.assess import assess
from advisor.axes import axes_of
from advisor.decide import Judge, find_winner
from advisor.evaluate import figures_of
from advisor.plans import Cell, draft_plan
from advisor.request import Request
from advisor.search import Search, every_point
from benchmarks.prove_throughput import MODELS
from estimators.plan_figures import plan_of
from profiles.plan import Plan
from profiles.probes.job import ProbeJob
from profiles.probes.run import run_probe
from profiles.units import bytes_from_gib

RESULT = Path(__file__).parent / "results" / "regret-cpu.jsonl"
SEQ_LEN, BATCH, SEED = 128, 8, 5
WITHIN = 0.10


def feasible(name: str) -> tuple[Plan, list[Plan]]:
    """The recommended plan, and every plan of the same space that the estimates let run."""
    request = Request(
        model=MODELS[name], gpu="cpu", goal="fast", seq_len=SEQ_LEN, global_batch_size=BATCH, platforms=("hf",),
        methods=("lora", "full"), quantizations=("fp32",), offline=True,
    )  # fmt: skip
    facts = assess(request)
    winner = find_winner(request, Judge(facts))
    assert winner is not None
    plans = []
    for cell in (Cell("hf", "lora", "fp32"), Cell("hf", "full", "fp32")):
        draft = draft_plan(cell, request, facts)
        axes = axes_of(cell, request, facts)._replace(attentions=("sdpa", "eager"))
        figures = figures_of(draft, facts)
        for _, point in every_point(Search(cell, axes, request, facts, figures)):
            size = point.micro_batch_size, point.accumulation
            if figures.pair(point.body, point.spread).peak(*size) <= facts.hardware.gpu.memory_bytes:
                plans.append(plan_of(draft, point.body, point.spread, micro_batch_size=size[0], accumulation=size[1]))
    return winner.plan, plans


def run_plan(plan: Plan, threads: int, seconds: float) -> dict[str, Any]:
    """Seconds of an optimizer step: the probe times one micro-batch and its update, so accumulation multiplies it."""
    single = plan.model_copy(update={"gradient_accumulation_steps": 1, "padding_mask": False, "loss_kernel": "full"})
    job = ProbeJob(probe="steps", device="cpu", threads=threads, clock="cpu", seconds=seconds, plans=(single,))
    outcome = run_probe(job, rss_bytes=bytes_from_gib(8))
    if not outcome.steps:
        return {"error": outcome.error or "no step was timed"}
    return {"seconds": outcome.steps[0].seconds * plan.gradient_accumulation_steps}


def key_of(name: str, plan: Plan) -> list[Any]:
    return [name, plan.method, plan.micro_batch_size, plan.gradient_checkpointing, plan.attention]


def report(rows: list[dict[str, Any]]) -> None:
    """A line a model: plans run, the best, the recommended, the regret."""
    for name in dict.fromkeys(row["key"][0] for row in rows):
        timed = [row for row in rows if row["key"][0] == name and "seconds" in row]
        chosen = next((row for row in timed if row["recommended"]), None)
        if not timed or chosen is None:
            continue
        best = min(timed, key=lambda row: float(row["seconds"]))
        regret = chosen["seconds"] / best["seconds"] - 1
        click.echo(
            f"{name:14s} {len(timed):3d} plans run; recommended {chosen['key'][1:]} {chosen['seconds']:.2f} s a step, "
            f"best {best['key'][1:]} {best['seconds']:.2f} s: regret {regret:.1%} (goal {WITHIN:.0%})"
        )


@click.command()
@click.option("--plans", "wanted", default=21, show_default=True, help="Plans a model, the recommended one among them.")
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seconds", default=25.0, show_default=True, help="Most seconds a plan may take.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULT)
def main(wanted: int, models: str, threads: int, seconds: float, out: Path) -> None:
    out.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {tuple(row["key"]) for row in rows}
    for name in models.split(","):
        best, plans = feasible(name)
        others = [p for p in plans if key_of(name, p) != key_of(name, best)]
        random.Random(SEED).shuffle(others)
        for plan in [best, *others[: wanted - 1]]:
            key = key_of(name, plan)
            if tuple(key) in done:
                continue
            row = {"key": key, "recommended": plan is best, **run_plan(plan, threads, seconds)}
            rows.append(row)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            click.echo(f"{key}: {row.get('seconds', row.get('error'))}")
    report(rows)


if __name__ == "__main__":
    main()
