"""How well the uncalibrated speed model predicts published runs.

    python -m benchmarks.throughput            # score: constants as shipped, and leave-one-source-out
    python -m benchmarks.throughput --fit      # fit the constants to all rows, write profiles/data/efficiency.json

Leave-one-source-out: each source is predicted with constants, and an interval, fitted to the other sources only.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from statistics import median

from benchmarks.model_configs import model_spec
from benchmarks.rows import MeasuredRow, load_rows
from estimators.efficiency import Rates, default_constants, rates_of
from estimators.methods import get_method
from estimators.regime import resolve_regime
from estimators.throughput import expected_step, matmul_dtype
from profiles.catalog import find_gpu
from profiles.efficiency import PATH

# Fitted constants: a prior (value, standard deviation of its logarithm) that few or odd rows cannot overrule.
PRIORS: dict[str, tuple[float, float]] = {
    "matmul": (0.85, 0.1),
    "attention": (0.55, 0.3),
    "attention_hopper": (0.40, 0.2),
    "attention_efficient": (0.30, 0.4),
    "elementwise": (0.75, 0.2),
    "l2_gain": (1.0, 0.5),
    "dequantize": (0.28, 0.25),
    "launch_seconds": (12e-6, 0.1),
    "tile_loss": (0.15, 0.35),
    "depth_loss": (150.0, 0.5),
    "communication_overlap": (0.8, 0.15),
    "sharded_layer_seconds": (1e-3, 0.7),
    "experts": (1.3, 0.2),
    "adapters": (0.8, 0.3),
    "nvlink_share": (0.75, 0.15),
    "pcie_share_pair": (0.40, 0.4),
}
# What rows have and plans have not; fitted beside the constants and not shipped.
# old_host: host time a launch with the libraries of 2023 and 2024 (PEFT's own table: 1.4 times from 2.7 to 2.9).
# triton_attention: llm-foundry's attention; FlashAttention-2 is 1.3 to 1.5 times faster (arXiv 2307.08691, abstract).
NUISANCES: dict[str, tuple[float, float]] = {"old_host": (1.5, 0.25), "triton_attention": (0.7, 0.2)}
ALL = PRIORS | NUISANCES
NEW_LIBRARIES = "2025"
# transformers 4's Trainer: re-entrant checkpoints, which compute all again; fused losses that keep the logits
TRAINERS_BEFORE_5 = ("fms", "ibm", "qwen")
ROUNDS = 8
SOURCE_WEIGHT = 30.0  # a source counts as at most so many rows
NOISE = 0.10  # errors below it weigh alike (logarithm)
LEVEL = 0.90


@dataclass(frozen=True)
class Case:
    """A row ready to be predicted with any constants."""

    row: MeasuredRow
    rates: Callable[[Mapping[str, float]], Rates]
    predict: Callable[[Mapping[str, float]], float]

    def error(self, constants: Mapping[str, float]) -> float:
        """log(predicted / measured) seconds of a step."""
        return log(self.predict(constants) * self.row.measured["tokens_per_second"])


def cases(rows: Sequence[MeasuredRow]) -> list[Case]:
    """The rows that have a speed and a complete configuration."""
    return [_case(row) for row in rows if row.speed_plan and not row.speed_note and "tokens_per_second" in row.measured]


def _case(row: MeasuredRow) -> Case:
    plan, model, gpu = row.speed_plan, model_spec(row.model_ref), find_gpu(row.gpu_id)
    method, regime = get_method(plan.method), resolve_regime(plan, model, gpu)
    dtype = matmul_dtype(regime, gpu)
    if row.source in TRAINERS_BEFORE_5:
        regime = replace(regime, reentrant=True, loss="chunked" if regime.loss == "fused" else regime.loss)
    old = str(row.raw["date"]) < NEW_LIBRARIES

    def rates(constants: Mapping[str, float]) -> Rates:
        """The card's, with what is particular to the row's source."""
        own = dict(constants)
        if old:
            own["launch_seconds"] *= own.get("old_host", NUISANCES["old_host"][0])
        if row.source == "llm-foundry":
            for kind in ("attention", "attention_hopper"):
                own[kind] *= own.get("triton_attention", NUISANCES["triton_attention"][0])
        found = rates_of(gpu, dtype, constants=own)
        assert found is not None
        return found

    def seconds_per_token(constants: Mapping[str, float]) -> float:
        step = expected_step(plan, model, method, regime, rates(constants))
        return step.seconds / step.real_tokens

    return Case(row, rates, seconds_per_token)


def fit(training: Sequence[Case], names: Sequence[str] = tuple(ALL)) -> dict[str, float]:
    """Constants that fit `training` in the logarithm: Gauss-Newton, robust (L1 beyond NOISE), with the priors."""
    import numpy as np

    counts: dict[str, int] = defaultdict(int)
    for case in training:
        counts[case.row.source] += 1
    weight = np.array([min(1.0, SOURCE_WEIGHT / counts[c.row.source]) for c in training])
    prior = np.log([ALL[n][0] for n in names])
    spread = np.array([ALL[n][1] for n in names])
    base = dict(default_constants())

    def errors(theta: "np.ndarray") -> "np.ndarray":
        constants = {**base, **dict(zip(names, np.exp(theta), strict=True))}
        return np.array([case.error(constants) for case in training])

    def loss(theta: "np.ndarray", e: "np.ndarray") -> float:
        return float(np.sum(weight * np.maximum(np.abs(e) - NOISE / 2, e**2 / (2 * NOISE))) / NOISE) + float(
            np.sum(((theta - prior) / spread) ** 2) / 2
        )

    theta, step = prior.copy(), 0.02
    e = errors(theta)
    best = loss(theta, e)
    for _ in range(ROUNDS):
        jacobian = np.column_stack([(errors(theta + step * unit) - e) / step for unit in np.eye(len(names))])
        w = weight / NOISE / np.maximum(np.abs(e), NOISE)
        hessian = jacobian.T @ (w[:, None] * jacobian) + np.diag(spread**-2.0)
        gradient = jacobian.T @ (w * e) + (theta - prior) / spread**2
        change = np.linalg.solve(hessian, -gradient)
        for shrink in (1.0, 0.5, 0.25, 0.1):
            trial = theta + np.clip(shrink * change, -0.5, 0.5)
            trial_errors = errors(trial)
            if loss(trial, trial_errors) < best:
                break
        else:
            break
        gained = best - loss(trial, trial_errors)
        theta, e, best = trial, trial_errors, loss(trial, trial_errors)
        if gained < 0.01 * abs(best) / ROUNDS:
            break
    return dict(zip(names, (float(x) for x in np.exp(theta)), strict=True))


def margins(errors: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """(below, above): margins of the logarithm that hold 90 % of measured times, each source counting alike.

    `errors`: (source, log(predicted / measured)).
    """
    counts: dict[str, int] = defaultdict(int)
    for source, _ in errors:
        counts[source] += 1
    ranked = sorted((e, min(1.0, SOURCE_WEIGHT / counts[s])) for s, e in errors)
    total, tail = sum(w for _, w in ranked), (1 - LEVEL) / 2

    def quantile(share: float) -> float:
        seen = 0.0
        for e, w in ranked:
            seen += w
            if seen >= share * total:
                return e
        return ranked[-1][0]

    return max(quantile(1 - tail), 0.05), max(-quantile(tail), 0.05)


def report(title: str, errors: Mapping[str, Sequence[float]], inside: Mapping[str, Sequence[bool]]) -> str:
    """A table: per source n, median and P90 of |predicted / measured - 1|, bias, coverage of the 90 % interval."""
    lines = [title, f"{'source':14s} {'n':>4s} {'median':>7s} {'P90':>7s} {'bias':>6s} {'covered':>8s}"]
    everything = [e for group in errors.values() for e in group]
    hits = [hit for group in inside.values() for hit in group]
    for source, group, covered in [(s, errors[s], inside[s]) for s in errors] + [("all", everything, hits)]:
        off = sorted(abs(exp(e) - 1) for e in group)
        p90 = off[min(int(0.9 * len(off)), len(off) - 1)]
        bias = exp(median(group)) - 1
        share = sum(covered) / len(covered)
        lines.append(f"{source:14s} {len(group):4d} {median(off):7.1%} {p90:7.1%} {bias:+6.0%} {share:8.0%}")
    return "\n".join(lines)


def score(found: Sequence[Case], fitted: Mapping[str, Mapping[str, float]]) -> tuple[dict, dict]:
    """Errors and interval hits by source, each source with its own constants in `fitted`."""
    errors, inside = defaultdict(list), defaultdict(list)
    for case in found:
        constants = fitted[case.row.source]
        e = case.error(constants)
        errors[case.row.source].append(e)
        # measured = predicted * exp(-e): inside where -below <= -e <= above
        inside[case.row.source].append(-constants["margin_below"] <= -e <= constants["margin_above"])
    return errors, inside


def leave_one_source_out(found: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Source -> constants and margins fitted without it.

    The margins are those of the other sources' errors, each predicted without itself: a new source may be as far off.
    """
    sources = sorted({c.row.source for c in found})
    constants = {s: {**default_constants(), **fit([c for c in found if c.row.source != s])} for s in sources}
    errors, _ = score(found, constants)
    for source in sources:
        below, above = margins([(s, e) for s, group in errors.items() if s != source for e in group])
        constants[source] |= {"margin_below": below, "margin_above": above}
    return constants


def write_constants(constants: Mapping[str, float], found: Sequence[Case]) -> None:
    """Put fitted values into efficiency.json, with n and the median residual."""
    content = json.loads(PATH.read_text(encoding="utf-8"))
    residual = median(abs(exp(c.error({**default_constants(), **constants})) - 1) for c in found)
    cards = ", ".join(sorted({c.row.gpu_id for c in found}))
    for row in content["rows"]:
        if row["id"] in constants:
            row |= {
                "value": float(f"{constants[row['id']]:.4g}"),
                "n": len(found),
                "residual": round(residual, 4),
                "hardware": cards,
                "versions": "torch 2.0 to 2.14, as each row of tests/measured says",
            }
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in content["rows"])
    PATH.write_text(f'{{"rows": [\n{rows}\n]}}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fit", action="store_true", help="fit to all rows and write the data file")
    arguments = parser.parse_args()
    found = cases(load_rows())
    shipped = dict.fromkeys({c.row.source for c in found}, default_constants())
    print(report("constants as shipped", *score(found, shipped)))
    held_out = leave_one_source_out(found)
    errors, inside = score(found, held_out)
    print(report("\nleave one source out", errors, inside))
    if arguments.fit:
        constants = fit(found)
        below, above = margins([(s, e) for s, group in errors.items() for e in group])
        write_constants({**constants, "margin_below": below, "margin_above": above}, found)
        print("\n" + "\n".join(f"{k:24s} {v:.4g}  (prior {ALL[k][0]:.4g})" for k, v in constants.items()))
        print(f"margins of the logarithm: below {below:.3f}, above {above:.3f}")


if __name__ == "__main__":
    main()
