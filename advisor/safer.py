"""Out of memory: the next safer plan, which learns the same from less memory."""

import re
from collections.abc import Iterator
from pathlib import Path

from advisor.emit.base import PlanChange
from advisor.facts import resolve_model
from advisor.hardware import resolve_hardware
from advisor.launch.folder import RunState, load_run_file
from advisor.plan_changes import change_plan, describe_changes
from advisor.project import rewrite_project
from advisor.remedies import checkpointing, smaller_micro_batches
from estimators.answer import MemoryEstimate
from estimators.memory import estimate_memory
from estimators.methods import get_method
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.units import GIB, KIB, MIB

UNITS = {"bytes": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}
SIZE = r"([\d.]+) (bytes|[KMG]iB)"
# torch 2.13's message (c10/cuda/CUDACachingAllocator.cpp): what was asked for, what was left, what the process held.
CUDA_MESSAGE = re.compile(
    f"Tried to allocate {SIZE}.*? of which {SIZE} is free.*?this process has {SIZE} memory in use"
)


def available_share(message: str) -> float:
    """What the process could have had over what it needed at least, as CUDA's message says; 1 where none does."""
    found = CUDA_MESSAGE.search(message)
    if found is None:
        return 1.0
    numbers = found.groups()
    wanted, free, held = (float(numbers[i]) * UNITS[numbers[i + 1]] for i in (0, 2, 4))
    return min(1.0, (held + free) / (held + wanted)) if held + wanted else 1.0


def safer_plan(plan: Plan, model: ModelSpec, hardware: Hardware, message: str = "") -> Plan | None:
    """The mildest change that surely takes less and keeps the sequences of a step; None if there is none left. Pure.

    The estimate of the plan that ran out of memory was too low, by an unknown factor: what it needs is more than was
    there. Under the same factor another plan fits if the high end of its estimate is no more than what was expected of
    this one, less the share that was missing by `message`. Where none is that small, the smallest is tried.

    A smaller micro-batch costs little time, checkpointing about a third of it: so it comes second. Lengths, rank and
    precision stay: they change what is learned.
    """
    now = estimate_memory(plan, model, hardware)
    limit = ceiling(now, message)
    smallest, least = None, now.device.expected
    for safer in _milder_first(plan):
        if get_method(safer.method).refusal(model, safer) is not None:
            continue
        needs = estimate_memory(safer, model, hardware).device
        if needs.high <= limit:
            return safer
        if needs.expected < least:
            smallest, least = safer, needs.expected
    return smallest


def ceiling(memory: MemoryEstimate, message: str = "") -> float:
    """Bytes that estimates stay below on a card where the plan with the estimate `memory` ran out of memory."""
    return min(memory.device.expected * available_share(message), memory.budget)


def _milder_first(plan: Plan) -> Iterator[Plan]:
    """Half the micro-batch, a quarter, ...; then all of these with checkpointing."""
    halves = [plan, *_halves(plan)]
    yield from halves[1:]
    yield from (saving for half in halves for saving in checkpointing(half))


def _halves(plan: Plan) -> Iterator[Plan]:
    micro = plan.micro_batch_size
    for smaller in smaller_micro_batches(plan):
        if smaller.micro_batch_size <= micro // 2:
            micro = smaller.micro_batch_size
            yield smaller


def take_safer_plan(folder: Path, state: RunState) -> PlanChange | None:
    """Write the project anew for the next safer plan, and record the step in plan.json; None: there is none left.

    Raises:
        AdviseError: the project cannot be rewritten, as it was edited by hand.
    """
    run = load_run_file(folder)
    model = resolve_model(run.source.model_ref if run.source else run.plan.model)
    plan = safer_plan(run.plan, model, resolve_hardware(run.plan.gpu, None, run.plan.n_gpus), state.message)
    if plan is None:
        return None
    change = change_plan(run.plan, plan, reason=state.message, step=state.step)
    rewrite_project(folder, plan, change)
    return change


def describe_change(change: PlanChange) -> str:
    """In one line."""
    return f"{change.reason}; the next safer plan: {describe_changes(change)}"
