"""Out of memory: the next safer plan, which learns the same from less memory."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advisor.emit.base import PlanChange
from advisor.facts import resolve_model
from advisor.hardware import resolve_hardware
from advisor.launch.folder import RunState, load_run_file
from advisor.project import rewrite_project
from estimators.memory import estimate_memory
from estimators.methods import get_method
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan


def safer_plan(plan: Plan, model: ModelSpec, hardware: Hardware) -> Plan | None:
    """The mildest change that takes less memory and keeps the sequences of a step; None if there is none left. Pure.

    Accumulating where nothing was accumulated can take more: gradients then stay through the next forward pass.

    A smaller micro-batch costs little time, checkpointing about a third of it: so it comes second. Lengths, rank and
    precision stay: they change what is learned.
    """
    now = estimate_memory(plan, model, hardware).device.expected
    possible = (p for p in _milder_first(plan) if get_method(p.method).refusal(model, p) is None)
    return next((p for p in possible if estimate_memory(p, model, hardware).device.expected < now), None)


def _milder_first(plan: Plan) -> Iterator[Plan]:
    micro = plan.micro_batch_size
    sequences = micro * plan.gradient_accumulation_steps
    if micro > 1:
        half = next(n for n in range(micro // 2, 0, -1) if sequences % n == 0)
        yield plan.replace(micro_batch_size=half, gradient_accumulation_steps=sequences // half)
    if plan.gradient_checkpointing == "none":
        yield plan.replace(gradient_checkpointing="full")


def take_safer_plan(folder: Path, state: RunState) -> PlanChange | None:
    """Write the project anew for the next safer plan, and record the step in plan.json; None: there is none left.

    Raises:
        AdviseError: the project cannot be rewritten, as it was edited by hand.
    """
    run = load_run_file(folder)
    model = resolve_model(run.source.model_ref if run.source else run.plan.model)
    plan = safer_plan(run.plan, model, resolve_hardware(run.plan.gpu, None, run.plan.n_gpus))
    if plan is None:
        return None
    change = PlanChange(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        reason=state.message,
        step=state.step,
        changes=_differences(run.plan, plan),
    )
    rewrite_project(folder, plan, change)
    return change


def describe_change(change: PlanChange) -> str:
    """In one line."""
    told = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in change.changes.items())
    return f"{change.reason}; the next safer plan: {told}"


def _differences(before: Plan, after: Plan) -> dict[str, tuple[Any, Any]]:
    fields = type(before).model_fields
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in fields}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}
