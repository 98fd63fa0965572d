"""Cell -> Candidate: the fastest micro-batch that fits, and of the ways to checkpoint the faster one.

The searches rest on three orders, which property tests of the estimators hold: memory rises with the micro-batch,
checkpointing adds work and never adds memory, and without padding a larger micro-batch is never slower.
"""

from typing import TYPE_CHECKING, NamedTuple, cast

from advisor.plans import Cell, accumulation, checkpointings, draft_plan, drop, micro_batches, optimizers, shardings
from advisor.recommendation import Candidate, Dropped, Facts, RunCost
from advisor.request import Request
from estimators.answer import MemoryEstimate, SpeedEstimate
from estimators.memory import estimate_memory
from estimators.throughput import estimate_speed
from profiles.errors import UnsupportedError
from profiles.plan import Plan
from profiles.quality import find_quality
from profiles.units import HOUR, format_bytes, format_duration, gib_from_bytes

LOW_HEADROOM = 0.05  # share of the budget above the high end of the estimate

if TYPE_CHECKING:
    from profiles.calibration import Calibration


def evaluate_cell(cell: Cell, request: Request, facts: Facts) -> Candidate | Dropped:
    """Choose the inner axes of a cell that passed the rules, and estimate it."""
    search = _Search(cell, request, facts)
    try:
        candidate = search.run()
    except UnsupportedError as error:
        return drop(cell, "estimator", error.message)
    if candidate is None:
        assert search.smallest is not None  # a search that found nothing has tried something
        return _drop_for_memory(cell, search.smallest)
    return _over_limit(candidate, cell, request) or _with_safe_allocator(candidate, facts)


def evaluate_plan(plan: Plan, facts: Facts) -> Candidate:
    """Estimate a plan as it stands.

    Raises:
        UnsupportedError: it cannot exist.
    """
    memory = estimate_memory(plan, facts.model, facts.hardware)
    return _complete(plan, memory, facts)


def _with_safe_allocator(candidate: Candidate, facts: Facts) -> Candidate:
    """Where little memory is left, expandable segments keep the allocator from splitting it up."""
    if candidate.headroom >= LOW_HEADROOM or facts.hardware.gpu.vendor not in ("NVIDIA", "unnamed"):
        return candidate
    plan = candidate.plan.replace(expandable_segments=True)
    memory = estimate_memory(plan, facts.model, facts.hardware)
    choice = "expandable segments are on: little memory is left, and the allocator must not split it up"
    return candidate.model_copy(update={"plan": plan, "memory": memory, "choices": (*candidate.choices, choice)})


class _Fitting(NamedTuple):
    """The index of a micro-batch that fits, and its memory."""

    size_index: int
    memory: MemoryEstimate


class _Search:
    """Walks the inner axes of one cell. `smallest` is the memory of the least demanding plan that was tried."""

    def __init__(self, cell: Cell, request: Request, facts: Facts) -> None:
        self.cell, self.request, self.facts = cell, request, facts
        self.sizes = micro_batches(request, facts)
        self.smallest: MemoryEstimate | None = None

    def run(self) -> Candidate | None:
        draft = draft_plan(self.cell, self.request, self.facts)
        for optimizer in optimizers(self.cell):
            for sharding in shardings(self.facts):
                variant = draft.replace(sharding=sharding, optimizer=optimizer)
                found = self._fastest(variant)
                if found is not None:
                    return found
        return None

    def _fastest(self, draft: Plan) -> Candidate | None:
        """The faster of no checkpointing and checkpointing, each at its largest micro-batch."""
        plain = self._largest_fitting(draft)
        saving_draft = draft.replace(gradient_checkpointing=checkpointings(self.cell)[-1])
        if saving_draft == draft:
            return None if plain is None else self._fastest_size(draft, plain)
        if plain is not None and plain.size_index == len(self.sizes) - 1:
            choice = "gradient checkpointing is off: every micro-batch fits without it"
            return self._with_choice(self._fastest_size(draft, plain), choice)
        saving = self._largest_fitting(saving_draft, known=plain)
        if saving is None:
            return None
        candidate = self._fastest_size(saving_draft, saving)
        if plain is None:
            return self._with_choice(candidate, "gradient checkpointing is on: without it no micro-batch fits")
        other = self._fastest_size(draft, plain)
        return self._with_choice(min(candidate, other, key=_step_seconds), _compare(candidate, other))

    def _fastest_size(self, draft: Plan, largest: _Fitting) -> Candidate:
        """Of the micro-batches up to the largest that fits, the fastest: padding can make that a smaller one."""
        padded = self.facts.lengths is not None or self.facts.data.mean_len is not None
        indices = range(largest.size_index + 1) if padded else (largest.size_index,)
        found = [self._candidate(draft, index, largest) for index in indices]
        best = min(reversed(found), key=_step_seconds)
        tried = ", ".join(map(str, self.sizes))
        size, most = best.plan.micro_batch_size, self.sizes[largest.size_index]
        if len(self.sizes) == 1:
            choice = f"micro-batch {size} as asked for"
        elif size < most:
            choice = (
                f"micro-batch {size}: larger ones up to {most} fit too, but are slower by the estimate "
                "(unequal lengths are padded and masked)"
            )
        elif size == self.sizes[-1]:
            choice = f"micro-batch {size} is the whole batch: nothing is accumulated"
        else:
            choice = f"micro-batch {size} is the largest of {tried} that fits so"
        return self._with_choice(best, choice)

    def _largest_fitting(self, draft: Plan, known: _Fitting | None = None) -> _Fitting | None:
        """Bisect over the micro-batches. `known`: what a more demanding plan fits at, so that this one does as well."""
        start = known.size_index if known is not None else 0
        memory = self._memory(draft, start)
        if memory.verdict != "fits":
            return None
        best, low, high = _Fitting(start, memory), start + 1, len(self.sizes) - 1
        while low <= high:
            middle = (low + high) // 2
            memory = self._memory(draft, middle)
            if memory.verdict == "fits":
                best, low = _Fitting(middle, memory), middle + 1
            else:
                high = middle - 1
        return best

    def _memory(self, draft: Plan, index: int) -> MemoryEstimate:
        memory = estimate_memory(self._sized(draft, index), self.facts.model, self.facts.hardware)
        if self.smallest is None or memory.device.high < self.smallest.device.high:
            self.smallest = memory
        return memory

    def _sized(self, draft: Plan, index: int) -> Plan:
        size = self.sizes[index]
        steps = accumulation(size, self.request, self.facts)
        return draft.replace(micro_batch_size=size, gradient_accumulation_steps=steps)

    def _candidate(self, draft: Plan, index: int, largest: _Fitting) -> Candidate:
        memory = largest.memory if index == largest.size_index else self._memory(draft, index)
        return _complete(self._sized(draft, index), memory, self.facts)

    def _with_choice(self, candidate: Candidate, choice: str) -> Candidate:
        return candidate.model_copy(update={"choices": (*candidate.choices, choice)})


def _complete(plan: Plan, memory: MemoryEstimate, facts: Facts) -> Candidate:
    speed = estimate_speed(
        plan,
        facts.model,
        facts.hardware,
        calibration=cast("Calibration | None", facts.calibration),
        lengths=facts.lengths,
    )
    quality = find_quality(plan.method, plan.quantization, kind=facts.model.kind, task=plan.task)
    return Candidate.model_construct(
        plan=plan, memory=memory, speed=speed, run=_run_cost(plan, speed, facts), quality=quality
    )


def _step_seconds(candidate: Candidate) -> float:
    """Without a speed the plan with less work wins: the one without checkpointing."""
    if candidate.speed is None:
        return 0.0 if candidate.plan.gradient_checkpointing == "none" else 1.0
    return candidate.speed.step_seconds.expected


def _compare(with_checkpointing: Candidate, without: Candidate) -> str:
    sizes = with_checkpointing.plan.micro_batch_size, without.plan.micro_batch_size
    slow, fast = sorted((with_checkpointing, without), key=_step_seconds, reverse=True)
    state = "on" if fast is with_checkpointing else "off"
    if fast.speed is None or slow.speed is None:
        return f"gradient checkpointing is {state}: it would only recompute (micro-batch {sizes[0]} against {sizes[1]})"
    gain = slow.speed.step_seconds.expected / fast.speed.step_seconds.expected - 1
    return (
        f"gradient checkpointing is {state}: micro-batch {sizes[0]} with it, {sizes[1]} without; "
        f"the other way is {gain:.0%} slower"
    )


def _run_cost(plan: Plan, speed: SpeedEstimate | None, facts: Facts) -> RunCost | None:
    """The run over the examples that are not held out. None where the data or the speed are not known."""
    data = facts.data
    if speed is None or data.examples is None or data.mean_len is None:
        return None
    from estimators.cost import cost_usd, run_length

    trained = max(1, data.examples - round(data.examples * plan.eval_fraction))
    length = run_length(plan, speed, examples=trained, mean_len=data.mean_len)
    usd = cost_usd(length.seconds, n_gpus=plan.n_gpus, price=facts.price) if facts.price is not None else None
    return RunCost.model_construct(steps=length.steps, tokens=length.tokens, seconds=length.seconds, usd=usd)


def _drop_for_memory(cell: Cell, memory: MemoryEstimate) -> Dropped:
    low, high = format_bytes(memory.device.low), format_bytes(memory.device.high)
    reason = (
        f"needs {format_bytes(memory.device.expected)} ({low} to {high}) at its smallest; "
        f"the card offers {format_bytes(memory.budget)}"
    )
    rule = "memory"
    if memory.verdict == "tight":
        rule, reason = "tight", f"{reason}: it may fit, which is not enough to recommend it"
    return drop(cell, rule, reason, needs_gib=gib_from_bytes(memory.device.high))


def _over_limit(candidate: Candidate, cell: Cell, request: Request) -> Dropped | None:
    run = candidate.run
    if run is None:
        return None
    if request.max_hours is not None and run.seconds.expected > request.max_hours * HOUR:
        limit = format_duration(request.max_hours * HOUR)
        reason = f"takes {format_duration(run.seconds.expected)}; the limit is {limit}"
        return drop(cell, "max-hours", reason, times_limit=run.seconds.expected / (request.max_hours * HOUR))
    if request.max_usd is not None and run.usd is not None and run.usd.expected > request.max_usd:
        reason = f"costs {run.usd.expected:.2f} USD; the limit is {request.max_usd:.2f} USD"
        return drop(cell, "max-usd", reason, times_limit=run.usd.expected / request.max_usd)
    return None
