"""The smallest change that makes a plan fit: first what trains the same, then what costs time, quality or money."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from advisor.assess import SEQ_LEN_STEP
from advisor.axes import PACKED_TASKS
from estimators.answer import Estimate
from estimators.methods import get_method
from profiles.errors import AdviseError
from profiles.plan import MOST_COUNT, QUANTIZED, Plan

Judge = Callable[[Plan], Estimate]
MOST_REMEDIES = 3
SHORTEST = 256  # tokens; below it the question is another model, not another length
DEFAULT_RANK = 16


class Remedy(NamedTuple):
    """A plan that fits, what the change costs, and its estimate."""

    plan: Plan
    cost: str
    estimate: Estimate


class _Step(NamedTuple):
    """One kind of change: the plans that it makes, the mildest first, and what it costs."""

    plans: Callable[[Plan], Iterator[Plan]]
    cost: str


def find_remedies(plan: Plan, judge: Judge) -> tuple[Remedy, ...]:
    """Single changes after which `plan` fits, the mildest first; where no single one is enough, what they add up to.

    Shorter sequences see less of the data: they are named beside the others, or on top of all. `judge`: the estimate of
    a plan; an AdviseError means that it cannot exist.
    """
    singles = (_first_that_fits(step.plans(plan), step.cost, judge) for step in STEPS)
    found = list(islice((remedy for remedy in singles if remedy is not None), MOST_REMEDIES))
    found = found or list(_together(plan, (*STEPS, SHORTER), judge))
    alone = _first_that_fits(SHORTER.plans(plan), SHORTER.cost, judge)
    return tuple(found if alone is None else [*found, alone])


def _together(plan: Plan, steps: Sequence[_Step], judge: Judge) -> Iterator[Remedy]:
    """The changes on top of each other, each at its strongest, until it fits."""
    costs: list[str] = []
    for step in steps:
        costs.append(step.cost)
        remedy = _first_that_fits(step.plans(plan), "; ".join(dict.fromkeys(costs)), judge)
        if remedy is not None:
            yield remedy
            return
        possible = [changed for changed in step.plans(plan) if _try(changed, "", judge) is not None]
        if possible:
            plan = possible[-1]
        else:
            costs.pop()


def _first_that_fits(plans: Iterable[Plan], cost: str, judge: Judge) -> Remedy | None:
    trials = (_try(plan, cost, judge) for plan in plans)
    return next((t for t in trials if t is not None and t.estimate.memory.verdict == "fits"), None)


def _try(plan: Plan, cost: str, judge: Judge) -> Remedy | None:
    try:
        return Remedy(plan, cost, judge(plan))
    except AdviseError:
        return None


def smaller_micro_batches(plan: Plan) -> Iterator[Plan]:
    """The same batch in smaller pieces."""
    whole = plan.micro_batch_size * plan.gradient_accumulation_steps
    for size in range(plan.micro_batch_size - 1, 0, -1):
        if whole % size == 0 and whole // size <= MOST_COUNT:
            yield plan.replace(micro_batch_size=size, gradient_accumulation_steps=whole // size)


def checkpointing(plan: Plan) -> Iterator[Plan]:
    """Layers keep their input alone."""
    if plan.gradient_checkpointing == "none":
        yield plan.replace(gradient_checkpointing="full" if plan.platform != "unsloth" else "unsloth")


def fused_loss(plan: Plan) -> Iterator[Plan]:
    """The loss without all logits: Liger's is of next tokens, so preference training is left as it is."""
    if plan.task not in PACKED_TASKS:
        return
    if plan.loss_kernel == "full" or (plan.loss_kernel is None and plan.platform == "llamafactory"):
        yield plan.replace(loss_kernel="chunked")


def sharding(plan: Plan) -> Iterator[Plan]:
    """Weights and states split over the cards that are there."""
    if plan.sharding == "ddp" and plan.platform != "unsloth":
        yield plan.replace(sharding="zero3" if plan.platform == "llamafactory" else "fsdp2")


def half_base(plan: Plan) -> Iterator[Plan]:
    """16 bits for what was stored, or multiplied, in 32."""
    if plan.quantization == "fp32":
        yield plan.replace(quantization="bf16", compute_dtype=None)
    elif plan.compute_dtype == "fp32":
        yield plan.replace(compute_dtype="bf16")


def small_states(plan: Plan) -> Iterator[Plan]:
    """8-bit optimizer states, where all weights have some."""
    if get_method(plan.method).trains_base and plan.optimizer.startswith("adamw_torch"):
        yield plan.replace(optimizer="adamw_8bit")
        yield plan.replace(optimizer="paged_adamw_8bit")


def four_bit_base(plan: Plan) -> Iterator[Plan]:
    """QLoRA in place of LoRA."""
    if plan.method in ("lora", "dora", "rslora", "loraplus") and plan.quantization not in QUANTIZED:
        yield plan.replace(quantization="nf4-dq", method="qlora" if plan.method == "lora" else plan.method)


def adapters(plan: Plan) -> Iterator[Plan]:
    """LoRA in place of all weights, then QLoRA."""
    if get_method(plan.method).trains_base:
        same = {"optimizer": "adamw_torch_fused", "lora_rank": DEFAULT_RANK, "target_modules": ("all-linear",)}
        yield plan.replace(method="lora", **same)
        yield plan.replace(method="qlora", quantization="nf4-dq", **same)


def shorter(plan: Plan) -> Iterator[Plan]:
    """Three quarters, a half, ... of the length."""
    length = plan.seq_len
    while length > SHORTEST:
        length = max(SHORTEST, length * 3 // 4 // SEQ_LEN_STEP * SEQ_LEN_STEP)
        yield plan.replace(seq_len=length)


STEPS = (
    _Step(smaller_micro_batches, "trains the same"),
    _Step(fused_loss, "trains the same"),
    _Step(checkpointing, "trains the same, about a third more work"),
    _Step(half_base, "16 bits instead of 32"),
    _Step(sharding, "trains the same, more traffic between the cards"),
    _Step(small_states, "optimizer states in 8 bits"),
    _Step(four_bit_base, "the base in 4 bits: slower, a little less exact"),
    _Step(adapters, "an adapter instead of all weights"),
)
SHORTER = _Step(shorter, "longer examples are cut")
