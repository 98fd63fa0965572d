"""What differs between two plans of a project, as its plan.json keeps it."""

from datetime import UTC, datetime

from advisor.emit.base import PlanChange
from profiles.plan import Plan


def change_plan(before: Plan, after: Plan, *, reason: str, step: int) -> PlanChange:
    """The step from one plan to another, made now. step: optimizer steps that were done until then."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in Plan.model_fields}
    return PlanChange(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        reason=reason,
        step=step,
        changes={name: (old, new) for name, (old, new) in pairs.items() if old != new},
    )


def describe_changes(change: PlanChange) -> str:
    """`micro_batch_size 8 -> 4, ...`."""
    return ", ".join(f"{name} {before} -> {after}" for name, (before, after) in change.changes.items())
