"""Does a calibrated estimate hold? Calibrate this CPU, predict real training steps, run them, compare.

`python -m benchmarks.prove_throughput` (`make prove-throughput`). Three small models of different width and depth, one
of them real (SmolLM2-135M, fetched by demo/prepare.py); seven methods, two batch sizes, two lengths, checkpointing on
and off. The result goes to benchmarks/results/. --share runs a random part of the cells; --clock cpu with --threads 1
counts CPU seconds, for a machine that others use too; --rescore predicts again for steps measured earlier.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations, product
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from advisor.calibration_plans import DEFAULT_MODELS, calibration_plans
from advisor.calibrations import environment_of
from advisor.detection import detect_cpu
from advisor.facts import model_config
from estimators.fit import fit_calibration
from estimators.throughput import estimate_speed
from profiles.calibration import Calibration, TimedKernel, TimedStep
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan
from profiles.probes.job import PROBES, ProbeJob
from profiles.probes.run import run_probe
from profiles.units import bytes_from_gib

RESULT = Path(__file__).parent / "results" / "prove-throughput-cpu.json"
REAL_MODEL = Path("demo-out/assets/model")
COMMON = {"hidden_act": "silu", "max_position_embeddings": 2048, "tie_word_embeddings": True}
MODELS: dict[str, dict[str, Any] | str] = {
    "smollm2-135m": str(REAL_MODEL),
    "wide": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 1024, "intermediate_size": 2816,
        "num_hidden_layers": 6, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 16384, **COMMON,
    },
    "deep": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 384, "intermediate_size": 1024,
        "num_hidden_layers": 16, "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 8192,
        "attention_bias": True, "mlp_bias": True, **COMMON,
    },
}  # fmt: skip
METHODS = ("lora", "full", "bitfit", "prompt", "prefix", "ptuning", "adalora")
BATCHES, LENGTHS, CHECKPOINTINGS = (1, 2), (64, 192), ("none", "full")
SEED = 11
DIFFERENT = 0.15  # pairs of plans that differ by more than this have to be ranked right


def cells(share: float) -> dict[str, list[Plan]]:
    """Model -> plans; BitFit needs biases, and prefix tuning no checkpointing."""
    chosen = random.Random(SEED)
    found: dict[str, list[Plan]] = defaultdict(list)
    for name, method, batch, length, saving in product(MODELS, METHODS, BATCHES, LENGTHS, CHECKPOINTINGS):
        if (name, method) == ("smollm2-135m", "bitfit") or (method, saving) == ("prefix", "full"):
            continue
        if chosen.random() >= share:
            continue
        plan = Plan(
            model=MODELS[name], gpu="cpu", method=method, quantization="fp32", micro_batch_size=batch, seq_len=length,
            gradient_checkpointing=saving, loss_kernel="full", padding_mask=False, attention="sdpa",
        )  # fmt: skip
        found[name].append(plan)
    for plans in found.values():
        chosen.shuffle(plans)  # where time ends, no method is left out altogether
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run calibration probes and cells; what was timed, as JSON."""
    common: dict[str, Any] = {"device": "cpu", "threads": options.threads, "clock": options.clock}
    room = {"rss_bytes": bytes_from_gib(6)}
    config, _ = model_config(DEFAULT_MODELS["cpu"])
    kernels, steps = [], []
    for probe in PROBES:
        seconds = options.seconds if probe == "steps" else 10.0
        plans = calibration_plans(config, device="cpu", full=False) if probe == "steps" else ()
        outcome = run_probe(ProbeJob(probe=probe, seconds=seconds, plans=plans, **common), **room)
        print(f"{probe}: {len(outcome.kernels) + len(outcome.steps)} points in {outcome.seconds:.0f} s {outcome.error}")
        kernels += outcome.kernels
        steps += outcome.steps
    measured = {}
    for name, plans in cells(options.share).items():
        job = ProbeJob(probe="steps", seconds=options.seconds, plans=tuple(plans), **common)
        outcome = run_probe(job, **room)
        print(f"{name}: {len(outcome.steps)} of {len(plans)} in {outcome.seconds:.0f} s {outcome.error}", flush=True)
        measured[name] = [s.model_dump(mode="json") for s in outcome.steps]
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "clock": options.clock,
        "threads": options.threads,
        "share": options.share,
        "kernels": [k.model_dump(mode="json") for k in kernels],
        "calibration_steps": [s.model_dump(mode="json") for s in steps],
        "measured": measured,
    }
    write(content, options.out)
    return content


def write(content: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def hardware_of(content: dict[str, Any]) -> Hardware:
    """This CPU with as many cores as there were threads."""
    found = detect_cpu()
    return found if content["threads"] is None else found.replace(gpu=found.gpu.replace(sm_count=content["threads"]))


def fit(content: dict[str, Any]) -> Calibration:
    """The calibration that the probes give."""
    hardware = hardware_of(content)
    return fit_calibration(
        calibration_id="proof", date=content["date"], environment=environment_of(hardware), gpu=hardware.gpu,
        kernels=[TimedKernel.model_validate(k) for k in content["kernels"]],
        steps=[TimedStep.model_validate(s) for s in content["calibration_steps"]],
        describe=lambda plan: describe_model(*model_config(plan.model)),
    )  # fmt: skip


def score(content: dict[str, Any], calibration: Calibration) -> list[dict[str, Any]]:
    """A row a cell: predicted with its interval, and measured."""
    hardware, rows = hardware_of(content), []
    for name, steps in content["measured"].items():
        for step in (TimedStep.model_validate(s) for s in steps):
            plan = step.plan
            speed = estimate_speed(plan, describe_model(*model_config(plan.model)), hardware, calibration=calibration)
            assert speed is not None
            seconds = speed.step_seconds
            rows.append(
                {
                    "model": name, "method": plan.method, "batch": plan.micro_batch_size, "length": plan.seq_len,
                    "checkpointing": plan.gradient_checkpointing, "measured": round(step.seconds, 4),
                    "predicted": round(seconds.expected, 4), "low": round(seconds.low, 4),
                    "high": round(seconds.high, 4), "error": round(seconds.expected / step.seconds - 1, 4),
                }
            )  # fmt: skip
    return rows


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median and P90 of the error, share inside the interval, share of pairs (within a model) ranked right."""
    off = sorted(abs(row["error"]) for row in rows)
    p90 = off[min(int(0.9 * len(off)), len(off) - 1)]
    right = total = 0
    for a, b in combinations(rows, 2):
        if a["model"] == b["model"] and abs(log(a["measured"] / b["measured"])) > DIFFERENT:
            total += 1
            right += (a["predicted"] < b["predicted"]) == (a["measured"] < b["measured"])
    inside = sum(row["low"] <= row["measured"] <= row["high"] for row in rows)
    return {
        "cells": len(rows), "median": round(median(off), 4), "p90": round(p90, 4),
        "bias": round(median(row["error"] for row in rows), 4), "inside_interval": round(inside / len(rows), 4),
        "pairs": total, "pairs_ranked_right": round(right / max(total, 1), 4),
    }  # fmt: skip


def describe(content: dict[str, Any]) -> str:
    """How it was run, in words."""
    share = "all cells" if content["share"] >= 1 else f"a random {content['share']:.0%} of the cells (seed {SEED})"
    clock = (
        "wall seconds" if content["clock"] == "wall" else "CPU seconds of the process, since others used the machine"
    )
    threads = "as many threads as cores" if content["threads"] is None else f"{content['threads']} thread"
    return f"{share}; {threads}; {clock}; steps of transformers and PEFT on random tokens, without the Trainer"


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The summary over all cells, by model and by method."""
    groups = {"all": list(rows)}
    for key in ("model", "method", "checkpointing"):
        for value in dict.fromkeys(row[key] for row in rows):
            groups[f"{value} ({key})"] = [row for row in rows if row[key] == value]
    lines = [f"{'':24s} {'n':>4s} {'median':>7s} {'P90':>7s} {'bias':>7s} {'inside':>7s} {'pairs right':>12s}"]
    for name, group in groups.items():
        s = summarise(group)
        lines.append(
            f"{name:24s} {s['cells']:4d} {s['median']:7.1%} {s['p90']:7.1%} {s['bias']:+7.1%} "
            f"{s['inside_interval']:7.0%} {s['pairs_ranked_right']:12.1%}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="random share of the cells to run")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=1800.0, help="most seconds a model's cells may take")
    parser.add_argument("--rescore", type=Path, metavar="FILE", help="steps measured earlier")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    content = json.loads(options.rescore.read_text()) if options.rescore else measure(options)
    calibration = fit(content)
    rows = score(content, calibration)
    print(report(rows))
    content |= {
        "how": describe(content),
        "environment": calibration.environment.model_dump(mode="json"),
        "constants": {name: fitted.model_dump() for name, fitted in calibration.constants.items()},
        "summary": summarise(rows),
        "rows": rows,
    }
    write(content, options.out)


if __name__ == "__main__":
    main()
