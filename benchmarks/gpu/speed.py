"""How well the speed model predicts the runs on the H200: `python -m benchmarks.gpu.speed [--rows]`.

tests/measured/ours.jsonl: six steps a run, of which the median of the last five counts. Uncalibrated, and calibrated
with what `ftadvise calibrate` timed on that machine (tests/measured/h200-calibration.json): the timings of the record
are fitted anew with today's formulas, since the stored constants belong to those of the day it was made.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from statistics import median

import click

from advisor.calibrate import describe_plan_model
from advisor.facts import resolve_model
from benchmarks.gpu.cells import EVENTS
from benchmarks.gpu.rows import OWN_RUNS
from benchmarks.quantile import quantile
from estimators.answer import SpeedEstimate
from estimators.fit import fit_calibration
from estimators.throughput import estimate_speed
from profiles.calibration import Calibration
from profiles.catalog import find_gpu
from profiles.gpu import Hardware
from profiles.plan import Plan

CALIBRATION = OWN_RUNS.with_name("h200-calibration.json")
CARD = Hardware(gpu=find_gpu("h200"))
# Trained while the first step of hf-galore, 39.5 s of singular values, had card and cores (no run holds the lock
# in its first step), by the order in which runs ended: up to three times slower than their likes
BESIDE_GALORE = frozenset(
    f"hf-{name}"
    for name in (
        "ln_tuning", "freeze", "apollo", "prompt", "ptuning", "prefix", "bitfit", "dpo", "qwen2.5-1.5b", "gemma2-2b",
    )
)  # fmt: skip
HOST_SHARE = 0.2  # of a step: a run is host-bound whose card waits longer than this


@dataclass(frozen=True)
class Run:
    """A measured run and what is said of it."""

    id: str
    plan: Plan
    seconds: float
    predicted: SpeedEstimate

    @property
    def error(self) -> float:
        """log(predicted / measured)."""
        return log(self.predicted.step_seconds.expected / self.seconds)

    @property
    def covered(self) -> bool:
        """The interval holds what was measured."""
        return self.predicted.step_seconds.low <= self.seconds <= self.predicted.step_seconds.high

    @property
    def host_bound(self) -> bool:
        """The card waits for the host, by the estimate."""
        waiting = sum(item.seconds for item in self.predicted.items if item.bound == "host")
        return waiting > HOST_SHARE * self.predicted.step_seconds.expected


def refitted(path: Path = CALIBRATION) -> Calibration:
    """The record's timings, fitted with the formulas of today."""
    stored = Calibration.model_validate_json(path.read_text(encoding="utf-8"))
    return fit_calibration(
        calibration_id=stored.id, date=stored.date, environment=stored.environment, gpu=CARD.gpu,
        kernels=stored.kernels, steps=stored.steps, describe=describe_plan_model,
    )  # fmt: skip


def runs(calibration: Calibration | None, path: Path = OWN_RUNS) -> list[Run]:
    """Every finished run with its prediction."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["status"] != "finished":
            continue
        plan = Plan.model_validate(row["plan"])
        predicted = estimate_speed(plan, resolve_model(str(plan.model)), CARD, calibration=calibration)
        assert predicted is not None
        found.append(Run(row["id"], plan, median(row["steps"][1:]), predicted))
    return found


GROUPS: dict[str, Callable[[Run], str]] = {
    "": lambda run: "all",
    "beside GaLore's first step": lambda run: "yes" if run.id in BESIDE_GALORE else "no",
    "platform": lambda run: run.plan.platform,
    "method": lambda run: run.plan.method,
    "checkpointing": lambda run: run.plan.gradient_checkpointing,
    "bound by": lambda run: "host" if run.host_bound else "card",
    "stacks recorded": lambda run: "yes" if run.id in EVENTS else "no",
}


def table(found: list[Run]) -> str:
    """By group n, median and P90 of |predicted / measured - 1|, bias, coverage of the 90 % interval."""
    lines = [f"{'':34s} {'n':>3s} {'median':>7s} {'P90':>7s} {'bias':>6s} {'covered':>8s}"]
    for title, name_of in GROUPS.items():
        groups: dict[str, list[Run]] = defaultdict(list)
        for run in found:
            groups[name_of(run)].append(run)
        for name, members in groups.items():
            off = [abs(exp(run.error) - 1) for run in members]
            bias = exp(median(run.error for run in members)) - 1
            share = sum(run.covered for run in members) / len(members)
            lines.append(
                f"{f'{title} {name}'.strip():34s} {len(members):3d} {median(off):7.1%} {quantile(off, 0.9):7.1%} "
                f"{bias:+6.0%} {share:8.0%}"
            )
    return "\n".join(lines)


@click.command()
@click.option("--rows", is_flag=True, help="Print every run.")
def main(rows: bool) -> None:
    calibration = refitted()
    before, after = runs(None), runs(calibration)
    print("uncalibrated", table(before), "", "calibrated, timings fitted anew", table(after), sep="\n")
    print()
    for name, constant in calibration.constants.items():
        print(f"{name:20s} {constant.value:9.4g}  n={constant.n} +-{constant.residual:.0%}")
    for first, second in zip(before, after, strict=True) if rows else ():
        print(f"{first.id:34s} {first.seconds:7.4f} s  {exp(first.error) - 1:+6.0%}  {exp(second.error) - 1:+6.0%}")


if __name__ == "__main__":
    main()
