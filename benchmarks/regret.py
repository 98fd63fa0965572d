"""Is the recommended plan fast? Real training steps of many feasible plans on this CPU, against the best of them.

`make prove-regret`: for three small real models (their published shapes; random weights take the same time) the planner
answers a request. Its plan, the ten that it holds for the next fastest and ten more drawn at random from the space
(methods x micro-batch x checkpointing x attention) each train a few optimizer steps of the same global batch. Those
close to the best are timed again in turn, so that neither luck nor a neighbour decides. Regret is what the recommended
plan takes longer than the best that was run. One thread, CPU seconds. Rows are kept in
benchmarks/results/regret-cpu.json, and a run that was stopped goes on with what is left.
"""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from advisor.assess import assess
from advisor.axes import axes_of
from advisor.calibrations import environment_of
from advisor.decide import Judge, find_winner
from advisor.detection import detect_cpu
from advisor.evaluate import figures_of
from advisor.facts import model_config
from advisor.plans import Cell, draft_plan
from advisor.request import Request
from advisor.search import Search, every_point
from estimators.plan_figures import plan_of
from profiles.plan import Plan
from profiles.probes.job import ProbeJob
from profiles.probes.run import run_probe
from profiles.units import bytes_from_gib

RESULT = Path(__file__).parent / "results" / "regret-cpu.json"
MODELS = ("smollm2-135m", "gpt2", "pythia-70m")
METHODS = ("lora", "adalora", "full")
SEQ_LEN, BATCH, SEED = 128, 8, 5
CONTENDERS, OTHERS = 10, 10
CLOSE, FINAL_ROUNDS = 0.10, 2  # who is timed again, and how often
GOAL = 0.10

Row = dict[str, Any]


def space(name: str) -> tuple[Plan, list[Plan]]:
    """The recommended plan, and all plans that the estimates let run, the fastest by estimate first."""
    request = Request(
        model=model_config(name)[0], gpu="cpu", goal="fast", seq_len=SEQ_LEN, mean_len=SEQ_LEN, global_batch_size=BATCH,
        platforms=("hf",), methods=METHODS, quantizations=("fp32",), offline=True,
    )  # fmt: skip
    facts = assess(request)
    winner = find_winner(request, Judge(facts))
    assert winner is not None
    timed: list[tuple[float, Plan]] = []
    for method in METHODS:
        cell = Cell("hf", method, "fp32")
        draft = draft_plan(cell, request, facts)
        axes = axes_of(cell, request, facts)._replace(attentions=("sdpa", "eager"), optimizers=("adamw_torch_fused",))
        figures = figures_of(draft, facts)
        for _, (body, spread, size, steps) in every_point(Search(cell, axes, request, facts, figures)):
            pair = figures.pair(body, spread)
            if pair.peak(size, steps) <= facts.hardware.gpu.memory_bytes:
                plan = plan_of(draft, body, spread, micro_batch_size=size, accumulation=steps)
                timed.append((pair.seconds_per_token(size, steps) or 0.0, plan))
    return winner.plan, [plan for _, plan in sorted(timed, key=lambda pair: pair[0])]


def choose(best: Plan, plans: list[Plan]) -> Iterator[Plan]:
    """The recommended plan, its contenders by estimate, and others at random."""
    others = [plan for plan in plans if key_of(plan) != key_of(best)]
    yield best
    yield from others[:CONTENDERS]
    yield from random.Random(SEED).sample(others[CONTENDERS:], OTHERS)


def key_of(plan: Plan) -> list[Any]:
    return [plan.method, plan.micro_batch_size, plan.gradient_checkpointing, plan.attention or "sdpa"]


def time_step(plan: Plan, seconds: float) -> float | str:
    """CPU seconds of an optimizer step with all its micro-batches, or why there is none."""
    plain = plan.model_copy(update={"padding_mask": False, "loss_kernel": "full"})
    job = ProbeJob(probe="steps", device="cpu", threads=1, clock="cpu", seconds=seconds, plans=(plain,))
    outcome = run_probe(job, rss_bytes=bytes_from_gib(8))
    return outcome.steps[0].seconds if outcome.steps else "; ".join((*outcome.failed, outcome.error)) or "no step"


def measure(name: str, rows: list[Row], seconds: float) -> Iterator[Row]:
    """Time what `rows` lacks: every chosen plan once, then those close to the best again, in turn."""
    best, plans = space(name)
    found = {tuple(row["plan"]): row for row in rows}
    chosen = list(choose(best, plans))
    for plan in chosen:
        key = key_of(plan)
        if tuple(key) in found:
            continue
        took = time_step(plan, seconds)
        row: Row = {"model": name, "plan": key, "recommended": plan is best, "seconds": []}
        row |= {"seconds": [took]} if isinstance(took, float) else {"error": took}
        found[tuple(key)] = row
        yield row
    fastest = min(row["seconds"][0] for row in found.values() if row["seconds"])
    for rounds in range(2, FINAL_ROUNDS + 2):
        for plan in chosen:
            row = found[tuple(key_of(plan))]
            close = bool(row["seconds"]) and row["seconds"][0] <= (1 + CLOSE) * fastest
            if len(row["seconds"]) < rounds and (close or row["recommended"]):
                took = time_step(plan, seconds)
                if isinstance(took, float):
                    row["seconds"].append(took)
                yield row


def report(rows: list[Row]) -> None:
    """A line a model: plans run, the recommended, the best, the regret (each plan by the least of its timings)."""
    for name in dict.fromkeys(row["model"] for row in rows):
        timed = [row for row in rows if row["model"] == name and row["seconds"]]
        chosen = next(row for row in timed if row["recommended"])
        best = min(timed, key=lambda row: min(row["seconds"]))
        worst = max(timed, key=lambda row: min(row["seconds"]))
        regret = min(chosen["seconds"]) / min(best["seconds"]) - 1
        click.echo(
            f"{name}: {len(timed)} plans run, {min(best['seconds']):.2f} to {min(worst['seconds']):.2f} s a step; "
            f"recommended {chosen['plan']} {min(chosen['seconds']):.2f} s, best {best['plan']}: "
            f"regret {regret:.1%} (goal {GOAL:.0%})"
        )


@click.command()
@click.option("--models", default=",".join(MODELS), show_default=True)
@click.option("--seconds", default=25.0, show_default=True, help="Most seconds that a plan is timed.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULT, show_default=False)
def main(models: str, seconds: float, out: Path) -> None:
    content = json.loads(out.read_text()) if out.exists() else {"rows": []}
    content |= {
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment_of(detect_cpu()).model_dump(mode="json"),
    }
    rows: list[Row] = content["rows"]
    for name in models.split(","):
        for row in measure(name, [row for row in rows if row["model"] == name], seconds):
            if row not in rows:
                rows.append(row)
            out.write_text(json.dumps(content, indent=1) + "\n")
            click.echo(f"{name} {row['plan']}: {row.get('error') or row['seconds']}")
    report(rows)


if __name__ == "__main__":
    main()
