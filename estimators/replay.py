"""Reserved memory, analytic tier: two whole steps on the tape, every allocation through a model of the allocator.

`memory.py` needs one layer of each kind; fragmentation depends on the order of everything, so here all layers run, load
and optimizer states included. Tens of milliseconds, no torch.
"""

from dataclasses import dataclass
from typing import Any

from estimators.allocator import CachingAllocator, DeviceOutOfMemoryError
from estimators.answer import Component, MemoryEstimate
from estimators.batches import Batches, optimizer_steps
from estimators.interval import Interval
from estimators.margins import allocated_interval, is_sharded, replayed_interval
from estimators.memory import estimate_memory, memory_model
from estimators.overhead import context_bytes, device_interval
from estimators.replay_load import load_model
from estimators.replay_run import ReplayedRun
from estimators.replay_tape import ReplayTape
from estimators.vector_sum import resident_threads
from profiles.gpu import GpuSpec, Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan

DISTINCT = 2  # micro-batches of a step: without gradients and with


@dataclass(frozen=True, slots=True)
class Replay:
    """Peaks over load and two steps, in bytes. rounding: what the blocks have above what was asked for."""

    allocated: int
    reserved: int
    rounding: int


def estimate_memory_replayed(
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    *,
    batches: Batches = (),
    release_outputs: bool = False,
    empty_cache: bool = False,
    moved: bool = False,
) -> MemoryEstimate:
    """The analytic estimate with reserved memory from a replay instead of a fitted share, and with the rounding of the
    allocator's blocks, where each card holds the whole model.

    batches, release_outputs, empty_cache, moved: as in `replay`.

    Raises:
        UnsupportedError, InvalidInputError: as estimate_memory.
    """
    estimate = estimate_memory(plan, model, hardware)
    offloads = plan.offload_optimizer or plan.offload_parameters
    if is_sharded(plan) or offloads or hardware.gpu.vendor == "CPU":
        return estimate
    loop: dict[str, Any] = {
        "batches": batches, "release_outputs": release_outputs, "empty_cache": empty_cache, "moved": moved
    }  # fmt: skip
    found = replay(plan, model, hardware.gpu, **loop)
    regime = memory_model(plan, model, hardware.gpu).regime
    floor = allocated_interval(estimate.allocated.expected + found.rounding, plan, regime, "analytic")
    reserved = replayed_interval(float(found.reserved), floor, plan, regime, "analytic")
    if plan.sharding == "ddp":  # two published runs check it, none what NCCL takes beside torch
        reserved = reserved.replace(high=max(reserved.high, estimate.reserved.high))
    most = estimate.budget - context_bytes(hardware.gpu).high
    if floor.high <= most < reserved.high and _runs_within(
        plan, model, hardware.gpu, most * floor.expected / floor.high, loop
    ):
        reserved = Interval(low=min(reserved.low, most), expected=min(reserved.expected, most), high=most)
    said = "reserved memory: two whole steps replayed through a model of the caching allocator"
    rounding = Component(name="rounding", n_bytes=float(found.rounding))
    return estimate.replace(
        phases=tuple(
            p.replace(components=(*p.components, rounding)) if p.name == estimate.peak_phase and found.rounding else p
            for p in estimate.phases
        ),
        allocated=floor,
        reserved=reserved,
        device=device_interval(reserved, hardware.gpu),
        assumptions=(*estimate.assumptions, said),
    )


def _runs_within(plan: Plan, model: ModelSpec, gpu: GpuSpec, limit: float, loop: dict[str, Any]) -> bool:
    try:
        replay(plan, model, gpu, limit=int(limit), **loop)
    except DeviceOutOfMemoryError:
        return False
    return True


def replay(
    plan: Plan,
    model: ModelSpec,
    gpu: GpuSpec,
    *,
    batches: Batches = (),
    limit: int | None = None,
    release_outputs: bool = False,
    empty_cache: bool = False,
    moved: bool = False,
) -> Replay:
    """Load the model, then run two equal steps of `plan`, or those of `batches`, on one card that holds all of it.

    batches: (rows, padded length) of each micro-batch. empty_cache: the loop gives cached segments back after each
    step. moved: the model was loaded elsewhere and moved to the card. release_outputs: each step is a function of its
    own, so that outputs that are kept through backward go at its end.
    With a `limit` on what can be reserved the allocator gives cached segments back before it fails, as CUDA's does.

    Raises:
        UnsupportedError, InvalidInputError: as estimate_memory.
        DeviceOutOfMemoryError: it does not run within the limit.
    """
    allocator = CachingAllocator(limit=limit, expandable_segments=plan.expandable_segments)
    tape, memory = ReplayTape(allocator, 0, resident_threads(gpu)), memory_model(plan, model, gpu)
    load_model(tape, plan, memory, moved=moved)
    run = ReplayedRun(tape, plan, memory)
    if run.regime.evaluates_logits:
        run.evaluate()
    for step, micro_batches in enumerate(optimizer_steps(plan, batches, distinct=DISTINCT)):
        for rows, length in micro_batches:
            own = plan.replace(micro_batch_size=rows, seq_len=length, mean_len=None) if batches else plan
            run.take_batch(own, memory_model(own, model, gpu))
            run.forward_and_backward()
        run.update(first=step == 0)
        if release_outputs:
            run.drop_outputs()
        if empty_cache:
            allocator.empty_cache()
    if run.regime.evaluates_logits:
        run.evaluate()
    return Replay(
        allocated=allocator.peak_allocated,
        reserved=allocator.peak_reserved,
        rounding=allocator.peak_allocated - allocator.peak_requested,
    )
