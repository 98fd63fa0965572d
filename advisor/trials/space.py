"""What `ftadvise tune` looks for in a plan: learning rate, rank and alpha, as far as its method has them."""

from collections.abc import Iterator
from typing import Any

from advisor.emit import Source, emitters
from advisor.emit.defaults import learning_rate
from advisor.emit.peft_config import WORDS, peft_config
from advisor.hardware import resolve_hardware
from estimators.memory import estimate_memory
from estimators.methods import get_method
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.record import Record

RATE_FACTOR = 10.0  # the learning rate is looked for from a tenth of the plan's to ten times it
HIGHEST_RATE = 1.0
RANKS = (4, 8, 16, 32, 64, 128)
ALPHAS = (0.5, 1.0, 2.0, 4.0)  # over the rank, so that the update's scale is the same at every rank


class Space(Record):
    """Bounds of the learning rate, and the values of the others; no ranks, no alphas: the method has none.

    start: the plan's own settings, the first to be tried.
    """

    rates: tuple[float, float]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    start: dict[str, float]


def space_of(plan: Plan, source: Source, model: ModelSpec) -> Space:
    """The space around a plan: ranks that fit on its card by the estimate, and that its platform can express."""
    rate = learning_rate(plan, model)
    words = WORDS.get(get_method(plan.method).peft_type or "")
    start: dict[str, float] = {"learning_rate": rate}
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    if get_method(plan.method).uses_rank:
        ranks = tuple(_possible_ranks(plan, source, model))
        start["lora_rank"] = plan.lora_rank
    if words is not None and words.alpha is not None:
        own = (peft_config(plan, model) or {})[words.alpha] / plan.lora_rank
        alphas = tuple(sorted({*ALPHAS, own}))
        start["alpha_over_rank"] = own
    highest = max(rate, min(HIGHEST_RATE, rate * RATE_FACTOR))
    return Space(rates=(rate / RATE_FACTOR, highest), ranks=ranks, alphas=alphas, start=start)


def _possible_ranks(plan: Plan, source: Source, model: ModelSpec) -> Iterator[int]:
    hardware = resolve_hardware(plan.gpu, None, plan.n_gpus)
    for rank in sorted({*RANKS, plan.lora_rank}):
        other = apply_settings(plan, {"lora_rank": rank})
        refusal = get_method(plan.method).refusal(model, other) or emitters()[plan.platform].refusal(
            other, model, source
        )
        fits = refusal is None and estimate_memory(other, model, hardware).verdict == "fits"
        if fits or rank == plan.lora_rank:
            yield rank


def apply_settings(plan: Plan, settings: dict[str, Any]) -> Plan:
    """The plan with what a trial chose; alpha stays in its proportion to the rank where only that is chosen."""
    rank = int(settings.get("lora_rank", plan.lora_rank))
    ratio = None if plan.lora_alpha is None else plan.lora_alpha / plan.lora_rank
    ratio = settings.get("alpha_over_rank", ratio)
    return plan.replace(
        learning_rate=settings.get("learning_rate", plan.learning_rate),
        lora_rank=rank,
        lora_alpha=None if ratio is None else ratio * rank,
    )
