"""Do three measured points sharpen the rest? Published runs that sweep length or batch, one (model, method, card) each.

`python -m benchmarks.calibrated_throughput`: three points of a group (least, middle and most tokens a micro-batch)
calibrate; the other points are predicted. Groups of one source and the same settings but for length and batch.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import exp
from statistics import median

from benchmarks.rows import load_rows
from benchmarks.throughput import Case, cases
from estimators.fit import CARD_PRIORS, STEP_NOISE, Observation, fit_constants, start_constants
from estimators.throughput import real_tokens

POINTS = 3
SWEPT = ("seq_len", "micro_batch_size", "mean_len", "gradient_accumulation_steps")


def groups(found: Sequence[Case]) -> Iterator[tuple[str, list[Case]]]:
    """(name, its cases by tokens a micro-batch), those with more than POINTS different ones."""
    by: dict[tuple[str, str, str], list[Case]] = defaultdict(list)
    for case in found:
        settings = case.row.speed_plan.model_dump(mode="json", exclude=set(SWEPT))
        by[case.row.source, case.row.gpu_id, json.dumps(settings, sort_keys=True)].append(case)
    for (source, gpu, _), members in by.items():
        members.sort(key=lambda c: real_tokens(c.row.speed_plan))
        if len({real_tokens(c.row.speed_plan) for c in members}) > POINTS:
            plan = members[0].row.speed_plan
            yield f"{source} {gpu} {plan.method} {plan.quantization} {plan.gradient_checkpointing}", members


def predict_rest(members: Sequence[Case]) -> list[tuple[float, float]]:
    """(error before, error after) of the points that did not calibrate: predicted over measured, less one."""
    chosen = {0, len(members) // 2, len(members) - 1}
    observed = [
        Observation(case.predict, 1 / case.row.measured["tokens_per_second"], STEP_NOISE, is_step=True)
        for i, case in enumerate(members)
        if i in chosen
    ]
    default = start_constants()
    constants = {**default, **fit_constants(observed, CARD_PRIORS).constants}
    rest = [case for i, case in enumerate(members) if i not in chosen]
    return [(exp(c.error(default)) - 1, exp(c.error(constants)) - 1) for c in rest]


def main() -> None:
    everything: list[tuple[float, float]] = []
    print(f"{'':58s} {'n':>4s} {'before':>8s} {'after':>8s} {'worst':>8s}")
    for name, members in groups(cases(load_rows())):
        errors = predict_rest(members)
        everything += errors
        before, after = ([abs(e[i]) for e in errors] for i in (0, 1))
        print(f"{name:58s} {len(errors):4d} {median(before):8.1%} {median(after):8.1%} {max(after):8.1%}")
    for title, i in (("before", 0), ("after", 1)):
        off = sorted(abs(e[i]) for e in everything)
        print(f"{title}: {len(off)} points, median {median(off):.1%}, P90 {off[int(0.9 * (len(off) - 1))]:.1%}")


if __name__ == "__main__":
    main()
