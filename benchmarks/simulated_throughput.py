"""Both tiers of the speed model on published runs of one card: `python -m benchmarks.simulated_throughput [--rows]`.

Uncalibrated, constants as shipped (they were fitted to these rows with the formulas, never with the simulated tier).
"""

import argparse
import sys
from collections import defaultdict
from statistics import median

from benchmarks.model_configs import model_spec
from benchmarks.quantile import quantile
from benchmarks.rows import MeasuredRow, load_rows
from benchmarks.simulated import job_of, simulate_all
from benchmarks.throughput import Case, cases
from estimators.efficiency import default_constants
from estimators.methods import get_method
from estimators.simulate.job import Job
from estimators.simulate.result import Simulation
from estimators.simulate.speed import work_items
from estimators.throughput import batch_shape, real_tokens
from profiles.catalog import find_gpu
from profiles.gpu import Hardware


def speed_job(row: MeasuredRow) -> Job | None:
    """The row's run with batches of their mean padded length; None where the tier leaves speed to the formulas."""
    plan = row.speed_plan
    if plan is None or plan.n_gpus > 1 or plan.platform == "unsloth":
        return None
    if row.source == "peft":  # its methods in PEFT's own words
        found = job_of(row)
        if found is None:
            return None
        length = round(batch_shape(plan, get_method("full")).length)  # what the method adds is in the traced code
        return found.replace(batches=((plan.micro_batch_size, length),) * 2)
    return Job(plan=plan, model=model_spec(row.model_ref), hardware=Hardware(gpu=find_gpu(row.gpu_id)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--source", help="only this source")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    options = parser.parse_args()
    asked: list[tuple[Case, Job]] = [
        (case, job) for case in cases(load_rows())
        if options.source in (None, case.row.source) and (job := speed_job(case.row)) is not None
    ]  # fmt: skip
    errors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    answers = simulate_all([job for _, job in asked], options.jobs)
    for (case, _), answer in zip(asked, answers, strict=True):
        if not isinstance(answer, Simulation):
            print(f"refused {case.row.id}: {answer}", file=sys.stderr)
            continue
        measured = case.row.measured["tokens_per_second"]
        pair = (case.predict(default_constants()) * measured - 1, _seconds_a_token(case, answer) * measured - 1)
        errors[case.row.source].append(pair)
        if options.rows:
            print(f"{case.row.id:60s} formulas {pair[0]:+6.1%}  simulated {pair[1]:+6.1%}", flush=True)
    print(report(errors))


def _seconds_a_token(case: Case, answer: Simulation) -> float:
    plan = case.row.speed_plan
    accumulation = plan.gradient_accumulation_steps
    items = work_items(answer.operations, case.rates(default_constants()), accumulation=accumulation)
    return sum(item.seconds for item in items) / (real_tokens(plan) * accumulation)


def report(errors: dict[str, list[tuple[float, float]]]) -> str:
    """A table: per source n, and of both tiers median, P90 and bias of predicted / measured - 1."""
    lines = [f"{'':10s} {'n':>4s}   formulas: median    P90   bias   simulated: median    P90   bias"]
    groups = {**errors, "all": [pair for group in errors.values() for pair in group]}
    for name, pairs in groups.items():
        cells = []
        for tier in (0, 1):
            own = [pair[tier] for pair in pairs]
            off = [abs(e) for e in own]
            cells.append(f"{median(off):18.1%} {quantile(off, 0.9):6.1%} {median(own):+6.1%}")
        lines.append(f"{name:10s} {len(pairs):4d} {'  '.join(cells)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
