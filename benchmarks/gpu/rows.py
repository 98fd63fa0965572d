"""Our own runs (tests/measured/ours.jsonl) as measured rows, beside the published ones."""

import json
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.rows import MeasuredRow
from profiles.plan import Plan

OWN_RUNS = Path(__file__).parents[2] / "tests" / "measured" / "ours.jsonl"
SOURCE = "ours"
TRAINING = ("forward", "backward", "optimizer")
CARDS = {"NVIDIA H200": "h200"}
NO_XFORMERS = "xformers was not installed: what is saved has no key head for each query head"


def own_rows(path: Path = OWN_RUNS) -> list[MeasuredRow]:
    """Every run that ended, and those that ran out of the memory that their allocator was given."""
    with path.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [_row(raw) for raw in found if raw["status"] in ("finished", "out-of-memory") and "limit_gib" not in raw]


def _row(raw: dict[str, Any]) -> MeasuredRow:
    plan = Plan.model_validate(raw["plan"])
    measured = {"step_seconds": median(raw["steps"][1:])}
    phases = raw["phases"]
    training = max(phases[name][0] for name in TRAINING)
    measured |= {"allocated_bytes": training, "after_load_bytes": raw["after_load"][0]}
    measured |= {f"{name}_peak_bytes": phases[name][0] for name in TRAINING}
    if phases["evaluation"][0] > training:  # under Liger held-out rows went four at a time then, now they go alone
        plan = plan.replace(eval_fraction=0.0)
    else:
        measured |= {"reserved_bytes": raw["peak_reserved"]}
        measured |= {"device_bytes": raw["device_bytes"]} if raw["device_bytes"] else {}
    uncut = plan.platform == "unsloth" and plan.gradient_checkpointing == "none"
    return MeasuredRow(
        id=raw["id"],
        source=SOURCE,
        quality="A",
        plan=plan,
        model_ref=str(plan.model),
        gpu_id=CARDS[raw["device"]],
        n_gpus=1,
        measured=measured,
        speed_plan=plan,
        memory_note=NO_XFORMERS if uncut else "",
        raw={"method": plan.method, "version": " ".join(f"{k} {v}" for k, v in raw["versions"].items())},
    )
