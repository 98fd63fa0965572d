"""Replay: a trace through the caching allocator -> allocated and reserved peaks, phase by phase, and what they hold."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import get_args

from estimators.allocator import CachingAllocator, DeviceOutOfMemoryError
from estimators.answer import Component, ComponentName, PhaseName
from estimators.simulate.result import Moment, PhasePeak
from estimators.simulate.trace import Mark, Stage, Storage, Trace

PHASE_OF: dict[Stage, PhaseName] = {
    "load": "load",
    "data": "forward_end",
    "forward": "forward_end",
    "loss": "loss",
    "loss_backward": "loss",
    "backward": "layer_backward",
    "clip": "optimizer_step",
    "optimizer": "optimizer_step",
    "zero": "optimizer_step",
    "evaluation": "evaluation",
}
TIMELINE_POINTS = 400


@dataclass(slots=True)
class _Peak:
    """Highest allocated bytes of a phase so far, and after which event."""

    allocated: int = 0
    reserved: int = 0
    position: int = -1


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found. `after_load`, `end`: allocated bytes before the first step and after the last."""

    phases: tuple[PhasePeak, ...]
    stages: dict[Stage, int]
    peak_allocated: int
    peak_reserved: int
    after_load: int
    end: int
    end_reserved: int
    timeline: tuple[Moment, ...]


def replay(trace: Trace, allocator: CachingAllocator, *, vocab_size: int, empty_cache_every: int = 0) -> Replayed:
    """Run the events of `trace` through `allocator`; empty its cache after every so many steps (0: never).

    Raises:
        DeviceOutOfMemoryError: the allocator has a limit and an event does not fit (the message says where).
    """
    peaks: dict[PhaseName, _Peak] = {}
    stages: dict[Stage, int] = {}
    sizes: list[int] = [0] * len(trace.storages)
    curve: list[tuple[int, PhaseName, int, int]] = []
    after_load = step = 0
    stride = max(1, len(trace.events) // TIMELINE_POINTS)
    for mark, start, end in trace.spans():
        phase = PHASE_OF[mark.stage]
        peak = peaks.setdefault(phase, _Peak())
        if phase != "load" and not after_load:
            after_load = allocator.allocated
        if empty_cache_every and mark.step > step and mark.step % empty_cache_every == 0:
            allocator.empty_cache()
        step = mark.step
        stage_peak = stages.get(mark.stage, 0)
        for position in range(start, end):
            event = trace.events[position]
            if event < 0:
                allocator.free(~event)
            else:
                _allocate(allocator, event, trace.storages[event], mark)
                sizes[event] = allocator.size_of(event)
                if allocator.allocated > peak.allocated:
                    peak.allocated, peak.position = allocator.allocated, position
                if allocator.reserved > peak.reserved:
                    peak.reserved = allocator.reserved
                if allocator.allocated > stage_peak:
                    stage_peak = allocator.allocated
            if position % stride == 0:
                curve.append((mark.step, phase, allocator.allocated, allocator.reserved))
            elif allocator.allocated > curve[-1][2]:  # the highest of each stride
                curve[-1] = (mark.step, phase, allocator.allocated, allocator.reserved)
        if stage_peak:
            stages[mark.stage] = stage_peak
    order: tuple[PhaseName, ...] = get_args(PhaseName)
    found = sorted((name for name, peak in peaks.items() if peak.position >= 0), key=order.index)
    held = _held(trace, sizes, {name: peaks[name].position for name in found}, vocab_size)
    return Replayed(
        phases=tuple(_phase(name, peaks[name], held[name], trace) for name in found),
        stages=stages,
        peak_allocated=allocator.peak_allocated,
        peak_reserved=allocator.peak_reserved,
        after_load=after_load,
        end=allocator.allocated,
        end_reserved=allocator.reserved,
        timeline=tuple(Moment(step=s, phase=p, allocated=a, reserved=r) for s, p, a, r in curve),
    )


def _allocate(allocator: CachingAllocator, index: int, storage: Storage, mark: Mark) -> None:
    try:
        allocator.malloc(index, storage.n_bytes)
    except DeviceOutOfMemoryError as error:
        where = f" in {storage.op} ({mark.stage} of step {mark.step + 1}" + (
            f", layer {mark.layer})" if mark.layer >= 0 else ")"
        )
        raise DeviceOutOfMemoryError(
            error.n_bytes, allocator.allocated, allocator.reserved, allocator.limit or 0, where
        ) from None


def _phase(name: PhaseName, peak: _Peak, held: Counter[ComponentName], trace: Trace) -> PhasePeak:
    storage = trace.storages[trace.events[peak.position]]
    return PhasePeak(
        name=name,
        allocated=peak.allocated,
        reserved=peak.reserved,
        components=tuple(Component(name=n, n_bytes=b) for n, b in held.most_common() if b),
        operation=storage.op,
        module=storage.module,
        layer=storage.layer if storage.layer >= 0 else None,
    )


def _held(
    trace: Trace, sizes: list[int], positions: dict[PhaseName, int], vocab_size: int
) -> dict[PhaseName, Counter[ComponentName]]:
    """Bytes by component that are alive right after each of `positions`."""
    born, died, stage, forward_end = _lives(trace)
    held: dict[PhaseName, Counter[ComponentName]] = {name: Counter() for name in positions}
    names = sorted(positions, key=positions.__getitem__)
    points = [positions[name] for name in names]
    for index, (birth, death) in enumerate(zip(born, died, strict=True)):
        among = names[bisect_left(points, birth) : bisect_left(points, death)]
        if among:
            component = _component(
                trace.storages[index], stage[index], kept=death >= forward_end[index], vocab_size=vocab_size
            )
            for name in among:
                held[name][component] += sizes[index]
    return held


def _lives(trace: Trace) -> tuple[list[int], list[int], list[Stage], list[int]]:
    """Per storage: position of birth and death, stage of birth, and where the forward that it was born in ends."""
    count = len(trace.storages)
    born, died, forward_end = [len(trace.events)] * count, [len(trace.events)] * count, [0] * count
    stage: list[Stage] = ["load"] * count
    ends: list[int] = []
    for mark, start, end in trace.spans():
        if mark.stage == "loss" or not ends:
            ends.append(start)
        for position in range(start, end):
            event = trace.events[position]
            if event < 0:
                died[~event] = position
            else:
                born[event], stage[event], forward_end[event] = position, mark.stage, len(ends)
    ends.append(len(trace.events))
    return born, died, stage, [ends[min(i, len(ends) - 1)] for i in forward_end]


def _component(storage: Storage, stage: Stage, *, kept: bool, vocab_size: int) -> ComponentName:
    if storage.label:
        return storage.label  # type: ignore[return-value]
    if stage in ("clip", "optimizer", "zero"):
        return "optimizer_temporary"
    if stage in ("load", "data"):
        return "other"
    if "dequantize" in storage.op:
        return "dequantized_weights"
    if storage.layer < 0 and storage.width == vocab_size:
        return "logits"
    if stage == "forward":
        return "saved_activations" if kept else "layer_working_set"
    return "layer_working_set" if stage == "backward" else "logits"
