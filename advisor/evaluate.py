"""Cell -> Candidate: the plan that the search chose inside it, with its whole estimate and why it is as it is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from advisor.axes import Axes, axes_of
from advisor.plans import Cell, draft_plan, drop
from advisor.recommendation import Candidate, Dropped, Facts, RunCost
from advisor.request import Request
from advisor.search import Level, Point, Search, Trial
from estimators.answer import MemoryEstimate, SpeedEstimate
from estimators.cost import checkpoint_size, cost_usd, run_length
from estimators.memory import estimate_memory
from estimators.methods import get_method
from estimators.plan_figures import Figures, PlanFigures, plan_of
from estimators.throughput import estimate_speed
from profiles.catalog import get_optimizer
from profiles.errors import UnsupportedError
from profiles.plan import Plan
from profiles.quality import find_quality
from profiles.scheme import DTYPE_BYTES
from profiles.units import HOUR, bytes_from_gib, format_bytes, format_duration, gib_from_bytes

STATES = frozenset({"gradients", "optimizer_states"})
WEIGHTS = frozenset({"base_weights", "adapter_weights"})
CHECKPOINTS_KEPT = 2  # save_total_limit of the emitted projects
HALF = 2  # bytes a parameter of the weights as they are downloaded
LOW_HEADROOM = 0.05  # share of the budget above the high end of the estimate

if TYPE_CHECKING:
    from profiles.calibration import Calibration


def evaluate_cell(cell: Cell, request: Request, facts: Facts, axes: Axes | None = None) -> Candidate | Dropped:
    """Choose a plan of the inner axes (None: nothing conceded) of a cell that passed the rules, and estimate it."""
    draft = draft_plan(cell, request, facts)
    search = Search(cell, axes or axes_of(cell, request, facts), request, facts, figures_of(draft, facts))
    try:
        over: Dropped | None = None
        for level in search.levels():
            too_much: set[tuple[int, bool]] = set()  # cards and packing: alike in these, a dearer plan is over too
            for trial in level.trials:
                alike = trial.point.spread.n_gpus, trial.point.body.packing
                if alike in too_much:
                    continue
                candidate = _complete(_plan(draft, trial.point), facts)
                limited = _over_limit(candidate, cell, request) or _over_storage(candidate, cell, request, facts)
                if limited is None:
                    choices = tuple(explain_choices(trial, level, search, candidate, facts))
                    return _with_safe_allocator(candidate.model_copy(update={"choices": choices}), facts)
                over = over or limited
                too_much.add(alike)
        return over or _drop_for_memory(cell, _least_demanding(draft, search, facts))
    except UnsupportedError as error:
        return drop(cell, "estimator", error.message)


def figures_of(draft: Plan, facts: Facts) -> Figures:
    """The figures of the draft's plans on the facts' hardware."""
    calibration = cast("Calibration | None", facts.calibration)
    return PlanFigures(draft, facts.model, facts.hardware, calibration=calibration, lengths=facts.lengths)


def evaluate_plan(plan: Plan, facts: Facts) -> Candidate:
    """Estimate a plan as it stands.

    Raises:
        UnsupportedError: it cannot exist.
    """
    return _complete(plan, facts)


def _with_safe_allocator(candidate: Candidate, facts: Facts) -> Candidate:
    """Where little memory is left, expandable segments keep the allocator from splitting it up."""
    if candidate.headroom >= LOW_HEADROOM or facts.hardware.gpu.vendor not in ("NVIDIA", "unnamed"):
        return candidate
    plan = candidate.plan.replace(expandable_segments=True)
    memory = estimate_memory(plan, facts.model, facts.hardware)
    choice = "expandable segments are on: little memory is left, and the allocator must not split it up"
    return candidate.model_copy(update={"plan": plan, "memory": memory, "choices": (*candidate.choices, choice)})


def _plan(draft: Plan, point: Point) -> Plan:
    return plan_of(
        draft, point.body, point.spread, micro_batch_size=point.micro_batch_size, accumulation=point.accumulation
    )


def _least_demanding(draft: Plan, search: Search, facts: Facts) -> MemoryEstimate:
    """The memory of what gives up most, at its smallest micro-batch."""
    for offload, seq_len, targets, rank, optimizer in reversed(list(search.axes.levels())):
        points = [
            Point(body, spread, *search.sizes(body, spread)[0])
            for spread in search.spreads(optimizer=optimizer, offload=offload)
            for body in search.bodies(seq_len=seq_len, targets=targets, rank=rank)
        ]
        if points:
            found = [estimate_memory(_plan(draft, point), facts.model, facts.hardware) for point in points]
            return min(found, key=lambda memory: memory.device.high)
    raise UnsupportedError("no sharding over several cards exists for this base")


def explain_choices(best: Trial, level: Level, search: Search, candidate: Candidate, facts: Facts) -> Iterator[str]:
    """Why the plan is as it is, axis by axis, in sentences."""
    body, spread, size, _ = best.point
    axes, request = search.axes, search.request
    alike = [t for t in level.trials if t.point.spread == spread and t.point.body.packing == body.packing]
    fitting = sorted({t.point.micro_batch_size for t in alike if t.point.body == body})
    yield _explain_size(size, fitting, level.sizes, body.packing)
    if len(axes.checkpointings) > 1:
        yield _explain_checkpointing(best, alike, level.sizes)
    if body.packing and request.packing is None:
        yield "packing is on: several examples share a row, and no row is padded"
    if spread.n_gpus < search.facts.hardware.n_gpus:
        yield f"{spread.n_gpus} of {search.facts.hardware.n_gpus} cards: more of them cost more for each token"
    if body.target_modules != axes.target_modules[0]:
        yield f"adapters on {', '.join(body.target_modules)} only: on all linear layers nothing fits"
    if body.lora_rank != axes.lora_ranks[0]:
        yield f"rank {body.lora_rank}: with rank {axes.lora_ranks[0]} nothing fits"
    if spread.optimizer != axes.optimizers[0]:
        yield f"optimizer {spread.optimizer}: the states of {axes.optimizers[0]} fit in no way"
    if spread.offload:
        needs = format_bytes(main_memory(candidate.plan, facts))
        what = "optimizer states lie" if spread.sharding == "zero2" else "weights and states lie"
        yield f"{what} in main memory ({needs} of it), which is slow: without that nothing fits"


def _explain_size(size: int, fitting: list[int], sizes: tuple[int, ...], packing: bool) -> str:
    if packing:
        return f"micro-batch {size}: packed rows come one by one, since the mask of their documents grows with both"
    if len(sizes) == 1:
        return f"micro-batch {size} as asked for"
    if size < fitting[-1]:
        return (
            f"micro-batch {size}: larger ones up to {fitting[-1]} fit too, but are slower by the estimate "
            "(unequal lengths are padded and masked)"
        )
    if size == sizes[-1]:
        return f"micro-batch {size} is the whole batch: nothing is accumulated"
    return f"micro-batch {size} is the largest of {', '.join(map(str, sizes))} that fits so"


def _explain_checkpointing(best: Trial, alike: list[Trial], sizes: tuple[int, ...]) -> str:
    """`alike`: sorted by cost. Checkpointing was timed only for micro-batches that do not fit without."""
    plain = next((t for t in alike if t.point.body.gradient_checkpointing == "none"), None)
    saving = next((t for t in alike if t.point.body.gradient_checkpointing != "none"), None)
    if plain is None:
        return "gradient checkpointing is on: without it no micro-batch fits"
    if saving is None:
        tried = {t.point.micro_batch_size for t in alike}
        reason = (
            "every micro-batch fits without it" if tried == set(sizes) else "it would let no larger micro-batch fit"
        )
        return f"gradient checkpointing is off: {reason}"
    pair = f"micro-batch {saving.point.micro_batch_size} with it, {plain.point.micro_batch_size} without"
    other, state = (plain, "on") if best is saving else (saving, "off")
    if not best.cost:
        return f"gradient checkpointing is {state}: it would only recompute ({pair})"
    return f"gradient checkpointing is {state}: {pair}; the other way is {other.cost / best.cost - 1:.0%} slower"


def _complete(plan: Plan, facts: Facts) -> Candidate:
    speed = estimate_speed(
        plan,
        facts.model,
        facts.hardware,
        calibration=cast("Calibration | None", facts.calibration),
        lengths=facts.lengths,
    )
    quality = find_quality(plan.method, plan.quantization, kind=facts.model.kind, task=plan.task)
    return Candidate.model_construct(
        plan=plan,
        memory=estimate_memory(plan, facts.model, facts.hardware),
        speed=speed,
        run=_run_cost(plan, speed, facts),
        quality=quality,
    )


def _run_cost(plan: Plan, speed: SpeedEstimate | None, facts: Facts) -> RunCost | None:
    """The run over what is trained: examples not held out, and general ones. None where data or speed are unknown."""
    data = facts.data
    if speed is None or data.examples is None or data.mean_len is None:
        return None
    trained = max(1, data.examples - round(data.examples * plan.eval_fraction))
    trained = round(trained / (1 - plan.replay_share))
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


def main_memory(plan: Plan, facts: Facts) -> float:
    """Bytes of main memory that hold what is offloaded from all cards."""
    if not plan.offload_optimizer:
        return 0.0
    moved = STATES | WEIGHTS if plan.offload_parameters else STATES
    kept = plan.model_copy(update={"offload_parameters": False, "offload_optimizer": False})
    phase = estimate_memory(kept, facts.model, facts.hardware).phases[-1]
    return plan.n_gpus * sum(c.n_bytes for c in phase.components if c.name in moved)


def disk_bytes(plan: Plan, facts: Facts) -> float:
    """The downloaded model, two checkpoints that training can go on from, and what is exported in the end."""
    method, optimizer = get_method(plan.method), get_optimizer(plan.optimizer)
    itemsize = DTYPE_BYTES.get(plan.quantization, HALF)
    size = checkpoint_size(plan, facts.model, method, optimizer, trained_itemsize=itemsize if method.trains_base else 4)
    return facts.model.parameters * HALF + CHECKPOINTS_KEPT * size.resume + size.weights


def _over_storage(candidate: Candidate, cell: Cell, request: Request, facts: Facts) -> Dropped | None:
    """Main memory for what is offloaded, disk for what is downloaded and saved; where the request names a limit."""
    needs_ram, needs_disk = main_memory(candidate.plan, facts), disk_bytes(candidate.plan, facts)
    for rule, needs, limit in (
        ("main-memory", needs_ram, request.ram_gib),
        ("disk", needs_disk, request.disk_gib),
    ):
        if limit is not None and needs > bytes_from_gib(limit):
            reason = f"needs {format_bytes(needs)} of {rule.replace('-', ' ')}; the limit is {limit:g} GiB"
            return drop(cell, rule, reason, times_limit=needs / bytes_from_gib(limit))
    return None


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
